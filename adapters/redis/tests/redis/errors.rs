//! What a caller is told when there is no session.

use std::net::TcpListener;

use winddown_core::{Error, ErrorKind};
use winddown_redis::Redis;
use winddown_testkit::Harness as _;

use crate::scene::{Scene, driver_error, own, redis_8, url};

async fn refusal(url: &str) -> Error {
    let scene = Scene::new(Redis::open(url).unwrap());
    let error = scene.db.get().await.unwrap_err();
    assert!(!error.to_string().contains("s3cret"), "{error}");
    scene.drain().await;
    error
}

#[track_caller]
fn assert_is(error: &Error, kind: ErrorKind, retryable: bool, says: &[&str]) {
    assert_eq!((error.kind(), error.is_retryable()), (kind, retryable), "{error}");
    for text in says {
        assert!(error.to_string().contains(text), "{text} is not in: {error}");
    }
}

pub(crate) async fn what_the_server_refuses_says_what_to_do() {
    let server = redis_8().await;
    let address = server.server.address;
    let right = url(&server, "redis", &address.to_string());

    let error = refusal(&right.replace(&server.tenant.password, "wrong")).await;
    assert_is(&error, ErrorKind::Config, false, &["see user and password", "WRONGPASS"]);
    assert_eq!(driver_error(&error).unwrap().code(), Some("WRONGPASS"));

    let error = refusal(&right.replace(&server.tenant.name, "nobody")).await;
    assert_is(&error, ErrorKind::Config, false, &["see user and password"]);

    let error = refusal(&format!("{right}/9999")).await;
    assert_is(&error, ErrorKind::Config, false, &["there is no such database", "out of range"]);

    server.end().await.unwrap();
}

pub(crate) async fn what_cannot_be_reached_is_worth_another_try() {
    // Nobody listens where somebody has just stopped.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = refusal(&format!("redis://app:s3cret@{address}")).await;
    assert_is(&error, ErrorKind::Init, true, &[&format!("cannot reach 127.0.0.1 at {address}"), "refused"]);

    let error = refusal("redis://app:s3cret@db.invalid").await;
    assert_is(&error, ErrorKind::Init, true, &["cannot look up the host db.invalid"]);

    let error = refusal("redis+unix:///nowhere/redis.sock?user=app&pass=s3cret").await;
    assert_is(&error, ErrorKind::Init, true, &["cannot reach /nowhere/redis.sock"]);

    // Somebody takes the connection, and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = refusal(&format!("redis://app:s3cret@{}", mute.local_addr().unwrap())).await;
    assert_is(&error, ErrorKind::Init, true, &["the login was not over within the connect_timeout of 1s"]);
}

pub(crate) async fn a_server_that_is_full_is_worth_another_try() {
    let server = own().await;
    let right = url(&server, "redis", &server.server.address.to_string());
    server.full(true).await.unwrap();
    let error = refusal(&right).await;
    assert_is(&error, ErrorKind::Init, true, &["cannot open a session", "max number of clients reached"]);
    server.full(false).await.unwrap();
    let scene = Scene::new(Redis::open(&right).unwrap());
    drop(scene.get().await);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}
