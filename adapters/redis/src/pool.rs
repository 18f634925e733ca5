//! Where connections come from: one that all share, or a pool of them.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use deadpool::{
    Runtime,
    managed::{self, Metrics, PoolConfig, RecycleError, RecycleResult, Status},
};
use tokio::{sync::Mutex as AsyncMutex, time::timeout};
use winddown_core::{
    Error, ErrorKind,
    adapter::{IdleCheck, Lifetime},
};
use winddown_net::Server;

#[cfg(feature = "cluster")]
use crate::cluster::Cluster;
#[cfg(feature = "deadpool")]
use crate::wrapped::{lent::Pooled, pool::WrappedPool};
use crate::{
    connect::{Connector, server},
    connection::{Connection, Own, Single},
    handle::Handle,
    sessions::Session,
    together::Failures,
    wrapped::{Existing, one::Wrapped},
};

/// The pool of a [`Redis`](crate::Redis): one connection that all checkouts share, or one for each of them.
pub struct Pool {
    source: Source,
}

enum Source {
    Shared(Arc<SharedHandle>),
    Own(managed::Pool<Opener>),
    #[cfg(feature = "cluster")]
    Cluster(Cluster),
    Wrapped(Arc<Wrapped>),
    #[cfg(feature = "deadpool")]
    Pool(Arc<WrappedPool>),
}

impl Pool {
    pub(crate) fn new(connector: Connector) -> Result<Self, Error> {
        let pool = connector.config.pool;
        #[cfg(feature = "cluster")]
        if connector.config.cluster.is_some() {
            return Cluster::new(connector).map(|cluster| Self { source: Source::Cluster(cluster) });
        }
        let opener = Opener::new(connector)?;
        let source = match pool {
            None => Source::Shared(Arc::new(SharedHandle::new(opener))),
            Some(PoolConfig { max_size: 0, .. }) => {
                let text = "a pool of 0 connections hands out nothing: give Config::pooled 1 or more";
                return Err(Error::new(ErrorKind::Config, text));
            }
            Some(config) => {
                let built = managed::Pool::builder(opener).config(config).runtime(Runtime::Tokio1).build();
                let bad = |source| Error::new(ErrorKind::Config, "cannot build the pool").with_source(source);
                Source::Own(built.map_err(bad)?)
            }
        };
        Ok(Self { source })
    }

    pub(crate) fn wrapped(wrapped: Arc<Wrapped>) -> Self {
        Self { source: Source::Wrapped(wrapped) }
    }

    #[cfg(feature = "deadpool")]
    pub(crate) fn wrapped_pool(pool: Arc<WrappedPool>) -> Self {
        Self { source: Source::Pool(pool) }
    }

    /// A connection that no guard counts.
    ///
    /// # Cancel safety
    /// Cancel safe.
    ///
    /// # Errors
    /// When none can be had or opened.
    pub async fn get(&self) -> Result<Connection, Error> {
        match &self.source {
            Source::Shared(shared) => {
                shared.checked().await?;
                Ok(Connection::single(Single::Shared(Arc::clone(shared))))
            }
            Source::Own(pool) => match from(pool).await {
                Ok(handle) => Ok(Connection::single(Single::Own(Own::from(handle)))),
                Err(managed::PoolError::Backend(error)) => Err(error),
                Err(error) => Err(Error::new(ErrorKind::Checkout, "no connection").with_source(error)),
            },
            #[cfg(feature = "cluster")]
            Source::Cluster(cluster) => cluster.get().await.map(Connection::cluster),
            Source::Wrapped(wrapped) => {
                wrapped.checked().await;
                Ok(Connection::wrapped(Arc::clone(wrapped)))
            }
            #[cfg(feature = "deadpool")]
            Source::Pool(pool) => {
                let (connection, lent) = pool.get().await?;
                Ok(Connection::pooled(Pooled::new(connection, lent, Arc::clone(pool))))
            }
        }
    }

    /// Opens the first connection, where all share one.
    pub(crate) async fn open(&self) -> Result<(), Error> {
        match &self.source {
            Source::Shared(shared) => shared.open().await,
            Source::Own(_) => Ok(()),
            #[cfg(feature = "cluster")]
            Source::Cluster(cluster) => cluster.open().await,
            Source::Wrapped(_) => Ok(()),
            #[cfg(feature = "deadpool")]
            Source::Pool(_) => Ok(()),
        }
    }

    /// How many connections there are, and how many callers wait for one; `None` where all share one.
    pub fn status(&self) -> Option<Status> {
        match &self.source {
            Source::Shared(_) => None,
            Source::Own(pool) => Some(pool.status()),
            #[cfg(feature = "cluster")]
            Source::Cluster(_) => None,
            Source::Wrapped(_) => None,
            #[cfg(feature = "deadpool")]
            Source::Pool(pool) => Some(pool.status()),
        }
    }

    /// A clone of what the application built, where that was [wrapped](crate::Redis::wrap): of a connection until its drain is over.
    pub fn existing(&self) -> Option<Existing> {
        match &self.source {
            Source::Wrapped(wrapped) => wrapped.existing().ok().map(Existing::from),
            #[cfg(feature = "deadpool")]
            Source::Pool(pool) => Some(Existing::Pool(pool.pool().clone())),
            _ => None,
        }
    }

    /// Lets those go that are to leave at a flush.
    pub(crate) fn flush(&self) -> Vec<Arc<Session>> {
        match &self.source {
            Source::Shared(shared) => shared.flush().into_iter().collect(),
            Source::Own(pool) => {
                let Some(leaves) = pool.manager().lifetime.at_flush() else { return Vec::new() };
                let kept = pool.retain(|_, known| !leaves(known.created, known.recycled.unwrap_or(known.created)));
                // What is dropped says goodbye.
                kept.removed.iter().map(|handle| Arc::clone(handle.session())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Idle connections are let go, and so are the others when they come back.
    pub(crate) fn close(&self) {
        match &self.source {
            Source::Own(pool) => {
                drop(pool.retain(|_, _| false));
                pool.close();
            }
            #[cfg(feature = "cluster")]
            Source::Cluster(cluster) => cluster.begin_drain(),
            _ => {}
        }
    }

    /// No checkout is out any more: lets the connection that they shared go, and what a caller has left in the closed pool
    /// that waited for a connection and has gone.
    pub(crate) fn settled(&self) {
        match &self.source {
            Source::Shared(shared) => shared.close(),
            Source::Own(pool) => drop(pool.retain(|_, _| false)),
            #[cfg(feature = "cluster")]
            Source::Cluster(cluster) => cluster.close(),
            Source::Wrapped(_) => {}
            #[cfg(feature = "deadpool")]
            Source::Pool(_) => {}
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Shared(shared) => f.debug_tuple("Pool").field(shared).finish(),
            Source::Own(pool) => f.debug_tuple("Pool").field(&pool.status()).finish(),
            #[cfg(feature = "cluster")]
            Source::Cluster(cluster) => f.debug_tuple("Pool").field(cluster).finish(),
            Source::Wrapped(wrapped) => f.debug_tuple("Pool").field(wrapped).finish(),
            #[cfg(feature = "deadpool")]
            Source::Pool(pool) => f.debug_tuple("Pool").field(pool).finish(),
        }
    }
}

/// A connection of its own, after those are let go whose life is over.
async fn from(pool: &managed::Pool<Opener>) -> Result<managed::Object<Opener>, managed::PoolError<Error>> {
    let Opener { lifetime, failures, .. } = pool.manager();
    if lifetime.is_sweep_due() {
        // What is dropped says goodbye.
        drop(pool.retain(|_, known| !lifetime.is_over(known.created, known.recycled.unwrap_or(known.created))));
    }
    failures.waits(pool.get()).await
}

/// Opens connections, and looks at those that have been idle.
pub(crate) struct Opener {
    connector: Connector,
    server: Server,
    idle_check: IdleCheck<()>,
    lifetime: Lifetime,
    failures: Failures,
}

impl Opener {
    fn new(connector: Connector) -> Result<Self, Error> {
        let server = server(&connector.config.driver)?;
        let idle_check = IdleCheck::new(connector.config.check_after);
        let config = &connector.config;
        let lifetime = Lifetime::new(config.max_lifetime, config.idle_timeout).idle_at_flush(config.idle_at_flush);
        Ok(Self { connector, server, idle_check, lifetime, failures: Failures::default() })
    }

    /// Whether a connection that comes back has lived for as long as it may.
    pub(crate) fn is_too_old(&self, handle: &Handle) -> bool {
        self.lifetime.is_too_old(handle.opened())
    }

    async fn open(&self) -> Result<Handle, Error> {
        // Boxed, since it happens seldom: inline it would make the future of every checkout larger, and nest too deep for the compiler.
        Box::pin(self.connector.open(&self.server)).await
    }

    /// Whether nothing is left on it of what its last user did.
    async fn is_undone(&self, handle: &Handle) -> bool {
        let undoing = handle.undoing();
        // Boxed, as below.
        undoing.is_empty()
            || matches!(timeout(self.connector.config.check_timeout, Box::pin(handle.undo(undoing))).await, Ok(Ok(())))
    }

    /// Whether a connection that was last handed out at this moment can be handed out again.
    async fn works(&self, handle: &Handle, used: Instant) -> bool {
        if handle.is_outdated(used) || self.lifetime.is_over(handle.opened(), used) {
            return false;
        }
        if handle.is_doubtful() || self.idle_check.is_suspect(used) {
            // What the server has closed meanwhile is known to the kernel.
            handle.session().sweep();
            if !handle.is_closed() {
                let limit = self.connector.config.check_timeout;
                // Boxed, as below.
                if !matches!(timeout(limit, Box::pin(handle.answers())).await, Ok(true)) {
                    tracing::debug!("a connection did not answer when it was checked, replacing it");
                    self.connector.outdated.unused_until_now();
                    return false;
                }
            }
        }
        // The answer may have shown it.
        !handle.is_closed() && !handle.is_outdated(Instant::now())
    }
}

impl managed::Manager for Opener {
    type Type = Handle;
    type Error = Error;

    async fn create(&self) -> Result<Handle, Error> {
        if let Some(error) = self.failures.told() {
            return Err(error);
        }
        let opened = self.open().await.inspect_err(|error| self.failures.failed(error))?;
        self.failures.worked();
        Ok(opened)
    }

    async fn recycle(&self, handle: &mut Handle, metrics: &Metrics) -> RecycleResult<Error> {
        if handle.is_busy() {
            // Whoever had it has left something that may wait for ever.
            return Err(RecycleError::message("a command of its last user is not answered yet"));
        }
        if handle.is_changed() || !self.is_undone(handle).await {
            return Err(RecycleError::message("what its last user has left on it cannot be undone"));
        }
        match self.works(handle, metrics.recycled.unwrap_or(metrics.created)).await {
            true => Ok(()),
            false => Err(RecycleError::message("the connection is closed")),
        }
    }
}

/// One connection for all, which is replaced when it has ended.
pub(crate) struct SharedHandle {
    opener: Opener,
    current: Mutex<Current>,
    /// Who opens it. The others wait for that.
    turn: AsyncMutex<()>,
}

struct Current {
    /// `None` once the drain let it go.
    connection: Option<Slot>,
    /// When it was last handed out.
    used: Instant,
}

/// Filled by whoever opens it.
type Slot = Arc<OnceLock<Handle>>;

/// How often, and after what pauses, a connection that has ended is opened anew before a command fails.
fn reopening() -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_millis(500))
        .with_max_times(4)
        .with_jitter()
}

impl SharedHandle {
    fn new(opener: Opener) -> Self {
        let current = Current { connection: Some(Slot::default()), used: Instant::now() };
        Self { opener, current: Mutex::new(current), turn: AsyncMutex::default() }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self) -> Result<Slot, Error> {
        let gone = || Error::new(ErrorKind::ShuttingDown, "shutting down: the connection is let go");
        self.current().connection.clone().ok_or_else(gone)
    }

    /// The connection, opened or opened anew if need be. Nothing is opened any more once it was let go.
    pub(crate) async fn handle(&self) -> Result<Handle, Error> {
        loop {
            let slot = self.slot()?;
            let handle = match slot.get() {
                Some(handle) => handle,
                // Boxed, as above.
                None => Box::pin(self.filled(&slot, self.reopen())).await?,
            };
            if !handle.is_closed() && !handle.is_outdated(Instant::now()) {
                return Ok(handle.clone());
            }
            self.replace(&slot);
        }
    }

    /// Opens the first connection, in one try.
    pub(crate) async fn open(&self) -> Result<(), Error> {
        let slot = self.slot()?;
        self.filled(&slot, self.opener.open()).await.map(drop)
    }

    /// The connection of this slot. Whoever comes first opens it; all who wait for that share what becomes of it.
    ///
    /// # Cancel safety
    /// Cancel safe: the next one who waits opens it.
    async fn filled<'a>(
        &self,
        slot: &'a Slot,
        open: impl Future<Output = Result<Handle, Error>>,
    ) -> Result<&'a Handle, Error> {
        let failures = &self.opener.failures;
        let opening = async {
            let _turn = self.turn.lock().await;
            if let Some(handle) = slot.get() {
                return Ok(handle);
            }
            if let Some(error) = failures.told() {
                return Err(error);
            }
            let handle = open.await.inspect_err(|error| failures.failed(error))?;
            failures.worked();
            // Nobody else has the turn.
            Ok(slot.get_or_init(|| handle))
        };
        failures.waits(opening).await
    }

    /// Tries until it succeeds, the tries are used up, or the [`connect_timeout`](crate::Config::connect_timeout) is over: no try
    /// begins after that.
    async fn reopen(&self) -> Result<Handle, Error> {
        let (began, limit) = (Instant::now(), self.opener.connector.config.connect_timeout);
        let mut pauses = reopening().build();
        loop {
            let error = match self.opener.open().await {
                Ok(handle) => return Ok(handle),
                Err(error) => error,
            };
            let in_time = |pause: &Duration| limit.is_none_or(|limit| began.elapsed() + *pause < limit);
            let pause = pauses.next().filter(|pause| error.is_retryable() && in_time(pause));
            let Some(pause) = pause else { return Err(error) };
            tracing::debug!(%error, ?pause, "cannot open the connection anew, trying again");
            tokio::time::sleep(pause).await;
            self.slot()?;
        }
    }

    /// Sees to it that a connection is there, and works if it has been idle. One that was opened just now is not looked at.
    async fn checked(&self) -> Result<(), Error> {
        let slot = self.slot()?;
        if let Some(handle) = slot.get() {
            let used = std::mem::replace(&mut self.current().used, Instant::now());
            if self.opener.works(handle, used).await {
                return Ok(());
            }
            self.replace(&slot);
        }
        self.handle().await?;
        self.current().used = Instant::now();
        Ok(())
    }

    /// Something on the connection hung: whoever comes next looks at it.
    #[cfg(feature = "buffer")]
    pub(crate) fn distrust(&self) {
        if let Ok(slot) = self.slot()
            && let Some(handle) = slot.get()
        {
            handle.distrust();
        }
    }

    /// Lets the connection go where it is to leave at a flush; what is under way on it ends first.
    fn flush(&self) -> Option<Arc<Session>> {
        let leaves = self.opener.lifetime.at_flush()?;
        let slot = self.slot().ok()?;
        let handle = slot.get()?;
        let used = self.current().used;
        if !leaves(handle.opened(), used) {
            return None;
        }
        let session = Arc::clone(handle.session());
        self.replace(&slot);
        Some(session)
    }

    /// The connection in this slot is done with.
    fn replace(&self, slot: &Slot) {
        let mut current = self.current();
        if current.connection.as_ref().is_some_and(|connection| Arc::ptr_eq(connection, slot)) {
            let done = current.connection.replace(Slot::default());
            drop(current);
            drop(done);
        }
    }

    fn close(&self) {
        let last = self.current().connection.take();
        drop(last);
    }

    pub(crate) fn database(&self) -> i64 {
        self.opener.connector.config.driver.redis_settings().db()
    }
}

impl fmt::Debug for SharedHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedHandle").field("server", &self.opener.server).finish_non_exhaustive()
    }
}
