//! What the tests share.

use std::pin::pin;

use winddown_core::{Checkout, ShutdownGuard};
use winddown_sqlx::{
    Sqlx,
    sqlx::{self, PgPool, Postgres},
};
pub(crate) use winddown_testkit::scene::{ENDLESS, until};
use winddown_testkit::{Directed, Harness as _, ServerUse, Setup, scene};

use crate::postgres::SqlxPostgres;

pub(crate) type Scene = scene::Scene<Sqlx<Postgres>>;

/// A role and a database of its own on the server that is shared.
pub(crate) async fn start() -> SqlxPostgres {
    SqlxPostgres::start(ServerUse::Shared).await.unwrap()
}

/// A pool as an application builds it, which has opened nothing yet.
pub(crate) fn pool(server: &SqlxPostgres) -> PgPool {
    let (options, connect) = server.options(&Setup::default());
    options.connect_lazy_with(connect)
}

/// So many idle ones, which nobody has had from the guard.
pub(crate) async fn idle(pool: &PgPool, count: usize) {
    let mut out = Vec::new();
    for _ in 0..count {
        out.push(pool.acquire().await.unwrap());
    }
    drop(out);
    until("they are idle", || async { pool.num_idle() == count }).await;
}

/// A statement that takes so long, and leaves a row.
pub(crate) const SLEEP: &str = "INSERT INTO rows SELECT now() FROM pg_sleep($1)";

/// The same over the pool itself, for ever.
pub(crate) async fn sleep_over(pool: PgPool) -> Result<(), sqlx::Error> {
    sqlx::query(SLEEP).bind(ENDLESS.as_secs_f64()).execute(&pool).await.map(drop)
}

pub(crate) async fn until_running(server: &SqlxPostgres, count: usize) {
    until("the server lists the statement", || async { server.running().await.unwrap() == count }).await;
}

/// Begins a statement that does not end, and gives up on it once the server lists it: it runs on.
pub(crate) async fn abandon_statement(server: &SqlxPostgres, db: &ShutdownGuard<Directed<Sqlx<Postgres>>>) {
    let mut connection = db.get().await.unwrap();
    let mut run = pin!(sqlx::query(SLEEP).bind(ENDLESS.as_secs_f64()).execute(connection.as_mut()));
    tokio::select! {
        result = &mut run => panic!("it ended at once: {:?}", result.err()),
        () = until_running(server, 1) => {}
    }
}

/// What the server answers.
pub(crate) async fn number(connection: &mut Checkout<Directed<Sqlx<Postgres>>>, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection.as_mut()).await.unwrap()
}

pub(crate) async fn assert_nothing_left(server: &SqlxPostgres) {
    assert_eq!((server.sessions().await.unwrap(), server.running().await.unwrap()), (0, 0));
}
