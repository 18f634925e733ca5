//! What an application has built itself, and wraps with what it was opened with.

use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

#[cfg(feature = "cluster")]
use redis::cluster::ClusterClientBuilder;
use redis::{
    AsyncConnectionConfig, Client, RedisError,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use winddown_core::{
    BoxError, Capabilities, Checkouts, Error, ErrorKind, Resource,
    adapter::{Drain, Latency},
};
use winddown_redis::{Config, Connection, Existing, Pool, Redis, redis};
use winddown_testkit::{Harness, Need, ServerUse, Setup};

#[cfg(feature = "cluster")]
use crate::cluster::RedisCluster;
use crate::server::{OfItsOwn, Redis8, RedisServer};

/// How the application has connected.
pub(crate) trait Form: fmt::Debug + Send + Sync + 'static {
    const NAME: &'static str;
    const LACKS: &'static [(Need, &'static str)];
    /// The server, and what it says.
    type Server: Harness<Resource = Redis>;

    fn config(server: &Self::Server, setup: &Setup) -> Config;

    fn build(config: &Config) -> impl Future<Output = Result<Existing, RedisError>> + Send;
}

/// How long the driver may take to connect.
const PATIENCE: Duration = Duration::from_secs(5);

const TASK: (Need, &str) = (Need::DrivesItself, "its driver's task is on the application's runtime");

const SHARED: (Need, &str) = (Need::Slots, "all checkouts share one connection");

/// Over the driver's `ConnectionManager`.
#[derive(Debug)]
pub(crate) struct Manager;

impl Form for Manager {
    const NAME: &'static str = "redis_8_wrapped_manager";
    const LACKS: &'static [(Need, &'static str)] = &[SHARED, TASK];

    type Server = RedisServer<Redis8, OfItsOwn>;

    fn config(server: &Self::Server, setup: &Setup) -> Config {
        server.tenant.config(server.address(), setup)
    }

    async fn build(config: &Config) -> Result<Existing, RedisError> {
        let settings = ConnectionManagerConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(Some(PATIENCE))
            .set_number_of_retries(1);
        let client = Client::open(config.driver.clone())?;
        Ok(ConnectionManager::new_with_config(client, settings).await?.into())
    }
}

/// Over the driver's `MultiplexedConnection`.
#[derive(Debug)]
pub(crate) struct Multiplexed;

impl Form for Multiplexed {
    const NAME: &'static str = "redis_8_wrapped_multiplexed";
    const LACKS: &'static [(Need, &'static str)] =
        &[SHARED, TASK, (Need::Replaces, "its driver opens it once: closed, it stays so")];

    type Server = RedisServer<Redis8, OfItsOwn>;

    fn config(server: &Self::Server, setup: &Setup) -> Config {
        server.tenant.config(server.address(), setup)
    }

    async fn build(config: &Config) -> Result<Existing, RedisError> {
        let settings = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(Some(PATIENCE));
        let client = Client::open(config.driver.clone())?;
        Ok(client.get_multiplexed_async_connection_with_config(&settings).await?.into())
    }
}

/// Over the driver's `ClusterConnection`.
#[cfg(feature = "cluster")]
#[derive(Debug)]
pub(crate) struct Cluster;

#[cfg(feature = "cluster")]
impl Form for Cluster {
    const NAME: &'static str = "redis_cluster_wrapped";
    const LACKS: &'static [(Need, &'static str)] = &[
        (Need::Slots, "all checkouts share one connection with each node"),
        TASK,
        (
            Need::SeesAll,
            "the driver's client sends again by itself, and tells nobody of the sessions that it opens for that",
        ),
    ];
    type Server = RedisCluster;

    fn config(server: &Self::Server, setup: &Setup) -> Config {
        server.config(setup)
    }

    async fn build(config: &Config) -> Result<Existing, RedisError> {
        let settings = config.driver.redis_settings();
        let others = config.cluster.iter().flat_map(|cluster| cluster.others.clone());
        let others = others.map(|other| other.set_redis_settings(settings.clone()));
        let client = ClusterClientBuilder::new(std::iter::once(config.driver.clone()).chain(others));
        let client = client.connection_timeout(PATIENCE).response_timeout(Duration::from_secs(600)).retries(3);
        Ok(client.build()?.get_async_connection().await?.into())
    }
}

/// An application that connects when it is initialised, and wraps what it has then.
pub(crate) struct Built<F> {
    config: Config,
    redis: Mutex<Option<Arc<Redis>>>,
    form: PhantomData<F>,
}

impl<F: Form> Built<F> {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, redis: Mutex::default(), form: PhantomData }
    }

    fn redis(&self) -> Option<Arc<Redis>> {
        self.redis.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<F: Form> fmt::Debug for Built<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(F::NAME).field("config", &self.config).field("redis", &self.redis()).finish()
    }
}

impl<F: Form> Resource for Built<F> {
    type Pool = (Arc<Redis>, Pool);

    fn name(&self) -> &str {
        "redis"
    }

    async fn init(&self) -> Result<Self::Pool, Error> {
        let existing = F::build(&self.config).await.map_err(|source| {
            let says = |what| source.to_string().contains(what);
            let passes = (source.is_io_error() || says("max number of clients")) && !says("authentication");
            let error = Error::new(ErrorKind::Init, "cannot connect").with_source(source);
            if passes { error.retryable() } else { error }
        })?;
        let redis = Arc::new(Redis::wrap_with(existing, self.config.clone()));
        let pool = redis.opened().ok_or_else(|| Error::new(ErrorKind::Init, "what was wrapped is open"))?;
        *self.redis.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&redis));
        Ok((redis, pool))
    }

    fn draining(&self, (redis, pool): &Self::Pool) {
        redis.draining(pool);
    }

    async fn goodbye(&self, (redis, pool): &Self::Pool, drain: &Drain) -> Result<(), Error> {
        redis.goodbye(pool, drain).await
    }

    async fn cancel(&self, (redis, pool): &Self::Pool, drain: &Drain) -> Result<(), Error> {
        redis.cancel(pool, drain).await
    }

    fn capabilities(&self) -> Capabilities {
        // Asked for before there is anything, too.
        self.redis().map_or(Capabilities::ALL, |redis| redis.capabilities())
    }

    fn latency(&self) -> Option<Arc<Latency>> {
        self.redis().and_then(|redis| redis.latency())
    }
}

impl<F: Form> Checkouts for Built<F> {
    type Checkout = Connection;

    async fn checkout(&self, (redis, pool): &Self::Pool) -> Result<Connection, Error> {
        redis.checkout(pool).await
    }
}

/// A server, with what the application has built.
pub(crate) struct Wrapped<F: Form>(F::Server);

impl<F: Form> Harness for Wrapped<F> {
    type Resource = Built<F>;

    const NAME: &'static str = F::NAME;
    const LACKS: &'static [(Need, &'static str)] = F::LACKS;
    const ENDS_ALL: &'static [Need] = F::Server::ENDS_ALL;
    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        F::Server::skipped()
    }

    async fn start(server: ServerUse) -> Result<Self, BoxError> {
        F::Server::start(server).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Built<F> {
        Built::new(F::config(&self.0, setup))
    }

    fn secret(&self) -> Option<&str> {
        self.0.secret()
    }

    winddown_testkit::harness_of!(0);
}
