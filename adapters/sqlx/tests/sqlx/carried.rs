//! What a checkout leaves, and the next one must not find (S8).

use winddown_sqlx::{
    Sqlx,
    sqlx::{self, Connection as _, Executor as _, Row as _},
};
use winddown_testkit::{Harness, ServerUse, Setup, scene};

use crate::{
    mysql::SqlxMySql,
    mysql_server::MariaDb,
    scene::{Scene, number, pool, start, until},
    sqlite::SqlxSqlite,
};

pub(crate) async fn a_transaction_that_was_left_open_is_rolled_back_in_postgres() {
    let server = start().await;
    let pool = pool(&server);
    let scene = Scene::new(Sqlx::wrap(pool.clone()));
    let is_idle = || async { pool.num_idle() == 1 };
    for sql in [
        "BEGIN; INSERT INTO rows VALUES (now())",
        // One that has failed takes nothing but its end.
        "BEGIN; SELECT 1/0",
    ] {
        let mut connection = scene.get().await;
        let _ = connection.execute(sqlx::raw_sql(sql)).await;
        drop(connection);
        until("it is idle", is_idle).await;
        let mut connection = scene.get().await;
        assert_eq!(number(&mut connection, "SELECT count(*) FROM rows").await, 0, "{sql}");
        // A transaction that goes on began before.
        let is_new = "SELECT (transaction_timestamp() = statement_timestamp())::int::int8";
        let row = connection.fetch_one(sqlx::raw_sql(is_new)).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), 1, "{sql}");
        drop(connection);
        until("it is idle", is_idle).await;
    }
    scene.drain().await.assert_clean(1);
    let log = server.0.server.container.lock().await.logs().await.unwrap();
    let ours = format!(" {}@", server.0.tenant.name);
    let warns = log.lines().filter(|line| line.contains(&ours) && line.contains("WARNING")).count();
    assert_eq!(warns, 0, "{log}");
    server.end().await.unwrap();
}

pub(crate) async fn a_transaction_of_the_drivers_that_was_dropped_is_rolled_back() {
    let server = start().await;
    let pool = pool(&server);
    let scene = Scene::new(Sqlx::wrap(pool.clone()));
    let mut connection = scene.get().await;
    let mut transaction = connection.begin().await.unwrap();
    transaction.execute("INSERT INTO rows VALUES (now())").await.unwrap();
    drop(transaction);
    drop(connection);
    until("it is idle", || async { pool.num_idle() == 1 }).await;
    let mut connection = scene.get().await;
    assert_eq!(number(&mut connection, "SELECT count(*) FROM rows").await, 0);
    drop(connection);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

fn of_one() -> Setup {
    let mut setup = Setup::default();
    setup.size = 1;
    setup
}

pub(crate) async fn a_transaction_that_was_left_open_is_rolled_back_in_mariadb_and_sqlite() {
    let server = SqlxMySql::<MariaDb>::start(ServerUse::Shared).await.unwrap();
    let (options, connect) = server.options(&of_one());
    let pool = options.connect_lazy_with(connect);
    let scene = scene::Scene::new(Sqlx::wrap(pool.clone()));
    let mut connection = scene.get().await;
    connection.execute(sqlx::raw_sql("START TRANSACTION")).await.unwrap();
    connection.execute("INSERT INTO rows_left VALUES (1)").await.unwrap();
    drop(connection);
    let mut connection = scene.get().await;
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM rows_left").fetch_one(connection.as_mut()).await.unwrap();
    assert_eq!(count, 0);
    drop(connection);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();

    let file = SqlxSqlite::start(ServerUse::Shared).await.unwrap();
    let scene = scene::Scene::new(file.resource(&of_one()));
    let mut connection = scene.get().await;
    connection.execute(sqlx::raw_sql("BEGIN; INSERT INTO t VALUES (1)")).await.unwrap();
    drop(connection);
    let mut connection = scene.get().await;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(connection.as_mut()).await.unwrap();
    assert_eq!(count, 0);
    drop(connection);
    scene.drain().await.assert_clean(1);
    file.end().await.unwrap();
}
