//! Servers that accept a connection and then say nothing, or stop at a later step.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
    time::{Instant, timeout},
};
use winddown_core::{Error, ErrorKind};
use winddown_postgres::Postgres;
use winddown_testkit::{Harness as _, proxy::Proxy};

use crate::{
    scene::{ENDLESS, QUICK, Scene, abandon_statement, assert_nothing_left, chain, config_at, seventeen, until, url},
    server::{PostgreSql, Seventeen},
};

/// When a server stops to say anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mute {
    /// At once.
    Always,
    /// When it has agreed to speak TLS.
    AfterTheAnswer,
}

/// Accepts every connection, and keeps it.
struct Listener {
    address: SocketAddr,
    _accepting: JoinSet<()>,
}

impl Listener {
    async fn start(mute: Mute) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut kept = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if mute == Mute::AfterTheAnswer {
                    let mut question = [0; 8];
                    stream.read_exact(&mut question).await.unwrap();
                    stream.write_all(b"S").await.unwrap();
                }
                kept.push(stream);
            }
        });
        Self { address, _accepting: accepting }
    }
}

async fn refusal(url: &str) -> Error {
    let scene = Scene::new(Postgres::open(url).unwrap());
    let error = timeout(QUICK, scene.db.get()).await.expect("it has a limit").unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Init, true), "{error}");
    let drained = scene.drain().await;
    assert!(drained.report.is_clean(), "{}", drained.report);
    error
}

pub(crate) async fn a_server_that_accepts_and_says_nothing_is_passed_over() {
    let server = seventeen().await;
    for (mute, mode) in [(Mute::Always, "disable"), (Mute::Always, "prefer"), (Mute::AfterTheAnswer, "prefer")] {
        let listener = Listener::start(mute).await;
        let hosts = format!("{},{}", listener.address, server.server.address);
        let url = url(&server, &hosts, &format!("connect_timeout=3&sslmode={mode}"));
        let scene = Scene::new(Postgres::open(&url).unwrap());
        let began = Instant::now();
        drop(timeout(QUICK, scene.db.get()).await.expect("it has a limit").unwrap());
        assert!(began.elapsed() >= Duration::from_secs(3), "{mute:?} {mode}: the first host was asked");
        scene.drain().await.assert_clean(1);
    }
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_server_that_says_nothing_fails_the_initialisation_and_the_step_is_named() {
    let server = seventeen().await;
    for (mute, mode, step) in [
        (Mute::Always, "disable", "the login"),
        (Mute::Always, "prefer", "TLS"),
        (Mute::Always, "require", "TLS"),
        (Mute::AfterTheAnswer, "require", "TLS"),
    ] {
        let listener = Listener::start(mute).await;
        let address = listener.address;
        let url = url(&server, &address.to_string(), &format!("connect_timeout=1&sslmode={mode}"));
        let error = refusal(&url).await.to_string();
        let expected = format!("127.0.0.1 at {address}: {step} was not over within the connect_timeout of 1s");
        assert!(error.contains(&expected), "{mute:?} {mode}: {error}");
    }
    server.end().await.unwrap();
}

pub(crate) async fn without_a_setting_there_is_a_limit() {
    let server = seventeen().await;
    let listener = Listener::start(Mute::Always).await;
    let error = refusal(&url(&server, &listener.address.to_string(), "")).await.to_string();
    assert!(error.contains("TLS was not over within the connect_timeout of 5s"), "{error}");
    server.end().await.unwrap();
}

pub(crate) async fn a_checkout_that_opens_a_session_has_the_limit_too() {
    let server = seventeen().await;
    let (proxy, scene) = behind_a_proxy(&server).await;
    let kept = scene.get().await;
    proxy.set_blackhole(true);
    let error = timeout(QUICK, scene.db.get()).await.expect("it has a limit").unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Checkout, true), "{error}");
    let said: String = chain(&error).map(ToString::to_string).collect();
    assert!(said.contains("the login was not over within the connect_timeout of 1s"), "{said}");
    until("only the first is in the book", || async { format!("{:?}", scene.db.resource()).contains("open: 1") }).await;
    proxy.set_blackhole(false);
    drop(kept);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn a_request_to_cancel_has_the_limit_too() {
    let server = seventeen().await;
    let (proxy, scene) = behind_a_proxy(&server).await;
    abandon_statement(&server, &scene.db).await;
    proxy.set_blackhole(true);
    let report = scene.drain().await.report;
    let said = format!("{report} {report:?}");
    assert!(said.contains("the request to cancel was not over within the connect_timeout of 1s"), "{said}");
    drop(proxy);
    server.end_all().await.unwrap();
    server.end().await.unwrap();
}

/// A pool whose sessions are opened within a second, through a proxy; one is open.
async fn behind_a_proxy(server: &PostgreSql<Seventeen>) -> (Proxy, Scene) {
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(server, proxy.address());
    config.connect_timeout = Some(Duration::from_secs(1));
    config.check_after = ENDLESS;
    let scene = Scene::patient(Postgres::new(config));
    until("a session is open", || async { scene.db.get().await.is_ok() }).await;
    (proxy, scene)
}
