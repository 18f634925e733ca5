//! A pool of `bb8-postgres` on PostgreSQL, as a harness.

use std::time::Duration;

use bb8::Pool;
use bb8_postgres::PostgresConnectionManager;
use tokio::sync::Mutex;
use tokio_postgres::NoTls;
use winddown_bb8::{Bb8, Bb8Pools};
use winddown_core::BoxError;
use winddown_pools::Wrapped;
use winddown_testkit::{CheckoutOf, Harness, Need, ServerUse, Setup, containers::Container, proxy::Proxy};

use crate::{
    built::LACKS,
    server::{PostgreSql, Seventeen},
};

pub(crate) type Manager = PostgresConnectionManager<NoTls>;

/// How long a caller waits for a connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// The pool as an application builds it.
pub(crate) fn pool(server: &PostgreSql<Seventeen>, setup: &Setup) -> Pool<Manager> {
    let config = server.tenant.config(server.address(), setup).driver;
    Pool::builder()
        .max_size(u32::try_from(setup.size).unwrap())
        .connection_timeout(PATIENCE)
        .build_unchecked(PostgresConnectionManager::new(config, NoTls))
}

pub(crate) struct Bb8Postgres(pub(crate) PostgreSql<Seventeen>);

impl Harness for Bb8Postgres {
    type Resource = Wrapped<Bb8Pools<Manager>>;

    const NAME: &'static str = "bb8_postgres";
    const LACKS: &'static [(Need, &'static str)] = LACKS;
    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        PostgreSql::<Seventeen>::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        PostgreSql::start(use_of_it).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Bb8<Manager> {
        Bb8::wrap(pool(&self.0, setup))
    }

    async fn run(&self, client: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        let sql = "INSERT INTO rows SELECT now() FROM pg_sleep($1)";
        client.execute(sql, &[&takes.as_secs_f64()]).await?;
        Ok(())
    }

    async fn ping(&self, client: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        client.query_one("SELECT 1", &[]).await?;
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
