//! A pool of r2d2 with Diesel on PostgreSQL, as a harness.

use std::time::Duration;

use diesel::{
    PgConnection, QueryResult, RunQueryDsl as _,
    dsl::sql,
    r2d2::ConnectionManager,
    sql_query,
    sql_types::{Double, Integer},
};
use tokio::sync::Mutex;
use winddown_core::BoxError;
use winddown_r2d2::{Manager, Pool, R2d2, r2d2};
use winddown_testkit::{CheckoutOf, Harness, Need, ServerUse, Setup, containers::Container, proxy::Proxy};

use crate::{
    built::url,
    server::{PostgreSql, Seventeen},
};

pub(crate) type Opens = ConnectionManager<PgConnection>;

/// How long a caller waits for a connection.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A pool that opens what it is asked for.
pub(crate) fn settings(setup: &Setup) -> r2d2::Builder<Manager<Opens>> {
    let size = u32::try_from(setup.size).unwrap();
    r2d2::Pool::builder().max_size(size).min_idle(Some(0)).connection_timeout(PATIENCE)
}

pub(crate) fn pool(server: &PostgreSql<Seventeen>, setup: &Setup) -> Pool<Opens> {
    Pool::diesel_postgres(settings(setup), Opens::new(url(server, setup)))
}

/// A statement that sleeps on the server and leaves a row. Cancelled, it leaves none.
pub(crate) fn run(connection: &mut PgConnection, takes: Duration) -> QueryResult<usize> {
    let statement = sql_query("INSERT INTO rows SELECT now() FROM pg_sleep($1)");
    statement.bind::<Double, _>(takes.as_secs_f64()).execute(connection)
}

pub(crate) fn ping(connection: &mut PgConnection) -> QueryResult<i32> {
    sql::<Integer>("SELECT 1").get_result(connection)
}

pub(crate) struct R2d2Diesel(pub(crate) PostgreSql<Seventeen>);

impl Harness for R2d2Diesel {
    type Resource = R2d2<Opens>;

    const NAME: &'static str = "r2d2_diesel";
    const LACKS: &'static [(Need, &'static str)] = &[
        (Need::Init, "the application has built the pool"),
        (Need::DrivesItself, "what a caller has left is ended by a task of the application's runtime"),
    ];
    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        PostgreSql::<Seventeen>::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        PostgreSql::start(use_of_it).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> R2d2<Opens> {
        R2d2::wrap(pool(&self.0, setup))
    }

    async fn run(&self, connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        connection.run(move |connection| run(connection, takes)).await??;
        Ok(())
    }

    async fn ping(&self, connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        assert_eq!(connection.run(ping).await??, 1);
        Ok(())
    }

    fn container(&self) -> Option<&Mutex<Container>> {
        self.0.container()
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.0.proxy()
    }

    fn secret(&self) -> Option<&str> {
        self.0.secret()
    }

    winddown_testkit::harness_of!(server of 0);
}
