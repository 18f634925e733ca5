//! The resource: how sessions are opened, handed out, checked, given back and ended.

use std::{
    fmt,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Resource,
    adapter::{Accounting, Drain, Latency, LedgerSlot, Size},
};

#[cfg(feature = "deadpool")]
use crate::wrapped::pool::WrappedPool;
use crate::{
    cancel::{Prepared, may_unblock},
    config::Config,
    connect::Connector,
    connection::Connection,
    error::{error, is_denied},
    pool::Pool,
    sentinel::Sentinel,
    sessions::{Part, Session, Sessions},
    waits::Waits,
    wrapped::{Existing, Wrapping, one::Wrapped},
};

/// A Redis or Valkey server as a resource.
///
/// Its goodbye waits until every command that was taken is answered, and returns when the server has closed all sessions.
pub struct Redis {
    source: Source,
    sessions: Arc<Sessions>,
    prepared: Arc<Prepared>,
    waits: Arc<Waits>,
    ledgers: LedgerSlot,
}

enum Source {
    Config(Box<Config>),
    Wrapped(Arc<Wrapped>),
    #[cfg(feature = "deadpool")]
    Pool(Arc<WrappedPool>),
}

impl Redis {
    /// The server of this URL, with the defaults of [`Config`]: all checkouts share one connection. Nothing is opened yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when it is no URL of a server; the message does not quote it.
    pub fn open(url: &str) -> Result<Self, Error> {
        url.parse::<Config>().map(Self::new)
    }

    /// The server of this configuration, ours or the driver's. Nothing is opened yet.
    pub fn new(config: impl Into<Config>) -> Self {
        Self::of(Source::Config(Box::new(config.into())))
    }

    fn of(source: Source) -> Self {
        let (sessions, prepared, waits) = Default::default();
        Self { source, sessions, prepared, waits, ledgers: LedgerSlot::default() }
    }

    fn wrapping(existing: Existing, opened_with: Option<Config>) -> Self {
        match existing.into() {
            Wrapping::One(one) => Self::of(Source::Wrapped(Wrapped::new(one, opened_with).wrapped())),
            #[cfg(feature = "deadpool")]
            Wrapping::Pool(pool) => Self::of(Source::Pool(Arc::new(WrappedPool::new(pool, opened_with)))),
        }
    }

    /// The primary that these sentinels know by this name, with the defaults of [`Config::sentinel`]. Nothing is opened yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when one is no URL of a server, or there is none; the message does not quote it.
    pub fn sentinel<T: AsRef<str>>(sentinels: impl IntoIterator<Item = T>, primary: &str) -> Result<Self, Error> {
        Config::sentinel(sentinels, primary).map(Self::new)
    }

    /// The cluster that these are nodes of, with the defaults of [`Config::cluster`]. Nothing is opened yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when one is no URL of a server, or there is none; the message does not quote it.
    #[cfg(feature = "cluster")]
    pub fn cluster<T: AsRef<str>>(nodes: impl IntoIterator<Item = T>) -> Result<Self, Error> {
        Config::cluster(nodes).map(Self::new)
    }

    /// The server whose URL is in `REDIS_URL`. Nothing is opened yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the variable is not set, empty, or no URL of a server.
    pub fn from_env() -> Result<Self, Error> {
        Config::from_env().map(Self::new)
    }

    /// A connection that the application built: the driver's `ConnectionManager`, its `MultiplexedConnection`, or with the feature
    /// `cluster` its `ClusterConnection`. It is drained even if it was never used through the guard, with all that the
    /// application sends over its own clones.
    ///
    /// Everything that was sent over it is executed before the drain ends, if the server answers in time, and then the server is told
    /// `QUIT`; but how many commands were not executed is not counted. Nothing can be asked about it, since the driver does not say
    /// where its server is: what waits there is not ended, and of a manager and of a cluster the end is not seen.
    /// [`Redis::wrap_with`] can do all of that.
    ///
    /// With the feature `deadpool` a `deadpool_redis::Pool` too, of which all of that is done without anything else: what is idle says
    /// goodbye at once, the rest as it comes back. A checkout is one of its connections; what its caller has left on it is undone, or
    /// ends with it.
    #[cfg_attr(feature = "deadpool", doc = "```no_run")]
    #[cfg_attr(not(feature = "deadpool"), doc = "```ignore")]
    /// use winddown_core::Lifecycle;
    /// use winddown_redis::deadpool_redis::{Config, Runtime};
    /// use winddown_redis::{Redis, redis};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = Config::from_url("redis://cache.example.com").create_pool(Some(Runtime::Tokio1))?;
    ///
    /// let lifecycle = Lifecycle::detect()?;
    /// let cache = lifecycle.guard(Redis::wrap(pool));
    ///
    /// redis::cmd("PING").exec_async(&mut *cache.get().await?).await?;
    /// assert!(lifecycle.drain().await.is_clean());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A `ConnectionManager` that speaks the third version of the protocol connects anew as soon as the server has closed it,
    /// whoever closes it and why: it is told no `QUIT`, ends with the process, and is called unconfirmed.
    pub fn wrap(existing: impl Into<Existing>) -> Self {
        Self::wrapping(existing.into(), None)
    }

    /// A connection that the application built, and what it was opened with: the driver's `Client` or `ConnectionInfo`, or a [`Config`]
    /// where it needs roots of its own or a credentials provider; of a cluster, what any of its nodes is opened with.
    ///
    /// While draining, a session of its own asks the server: `CLIENT LIST` shows that it lists the connection no more, and what waits
    /// there (`BLPOP`, `XREAD BLOCK`) is ended, also what the application has sent behind the guard's back. Once every
    /// checkout is back, whatever still waits is ended at once.
    ///
    /// ```
    /// use redis::aio::{ConnectionManager, ConnectionManagerConfig};
    /// use winddown_redis::{Redis, redis};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> redis::RedisResult<()> {
    /// let client = redis::Client::open("redis://cache.example.com")?;
    /// let manager = ConnectionManager::new_lazy_with_config(client.clone(), ConnectionManagerConfig::new())?;
    /// let cache = Redis::wrap_with(manager.clone(), client);
    /// # Ok(())
    /// # }
    /// ```
    pub fn wrap_with(existing: impl Into<Existing>, opened_with: impl Into<Config>) -> Self {
        Self::wrapping(existing.into(), Some(opened_with.into()))
    }

    fn open_pool(&self, config: &Config) -> Result<Pool, Error> {
        let config = config.clone();
        let tls = config.tls_of(&config.driver)?;
        let sentinels =
            config.sentinels.iter().map(|sentinel| Sentinel::new(sentinel, &config)).collect::<Result<_, _>>()?;
        let (sessions, waits, ledger) = (Arc::clone(&self.sessions), Arc::clone(&self.waits), self.ledgers.now());
        let outdated = Arc::default();
        Pool::new(Connector { sessions, waits, ledger, outdated, config, tls, sentinels })
    }
}

impl Resource for Redis {
    type Pool = Pool;

    fn name(&self) -> &str {
        "redis"
    }

    async fn init(&self) -> Result<Pool, Error> {
        let config = match &self.source {
            Source::Config(config) => config,
            Source::Wrapped(wrapped) => return Ok(Pool::wrapped(Arc::clone(wrapped))),
            #[cfg(feature = "deadpool")]
            Source::Pool(pool) => return Ok(Pool::wrapped_pool(Arc::clone(pool))),
        };
        self.sessions.restart();
        self.waits.restart();
        let pool = self.open_pool(config)?;
        pool.open().await?;
        let mut connection = pool.get().await?;
        let asked = Instant::now();
        match redis::cmd("PING").exec_async(&mut connection).await {
            // That the user may not ask this is an answer.
            Err(source) if !is_denied(&source) => {
                return Err(error(ErrorKind::Init, "the server does not answer", source));
            }
            _ => self.sessions.latency().saw(asked.elapsed()),
        }
        let asked = may_unblock().exec_async(&mut connection).await;
        let is_known = self.sessions.open().iter().any(|session| session.part().identity().is_some());
        self.prepared.found(is_known && !asked.is_err_and(|source| is_denied(&source)));
        drop(connection);
        Ok(pool)
    }

    fn opened(&self) -> Option<Pool> {
        match &self.source {
            Source::Config(_) => None,
            Source::Wrapped(wrapped) => Some(Pool::wrapped(Arc::clone(wrapped))),
            #[cfg(feature = "deadpool")]
            Source::Pool(pool) => Some(Pool::wrapped_pool(Arc::clone(pool))),
        }
    }

    fn draining(&self, _: &Pool) {
        // Before anything is ended.
        self.sessions.count_ends();
        self.waits.begin_drain(&self.sessions);
    }

    async fn goodbye(&self, pool: &Pool, drain: &Drain) -> Result<(), Error> {
        match &self.source {
            Source::Config(_) => {}
            Source::Wrapped(wrapped) => return wrapped.goodbye(&self.prepared, drain).await,
            #[cfg(feature = "deadpool")]
            Source::Pool(pool) => return pool.goodbye(&self.prepared, drain).await,
        }
        let _left_behind = self.prepared.count_left_behind(drain);
        let _reported = self.waits.report_to(drain);
        let draining = self.sessions.begin_drain();
        pool.close();
        let end = |session| end(session, Arc::clone(&self.prepared));
        let stop = |session| self.prepared.stop_left(session, Part::is_left);
        let goodbye = async {
            let mut leaving = pin!(draining.goodbye(drain, || pool.settled(), end));
            let staying = tokio::select! {
                left = &mut leaving => return left,
                staying = self.prepared.staying(&self.sessions) => staying,
            };
            // What is being opened when the last session leaves is opened, so that it can be closed.
            let preparing = async {
                tokio::select! {
                    () = self.prepared.prepare(staying) => {}
                    () = drain.until_cut() => {}
                }
            };
            tokio::join!(leaving, preparing).0
        };
        let result = draining.stop_abandoned(drain, goodbye, |session| session.part().is_left(), stop).await;
        tokio::join!(self.prepared.close(Some(drain)), self.waits.settle(drain));
        result
    }

    async fn cancel(&self, _: &Pool, drain: &Drain) -> Result<(), Error> {
        match &self.source {
            Source::Config(_) => {}
            Source::Wrapped(wrapped) => return wrapped.stop(&self.prepared, drain).await,
            #[cfg(feature = "deadpool")]
            Source::Pool(pool) => {
                pool.cancel();
                return Ok(());
            }
        }
        self.prepared.stop(self.sessions.open(), |commands| drain.count_cancelled(commands)).await?;
        // The goodbye may have closed what it had before this has asked.
        self.prepared.close(Some(drain)).await;
        Ok(())
    }

    async fn flush(&self, pool: &Pool) -> Result<(), Error> {
        let leaving = pool.flush();
        self.sessions.until_over(&leaving).await;
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        match &self.source {
            Source::Config(_) if self.prepared.can_stop() => Capabilities::ALL,
            Source::Config(_) => Capabilities::ALL.without_cancel(),
            Source::Wrapped(wrapped) => wrapped.capabilities(),
            #[cfg(feature = "deadpool")]
            Source::Pool(_) => Capabilities::ALL.without_all_sessions(),
        }
    }

    fn latency(&self) -> Option<Arc<Latency>> {
        match &self.source {
            Source::Config(_) | Source::Wrapped(_) => Some(Arc::clone(self.sessions.latency())),
            #[cfg(feature = "deadpool")]
            Source::Pool(pool) => Some(Arc::clone(pool.latency())),
        }
    }

    fn reserve(&self, _: &Pool) -> Duration {
        match &self.source {
            Source::Config(_) | Source::Wrapped(_) => RESERVE,
            #[cfg(feature = "deadpool")]
            Source::Pool(_) => WRAPPED_RESERVE,
        }
    }

    fn address(&self) -> Option<String> {
        let config = match &self.source {
            Source::Config(config) => config,
            Source::Wrapped(wrapped) => wrapped.opened_with()?,
            #[cfg(feature = "deadpool")]
            Source::Pool(pool) => pool.opened_with()?,
        };
        // Sentinels say where the server is.
        let asked = if config.sentinels.is_empty() { std::slice::from_ref(&config.driver) } else { &config.sentinels };
        Some(asked.iter().map(|server| server.addr().to_string()).collect::<Vec<_>>().join(", "))
    }

    fn ledger(&self) -> Option<Arc<dyn Accounting>> {
        match &self.source {
            Source::Config(_) => Some(self.ledgers.restart()),
            Source::Wrapped(_) => None,
            #[cfg(feature = "deadpool")]
            Source::Pool(_) => None,
        }
    }

    fn size(&self, pool: &Pool) -> Option<Size> {
        let status = pool.status()?;
        Some(Size { open: status.size, idle: Some(status.available) })
    }
}

impl Checkouts for Redis {
    type Checkout = Connection;

    async fn checkout(&self, pool: &Pool) -> Result<Connection, Error> {
        pool.get().await.map_err(|error| match error.kind() {
            ErrorKind::ShuttingDown | ErrorKind::Checkout => error,
            _ => {
                let passes = error.is_retryable();
                let error = Error::new(ErrorKind::Checkout, "no connection").with_source(error);
                if passes { error.retryable() } else { error }
            }
        })
    }
}

/// What ending what waits and the last goodbyes need at the least; what the server's answers need comes on top.
const RESERVE: Duration = Duration::from_millis(50);

/// For a pool that the application built somebody is opened who asks what waits and has it ended: one step after the other, each of which
/// waits for the server or looks through the sockets of the machine.
#[cfg(feature = "deadpool")]
const WRAPPED_RESERVE: Duration = Duration::from_secs(3);

/// Ends a session that was taken over although somebody still holds it: stops what waits at the server, and says goodbye.
async fn end(session: Arc<Session>, prepared: Arc<Prepared>) {
    session.part().leave();
    tokio::join!(session.finish(), async {
        // What keeps it from being stopped keeps it from its goodbye too, and so it is cut.
        let _ = prepared.stop(vec![Arc::clone(&session)], |_| {}).await;
    });
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Redis");
        match &self.source {
            Source::Config(config) => debug.field("config", config).field("sessions", &self.sessions),
            Source::Wrapped(wrapped) => debug.field("wrapped", wrapped),
            #[cfg(feature = "deadpool")]
            Source::Pool(pool) => debug.field("wrapped", pool),
        };
        debug.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_address_is_the_server_or_the_sentinels_and_no_secret() {
        assert_eq!(
            Redis::open("redis://app:secret@cache.example:6380/1").unwrap().address().unwrap(),
            "cache.example:6380"
        );
        let sentinels = Redis::sentinel(["redis://a.example:26379", "redis://b.example:26379"], "primary").unwrap();
        assert_eq!(sentinels.address().unwrap(), "a.example:26379, b.example:26379");
    }
}
