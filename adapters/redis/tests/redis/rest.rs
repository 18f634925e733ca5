//! Connections that have been idle, and what may have become of them meanwhile.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use winddown_redis::{Config, Redis};
use winddown_testkit::{Harness as _, Setup, proxy::Proxy, wire::Wire};

use crate::{
    scene::{
        QUICK, Scene, Speaks as _, abandon_command, assert_nothing_left, config, config_at, redis_8, until, until_open,
    },
    server::{Mode as _, OfItsOwn, SharedByAll},
};

/// With a connection for each checkout, and with one for all.
fn both(config: Config) -> [(Config, u64); 2] {
    let mut setup = Setup::default();
    setup.size = 2;
    [(OfItsOwn::config(config.clone(), &setup), 2), (SharedByAll::config(config, &setup), 1)]
}

pub(crate) async fn a_checkout_without_a_rest_makes_no_round_trip() {
    let server = redis_8().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    for (mut config, sessions) in both(config_at(&server, proxy.address())) {
        config.check_after = Duration::from_secs(600);
        let scene = Scene::new(Redis::new(config));
        drop(scene.out(2).await);
        let before = (proxy.bytes_up(), proxy.bytes_down());
        for _ in 0..100 {
            drop(scene.get().await);
        }
        assert_eq!((proxy.bytes_up(), proxy.bytes_down()), before);
        // They would have been seen.
        scene.ping().await;
        assert!(proxy.bytes_up() > before.0 && proxy.bytes_down() > before.1);
        scene.drain().await.assert_clean(sessions);
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_checkout_after_a_rest_makes_one_round_trip() {
    const AFTER: Duration = Duration::from_millis(700);
    let server = redis_8().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    for (mut config, _) in both(config_at(&server, proxy.address())) {
        config.check_after = AFTER;
        let scene = Scene::new(Redis::new(config));
        drop(scene.out(1).await);
        for _ in 0..3 {
            tokio::time::sleep(AFTER).await;
            let before = proxy.round_trips();
            drop(scene.get().await);
            assert_eq!(proxy.round_trips(), before + 1);
            // It has not been idle since.
            let began = Instant::now();
            drop(scene.get().await);
            assert!(began.elapsed() >= AFTER || proxy.round_trips() == before + 1);
        }
        scene.drain().await.assert_clean(1);
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_network_that_is_cut_holds_a_checkout_up_for_the_check_timeout() {
    // Nobody is asked in vain by a server that answers: it has ten times what a busy machine needs.
    const TIMEOUT: Duration = Duration::from_secs(5);
    let server = redis_8().await;
    for own in [true, false] {
        let proxy = Proxy::start(server.server.address).await.unwrap();
        let mut config = config_at(&server, proxy.address());
        if own {
            config = config.pooled(1);
        }
        config.check_after = Duration::ZERO;
        config.check_timeout = TIMEOUT;
        let scene = Scene::new(Redis::new(config));
        drop(scene.out(1).await);

        proxy.set_blackhole(true);
        let (before, began) = (proxy.accepted(), Instant::now());
        let trying = timeout(QUICK, until("a new connection is tried", || async { proxy.accepted() > before }));
        tokio::select! {
            got = scene.db.get() => panic!("nobody can have answered: {got:?}"),
            tried = trying => tried.unwrap(),
        }
        let took = began.elapsed();
        assert!((TIMEOUT..TIMEOUT + QUICK).contains(&took), "{took:?}");

        // Neither that session nor the one that was being opened stays in the book: nothing is left to wait for.
        until_open(scene.db.resource(), 0).await;
        let gave_up = began.elapsed() - took;
        assert!(gave_up < QUICK, "{gave_up:?}");

        // The way is open again, and the only place is free.
        proxy.set_blackhole(false);
        scene.ping().await;
        scene.drain().await.assert_clean(1);
        drop(proxy);
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_session_that_is_still_busy_is_not_handed_out_again() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::new(config(&server).pooled(1)));
    abandon_command(&server, &scene.db).await;
    let began = Instant::now();
    scene.ping().await;
    assert!(began.elapsed() < QUICK, "it waited with the other one: {:?}", began.elapsed());
    // What its last user has left is given a moment, and then ended.
    until("only the new one is listed", || async { server.sessions().await.unwrap() == 1 }).await;
    until_open(scene.db.resource(), 1).await;
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn one_connection_that_does_not_answer_speaks_for_all_of_its_age() {
    const IDLE: usize = 16;
    let server = redis_8().await;
    let wire = Wire::to(server.server.address).await.unwrap();
    let mut config = config_at(&server, wire.address()).pooled(IDLE);
    config.check_after = Duration::ZERO;
    config.check_timeout = Duration::from_secs(2);
    let scene = Scene::new(Redis::new(config));
    drop(scene.out(IDLE).await);
    assert_eq!(wire.accepted(), IDLE);

    wire.cut();
    let began = Instant::now();
    scene.ping().await;
    assert!(began.elapsed() < QUICK, "{:?}", began.elapsed());
    assert_eq!(wire.accepted(), IDLE + 1);
    scene.drain().await;
    drop(wire);
    server.end().await.unwrap();
}
