//! Callers that do not wait for the session they wanted, and servers that have no room for the one that asks.

use std::time::Duration;

use tokio::{net::TcpListener, time::timeout};
use winddown_core::Outcome;
use winddown_mysql::{Mysql, mysql_async::prelude::Queryable as _};
use winddown_testkit::{Harness as _, ServerUse, proxy::Proxy};

use crate::{
    scene::{QUICK, Scene, Speaks, assert_nothing_left, config, config_at, mysql, until},
    server::{MariaDb, Tenancy},
};

pub(crate) async fn a_server_that_never_speaks_does_not_hold_up_the_drain() {
    // In the first session, which is the initialisation.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scene = Scene::new(Mysql::open(&format!("mysql://app@{}/orders", mute.local_addr().unwrap())).unwrap());
    let _ = timeout(Duration::from_millis(200), scene.db.get()).await.unwrap_err();
    let drained = scene.drain().await;
    assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
    assert_eq!(drained.row().outcome, Outcome::NotInitialised, "{}", drained.report);

    // And in a later one.
    let server = mysql().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let scene = Scene::new(Mysql::new(config_at(&server, proxy.address())));
    let held = scene.out(1).await;
    let accepted = proxy.accepted();
    proxy.set_delay(Duration::from_secs(60));
    tokio::select! {
        got = scene.db.get() => panic!("it was quicker than the proxy: {got:?}"),
        () = until("it connects", || async { proxy.accepted() > accepted }) => {}
    }
    proxy.set_delay(Duration::ZERO);
    drop(held);
    let drained = scene.drain().await;
    assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
    drop(proxy);
    server.end().await.unwrap();
}

pub(crate) async fn a_server_that_is_full_lets_the_drain_ask_once_sessions_have_ended() {
    let server: Tenancy<MariaDb> = Tenancy::start(ServerUse::Own).await.unwrap();
    let scene = Scene::new(Mysql::new(config(&server)));
    drop(scene.out(3).await);
    server.full(true).await.unwrap();
    scene.drain().await.assert_clean(3);
    assert_nothing_left(&server).await;
    server.full(false).await.unwrap();
    server.end().await.unwrap();
}

pub(crate) async fn sessions_that_were_abandoned_are_forgotten_when_they_are_over() {
    let server = mysql().await;
    let mut config = config(&server);
    config.pool.max_size = 1;
    let scene = Scene::new(Mysql::new(config));
    let mut abandoned = 0;
    while abandoned < 250 {
        let mut connection = scene.get().await;
        let statement = connection.query_drop("DO SLEEP(0.3)");
        // On a machine that stands still for that long it has ended.
        abandoned += usize::from(timeout(Duration::from_millis(2), statement).await.is_err());
    }
    scene.ping().await;
    let shown = format!("{:?}", scene.db.resource());
    let open: usize = shown.rsplit("open: ").next().and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    assert!((1..=200).contains(&open), "nobody has asked which of them are over: {shown}");
    until("they are over", || async { server.sessions().await.unwrap() == 1 }).await;
    // Those that were over before are not counted.
    scene.drain().await.assert_clean(1);
    assert_eq!(server.sessions().await.unwrap(), 0);
    server.end().await.unwrap();
}
