//! The buffer as a resource, and its settings.

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use winddown_core::{Drain, Error, ErrorKind, Ledger, Records, Resource, ResourceId, ShutdownGuard};

use crate::{
    Flusher, Room, Sink,
    queue::{Limits, OnLost, Queue},
};

/// A bounded buffer in front of a [`Sink`]: records are pushed one by one and written in batches.
///
/// A batch is written when it is full ([`batch_size`](Self::batch_size)), when its oldest record reaches
/// [`max_age`](Self::max_age), when someone flushes, and when the lifecycle drains. While nothing is buffered there is no
/// timer and nothing runs (C2).
///
/// It is a resource like any other: [`Lifecycle::guard`](winddown_core::Lifecycle::guard) takes it in, and
/// [`Push`](crate::Push) is how its guard is used. It depends on the pool it writes to, which it learns from the guard it
/// is given, and is drained before it (S4). Initialising it initialises that pool.
///
/// # What becomes of a record
/// A record whose push returned `Ok` is accepted, and ends in exactly one of three ways (S5):
/// - *written*: the sink returned `Ok` for its batch;
/// - *lost*: the sink returned an error that is not retryable, or the drain's time was up before its batch was handed to
///   the sink. It is counted, logged without its contents, and given to [`on_lost`](Self::on_lost);
/// - *in doubt*: its batch was handed to the sink and no answer came: the write panicked, hung until the drain's time
///   was up, or its runtime ended. It is not written again, which might duplicate it.
///
/// While the sink returns retryable errors, or the pool gives no checkout, records wait in the buffer and the batch is
/// tried again with growing pauses, for as long as it takes: the buffer fills up, pushes wait, memory stays bounded.
/// A drain tries again until its time is up.
///
/// Batches are written in order, one at a time.
///
/// # What it does not do
/// Nothing is on disk: a crash or SIGKILL loses what is buffered. Dropping the lifecycle and all guards without a drain
/// does too, without a count. A write has no timeout of its own while running: the sink knows best.
pub struct BatchWriter<T: Send + Sync + 'static, S: Sink<T>> {
    name: String,
    limits: Limits,
    on_lost: Option<OnLost<T>>,
    target: ShutdownGuard<S::Target>,
    sink: Arc<S>,
    ledger: Arc<Ledger>,
}

impl<T: Send + Sync + 'static, S: Sink<T>> BatchWriter<T, S> {
    /// A buffer that writes to this sink, through this pool. Make both guards with the same lifecycle.
    ///
    /// Settings that cannot be used are errors of kind [`Config`](ErrorKind::Config) when it is initialised.
    pub fn new(target: &ShutdownGuard<S::Target>, sink: S) -> Self {
        Self {
            name: format!("{}-buffer", target.name()),
            limits: Limits { capacity: CAPACITY, batch_size: BATCH_SIZE, max_age: MAX_AGE },
            on_lost: None,
            target: target.clone(),
            sink: Arc::new(sink),
            ledger: Arc::default(),
        }
    }

    /// The name it has in reports and logs.
    ///
    /// Defaults to the pool's name with `-buffer` behind it.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How many records it holds at most, those that are being written included. A push waits while there are as many.
    ///
    /// Must be at least 1. Defaults to 10 000: some megabytes of ordinary records, and as much as a server takes in
    /// within Lambda's 300 ms.
    #[must_use]
    pub fn capacity(mut self, records: usize) -> Self {
        self.limits.capacity = records;
        self
    }

    /// How many records are written together at most; as soon as there are so many, they are written.
    ///
    /// Must be at least 1; a batch is never larger than the capacity. Defaults to 500: larger batches gain little per
    /// record, and lose more when one is refused.
    #[must_use]
    pub fn batch_size(mut self, records: usize) -> Self {
        self.limits.batch_size = records;
        self
    }

    /// How old a record gets before it is written, where the batch is not full before.
    ///
    /// Zero writes as soon as the flusher gets to it; [`Duration::MAX`] waits for size, flush or drain. Defaults to 1 s:
    /// what a crash loses at most, at one write a second.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.limits.max_age = age;
        self
    }

    /// Calls this with records that are lost, and the reason: the last chance to put them elsewhere.
    ///
    /// It runs on the flusher's runtime, while draining on the drain's, and must not block for long: in a drain its time
    /// is the last quarter of the reserve, some 10 ms. The records count as lost whatever it does; a panic in it is
    /// logged. Records in doubt are not given to it. Defaults to nothing, but for the log.
    #[must_use]
    pub fn on_lost(mut self, callback: impl Fn(&[T], &Error) + Send + Sync + 'static) -> Self {
        self.on_lost = Some(Arc::new(callback));
        self
    }

    pub(crate) fn records(&self) -> Records {
        self.ledger.records()
    }

    fn checked_limits(&self) -> Result<Limits, Error> {
        let Limits { capacity, batch_size, max_age } = self.limits;
        let wrong = |message| Err(Error::new(ErrorKind::Config, message));
        match () {
            () if capacity == 0 => wrong("the capacity is 0: the buffer must hold at least one record"),
            () if capacity > Semaphore::MAX_PERMITS => wrong("the capacity is larger than the machine can count"),
            () if batch_size == 0 => wrong("the batch size is 0: a batch has at least one record"),
            // A buffer that is full is due, so that it never waits for records that it has no room for.
            () => Ok(Limits { capacity, batch_size: batch_size.min(capacity), max_age }),
        }
    }
}

impl<T: Send + Sync + 'static, S: Sink<T>> Resource for BatchWriter<T, S> {
    type Pool = Flusher<T, S>;
    type Checkout = Room<T>;

    fn name(&self) -> &str {
        &self.name
    }

    /// Initialises the target too: no record is accepted before there was something to write to.
    async fn init(&self) -> Result<Flusher<T, S>, Error> {
        let limits = self.checked_limits()?;
        if let Err(error) = self.target.pool().await {
            if error.is_shutting_down() {
                return Err(error);
            }
            // Not retryable: the target has tried as often as it should.
            return Err(Error::new(ErrorKind::Init, "what it writes to is not initialised").with_source(error));
        }
        let queue = Queue::new(&self.name, limits, Arc::clone(&self.ledger), self.on_lost.clone());
        Flusher::start(queue, Arc::clone(&self.sink), self.target.clone())
    }

    async fn checkout(&self, flusher: &Flusher<T, S>) -> Result<Room<T>, Error> {
        flusher.queue().room().await
    }

    async fn goodbye(&self, flusher: &Flusher<T, S>, drain: &Drain) -> Result<(), Error> {
        flusher.goodbye(drain).await
    }

    fn depends_on(&self) -> Vec<ResourceId> {
        vec![self.target.id()]
    }

    fn ledger(&self) -> Option<Arc<Ledger>> {
        Some(Arc::clone(&self.ledger))
    }
}

impl<T: Send + Sync + 'static, S: Sink<T>> fmt::Debug for BatchWriter<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The sink is left out: it may hold a password.
        f.debug_struct("BatchWriter")
            .field("name", &self.name)
            .field("target", &self.target.name())
            .field("limits", &self.limits)
            .field("records", &self.records())
            .finish_non_exhaustive()
    }
}

const CAPACITY: usize = 10_000;
const BATCH_SIZE: usize = 500;
const MAX_AGE: Duration = Duration::from_secs(1);
