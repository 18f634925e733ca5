//! Servers that accept and say nothing, or do not even accept: nobody waits for them for ever.

use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use winddown_core::{Error, ErrorKind};
use winddown_mysql::{Config, Mysql, mysql_async::OptsBuilder};
use winddown_testkit::{Harness as _, proxy::Proxy};

use crate::{
    scene::{QUICK, Scene, Speaks, config, config_at, in_full, mysql, until},
    server::{MySql, Tenancy},
};

/// Quick to see, and long enough for a server that answers and a machine that is busy.
const LIMIT: Duration = Duration::from_secs(4);

fn config_with_limit(server: &Tenancy<MySql>, address: std::net::SocketAddr) -> Config {
    let mut config = config_at(server, address);
    config.connect_timeout = Some(LIMIT);
    config
}

/// Names the step and the address, and is worth another try.
#[track_caller]
fn assert_late(error: &Error, kind: ErrorKind, address: impl ToString, step: &str) {
    let text = in_full(error);
    assert!(error.kind() == kind && error.is_retryable(), "{:?} {text}", error.kind());
    for part in [&*address.to_string(), step, "connect_timeout"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

pub(crate) async fn a_server_that_says_nothing_fails_the_initialisation() {
    let server = mysql().await;
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap();
    // By default.
    let scene = Scene::new(Mysql::new(config_at(&server, address)));
    let began = Instant::now();
    let error = scene.db.get().await.unwrap_err();
    // It is tried twice.
    assert!(began.elapsed() < Duration::from_secs(10) + QUICK, "{:?}", began.elapsed());
    assert_late(&error, ErrorKind::Init, address, "login");
    scene.drain().await;
    server.end().await.unwrap();
}

pub(crate) async fn a_server_that_does_not_accept_fails_the_initialisation() {
    let server = mysql().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    // Those it has room for.
    let mut waiting = Vec::new();
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        waiting.push(connected.unwrap());
    }
    let scene = Scene::new(Mysql::new(config_with_limit(&server, address)));
    let began = Instant::now();
    let error = scene.db.get().await.unwrap_err();
    assert!(began.elapsed() < 2 * LIMIT + QUICK, "{:?}", began.elapsed());
    assert_late(&error, ErrorKind::Init, address, "connecting");
    scene.drain().await;
    server.end().await.unwrap();
}

pub(crate) async fn the_next_address_is_tried() {
    let server = mysql().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mute = TcpListener::bind(("127.0.0.2", proxy.address().port())).await.unwrap();
    let mut config = config_with_limit(&server, proxy.address());
    let addresses = vec![mute.local_addr().unwrap().ip(), proxy.address().ip()];
    config.driver = OptsBuilder::from_opts(config.driver).resolved_ips(Some(addresses)).into();
    let scene = Scene::new(Mysql::new(config));
    let began = Instant::now();
    scene.ping().await;
    assert!(began.elapsed() < LIMIT + QUICK, "{:?}", began.elapsed());
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn a_server_that_says_nothing_fails_the_checkout() {
    let server = mysql().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_with_limit(&server, proxy.address());
    config.pool.max_size = 3;
    let scene = Scene::new(Mysql::new(config));
    let first = scene.get().await;
    proxy.set_blackhole(true);
    let began = Instant::now();
    let error = scene.db.get().await.unwrap_err();
    assert!(began.elapsed() < QUICK, "{:?}", began.elapsed());
    assert_late(&error, ErrorKind::Checkout, proxy.address(), "login");
    // Its place is free, and the server may answer again.
    proxy.set_blackhole(false);
    let others = scene.out(2).await;
    drop((first, others));
    // One that was given up may have logged in meanwhile.
    until("only they are listed", || async { server.sessions().await.unwrap() == 3 }).await;
    scene.drain().await.assert_clean(3);
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_of_the_set_up_that_does_not_end_fails_the_initialisation() {
    let server = mysql().await;
    let mut config = config(&server);
    config.connect_timeout = Some(LIMIT);
    config.driver = OptsBuilder::from_opts(config.driver).setup(vec!["DO SLEEP(300)"]).into();
    let scene = Scene::new(Mysql::new(config));
    let began = Instant::now();
    let error = scene.db.get().await.unwrap_err();
    assert!(began.elapsed() < 2 * LIMIT + QUICK, "{:?}", began.elapsed());
    assert_late(&error, ErrorKind::Init, server.server.address, "setting the session up");
    scene.drain().await;
    server.end_all().await.unwrap();
    server.end().await.unwrap();
}
