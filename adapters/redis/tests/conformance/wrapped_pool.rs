//! A pool of `deadpool-redis` that the application has built, as a harness.

use std::time::Duration;

use redis::AsyncConnectionConfig;
use winddown_core::BoxError;
use winddown_redis::deadpool_redis::{Manager, Pool, Runtime};
use winddown_redis::{Config, Redis, redis};
use winddown_testkit::{Harness, Need, ServerUse, Setup, containers::Container, proxy::Proxy};

use crate::server::{OfItsOwn, Redis8, RedisServer};

/// How long the driver may take to connect.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pool as an application builds it, for what this configuration says.
pub(crate) fn pool(config: &Config, size: usize) -> Pool {
    // The statements of the suite wait.
    let settings = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(Some(PATIENCE));
    let manager = Manager::new_with_config(config.driver.clone(), settings).expect("it was read before");
    Pool::builder(manager).max_size(size).runtime(Runtime::Tokio1).build().expect("it has its runtime")
}

pub(crate) struct WrappedPool(pub(crate) RedisServer<Redis8, OfItsOwn>);

impl Harness for WrappedPool {
    type Resource = Redis;

    const NAME: &'static str = "redis_8_wrapped_pool";

    const LACKS: &'static [(Need, &'static str)] = &[
        (Need::Init, "the application has built the pool"),
        (Need::DrivesItself, "its driver's tasks are on the application's runtime"),
    ];

    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        RedisServer::<Redis8, OfItsOwn>::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        RedisServer::start(use_of_it).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Redis {
        Redis::wrap(pool(&self.0.tenant.config(self.0.address(), setup), setup.size))
    }

    fn container(&self) -> Option<&tokio::sync::Mutex<Container>> {
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
