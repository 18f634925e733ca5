//! The buffer as a resource, and its settings.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Records, Resource, ResourceId, ShutdownGuard,
    adapter::{Accounting, Drain},
};

use crate::{
    Flusher, Room, Sink, Spill,
    name::Name,
    pace::Pace,
    queue::{Callbacks, HeapSize, Limits, OnLost, Queue},
};

/// A bounded buffer in front of a [`Sink`]: records are pushed one by one and written in batches.
///
/// A batch is written when it is full ([`batch_size`](Self::batch_size), [`batch_bytes`](Self::batch_bytes)), when its oldest
/// record reaches [`max_age`](Self::max_age), when someone flushes, when the buffer is full, and when the lifecycle drains.
/// While nothing is buffered there is no timer and nothing runs (C2).
///
/// It is a resource like any other: [`Lifecycle::guard`](winddown_core::Lifecycle::guard) takes it in, and
/// [`Push`](crate::Push) is how its guard is used. It depends on the pool it writes to, which it learns from the guard it
/// is given, and is drained before it (S4). Initialising it initialises that pool.
///
/// # What becomes of a record
/// A record whose push returned `Ok` is accepted, and ends in exactly one of four ways (S5):
/// - *written*: the sink returned `Ok` for its batch;
/// - *spilled*: it could not be written in time, or never will, and is now where [`spill`](Self::spill) says, from where
///   a [`Replay`](crate::Replay) writes it later;
/// - *lost*: it could not be written or spilled, or the sink [rejects](crate::WriteError::Rejected) it for what is in it. It is
///   counted, logged without its contents, and given to [`on_rejected`](Self::on_rejected) or [`on_lost`](Self::on_lost);
/// - *in doubt*: its batch was handed to a sink, and no answer came. One that writes [at most once](crate::Delivery::AtMostOnce)
///   does not get it again, which might duplicate it. Other sinks do, with the same [key](crate::Batch::key), until an answer
///   says that they have it. What the target may have is never called lost, whatever becomes of it later: rejected as a
///   duplicate, divided, failed. It is spilled, or in doubt.
///
/// The queue itself keeps these accounting, and the report asks it: `accepted = written + spilled + lost + in_doubt + pending` holds at
/// every moment ([`Push::records`](crate::Push::records)).
///
/// While the sink says [`Retry`](crate::WriteError::Retry), or the pool gives no checkout, records wait in the buffer and the batch
/// is tried again with growing pauses, for as long as it takes: the buffer fills up, pushes wait, memory stays bounded. A
/// drain tries again until its time is up.
///
/// # Writes that hang
/// A write has a bound ([`write_within`](Self::write_within)), and so has the wait for a checkout. What takes longer is given up
/// with its connection ([`Sink::abandon`]), its outcome is unknown, and the batch is written again over another checkout.
///
/// When a drain begins, what the flusher is writing is waited for: a third of the time, 2 s at the most, or more where writes
/// take that. Then the goodbye goes on by itself, beyond [`in_flight`](Self::in_flight) if need be, so that neither a write that
/// hangs nor an application whose runtime is starved costs the other batches. Last of all it writes what a starved flusher
/// still holds: the first outcome counts. Where the target writes exactly once that changes nothing; at least once, such a
/// batch may be there twice, as after any answer that was lost; at most once it is not written again, and only as many more
/// are tried beyond those that hang as may be in flight.
///
/// # Batches that are too large
/// What comes up against a limit ([`TooLarge`](crate::WriteError::TooLarge)) is divided, and later batches are made no larger
/// than what went through; larger ones are tried again little by little. A batch that the target may have is not divided
/// where it would then be there twice: it is tried five times, and given up.
///
/// # Memory
/// At most [`capacity`](Self::capacity) bytes of records, and one record more for each caller that pushes at the same moment.
/// A record counts with its `size_of`, and what [`heap_size`](Self::heap_size) says that it has besides. A batch has its
/// memory from its first record on, so up to `in_flight + 1` batches may be partly empty:
/// `(in_flight + 1) * batch_size * size_of::<T>()` more at the worst. The memory of a batch that was written is used for a
/// later one; pushing allocates nothing else. What a sink needs to write a batch is its own.
///
/// # Order
/// With one batch [in flight](Self::in_flight), the default, batches are written in the order in which their records came,
/// but for those that a sink rejects in part. With more of them any order may come of it.
///
/// # More than one life
/// In a further [life](winddown_core::Lifecycle::restart) of the lifecycle it has a new queue, and its accounting begin at zero:
/// each report says what became of the records of its own life.
///
/// # What it does not do
/// Nothing is on disk while it runs: a crash or SIGKILL loses what is buffered. So does a process that ends without a drain
/// (`?` in `main`, a panic, a plain return): when the lifecycle and the last guard are dropped, the number of records that were
/// not written is logged as an error, on standard error where no subscriber is set, and
/// [`on_lost`](Self::on_lost) gets them. A guard in a static is never dropped, and says nothing.
///
/// `panic = "abort"` voids what a drain promises: any panic, also one of a sink, ends the process at once. A lifecycle that
/// receives signals then logs how many records that loses, and can do no more.
pub struct BatchWriter<T: Send + Sync + 'static, S: Sink<T>> {
    name: Name,
    limits: Limits,
    heap_size: Option<HeapSize<T>>,
    on_lost: Option<OnLost<T>>,
    on_rejected: Option<OnLost<T>>,
    spill: Option<Spill<T>>,
    target: ShutdownGuard<S::Target>,
    sink: Arc<S>,
    write_within: Option<Duration>,
    /// That of the life that is lived now. Each life has its own.
    queue: Mutex<Option<Arc<Queue<T>>>>,
}

impl<T: Send + Sync + 'static, S: Sink<T>> BatchWriter<T, S> {
    /// A buffer that writes to this sink, through this pool. Make both guards with the same lifecycle.
    ///
    /// Settings that cannot be used are errors of kind [`Config`](ErrorKind::Config) when it is initialised.
    pub fn new(target: &ShutdownGuard<S::Target>, sink: S) -> Self {
        let wish = format!("{}-{}", target.name(), sink.target().unwrap_or("buffer"));
        Self {
            name: Name::by_default(target.id(), &wish),
            limits: DEFAULTS,
            heap_size: None,
            on_lost: None,
            on_rejected: None,
            spill: None,
            target: target.clone(),
            sink: Arc::new(sink),
            write_within: None,
            queue: Mutex::new(None),
        }
    }

    /// The name it has in reports and logs, and by which a [`Replay`](crate::Replay) knows what it has spilled: one that stays the
    /// same from one process to the next. Two that [spill](Self::spill) on one pool must not have the same.
    ///
    /// Defaults to the pool's name, and behind it where the sink [writes to](Sink::target), or `buffer`; with a number behind that
    /// for a further one.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name.set(name.into());
        self
    }

    /// How many bytes of records it holds at most, those that are being written included. A push waits while there are as
    /// many. See [Memory](Self#memory) for what counts.
    ///
    /// Must be at least 1. Defaults to 8 MiB: what a server takes in within a fraction of Lambda's 300 ms.
    #[must_use]
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.limits.capacity = bytes;
        self
    }

    /// How many bytes a record holds besides its own `size_of`: its strings, its vectors.
    ///
    /// It may be called more than once for a record, and must say the same each time. Defaults to none, so without it strings
    /// do not count against the capacity.
    #[must_use]
    pub fn heap_size(mut self, bytes: impl Fn(&T) -> usize + Send + Sync + 'static) -> Self {
        self.heap_size = Some(Arc::new(bytes));
        self
    }

    /// How many records are written together at most; as soon as there are so many, they are written.
    ///
    /// Must be at least 1; a batch is never larger than the capacity. Defaults to 500: larger batches gain little per
    /// record with most sinks. A `COPY` gains up to some thousands.
    #[must_use]
    pub fn batch_size(mut self, records: usize) -> Self {
        self.limits.batch_size = records;
        self
    }

    /// How many bytes are written together: as soon as there are so many, they are, and one record may go beyond it.
    ///
    /// Must be at least 1. Defaults to 1 MiB, which no server refuses.
    #[must_use]
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.limits.batch_bytes = bytes;
        self
    }

    /// How many batches are written at once at most, each through a checkout of its own.
    ///
    /// Must be at least 1. Defaults to 1, which keeps the order and needs one session.
    #[must_use]
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.limits.in_flight = batches;
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

    /// Where records go that cannot be written: see [`Spill`].
    ///
    /// A drain that has one ends its attempts in time to spill what is left: as soon as 20 ms, 80 ms more for files, and 1 ms
    /// for each 50 kB of records, remain, but not before its settling has ended. Defaults to nothing: they are lost then, and reported.
    #[must_use]
    pub fn spill(mut self, spill: Spill<T>) -> Self {
        self.spill = Some(spill);
        self
    }

    /// Calls this with each record that the sink [rejects](crate::WriteError::Rejected) for what is in it, and the reason. The
    /// others of its batch are written.
    ///
    /// It runs where [`on_lost`](Self::on_lost) runs, which it takes the place of for such records. They count as lost, and
    /// are not spilled: a replay would meet the same refusal.
    #[must_use]
    pub fn on_rejected(mut self, callback: impl Fn(&T, &Error) + Send + Sync + 'static) -> Self {
        self.on_rejected = Some(Arc::new(move |records, error| records.iter().for_each(|one| callback(one, error))));
        self
    }

    /// Calls this with records that are lost, and the reason: the last chance to put them elsewhere, where there is no
    /// [`spill`](Self::spill).
    ///
    /// It runs on the flusher's runtime, while draining on the drain's, and must not block for long: in a drain its time
    /// is the last quarter of the reserve, some 10 ms. The records count as lost whatever it does; a panic in it is
    /// logged. Records in doubt are not given to it. Defaults to nothing, but for the log.
    #[must_use]
    pub fn on_lost(mut self, callback: impl Fn(&[T], &Error) + Send + Sync + 'static) -> Self {
        self.on_lost = Some(Arc::new(callback));
        self
    }

    /// How long a write may take before it is taken for hung: it is dropped, its checkout is given up
    /// ([`Sink::abandon`]), and the batch is written again over another one, where [`delivery`](Sink::delivery) allows that.
    /// A checkout is waited for as long. In a drain it is half of what is left, where that is less.
    ///
    /// Defaults to what the buffer learns: four times [`max_age`](Self::max_age), from 5 s to 30 s, or eight times what the
    /// slowest write took lately, whichever is more; and after each write that was given up, twice as long for the next.
    #[must_use]
    pub fn write_within(mut self, time: Duration) -> Self {
        self.write_within = Some(time);
        self
    }

    fn queue(&self) -> Option<Arc<Queue<T>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn records(&self) -> Records {
        self.queue().map(|queue| queue.records()).unwrap_or_default()
    }

    /// The queue of a life that begins.
    fn new_queue(&self) -> Arc<Queue<T>> {
        // With settings that cannot be used it is never initialised.
        let limits = self.checked_limits().unwrap_or(DEFAULTS);
        let callbacks = Callbacks {
            heap_size: self.heap_size.clone(),
            on_lost: self.on_lost.clone(),
            on_rejected: self.on_rejected.clone(),
        };
        let queue = Arc::new(Queue::new(self.name.as_str(), limits, self.sink.delivery(), callbacks));
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&queue));
        queue
    }

    /// Asks the sink whether the target is there.
    async fn check(&self) -> Result<(), Error> {
        let name = self.target.name();
        let too_late = |what: &str| {
            let text = format!("{what} within {CHECK_WITHIN:?}, to look at what the buffer writes to");
            Error::new(ErrorKind::Init, text).of(name).retryable()
        };
        let checkout = timeout(CHECK_WITHIN, self.target.get()).await;
        let mut checkout = checkout.map_err(|_| too_late("no checkout came"))??;
        let Ok(checked) = timeout(CHECK_WITHIN, self.sink.check(&mut checkout)).await else {
            // What it does beyond its time is the pool's to see to.
            let _ = timeout(CHECK_WITHIN, self.sink.abandon(checkout)).await;
            return Err(too_late("no answer came"));
        };
        checked.map_err(|error| match error.kind() {
            ErrorKind::Config | ErrorKind::Init | ErrorKind::ShuttingDown => error,
            _ => {
                let wrapped = Error::new(ErrorKind::Init, "what it writes to cannot be used");
                let is_retryable = error.is_retryable();
                let wrapped = wrapped.with_source(error);
                if is_retryable { wrapped.retryable() } else { wrapped }
            }
        })
    }

    fn checked_limits(&self) -> Result<Limits, Error> {
        let Limits { capacity, batch_size, batch_bytes, max_age, in_flight } = self.limits;
        let wrong = |message| Err(Error::new(ErrorKind::Config, message));
        match () {
            () if capacity == 0 => wrong("the capacity is 0: the buffer must hold at least one record"),
            () if capacity > Semaphore::MAX_PERMITS => wrong("the capacity is larger than the machine can count"),
            () if batch_size == 0 || batch_bytes == 0 => wrong("the batch size is 0: a batch has at least one record"),
            () if in_flight == 0 => wrong("no batch may be in flight: at least one must, or nothing is ever written"),
            () => {
                // A batch has its memory before its records, and must not have more than they may ever need.
                let batch_bytes = batch_bytes.min(capacity);
                let batch_size = batch_size.min((batch_bytes / size_of::<T>().max(1)).max(1));
                // So many at once that each is of one record are more than there can be.
                let in_flight = in_flight.min(capacity);
                Ok(Limits { capacity, batch_size, batch_bytes, max_age, in_flight })
            }
        }
    }
}

impl<T: Send + Sync + 'static, S: Sink<T>> Resource for BatchWriter<T, S> {
    type Pool = Flusher<T, S>;

    fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Initialises the target too: no record is accepted before there was something to write to.
    async fn init(&self) -> Result<Flusher<T, S>, Error> {
        self.checked_limits()?;
        if let Err(error) = self.target.pool().await {
            if error.is_shutting_down() {
                return Err(error);
            }
            // Not retryable: the target has tried as often as it should.
            return Err(Error::new(ErrorKind::Init, "what it writes to is not initialised").with_source(error));
        }
        if let Some(spill) = &self.spill {
            self.name.is_unique()?;
            let spill = spill.clone();
            let check = spawn_blocking(move || spill.check()).await;
            check.map_err(|panic| Error::new(ErrorKind::Panicked, "checking the spill").with_source(panic))??;
        }
        self.check().await?;
        let queue = self.queue().unwrap_or_else(|| self.new_queue());
        let pace = Pace::new(self.write_within, self.limits.max_age);
        Flusher::start(queue, Arc::clone(&self.sink), self.target.clone(), self.spill.clone(), pace)
    }

    async fn goodbye(&self, flusher: &Flusher<T, S>, drain: &Drain) -> Result<(), Error> {
        flusher.goodbye(drain).await
    }

    fn reserve(&self, _: &Flusher<T, S>) -> Duration {
        // Settling goes on while writing does; what a spill of a full buffer takes is kept.
        self.spill.as_ref().map_or(RESERVE, |spill| spill.time_for(self.limits.capacity).max(RESERVE))
    }

    async fn flush(&self, flusher: &Flusher<T, S>) -> Result<(), Error> {
        flusher.queue().flush().await
    }

    fn depends_on(&self) -> Vec<ResourceId> {
        vec![self.target.id()]
    }

    fn ledger(&self) -> Option<Arc<dyn Accounting>> {
        Some(self.new_queue())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NO_SESSIONS
    }
}

impl<T: Send + Sync + 'static, S: Sink<T>> Checkouts for BatchWriter<T, S> {
    type Checkout = Room<T>;

    async fn checkout(&self, flusher: &Flusher<T, S>) -> Result<Room<T>, Error> {
        flusher.queue().room().await
    }
}

impl<T: Send + Sync + 'static, S: Sink<T>> fmt::Debug for BatchWriter<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The sink is left out: it may hold a password.
        f.debug_struct("BatchWriter")
            .field("name", &self.name.as_str())
            .field("target", &self.target.name())
            .field("limits", &self.limits)
            .field("records", &self.records())
            .finish_non_exhaustive()
    }
}

const DEFAULTS: Limits = Limits {
    capacity: 8 << 20,
    batch_size: 500,
    batch_bytes: 1 << 20,
    // What a crash loses at most, at one write a second.
    max_age: Duration::from_secs(1),
    in_flight: 1,
};

/// A server that is there has answered by then, also a busy one.
const CHECK_WITHIN: Duration = Duration::from_secs(5);

/// A last answer from the target, and the callbacks for what is lost.
const RESERVE: Duration = Duration::from_millis(50);
