//! Pools of sqlx on PostgreSQL as harnesses: one that the adapter builds, and one that the application has built.

use std::{env, net::SocketAddr, time::Duration};

use tokio::sync::Mutex;
use winddown_core::{BoxError, Error, ErrorKind};
use winddown_sqlx::{
    Sqlx,
    sqlx::{
        self, Postgres,
        postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
    },
};
use winddown_testkit::{CheckoutOf, Harness, InProcess, Need, ServerUse, Setup, containers::Container, proxy::Proxy};

use crate::server::{PostgreSql, Seventeen, Tenant};

/// What is polled by whoever holds it needs the reactor of the runtime that it was opened in.
pub(crate) const DRIVES_ITSELF: (Need, &str) =
    (Need::DrivesItself, "the driver's sockets are the application's runtime's");
pub(crate) const OUTLIVES: (Need, &str) = (Need::OutlivesRuntime, "the driver's sockets end with their runtime");

pub(crate) struct SqlxPostgres(pub(crate) PostgreSql<Seventeen>);

/// The tenant's, for a server at this address.
pub(crate) fn connect_options(tenant: &Tenant, address: SocketAddr) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&address.ip().to_string())
        .port(address.port())
        .username(&tenant.name)
        .password(&tenant.password)
        .database(&tenant.name)
        .ssl_mode(PgSslMode::Disable)
}

impl SqlxPostgres {
    pub(crate) fn options(&self, setup: &Setup) -> (PgPoolOptions, PgConnectOptions) {
        let mut connect = connect_options(&self.0.tenant, self.0.address());
        if setup.wrong_password {
            connect = connect.password("not it");
        }
        (PgPoolOptions::new().max_connections(setup.size.try_into().unwrap()), connect)
    }
}

const ADDRESS: &str = "WINDDOWN_TEST_ADDRESS";
const TENANT: &str = "WINDDOWN_TEST_TENANT";
const SECRET: &str = "WINDDOWN_TEST_SECRET";

/// A pool of the server that a process of its own is told of.
pub(crate) fn from_env() -> Result<(PgPoolOptions, PgConnectOptions), BoxError> {
    let tenant = Tenant { name: env::var(TENANT)?, password: env::var(SECRET)? };
    let connect = connect_options(&tenant, env::var(ADDRESS)?.parse()?);
    Ok((PgPoolOptions::new().max_connections(20), connect))
}

impl InProcess for SqlxPostgres {
    fn environment(&self) -> Vec<(&'static str, String)> {
        let Tenant { name, password } = self.0.tenant.clone();
        vec![(ADDRESS, self.0.address().to_string()), (TENANT, name), (SECRET, password)]
    }

    fn from_env() -> Result<Sqlx<Postgres>, Error> {
        let (pool, connect) =
            from_env().map_err(|error| Error::new(ErrorKind::Config, "no server was named").with_source(error))?;
        Ok(Sqlx::new(pool, connect))
    }
}

impl Harness for SqlxPostgres {
    type Resource = Sqlx<Postgres>;

    const NAME: &'static str = "sqlx_postgres";
    const LACKS: &'static [(Need, &'static str)] = &[DRIVES_ITSELF, OUTLIVES];
    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        PostgreSql::<Seventeen>::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        PostgreSql::start(use_of_it).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Sqlx<Postgres> {
        let (pool, connect) = self.options(setup);
        Sqlx::new(pool, connect)
    }

    async fn run(&self, connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        let sql = "INSERT INTO rows SELECT now() FROM pg_sleep($1)";
        sqlx::query(sql).bind(takes.as_secs_f64()).execute(connection.as_mut()).await?;
        Ok(())
    }

    async fn ping(&self, connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        sqlx::query("SELECT 1").execute(connection.as_mut()).await?;
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

pub(crate) struct WrappedPostgres(SqlxPostgres);

impl Harness for WrappedPostgres {
    type Resource = Sqlx<Postgres>;

    const NAME: &'static str = "sqlx_postgres_wrapped";
    const LACKS: &'static [(Need, &'static str)] =
        &[(Need::Init, "the application has built the pool"), DRIVES_ITSELF, OUTLIVES];
    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        SqlxPostgres::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        SqlxPostgres::start(use_of_it).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Sqlx<Postgres> {
        let (pool, connect) = self.0.options(setup);
        Sqlx::wrap(pool.connect_lazy_with(connect))
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

    winddown_testkit::harness_of!(0);
}
