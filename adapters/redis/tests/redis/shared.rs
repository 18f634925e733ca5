//! The connection that all checkouts share, and how it is opened anew.

use std::time::{Duration, Instant};

use redis::{AsyncCommands as _, cmd};
use tokio::task::JoinSet;
use winddown_redis::{Redis, redis};
use winddown_testkit::{Harness as _, proxy::Proxy};

use crate::scene::{Scene, Speaks as _, assert_nothing_left, config_at, own, ping, redis_8, until, until_open};

pub(crate) async fn a_connection_that_was_closed_is_opened_anew_once_for_all() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::new(config_at(&server, server.server.address)));
    let mut held = scene.out(50).await;
    assert_eq!(server.sessions().await.unwrap(), 1);
    server.end_sessions(|_| true).await.unwrap();
    // One that was under way when it ended would fail.
    until("somebody has seen it", || async { format!("{:?}", scene.db.resource()).contains("open: 0") }).await;
    let mut all = JoinSet::new();
    for mut connection in held.drain(..) {
        all.spawn(async move { ping(&mut connection).await });
    }
    all.join_all().await;
    assert_eq!(server.sessions().await.unwrap(), 1);
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_connection_that_somebody_has_waited_for_in_vain_is_replaced() {
    let server = redis_8().await;
    let mut config = config_at(&server, server.server.address);
    config.response_timeout = Some(Duration::from_secs(5));
    config.check_timeout = Duration::from_secs(5);
    config.check_after = Duration::from_secs(600);
    let scene = Scene::new(Redis::new(config));
    let mut connection = scene.get().await;
    // Everybody's connection waits with this one.
    assert!(connection.blpop::<_, ()>(server.tenant.key("never"), 0.0).await.unwrap_err().is_timeout());
    scene.ping().await;
    drop(connection);
    until("the other one is gone", || async { server.sessions().await.unwrap() == 1 }).await;
    until_open(scene.db.resource(), 1).await;
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_server_that_comes_back_is_found_by_the_command_that_waits() {
    let server = own().await;
    let mut config = config_at(&server, server.server.address);
    config.check_after = Duration::from_secs(600);
    let scene = Scene::new(Redis::new(config));
    let mut held = scene.out(1).await.remove(0);
    server.kill().await.unwrap();
    until("somebody has seen it", || async { format!("{:?}", scene.db.resource()).contains("open: 0") }).await;
    // It is not there, and after some tries that is said.
    let began = Instant::now();
    let error = cmd("PING").exec_async(&mut *held).await.unwrap_err();
    assert!(error.to_string().contains("cannot reach"), "{error}");
    assert!(began.elapsed() > Duration::from_millis(100), "it was tried once: {:?}", began.elapsed());
    server.start_again().await.unwrap();
    ping(&mut held).await;
    drop(held);
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_reconnect_in_progress_does_not_outlive_the_drain() {
    let server = redis_8().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address());
    config.connect_timeout = None;
    config.response_timeout = None;
    let scene = Scene::patient(Redis::new(config));
    let mut held = scene.out(1).await.remove(0);
    server.end_sessions(|_| true).await.unwrap();
    until("somebody has seen it", || async { format!("{:?}", scene.db.resource()).contains("open: 0") }).await;
    // It connects, and gets no answer.
    proxy.set_blackhole(true);
    let accepted = proxy.accepted();
    let reconnecting = tokio::spawn(async move { cmd("PING").exec_async(&mut *held).await });
    until("it connects", || async { proxy.accepted() > accepted }).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.row().stragglers.len(), 1, "{}", drained.report);
    assert!(format!("{:?}", scene.db.resource()).contains("open: 0"), "{:?}", scene.db.resource());
    // What it waits for has ended, and it does not try again.
    assert!(reconnecting.await.unwrap().is_err());
    proxy.set_blackhole(false);
    proxy.wait_for_connections(0).await;
    assert_eq!(proxy.accepted(), accepted + 1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn nothing_connects_anew_after_the_drain() {
    let server = redis_8().await;
    let scene = Scene::patient(Redis::new(config_at(&server, server.server.address)));
    let mut held = scene.out(1).await.remove(0);
    let bare = scene.db.pool().await.unwrap().get().await.unwrap();
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.ended(), (1, 0), "{}", drained.report);
    assert_nothing_left(&server).await;
    for mut connection in [bare] {
        assert!(connection.get::<_, Option<String>>("x").await.is_err());
    }
    assert!(held.get::<_, Option<String>>("x").await.is_err());
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}
