//! What a caller is told when there is no session.

use std::net::TcpListener;

use winddown_core::{Error, ErrorKind};
use winddown_postgres::{Postgres, tokio_postgres::error::SqlState};
use winddown_testkit::Harness as _;

use crate::{
    scene::{Scene, driver_error, seventeen, url},
    server::connect,
};

async fn refusal(url: &str) -> Error {
    let scene = Scene::new(Postgres::open(url).unwrap());
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
    let server = seventeen().await;
    let host = server.server.address.to_string();
    let right = url(&server, &host, "");
    let name = &server.tenant.name;

    let error = refusal(&right.replace(&format!("/{name}?"), "/nowhere?")).await;
    assert_is(&error, ErrorKind::Config, false, &["create it or name another", "\"nowhere\" does not exist"]);
    assert_eq!(driver_error(&error).unwrap().code(), Some(&SqlState::INVALID_CATALOG_NAME));

    let error = refusal(&right.replace(&server.tenant.password, "wrong")).await;
    assert_is(&error, ErrorKind::Config, false, &["see user, password and sslmode", "password authentication failed"]);
    assert_eq!(driver_error(&error).unwrap().code(), Some(&SqlState::INVALID_PASSWORD));

    let error = refusal(&right.replace(&format!("{name}:"), "nobody:")).await;
    assert_is(&error, ErrorKind::Config, false, &["see user, password and sslmode"]);

    server.execute(&format!("REVOKE CONNECT ON DATABASE {name} FROM PUBLIC, {name}")).await.unwrap();
    let error = refusal(&right).await;
    assert_is(&error, ErrorKind::Config, false, &["may not connect to this database"]);
    server.end().await.unwrap();
}

pub(crate) async fn what_cannot_be_reached_is_worth_another_try() {
    // Nobody listens where somebody has just stopped.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = refusal(&format!("postgres://app:s3cret@{address}/orders")).await;
    assert_is(&error, ErrorKind::Init, true, &[&format!("cannot reach 127.0.0.1 at {address}"), "refused"]);

    let error = refusal("postgres://app:s3cret@db.invalid/orders").await;
    assert_is(&error, ErrorKind::Init, true, &["cannot look up the host db.invalid"]);

    let error = refusal("host=/nowhere user=app password=s3cret").await;
    assert_is(&error, ErrorKind::Init, true, &["cannot reach /nowhere/.s.PGSQL.5432"]);
}

pub(crate) async fn a_server_that_is_full_is_worth_another_try() {
    let server = seventeen().await;
    server.full(true).await.unwrap();
    let error = refusal(&url(&server, &server.server.address.to_string(), "")).await;
    assert_is(&error, ErrorKind::Init, true, &["cannot open a session", "too many connections"]);
    assert_eq!(driver_error(&error).unwrap().code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    server.full(false).await.unwrap();
    let name = &server.tenant.name;
    connect(server.server.address, name, &server.tenant.password, name).await.unwrap();
    server.end().await.unwrap();
}
