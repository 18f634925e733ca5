//! A pool of `bb8-redis` on Redis, as a harness.

use std::time::Duration;

use bb8::Pool;
use bb8_redis::RedisConnectionManager;
use redis::cmd;
use tokio::sync::Mutex;
use winddown_bb8::Bb8;
use winddown_core::BoxError;
use winddown_testkit::{CheckoutOf, Harness, Need, ServerUse, Setup, containers::Container, proxy::Proxy};

use crate::redis_server::{OfItsOwn, Redis8, RedisServer};

/// How long a caller waits for a connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// The pool as an application builds it.
pub(crate) fn pool(server: &RedisServer<Redis8, OfItsOwn>, setup: &Setup) -> Pool<RedisConnectionManager> {
    let config = server.tenant.config(server.address(), setup);
    Pool::builder()
        .max_size(u32::try_from(setup.size).unwrap())
        .connection_timeout(PATIENCE)
        // What is checked after a rest by a pool of an adapter's own is checked always where the application wants that.
        .test_on_check_out(setup.check_after_idle.is_some())
        .build_unchecked(RedisConnectionManager::new(config.driver).unwrap())
}

pub(crate) struct Bb8Redis(pub(crate) RedisServer<Redis8, OfItsOwn>);

const HALF_A_SECOND: &str = "the connections of this manager wait for half a second for an answer, and no longer";

impl Harness for Bb8Redis {
    type Resource = Bb8<RedisConnectionManager>;

    const NAME: &'static str = "bb8_redis";
    const LACKS: &'static [(Need, &'static str)] = &[
        (Need::Init, "the application has built the pool"),
        (Need::DrivesItself, "its driver's tasks are on the application's runtime"),
        (Need::Statements, HALF_A_SECOND),
        (Need::Slow, HALF_A_SECOND),
    ];
    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        RedisServer::<Redis8, OfItsOwn>::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        RedisServer::start(use_of_it).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Bb8<RedisConnectionManager> {
        Bb8::wrap(pool(&self.0, setup))
    }

    async fn ping(&self, connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        // Late for the driver, it has come nevertheless.
        loop {
            match cmd("PING").exec_async(&mut ***connection).await {
                Err(failure) if failure.is_timeout() => {}
                answer => return Ok(answer?),
            }
        }
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
