//! The resource: how sessions are opened, handed out, checked, given back and ended.

use std::{fmt, sync::Arc, time::Instant};

use deadpool::Runtime;
use mysql_async::{Opts, OptsBuilder, Pool as DriverPool, prelude::Queryable as _};
#[cfg(feature = "tls")]
use rustls::crypto::{CryptoProvider, ring};
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Resource,
    adapter::{Drain, IdleCheck, Latency, Lifetime, Opening, Size, client_name},
};

use crate::{
    config::Config,
    connect::{Connection, Connector, Manager, Pool, Tidying, flush, in_time},
    error, goodbye,
    sessions::Sessions,
    wrapped::Wrapped,
};

/// A MySQL or MariaDB database as a resource.
///
/// Its goodbye says `COM_QUIT` on every session, and returns when the server lists none of them.
pub struct Mysql {
    config: Config,
    sessions: Arc<Sessions>,
}

impl Mysql {
    /// The database of this URL, with the defaults of [`Config`]. Nothing is opened yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when it is no URL of a database; the message does not quote it.
    pub fn open(url: &str) -> Result<Self, Error> {
        url.parse::<Config>().map(Self::new)
    }

    /// The database of this configuration, ours or the driver's. Nothing is opened yet.
    pub fn new(config: impl Into<Config>) -> Self {
        Self { config: config.into(), sessions: Arc::default() }
    }

    /// The database whose URL is in `MYSQL_URL`. Nothing is opened yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the variable is not set, empty, or no URL of a database.
    pub fn from_env() -> Result<Self, Error> {
        Config::from_env().map(Self::new)
    }

    /// A pool of the driver's that the application built, and the options that it was built from: with them somebody asks
    /// the server about its sessions. It is drained even if it was never used through the guard.
    ///
    /// What is idle, and what the guard hands out, says goodbye and is seen to end, and statements are cancelled. So it is with what others
    /// have taken from the pool, where that is proven by counting; else it says goodbye by the driver when it comes back, is
    /// unconfirmed, and what it runs is left alone. [`Mysql::new`] takes the same options, and needs no proof.
    pub fn wrap(pool: DriverPool, opts: impl Into<Opts>) -> Wrapped {
        Wrapped::new(pool, opts.into())
    }

    fn open_pool(&self) -> Result<Pool, Error> {
        let Config {
            driver,
            pool,
            credentials,
            connect_timeout,
            check_after,
            check_timeout,
            max_lifetime,
            idle_timeout,
            idle_at_flush,
        } = &self.config;
        let bad = |message: &'static str| Error::new(ErrorKind::Config, message);
        if pool.max_size == 0 {
            return Err(bad("a pool of 0 connections hands out nothing: set pool.max_size to 1 or more"));
        }
        #[cfg(not(feature = "tls"))]
        if driver.ssl_opts().is_some() {
            return Err(bad(NO_TLS));
        }
        #[cfg(feature = "tls")]
        if driver.ssl_opts().is_some() && CryptoProvider::get_default().is_none() {
            // The driver asks for the process's default, and panics where there is none. An application that has its own
            // opinion has said so before.
            let _ = ring::default_provider().install_default();
        }
        let connector =
            Connector::new(Arc::clone(&self.sessions), named(driver), credentials.clone(), *connect_timeout);
        let manager = Manager {
            connector: Arc::new(connector),
            idle_check: IdleCheck::new(*check_after),
            lifetime: Lifetime::new(*max_lifetime, *idle_timeout).idle_at_flush(*idle_at_flush),
            check_timeout: *check_timeout,
            reset: driver.pool_opts().reset_connection(),
            tidying: Tidying::default(),
        };
        let builder = Pool::builder(manager).config(*pool).runtime(Runtime::Tokio1);
        let pool = builder.build().map_err(|error| bad("cannot build the pool").with_source(error))?;
        pool.manager().connector.runtimes.of(pool.weak());
        Ok(pool)
    }
}

/// What the driver would say is that the server does not offer it.
#[cfg(not(feature = "tls"))]
const NO_TLS: &str =
    "sessions are to be encrypted, and TLS is not compiled in: turn on the feature tls, or do without require_ssl";

/// By what name the server's performance schema lists the sessions, where nobody has given one.
fn named(opts: &Opts) -> Opts {
    let mut attributes = opts.connect_attributes().cloned().unwrap_or_default();
    if !attributes.contains_key("program_name")
        && let Some(name) = client_name()
    {
        attributes.insert("program_name".into(), name);
    }
    OptsBuilder::from_opts(opts.clone()).connect_attributes(attributes).into()
}

impl Resource for Mysql {
    type Pool = Pool;

    fn name(&self) -> &str {
        "mysql"
    }

    async fn init(&self) -> Result<Pool, Error> {
        self.sessions.restart();
        let pool = self.open_pool()?;
        let mut connection = pool.get().await.map_err(error::first)?;
        let asked = Instant::now();
        let limit = Opening::of(self.address().unwrap_or_default(), pool.manager().connector.limit);
        in_time(&limit, "the first answer", connection.ping()).await.map_err(error::open)?;
        self.sessions.latency.saw(asked.elapsed());
        connection.is_as_opened();
        Ok(pool)
    }

    async fn goodbye(&self, pool: &Pool, drain: &Drain) -> Result<(), Error> {
        let _draining = self.sessions.begin_drain();
        pool.close();
        // What is idle goes to the book; what is out will when it comes back to a closed pool. Now and then: a caller that
        // waited for a connection and has gone leaves it in the pool.
        let empty = || drop(pool.retain(|_, _| false));
        goodbye::say(&pool.manager().connector, empty, drain).await
    }

    /// Those who watch the servers do it, on the session that they have opened for it; what they have cancelled is counted
    /// with the goodbye.
    async fn cancel(&self, _: &Pool, _: &Drain) -> Result<(), Error> {
        self.sessions.want(|wanted| wanted.cancel = true);
        Ok(())
    }

    async fn flush(&self, pool: &Pool) -> Result<(), Error> {
        flush(pool).await;
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn latency(&self) -> Option<Arc<Latency>> {
        Some(Arc::clone(&self.sessions.latency))
    }

    fn address(&self) -> Option<String> {
        let driver = &self.config.driver;
        let tcp = || format!("{}:{}", driver.ip_or_hostname(), driver.tcp_port());
        Some(driver.socket().map_or_else(tcp, str::to_owned))
    }

    fn size(&self, pool: &Pool) -> Option<Size> {
        let status = pool.status();
        Some(Size { open: status.size, idle: Some(status.available) })
    }
}

impl Checkouts for Mysql {
    type Checkout = Connection;

    async fn checkout(&self, pool: &Pool) -> Result<Connection, Error> {
        let lifetime = &pool.manager().lifetime;
        if lifetime.is_sweep_due() {
            // What is dropped says goodbye.
            drop(pool.retain(|_, known| !lifetime.is_over(known.created, known.recycled.unwrap_or(known.created))));
        }
        pool.get().await.map_err(error::checkout)
    }

    fn give_back(&self, pool: &Pool, connection: Connection) {
        pool.manager().give_back(connection);
    }
}

impl fmt::Debug for Mysql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mysql").field("config", &self.config).field("sessions", &self.sessions).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_address_is_the_host_or_the_socket_and_no_secret() {
        let of = |url: &str| Mysql::open(url).unwrap().address().unwrap();
        assert_eq!(of("mysql://app:secret@db.example:3307/orders"), "db.example:3307");
        assert_eq!(of("mysql://app:secret@localhost/orders?socket=%2Frun%2Fmysqld.sock"), "/run/mysqld.sock");
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn without_tls_a_url_that_asks_for_it_says_which_feature_to_turn_on() {
        let error = Mysql::open("mysql://app@one/orders?require_ssl=true").unwrap().open_pool().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("turn on the feature tls"), "{error}");
        assert!(Mysql::open("mysql://app@one/orders").unwrap().open_pool().is_ok());
    }
}
