//! A pool that the application has built, on PostgreSQL, as a harness.

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio::sync::Mutex;
use winddown_core::{BoxError, Error};
use winddown_postgres::{Config, Postgres, tokio_postgres::NoTls};
use winddown_testkit::{Harness, InProcess, Need, ServerUse, Setup, containers::Container, proxy::Proxy};

use crate::server::{PostgreSql, Seventeen};

/// The pool as an application builds it, of this configuration.
pub(crate) fn pool(config: Config, recycling_method: RecyclingMethod) -> Pool {
    let manager = Manager::from_config(config.driver, NoTls, ManagerConfig { recycling_method });
    Pool::builder(manager).max_size(config.pool.max_size).runtime(Runtime::Tokio1).build().unwrap()
}

pub(crate) struct WrappedPool(pub(crate) PostgreSql<Seventeen>);

impl Harness for WrappedPool {
    type Resource = Postgres;

    const NAME: &'static str = "postgres_wrapped";

    const LACKS: &'static [(Need, &'static str)] = &[
        (Need::Init, "the application has built the pool"),
        (Need::DrivesItself, "its driver's tasks are on the application's runtime"),
    ];

    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        PostgreSql::<Seventeen>::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        PostgreSql::start(use_of_it).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Postgres {
        // What is checked after a rest by a pool of the adapter's own is checked always where the application wants that.
        let recycling = setup.check_after_idle.map_or(RecyclingMethod::Fast, |_| RecyclingMethod::Verified);
        Postgres::wrap(pool(self.0.tenant.config(self.0.address(), setup), recycling))
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

#[cfg(feature = "buffer")]
impl InProcess for WrappedPool {
    fn environment(&self) -> Vec<(&'static str, String)> {
        self.0.environment()
    }

    fn from_env() -> Result<Postgres, Error> {
        Ok(Postgres::wrap(from_env(Config::from_env()?)))
    }
}

/// One with room for more than the tests open.
#[cfg(feature = "buffer")]
pub(crate) fn from_env(mut config: Config) -> Pool {
    config.pool.max_size = 16;
    pool(config, RecyclingMethod::Fast)
}
