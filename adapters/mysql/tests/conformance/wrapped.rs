//! A pool that the application has built, on MySQL, as a harness.

use std::time::Duration;

use tokio::sync::Mutex;
use winddown_core::BoxError;
#[cfg(feature = "buffer")]
use winddown_core::Error;
use winddown_mysql::{
    Config, Mysql, Wrapped,
    mysql_async::{Opts, OptsBuilder, Pool, PoolConstraints, prelude::Queryable as _},
};
#[cfg(feature = "buffer")]
use winddown_testkit::InProcess;
use winddown_testkit::{CheckoutOf, Harness, Need, ServerUse, Setup, containers::Container, proxy::Proxy};

use crate::server::{MySql, Tenancy, run};

/// The pool as an application builds it, of this configuration, and the options that it was built from.
pub(crate) fn pool(config: Config) -> (Pool, Opts) {
    let size = config.pool.max_size;
    let constraints = PoolConstraints::new(size, size).unwrap();
    let pool_opts = config.driver.pool_opts().clone().with_constraints(constraints);
    let opts: Opts = OptsBuilder::from_opts(config.driver).prefer_socket(false).pool_opts(pool_opts).into();
    (Pool::new(opts.clone()), opts)
}

pub(crate) fn wrap(config: Config) -> Wrapped {
    let (pool, opts) = pool(config);
    Mysql::wrap(pool, opts)
}

pub(crate) struct WrappedPool(pub(crate) Tenancy<MySql>);

impl Harness for WrappedPool {
    type Resource = Wrapped;

    const NAME: &'static str = "mysql_wrapped";

    const LACKS: &'static [(Need, &'static str)] = &[
        (Need::Init, "the application has built the pool"),
        (Need::OutlivesRuntime, "the driver's pool ends with the runtime that it was first used in"),
    ];

    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        Tenancy::<MySql>::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        Tenancy::start(use_of_it).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Wrapped {
        wrap(self.0.tenant.config(self.0.address(), setup))
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

    async fn run(&self, conn: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        run(conn, takes).await
    }

    async fn ping(&self, conn: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        Ok(conn.query_drop("SELECT 1").await?)
    }

    winddown_testkit::harness_of!(server of 0);
}

#[cfg(feature = "buffer")]
impl InProcess for WrappedPool {
    fn environment(&self) -> Vec<(&'static str, String)> {
        self.0.environment()
    }

    fn from_env() -> Result<Wrapped, Error> {
        let (pool, opts) = from_env(Config::from_env()?);
        Ok(Mysql::wrap(pool, opts))
    }
}

/// One with room for more than the tests open.
#[cfg(feature = "buffer")]
pub(crate) fn from_env(mut config: Config) -> (Pool, Opts) {
    config.pool.max_size = 16;
    pool(config)
}
