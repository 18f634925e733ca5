//! A pool of `mysql_async` connections, with a manager of the application's own, as a harness.

use std::{net::SocketAddr, time::Duration};

use mysql_async::{Conn, Opts, OptsBuilder, prelude::Queryable as _};
use tokio::sync::Mutex;
use winddown_core::BoxError;
use winddown_deadpool::{
    Deadpool,
    deadpool::managed::{Manager, Metrics, Pool, RecycleError, RecycleResult},
};
use winddown_testkit::{CheckoutOf, Harness, Need, ServerUse, Setup, containers::Container, proxy::Proxy};

use crate::mysql_server::{MySql, Tenancy, run};

/// As an application writes it.
pub(crate) struct Conns(Opts);

impl Manager for Conns {
    type Type = Conn;
    type Error = mysql_async::Error;

    async fn create(&self) -> Result<Conn, mysql_async::Error> {
        Conn::new(self.0.clone()).await
    }

    async fn recycle(&self, conn: &mut Conn, _: &Metrics) -> RecycleResult<mysql_async::Error> {
        conn.ping().await.map_err(RecycleError::Backend)
    }
}

pub(crate) fn pool(server: &Tenancy<MySql>, setup: &Setup) -> Pool<Conns> {
    pool_at(server, server.address(), setup)
}

/// The same at an address that leads to the server.
pub(crate) fn pool_at(server: &Tenancy<MySql>, address: SocketAddr, setup: &Setup) -> Pool<Conns> {
    let config = server.tenant.config(address, setup);
    let opts: Opts = OptsBuilder::from_opts(config.driver).prefer_socket(false).into();
    Pool::builder(Conns(opts)).max_size(setup.size).build().unwrap()
}

/// Longer than any drain under a statement. Nobody stops one, and its table cannot be dropped as long as it runs.
const LONGEST: Duration = Duration::from_secs(20);

pub(crate) struct DeadpoolMysql(pub(crate) Tenancy<MySql>);

impl Harness for DeadpoolMysql {
    type Resource = Deadpool<Conns>;

    const NAME: &'static str = "deadpool_mysql";
    const LACKS: &'static [(Need, &'static str)] = &[
        (Need::Init, "the application has built the pool"),
        (Need::Cancel, "nothing proves whose the number is by which a statement could be stopped"),
        (Need::DrivesItself, "its sockets are on the application's runtime"),
    ];
    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        Tenancy::<MySql>::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        Tenancy::start(use_of_it).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Deadpool<Conns> {
        Deadpool::wrap(pool(&self.0, setup))
    }

    async fn run(&self, connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        run(connection, takes.min(LONGEST)).await
    }

    async fn ping(&self, connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        Ok(connection.query_drop("SELECT 1").await?)
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
