//! A server that is gone, or says nothing: what callers are told who all want it at the same time.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::{RedisError, cmd};
use winddown_core::{Checkout, Error};
use winddown_redis::{Redis, redis};
use winddown_testkit::{Directed, Harness as _, proxy::Proxy};

use crate::scene::{QUICK, Scene, Server, Speaks as _, config_at, own, until};

const CALLERS: usize = 20;

/// How often one series tries.
const TRIES: u64 = 5;

/// One connection for all, through a proxy, and so many checkouts of it.
async fn held(server: &Server) -> (Proxy, Scene, Vec<Checkout<Directed<Redis>>>) {
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(server, proxy.address());
    config.connect_timeout = Some(Duration::from_secs(1));
    config.response_timeout = Some(Duration::from_millis(500));
    config.check_after = Duration::from_secs(600);
    let scene = Scene::new(Redis::new(config));
    let held = scene.out(CALLERS).await;
    (proxy, scene, held)
}

pub(crate) async fn until_seen(scene: &Scene) {
    until("somebody has seen it", || async { format!("{:?}", scene.db.resource()).contains("open: 0") }).await;
}

/// All of them at the same moment: each has begun to wait before the first one can have an answer.
async fn all_ask(held: &mut [Checkout<Directed<Redis>>]) -> Vec<RedisError> {
    let asking = held.iter_mut().map(|connection| async { cmd("PING").exec_async(&mut **connection).await });
    join_all(asking).await.into_iter().map(|asked| asked.unwrap_err()).collect()
}

/// They share one.
#[track_caller]
fn assert_all_say(errors: &[RedisError], text: &str) {
    for error in errors {
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(error.to_string(), errors[0].to_string());
    }
    assert_eq!(errors.len(), CALLERS);
}

pub(crate) async fn all_who_wait_for_a_server_that_is_gone_share_one_series_of_tries() {
    let server = own().await;
    let (proxy, scene, mut held) = held(&server).await;
    server.kill().await.unwrap();
    until_seen(&scene).await;
    // The proxy takes connections, and ends them: it has no server.
    for _ in 0..2 {
        let before = proxy.accepted();
        let errors = all_ask(&mut held).await;
        let tries = proxy.accepted() - before;
        assert!((1..=TRIES).contains(&tries), "{tries} tries for {CALLERS} callers");
        // What that is depends on when the host has given up on the address.
        assert_all_say(&errors, "");
    }
    server.start_again().await.unwrap();
    drop(held);
    // Who comes after a failure tries again.
    until("it works again", || async { scene.db.get().await.is_ok() }).await;
    scene.ping().await;
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn all_who_wait_for_a_closed_port_are_told_in_the_time_of_one() {
    let server = own().await;
    let (proxy, scene, mut held) = held(&server).await;
    drop(proxy);
    until_seen(&scene).await;
    let began = Instant::now();
    let errors = all_ask(&mut held).await;
    assert!(began.elapsed() < QUICK, "{:?}", began.elapsed());
    assert_all_say(&errors, "cannot reach");
    drop(held);
    scene.drain().await.assert_clean(0);
    server.end().await.unwrap();
}

pub(crate) async fn all_who_wait_for_a_server_that_says_nothing_are_told_in_the_time_of_one() {
    let server = own().await;
    let (proxy, scene, mut held) = held(&server).await;
    server.end_sessions(|_| true).await.unwrap();
    until_seen(&scene).await;
    proxy.set_blackhole(true);
    let (before, began) = (proxy.accepted(), Instant::now());
    let errors = all_ask(&mut held).await;
    assert!(began.elapsed() < QUICK, "{:?}", began.elapsed());
    let tries = proxy.accepted() - before;
    assert!((1..=TRIES).contains(&tries), "{tries} tries for {CALLERS} callers");
    assert_all_say(&errors, "within the connect_timeout of 1s");
    proxy.set_blackhole(false);
    scene.ping().await;
    drop(held);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn who_waits_for_a_place_in_the_pool_shares_the_outcome() {
    const PLACES: usize = 2;
    let server = own().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address()).pooled(PLACES);
    config.connect_timeout = Some(Duration::from_secs(1));
    config.check_after = Duration::from_secs(600);
    let scene = Scene::new(Redis::new(config));
    drop(scene.out(PLACES).await);
    server.end_sessions(|_| true).await.unwrap();
    until_seen(&scene).await;
    proxy.set_blackhole(true);
    for _ in 0..2 {
        let before = proxy.accepted();
        let all = join_all((0..CALLERS).map(|_| async { scene.db.get().await.map(drop) })).await;
        let errors: Vec<Error> = all.into_iter().map(|got| got.unwrap_err()).collect();
        assert!(errors.iter().all(|error| error.is_retryable()), "{errors:?}");
        let tries = proxy.accepted() - before;
        assert!((1..=PLACES as u64).contains(&tries), "{tries} tries for {CALLERS} callers");
    }
    proxy.set_blackhole(false);
    scene.ping().await;
    scene.drain().await;
    server.end().await.unwrap();
}

pub(crate) async fn idle_connections_of_a_server_that_says_nothing_are_asked_once() {
    const IDLE: usize = 8;
    let server = own().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address()).pooled(IDLE);
    config.connect_timeout = Some(Duration::from_secs(1));
    config.check_after = Duration::ZERO;
    config.check_timeout = Duration::from_secs(5);
    let scene = Scene::new(Redis::new(config));
    drop(scene.out(IDLE).await);
    proxy.set_blackhole(true);
    let began = Instant::now();
    let error = scene.db.get().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30), "each was asked: {:?}", began.elapsed());
    proxy.set_blackhole(false);
    scene.ping().await;
    scene.drain().await;
    server.end().await.unwrap();
}
