//! The driver behind the guard: all that it has can be reached and works.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt as _, TryStreamExt as _};
use winddown_core::ErrorKind;
use winddown_postgres::{Config, Postgres, tokio_postgres::error::SqlState};
use winddown_testkit::{Harness as _, proxy::Proxy};

use crate::scene::{Scene, Speaks, assert_nothing_left, config, config_at, driver_error, seventeen, url};

pub(crate) async fn sessions_are_listed_under_the_programs_name_or_the_one_that_is_configured() {
    const NAME: &str = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let server = seventeen().await;
    let host = server.server.address.to_string();
    for (options, expected) in [("", "postgres-"), ("application_name=orders", "orders")] {
        let scene = Scene::new(Postgres::open(&url(&server, &host, options)).unwrap());
        let name = scene.text(NAME).await;
        assert!(name.starts_with(expected), "{name}");
        scene.drain().await.assert_clean(1);
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_cached_statement_is_prepared_once_for_each_connection() {
    const SQL: &str = "SELECT 41 + $1::int4";
    let server = seventeen().await;
    let mut config = config(&server);
    config.pool.max_size = 1;
    let scene = Scene::new(Postgres::new(config));
    for _ in 0..2 {
        let client = scene.get().await;
        let (first, second) = (client.prepare_cached(SQL).await.unwrap(), client.prepare_cached(SQL).await.unwrap());
        assert_eq!(client.query_one(&first, &[&1]).await.unwrap().get::<_, i32>(0), 42);
        let prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement = $1";
        assert_eq!(client.query_one(prepared, &[&SQL]).await.unwrap().get::<_, i64>(0), 1);
        drop((first, second));
    }
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

/// The driver closes what it has prepared when nobody has it any more, and tells nobody when that was answered.
pub(crate) async fn closing_what_was_prepared_is_not_stopped() {
    let server = seventeen().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let scene = Scene::new(Postgres::new(config_at(&server, proxy.address())));
    let client = scene.get().await;
    let prepared = client.prepare("SELECT 1").await.unwrap();
    // Far longer than the answers before it have let a drain expect.
    proxy.set_delay(Duration::from_secs(1));
    drop(prepared);
    drop(client);
    scene.drain().await.assert_clean(1);
    assert_eq!(proxy.accepted(), 1, "a request to stop a statement comes on a connection of its own");
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn transactions_copies_and_streams_work_on_a_checkout() {
    let server = seventeen().await;
    let scene = Scene::new(Postgres::new(config(&server)));
    let mut client = scene.get().await;

    let transaction = client.transaction().await.unwrap();
    transaction.execute("INSERT INTO rows VALUES (now())", &[]).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(server.rows().await.unwrap(), 0);
    let transaction = client.transaction().await.unwrap();
    transaction.execute("INSERT INTO rows VALUES (now())", &[]).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(server.rows().await.unwrap(), 1);

    let mut copy = pin!(client.copy_in("COPY rows FROM STDIN").await.unwrap());
    for _ in 0..1000 {
        copy.send(Bytes::from_static(b"2001-02-03 04:05:06\n")).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), 1000);
    assert_eq!(server.rows().await.unwrap(), 1001);

    let numbers = client.query_raw("SELECT generate_series(1, $1::int4)", [100_000]).await.unwrap();
    let sum = numbers.try_fold(0, |sum, row| async move { Ok(sum + i64::from(row.get::<_, i32>(0))) });
    assert_eq!(sum.await.unwrap(), 5_000_050_000);

    drop(client);
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn the_drivers_pool_and_errors_can_be_reached() {
    let server = seventeen().await;
    let mut config: Config = config(&server);
    config.pool.max_size = 3;
    let scene = Scene::new(Postgres::new(config));
    let held = scene.get().await;
    let status = scene.db.pool().await.unwrap().status();
    assert_eq!((status.max_size, status.size, status.available), (3, 1, 0));

    let error = held.query_one("SELECT * FROM nowhere", &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_TABLE));

    server.full(true).await.unwrap();
    let error = scene.db.get().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkout);
    assert_eq!(driver_error(&error).unwrap().code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{error}");
    server.full(false).await.unwrap();

    drop(held);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}
