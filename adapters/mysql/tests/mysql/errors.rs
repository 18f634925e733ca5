//! What a caller is told when there is no session.

use std::net::TcpListener;

use winddown_core::{Error, ErrorKind};
use winddown_mysql::Mysql;
use winddown_testkit::{Harness as _, ServerUse};

use crate::{
    scene::{Scene, Speaks, code, config, mysql, url},
    server::{MySql, Tenancy},
};

async fn refusal(url: &str) -> Error {
    let scene = Scene::new(Mysql::open(url).unwrap());
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
    let server = mysql().await;
    let host = server.server.address.to_string();
    let right = url(&server, &host, "");
    let name = &server.tenant.name;

    server.execute(&format!("GRANT ALL ON nowhere.* TO {name}@'%'")).await.unwrap();
    let error = refusal(&right.replace(&format!("/{name}?"), "/nowhere?")).await;
    assert_is(&error, ErrorKind::Config, false, &["create it or name another", "Unknown database 'nowhere'"]);

    let error = refusal(&right.replace(&server.tenant.password, "wrong")).await;
    assert_is(&error, ErrorKind::Config, false, &["see user, password and require_ssl", "Access denied"]);
    assert_eq!(code(&error), Some(1045));

    // To keep its users' names to itself the server asks somebody it does not know to log in by any way that it has.
    let error = refusal(&right.replace(&format!("{name}:"), "nobody:")).await;
    assert_is(&error, ErrorKind::Config, false, &["user"]);

    server.execute(&format!("REVOKE ALL ON {name}.* FROM {name}@'%'")).await.unwrap();
    let error = refusal(&right).await;
    assert_is(&error, ErrorKind::Config, false, &["may not connect to this database"]);
    server.end().await.unwrap();
}

pub(crate) async fn what_cannot_be_reached_is_worth_another_try() {
    // Nobody listens where somebody has just stopped.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = refusal(&format!("mysql://app:s3cret@{address}/orders")).await;
    assert_is(&error, ErrorKind::Init, true, &[&format!("cannot reach 127.0.0.1 at {address}"), "refused"]);

    let error = refusal("mysql://app:s3cret@db.invalid/orders").await;
    assert_is(&error, ErrorKind::Init, true, &["cannot look up the host db.invalid"]);

    let error = refusal("mysql://app:s3cret@localhost/orders?socket=/nowhere/mysqld.sock").await;
    assert_is(&error, ErrorKind::Init, true, &["cannot reach /nowhere/mysqld.sock"]);
}

pub(crate) async fn a_server_that_is_full_is_worth_another_try() {
    let server: Tenancy<MySql> = Tenancy::start(ServerUse::Own).await.unwrap();
    server.full(true).await.unwrap();
    let error = refusal(&url(&server, &server.server.address.to_string(), "")).await;
    assert_is(&error, ErrorKind::Init, true, &["cannot open a session", "Too many connections"]);
    assert_eq!(code(&error), Some(1040));
    server.full(false).await.unwrap();
    let scene = Scene::new(Mysql::new(config(&server)));
    scene.ping().await;
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}
