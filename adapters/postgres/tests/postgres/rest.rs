//! Connections that have been idle, and what may have become of them meanwhile.

use std::time::{Duration, Instant};

use tokio::{runtime::Builder, task::spawn_blocking, time::timeout};
use winddown_postgres::Postgres;
use winddown_testkit::{Harness as _, proxy::Proxy, wire::Wire};

use crate::scene::{QUICK, Scene, Speaks, abandon_statement, config_at, seventeen, until};

pub(crate) async fn a_checkout_without_a_rest_makes_no_round_trip() {
    let server = seventeen().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address());
    config.check_after = Duration::from_secs(600);
    let scene = Scene::new(Postgres::new(config));
    let clients = scene.out(2).await;
    for client in &clients {
        // Behind what the driver sends when a statement is dropped.
        client.simple_query("").await.unwrap();
    }
    drop(clients);
    let before = (proxy.bytes_up(), proxy.bytes_down());
    for _ in 0..100 {
        drop(scene.get().await);
    }
    assert_eq!((proxy.bytes_up(), proxy.bytes_down()), before);
    // They would have been seen.
    scene.ping().await;
    assert!(proxy.bytes_up() > before.0 && proxy.bytes_down() > before.1);
    scene.drain().await.assert_clean(2);
    server.end().await.unwrap();
}

pub(crate) async fn a_checkout_after_a_rest_makes_one_round_trip() {
    const AFTER: Duration = Duration::from_millis(700);
    let server = seventeen().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address());
    config.check_after = AFTER;
    let scene = Scene::new(Postgres::new(config));
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
    server.end().await.unwrap();
}

/// The kernel knows first that the connections are gone, and a session that is known to be gone is forgotten.
pub(crate) async fn a_statement_whose_connection_broke_while_the_process_stood_still_is_stopped() {
    const AFTER: Duration = Duration::from_millis(100);
    let server = seventeen().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address());
    config.check_after = AFTER;
    let scene = Scene::new(Postgres::new(config));
    // Stands still whenever nobody is in `block_on`.
    let application = Builder::new_current_thread().enable_all().build().unwrap();
    let (application, scene, server) = spawn_blocking(move || {
        application.block_on(async {
            drop(scene.out(2).await);
            abandon_statement(&server, &scene.db).await;
        });
        (application, scene, server)
    })
    .await
    .unwrap();
    proxy.reset();
    proxy.wait_for_connections(0).await;
    tokio::time::sleep(AFTER).await;
    let (application, scene) = spawn_blocking(move || {
        application.block_on(scene.ping());
        (application, scene)
    })
    .await
    .unwrap();
    // What the application does not do any more is done by the drain.
    let drained = scene.drain().await;
    assert!(drained.took < QUICK, "{}", drained.report);
    until("the server has stopped it", || async { server.running().await.unwrap() == 0 }).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    spawn_blocking(|| drop(application)).await.unwrap();
    server.end().await.unwrap();
}

pub(crate) async fn a_network_that_is_cut_holds_a_checkout_up_for_the_check_timeout() {
    // Nobody is asked in vain by a server that answers: it has ten times what a busy machine needs.
    const TIMEOUT: Duration = Duration::from_secs(5);
    let server = seventeen().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address());
    config.pool.max_size = 1;
    config.check_after = Duration::ZERO;
    config.check_timeout = TIMEOUT;
    let scene = Scene::new(Postgres::new(config));
    drop(scene.out(1).await);

    proxy.set_blackhole(true);
    let began = Instant::now();
    let trying = timeout(QUICK, until("a new connection is tried", || async { proxy.accepted() == 2 }));
    tokio::select! {
        got = scene.db.get() => panic!("nobody can have answered: {got:?}"),
        tried = trying => tried.unwrap(),
    }
    let took = began.elapsed();
    assert!((TIMEOUT..TIMEOUT + QUICK).contains(&took), "{took:?}");

    // Neither that session nor the one that was being opened stays in the book: nothing is left to wait for.
    until("the book is empty", || async { format!("{:?}", scene.db.resource()).contains("open: 0") }).await;
    let gave_up = began.elapsed() - took;
    assert!(gave_up < QUICK, "{gave_up:?}");

    // The way is open again, and the pool's only place is free.
    proxy.set_blackhole(false);
    scene.ping().await;
    scene.drain().await.assert_clean(1);

    // The same without a way back: the drain does not wait for what was given up.
    let mut config = config_at(&server, proxy.address());
    config.check_after = Duration::ZERO;
    config.check_timeout = TIMEOUT;
    let scene = Scene::new(Postgres::new(config));
    drop(scene.out(1).await);
    proxy.set_blackhole(true);
    let before = proxy.accepted();
    tokio::select! {
        got = scene.db.get() => panic!("nobody can have answered: {got:?}"),
        () = until("a new connection is tried", || async { proxy.accepted() > before }) => {}
    }
    until("the book is empty", || async { format!("{:?}", scene.db.resource()).contains("open: 0") }).await;
    let drained = scene.drain().await;
    assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
    drop(proxy);
    server.end().await.unwrap();
}

pub(crate) async fn one_connection_that_does_not_answer_speaks_for_all_of_its_age() {
    const IDLE: usize = 16;
    let server = seventeen().await;
    let wire = Wire::to(server.server.address).await.unwrap();
    let mut config = config_at(&server, wire.address());
    config.pool.max_size = IDLE;
    config.check_after = Duration::ZERO;
    config.check_timeout = Duration::from_secs(2);
    let scene = Scene::new(Postgres::new(config));
    drop(scene.out(IDLE).await);
    assert_eq!(wire.accepted(), IDLE);

    wire.cut();
    let began = Instant::now();
    scene.ping().await;
    assert!(began.elapsed() < QUICK, "{:?}", began.elapsed());
    // A new one, and the request to stop what was asked on the first one may have been sent by then.
    assert!((IDLE + 1..=IDLE + 2).contains(&wire.accepted()), "{}", wire.accepted());
    scene.drain().await;
    drop(wire);
    server.end().await.unwrap();
}
