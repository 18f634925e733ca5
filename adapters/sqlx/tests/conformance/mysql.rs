//! Pools of sqlx on MySQL and MariaDB as harnesses.

use std::{marker::PhantomData, time::Duration};

use tokio::sync::Mutex;
use winddown_core::BoxError;
use winddown_sqlx::{
    Sqlx,
    sqlx::{
        self, MySql,
        mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlSslMode},
    },
};
use winddown_testkit::{CheckoutOf, Harness, Need, ServerUse, Setup, containers::Container, proxy::Proxy};

use crate::{
    mysql_server::{self, Tenancy, Version},
    postgres::{DRIVES_ITSELF, OUTLIVES},
};

/// What such a pool is called there.
pub(crate) trait Named: Version {
    const NAMED: &'static str;
}

impl Named for mysql_server::MySql {
    const NAMED: &'static str = "sqlx_mysql";
}

impl Named for mysql_server::MariaDb {
    const NAMED: &'static str = "sqlx_mariadb";
}

pub(crate) struct SqlxMySql<V: Version>(pub(crate) Tenancy<V>, PhantomData<V>);

impl<V: Version> SqlxMySql<V> {
    pub(crate) fn options(&self, setup: &Setup) -> (MySqlPoolOptions, MySqlConnectOptions) {
        let (tenant, address) = (&self.0.tenant, self.0.address());
        let password = if setup.wrong_password { "not it" } else { &tenant.password };
        let connect = MySqlConnectOptions::new()
            .host(&address.ip().to_string())
            .port(address.port())
            .username(&tenant.name)
            .password(password)
            .database(&tenant.name)
            .ssl_mode(MySqlSslMode::Disabled);
        (MySqlPoolOptions::new().max_connections(setup.size.try_into().unwrap()), connect)
    }
}

impl<V: Named> Harness for SqlxMySql<V> {
    type Resource = Sqlx<MySql>;

    const NAME: &'static str = V::NAMED;
    const LACKS: &'static [(Need, &'static str)] = &[DRIVES_ITSELF, OUTLIVES];
    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        Tenancy::<V>::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        Ok(Self(Tenancy::start(use_of_it).await?, PhantomData))
    }

    fn resource(&self, setup: &Setup) -> Sqlx<MySql> {
        let (pool, connect) = self.options(setup);
        Sqlx::new(pool, connect)
    }

    async fn run(&self, connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        // From a table: in MySQL the end of the sleep alone would be no error, and the row would be written.
        let sql = "INSERT INTO rows_left SELECT slept FROM (SELECT SLEEP(?) AS slept) AS sleep";
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
