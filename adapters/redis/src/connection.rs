//! What a caller has: a connection that is shared, or its own.

use std::{fmt, ops::Deref, sync::Arc};

use deadpool::managed::Object;
use redis::{
    Cmd, Pipeline, RedisFuture, RedisResult, ToRedisArgs, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};

#[cfg(feature = "cluster")]
use crate::cluster::ClusterConnection;
#[cfg(feature = "deadpool")]
use crate::wrapped::lent::Pooled;
use crate::{
    handle::Handle,
    pool::{Opener, SharedHandle},
    wrapped::one::{Borrowed, Wrapped},
};

/// A connection, for everything that the driver does with one: commands, pipelines, transactions, scripts.
///
/// Where all checkouts share one (the default) it is opened anew when the server has closed it, with the next command; one that
/// was under way then fails, and is not tried again. Where each checkout has its own, such a connection stays closed, and the
/// pool replaces it.
///
/// # Commands without an answer
/// A command with [`set_no_response`](Cmd::set_no_response) is accepted when its call returns `Ok`. From then on it is
/// executed, or counted in the report: as lost if it was not sent or the server refused it, as in doubt if the connection
/// ended before the server had answered. Some two thousand may be on their way; then the next call waits.
///
/// # Cancel safety
/// A command whose future was dropped is executed nevertheless, once it was taken, and so is a pipeline; the goodbye waits for
/// it.
pub struct Connection {
    kind: Kind,
}

enum Kind {
    Single(Single),
    #[cfg(feature = "cluster")]
    Cluster(ClusterConnection),
    Wrapped(Borrowed),
    #[cfg(feature = "deadpool")]
    Pooled(Pooled),
}

/// A connection with one server.
pub(crate) enum Single {
    Shared(Arc<SharedHandle>),
    Own(Own),
}

/// The connection of one checkout. Given back, it goes into the pool again, but for one that is not as it was when it was opened
/// and cannot be made so, or has lived for as long as it may: that is closed.
pub(crate) struct Own(Option<Object<Opener>>);

impl From<Object<Opener>> for Own {
    fn from(pooled: Object<Opener>) -> Self {
        Self(Some(pooled))
    }
}

impl Deref for Own {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        self.0.as_ref().expect("it is there until this is dropped")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let Some(pooled) = &self.0 else { return };
        let is_too_old = || Object::pool(pooled).is_some_and(|pool| pool.manager().is_too_old(pooled));
        if pooled.is_changed() || is_too_old() {
            drop(self.0.take().map(Object::take));
        }
    }
}

impl Single {
    async fn handle(&self) -> RedisResult<Handle> {
        match self {
            Self::Shared(shared) => shared.handle().await.map_err(crate::error::refused),
            Self::Own(handle) => Ok(Handle::clone(handle)),
        }
    }

    async fn with<F>(&self, work: impl FnOnce(MultiplexedConnection) -> F) -> RedisResult<()>
    where
        F: Future<Output = RedisResult<()>> + Send + 'static,
    {
        self.handle().await?.with(work).await
    }
}

impl Connection {
    pub(crate) fn single(single: Single) -> Self {
        Self { kind: Kind::Single(single) }
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn cluster(connection: ClusterConnection) -> Self {
        Self { kind: Kind::Cluster(connection) }
    }

    pub(crate) fn wrapped(wrapped: Arc<Wrapped>) -> Self {
        Self { kind: Kind::Wrapped(Borrowed::of(wrapped)) }
    }

    #[cfg(feature = "deadpool")]
    pub(crate) fn pooled(pooled: Pooled) -> Self {
        Self { kind: Kind::Pooled(pooled) }
    }

    /// Something on it hung: if it is its caller's own it leaves the pool and is closed, and if it is shared it is looked at
    /// before it is handed out again.
    #[cfg(feature = "buffer")]
    pub(crate) fn give_up(&mut self) {
        match &mut self.kind {
            Kind::Single(Single::Shared(shared)) => shared.distrust(),
            Kind::Single(Single::Own(handle)) => handle.distrust(),
            // The driver sees to these by itself.
            #[cfg(feature = "cluster")]
            Kind::Cluster(_) => {}
            Kind::Wrapped(_) => {}
            #[cfg(feature = "deadpool")]
            Kind::Pooled(pooled) => pooled.give_up(),
        }
    }

    /// The driver's own connection with the cluster, for what it can do besides: commands to a node of one's choice, or to
    /// all. `None` where it is no cluster.
    #[cfg(feature = "cluster")]
    pub fn as_cluster(&mut self) -> Option<&mut ClusterConnection> {
        match &mut self.kind {
            Kind::Cluster(connection) => Some(connection),
            _ => None,
        }
    }

    /// Subscribes to channels. What is sent to them goes to [`Config::push_sender`](crate::Config::push_sender). Needs
    /// `?protocol=resp3`.
    ///
    /// Subscriptions end with their session: it is told there as [`PushKind::Disconnection`](redis::PushKind::Disconnection), and
    /// a connection that was opened anew has none before somebody subscribes again.
    ///
    /// # Errors
    /// The driver's.
    pub async fn subscribe(&mut self, channels: impl ToRedisArgs) -> RedisResult<()> {
        let channels = channels.to_redis_args();
        match &mut self.kind {
            Kind::Single(single) => single.with(|mut driver| async move { driver.subscribe(channels).await }).await,
            #[cfg(feature = "cluster")]
            Kind::Cluster(connection) => connection.subscribe(channels).await,
            #[cfg(feature = "deadpool")]
            Kind::Pooled(pooled) => pooled.subscribe(channels).await,
            Kind::Wrapped(borrowed) => borrowed.subscribe(channels).await,
        }
    }

    /// Ends subscriptions to channels.
    ///
    /// # Errors
    /// The driver's.
    pub async fn unsubscribe(&mut self, channels: impl ToRedisArgs) -> RedisResult<()> {
        let channels = channels.to_redis_args();
        match &mut self.kind {
            Kind::Single(single) => single.with(|mut driver| async move { driver.unsubscribe(channels).await }).await,
            #[cfg(feature = "cluster")]
            Kind::Cluster(connection) => connection.unsubscribe(channels).await,
            #[cfg(feature = "deadpool")]
            Kind::Pooled(pooled) => pooled.unsubscribe(channels).await,
            Kind::Wrapped(borrowed) => borrowed.unsubscribe(channels).await,
        }
    }

    /// Subscribes to all channels whose names fit patterns; otherwise as [`subscribe`](Self::subscribe).
    ///
    /// # Errors
    /// The driver's.
    pub async fn psubscribe(&mut self, patterns: impl ToRedisArgs) -> RedisResult<()> {
        let patterns = patterns.to_redis_args();
        match &mut self.kind {
            Kind::Single(single) => single.with(|mut driver| async move { driver.psubscribe(patterns).await }).await,
            #[cfg(feature = "cluster")]
            Kind::Cluster(connection) => connection.psubscribe(patterns).await,
            #[cfg(feature = "deadpool")]
            Kind::Pooled(pooled) => pooled.psubscribe(patterns).await,
            Kind::Wrapped(borrowed) => borrowed.psubscribe(patterns).await,
        }
    }

    /// Ends subscriptions to patterns.
    ///
    /// # Errors
    /// The driver's.
    pub async fn punsubscribe(&mut self, patterns: impl ToRedisArgs) -> RedisResult<()> {
        let patterns = patterns.to_redis_args();
        match &mut self.kind {
            Kind::Single(single) => single.with(|mut driver| async move { driver.punsubscribe(patterns).await }).await,
            #[cfg(feature = "cluster")]
            Kind::Cluster(connection) => connection.punsubscribe(patterns).await,
            #[cfg(feature = "deadpool")]
            Kind::Pooled(pooled) => pooled.punsubscribe(patterns).await,
            Kind::Wrapped(borrowed) => borrowed.punsubscribe(patterns).await,
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.kind {
            Kind::Single(single) => Box::pin(async move { single.handle().await?.command(command).await }),
            #[cfg(feature = "cluster")]
            Kind::Cluster(connection) => connection.req_packed_command(command),
            Kind::Wrapped(borrowed) => Box::pin(borrowed.command(command)),
            #[cfg(feature = "deadpool")]
            Kind::Pooled(pooled) => Box::pin(pooled.command(command)),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.kind {
            Kind::Single(single) => {
                Box::pin(async move { single.handle().await?.pipeline(pipeline, offset, count).await })
            }
            #[cfg(feature = "cluster")]
            Kind::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
            Kind::Wrapped(borrowed) => Box::pin(borrowed.pipeline(pipeline, offset, count)),
            #[cfg(feature = "deadpool")]
            Kind::Pooled(pooled) => Box::pin(pooled.pipeline(pipeline, offset, count)),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.kind {
            Kind::Single(Single::Shared(shared)) => shared.database(),
            Kind::Single(Single::Own(handle)) => handle.database(),
            #[cfg(feature = "cluster")]
            Kind::Cluster(connection) => connection.get_db(),
            Kind::Wrapped(borrowed) => borrowed.database(),
            #[cfg(feature = "deadpool")]
            Kind::Pooled(pooled) => pooled.database(),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Connection");
        match &self.kind {
            Kind::Single(Single::Shared(shared)) => debug.field("shared", shared),
            Kind::Single(Single::Own(handle)) => debug.field("own", &**handle),
            #[cfg(feature = "cluster")]
            Kind::Cluster(_) => debug.field("cluster", &true),
            Kind::Wrapped(_) => debug.field("wrapped", &true),
            #[cfg(feature = "deadpool")]
            Kind::Pooled(_) => debug.field("wrapped", &true),
        };
        debug.finish()
    }
}
