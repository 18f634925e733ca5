//! A connection of a pool that the application built, from when it is handed out to its end.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use deadpool_redis::Connection as FromPool;
use redis::{Cmd, Pipeline, RedisResult, Value, aio::MultiplexedConnection};
use tokio::time::Instant;

use crate::{
    identity::Identity,
    marks::{Carried, Marks},
    wrapped::pool::WrappedPool,
};

/// What is known of it.
pub(crate) struct Lent {
    pub(super) number: u64,
    identity: OnceLock<Identity>,
    carried: Mutex<Carried>,
    /// How many requests were not answered, or not to a caller.
    unanswered: AtomicUsize,
    /// Since when nobody has it.
    since: OnceLock<Instant>,
    is_answered: AtomicBool,
}

impl Lent {
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            identity: OnceLock::new(),
            carried: Mutex::default(),
            unanswered: AtomicUsize::new(0),
            since: OnceLock::new(),
            is_answered: AtomicBool::new(false),
        }
    }

    /// Which session it is.
    pub(super) fn is(&self, identity: Identity) {
        // The same, where it was known before.
        let _ = self.identity.set(identity);
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        self.identity.get().cloned()
    }

    pub(super) fn nobody_has_it(&self) {
        // Once: what is taken is not handed out again.
        let _ = self.since.set(Instant::now());
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since.get().copied()
    }

    /// Everything is that was sent over it, or it is over.
    pub(super) fn answered(&self) {
        // SeqCst, here and below: once in its life, and nothing is gained by less.
        self.is_answered.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_answered(&self) -> bool {
        self.is_answered.load(Ordering::SeqCst)
    }

    /// Whether a request of its holder's is not answered.
    pub(super) fn is_busy(&self) -> bool {
        self.unanswered.load(Ordering::SeqCst) > 0
    }

    fn carried(&self) -> Carried {
        *self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the next caller would find what only the end of the session undoes.
    pub(super) fn is_changed(&self) -> bool {
        self.carried().is_changed()
    }

    /// What undoes what its holder has left on it.
    pub(super) fn undoing(&self, database: i64) -> Vec<Pipeline> {
        self.carried().undoing(database)
    }

    fn sends(&self, marks: &Marks) {
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        *carried = carried.after(marks);
        drop(carried);
        self.unanswered.fetch_add(1, Ordering::SeqCst);
    }
}

/// A checkout: goes back to the pool when it is dropped.
pub(crate) struct Pooled {
    /// There until this is dropped.
    connection: Option<FromPool>,
    lent: Arc<Lent>,
    pool: Arc<WrappedPool>,
}

macro_rules! subscribing {
    ($($name:ident),*) => {
        $(pub(crate) async fn $name(&mut self, to: Vec<Vec<u8>>) -> RedisResult<()> {
            self.ask(&Marks::of_subscriptions(), async |connection| connection.$name(to).await).await
        })*
    };
}

impl Pooled {
    pub(crate) fn new(connection: FromPool, lent: Arc<Lent>, pool: Arc<WrappedPool>) -> Self {
        Self { connection: Some(connection), lent, pool }
    }

    /// What is dropped before it is answered stays unanswered, and so does what is answered too late for the driver.
    async fn ask<T>(
        &mut self,
        marks: &Marks,
        work: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let connection = self.connection.as_mut().ok_or_else(crate::error::closed)?;
        self.lent.sends(marks);
        let result = work(connection).await;
        if !result.as_ref().is_err_and(redis::RedisError::is_timeout) {
            self.lent.unanswered.fetch_sub(1, Ordering::SeqCst);
        }
        result
    }

    pub(crate) async fn command(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.ask(&Marks::of(command), async |connection| connection.send_packed_command(command).await).await
    }

    pub(crate) async fn pipeline(
        &mut self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let marks = Marks::of_all(pipeline);
        self.ask(&marks, async |connection| connection.send_packed_commands(pipeline, offset, count).await).await
    }

    pub(crate) fn database(&self) -> i64 {
        self.connection.as_ref().map_or(0, redis::aio::ConnectionLike::get_db)
    }

    /// Something on it hung: it is closed as it is.
    #[cfg(feature = "buffer")]
    pub(crate) fn give_up(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.abandoned(connection, &self.lent);
        }
    }

    subscribing!(subscribe, unsubscribe, psubscribe, punsubscribe);
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.returned(connection, &self.lent);
        }
    }
}
