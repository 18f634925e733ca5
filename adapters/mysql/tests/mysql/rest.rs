//! Connections that have been idle, and what may have become of them meanwhile.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use winddown_mysql::Mysql;
use winddown_testkit::{Harness as _, proxy::Proxy, wire::Wire};

use crate::{
    scene::{QUICK, Scene, Speaks, assert_nothing_left, config_at, mysql, until},
    server::{MySql, Tenancy},
};

/// How many round trips it takes to make a session what it was.
const TIDIES: u64 = 2;

/// Waits until so many that were given back are as they were, and in the pool again.
async fn tidied_up(scene: &Scene, connections: usize, proxy: &Proxy, round_trips: u64) {
    until("they are tidied up", || async { proxy.round_trips() >= round_trips }).await;
    let pool = scene.db.pool().await.unwrap();
    until("they are in the pool", || async { pool.status().available >= connections }).await;
}

/// So many connections that were used and are idle again.
async fn idle(scene: &Scene, connections: usize, proxy: &Proxy) {
    let out = scene.out(connections).await;
    let before = proxy.round_trips();
    drop(out);
    tidied_up(scene, connections, proxy, before + TIDIES * connections as u64).await;
}

/// A pool of one that is checked at each checkout, and its idle connection, which goes through the proxy.
async fn always_checked(server: &Tenancy<MySql>, check_timeout: Duration) -> (Proxy, Scene) {
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(server, proxy.address());
    config.check_after = Duration::ZERO;
    config.check_timeout = check_timeout;
    config.pool.max_size = 1;
    let scene = Scene::new(Mysql::new(config));
    idle(&scene, 1, &proxy).await;
    (proxy, scene)
}

pub(crate) async fn a_checkout_without_a_rest_makes_no_round_trip() {
    let server = mysql().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address());
    config.check_after = Duration::from_secs(600);
    let scene = Scene::new(Mysql::new(config));
    idle(&scene, 2, &proxy).await;
    for _ in 0..20 {
        let before = (proxy.bytes_up(), proxy.bytes_down());
        let out = (scene.get().await, scene.get().await);
        assert_eq!((proxy.bytes_up(), proxy.bytes_down()), before);
        let before = proxy.round_trips();
        drop(out);
        tidied_up(&scene, 2, &proxy, before + 2 * TIDIES).await;
    }
    scene.drain().await.assert_clean(2);
    server.end().await.unwrap();
}

pub(crate) async fn a_checkout_after_a_rest_makes_one_round_trip() {
    const AFTER: Duration = Duration::from_millis(700);
    let server = mysql().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address());
    config.check_after = AFTER;
    let scene = Scene::new(Mysql::new(config));
    idle(&scene, 1, &proxy).await;
    for _ in 0..3 {
        tokio::time::sleep(AFTER).await;
        let before = proxy.round_trips();
        let out = scene.get().await;
        assert_eq!(proxy.round_trips(), before + 1);
        drop(out);
        tidied_up(&scene, 1, &proxy, before + 1 + TIDIES).await;
        // It has not been idle since.
        let began = Instant::now();
        let out = scene.get().await;
        assert!(began.elapsed() >= AFTER || proxy.round_trips() == before + 1 + TIDIES);
        drop(out);
        tidied_up(&scene, 1, &proxy, before + 1 + 2 * TIDIES).await;
    }
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn a_network_that_is_cut_holds_a_checkout_up_for_the_check_timeout() {
    // Nobody is asked in vain by a server that answers: it has ten times what a busy machine needs.
    const TIMEOUT: Duration = Duration::from_secs(5);
    let server = mysql().await;
    let (proxy, scene) = always_checked(&server, TIMEOUT).await;

    proxy.set_blackhole(true);
    let began = Instant::now();
    let trying = timeout(QUICK, until("a new connection is tried", || async { proxy.accepted() == 2 }));
    tokio::select! {
        got = scene.db.get() => panic!("nobody can have answered: {got:?}"),
        tried = trying => tried.unwrap(),
    }
    let took = began.elapsed();
    assert!((TIMEOUT..TIMEOUT + QUICK).contains(&took), "{took:?}");

    // The way is open again, and the pool's only place is free.
    proxy.set_blackhole(false);
    scene.ping().await;
    let drained = scene.drain().await;
    assert_eq!(drained.ended().1, 0, "{}", drained.report);
    assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
    drop(proxy);
    server.end().await.unwrap();
}

pub(crate) async fn a_caller_that_goes_during_the_check_costs_no_goodbye() {
    let server = mysql().await;
    let (proxy, scene) = always_checked(&server, QUICK).await;

    proxy.set_delay(Duration::from_millis(300));
    let before = proxy.bytes_up();
    tokio::select! {
        got = scene.db.get() => panic!("nobody can have answered: {got:?}"),
        () = until("it is asked", || async { proxy.bytes_up() > before }) => {}
    }
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn an_answer_that_comes_too_late_costs_no_goodbye() {
    let server = mysql().await;
    let (proxy, scene) = always_checked(&server, Duration::from_millis(100)).await;

    // A busy machine may have made it one of several before.
    let before = proxy.accepted();
    proxy.set_delay(Duration::from_millis(300));
    let replaced = scene.get().await;
    assert_eq!(proxy.accepted(), before + 1);
    drop(replaced);
    scene.drain().await;
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn one_connection_that_does_not_answer_speaks_for_all_of_its_age() {
    const IDLE: usize = 16;
    let server = mysql().await;
    let wire = Wire::to(server.server.address).await.unwrap();
    let mut config = config_at(&server, wire.address());
    config.check_after = Duration::ZERO;
    config.check_timeout = Duration::from_secs(2);
    config.pool.max_size = IDLE;
    let scene = Scene::new(Mysql::new(config));
    drop(scene.out(IDLE).await);
    let pool = scene.db.pool().await.unwrap();
    until("they are in the pool", || async { pool.status().available >= IDLE }).await;

    wire.cut();
    let began = Instant::now();
    scene.ping().await;
    assert!(began.elapsed() < QUICK, "{:?}", began.elapsed());
    assert_eq!(wire.accepted(), IDLE + 1);
    // The server, which was told nothing, ends the others when a session asks for it.
    scene.drain().await;
    assert_eq!(server.sessions().await.unwrap(), 0);
    server.end().await.unwrap();
}
