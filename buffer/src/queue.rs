//! The records between push and sink, and their accounting. No input or output happens here, and what waits is at
//! the end of each part.
//!
//! One mutex guards all of it, and the accounting is what it guards: there is no second account (S5). So:
//!
//! 1. A record is accepted exactly when it is in the queue, and it leaves exactly once: written, spilled, lost or in doubt.
//! 2. At most so many batches are out as may be in flight, and only the current [`Writer`] takes one out. Those that come
//!    back are taken first, the oldest of them before the others. A goodbye goes beyond that for what a flusher does not
//!    bring back in time, see [`turns`].
//! 3. Each batch knows the number of its first record; so what has left up to a record is known without a count of each.
//! 4. What the target may have is never called lost, whatever becomes of it later.
//!
//! The lock is never held across an await. No foreign code runs under it: records and wakers are dropped, and callbacks
//! called, after it is released.

mod accounting;
mod fits;
mod out;
mod room;
#[cfg(test)]
mod tests;
mod turns;

use std::{
    collections::VecDeque,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore, oneshot, watch},
    time::Instant,
};
use winddown_core::{Error, ErrorKind, adapter::Accounting as _};

pub use self::room::Room;
use self::{accounting::Columns, fits::Fits, out::Out, turns::Waited};
pub(crate) use self::{
    out::{Smaller, Started, Taken},
    turns::Next,
};
use crate::{Batch, Delivery, PushError};

/// Called with records that are given up.
pub(crate) type OnLost<T> = Arc<dyn Fn(&[T], &Error) + Send + Sync>;

/// How many bytes a record has besides its own.
pub(crate) type HeapSize<T> = Arc<dyn Fn(&T) -> usize + Send + Sync>;

/// How much is buffered, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// In bytes.
    pub(crate) capacity: usize,
    /// In records.
    pub(crate) batch_size: usize,
    /// In bytes; a batch is full when it has as many.
    pub(crate) batch_bytes: usize,
    pub(crate) max_age: Duration,
    /// In batches.
    pub(crate) in_flight: usize,
}

/// What the queue asks of the application or tells it.
pub(crate) struct Callbacks<T> {
    pub(crate) heap_size: Option<HeapSize<T>>,
    pub(crate) on_lost: Option<OnLost<T>>,
    pub(crate) on_rejected: Option<OnLost<T>>,
}

/// Who may take batches out. Only ever moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Writer {
    /// The task on the application's runtime.
    Flusher,
    /// That task has ended before the drain began.
    Nobody,
    /// The drain.
    Goodbye,
    /// The drain is over: nothing is taken in or out any more.
    Closed,
}

/// See the module's documentation.
pub(crate) struct Queue<T> {
    name: String,
    limits: Limits,
    delivery: Delivery,
    callbacks: Callbacks<T>,
    state: Mutex<QueueState<T>>,
    /// One permit for each byte that there is room for. Closed when nobody writes any more.
    room: Semaphore,
    /// For the flusher: something may be due.
    wake: Notify,
    /// For the goodbye: a batch ended, or a record came in after all.
    changed: Notify,
    /// From when draining begins.
    waited: watch::Sender<Option<Waited>>,
}

struct QueueState<T> {
    writer: Writer,
    columns: Columns,
    /// The batch that records go into, the newest of all. Its memory is there before its records.
    open: Vec<T>,
    open_bytes: usize,
    /// When its first record came, if it has one: the clock is read once a batch.
    since: Option<Instant>,
    /// Full batches, and those that the sink did not take, by the number of their first record.
    ready: VecDeque<Packed<T>>,
    /// Those that are being written, or spilled.
    out: Vec<Out<T>>,
    /// How often the current writer has begun, and has not taken a batch yet.
    started: usize,
    /// Bytes that were taken in although there was no room for them: those that leave first give no room.
    debt: usize,
    /// The memory of batches that have left.
    spare: Vec<Vec<T>>,
    /// Write up to this record without waiting for size or age.
    flush_to: u64,
    flushes: Vec<Flush>,
    /// What was out when the drain gave up is put elsewhere, whatever comes of it.
    given_up: bool,
    fits: Fits,
}

/// A batch, and where it stands among the others.
struct Packed<T> {
    /// The number of its first record.
    first: u64,
    bytes: usize,
    batch: Batch<T>,
    /// It was handed to the sink, and nobody knows what became of that. It cannot be called lost any more.
    unknown: bool,
    /// Its write hung: in a drain the others go first.
    hung: bool,
    /// How often it was too large although it cannot be divided.
    too_large: u8,
}

impl<T> Packed<T> {
    fn new(first: u64, bytes: usize, batch: Batch<T>) -> Self {
        Self { first, bytes, batch, unknown: false, hung: false, too_large: 0 }
    }

    fn len(&self) -> u64 {
        self.batch.len() as u64
    }
}

/// One caller of `flush`.
struct Flush {
    /// Over when all records before this one have left.
    to: u64,
    error: Option<Error>,
    done: oneshot::Sender<Result<(), Error>>,
}

impl<T> Queue<T> {
    pub(crate) fn new(name: &str, limits: Limits, delivery: Delivery, callbacks: Callbacks<T>) -> Self {
        let state = QueueState {
            writer: Writer::Flusher,
            columns: Columns::default(),
            open: Vec::new(),
            open_bytes: 0,
            since: None,
            ready: VecDeque::new(),
            out: Vec::new(),
            started: 0,
            debt: 0,
            spare: Vec::new(),
            flush_to: 0,
            flushes: Vec::new(),
            given_up: false,
            fits: Fits::new(limits.batch_size),
        };
        Self {
            name: name.to_owned(),
            limits,
            delivery,
            callbacks,
            state: Mutex::new(state),
            room: Semaphore::new(limits.capacity),
            wake: Notify::new(),
            changed: Notify::new(),
            waited: watch::Sender::new(None),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn delivery(&self) -> Delivery {
        self.delivery
    }

    /// Bytes of records that have not left.
    pub(crate) fn bytes(&self) -> usize {
        let state = self.state();
        let out = state.out.iter().map(|out| &out.packed);
        let packed = state.ready.iter().chain(out).map(|packed| packed.bytes).sum::<usize>();
        state.open_bytes + packed
    }

    /// The flusher has ended. If that was not for the drain, whoever waits for it is told.
    pub(crate) fn abandoned(&self) {
        let flushes = {
            let mut state = self.state();
            if state.writer != Writer::Flusher {
                return;
            }
            state.writer = Writer::Nobody;
            mem::take(&mut state.flushes)
        };
        self.room.close();
        // Dropped without an answer, which is the answer.
        drop(flushes);
    }

    /// How many bytes of the capacity a record takes.
    fn weight(&self, record: &T) -> usize {
        let heap = self.callbacks.heap_size.as_ref().map_or(0, |heap_size| heap_size(record));
        // At least 1, or room for it could not be counted.
        size_of::<T>().saturating_add(heap).max(1)
    }

    fn put(&self, record: T) -> Result<(), PushError<T>> {
        let weight = self.weight(&record);
        let mut state = self.state();
        // The accounting is closed when the report has been made without it: a drain that was cut short.
        if state.writer == Writer::Closed {
            drop(state);
            return Err(PushError::new(record, self.closed()));
        }
        // One byte is there: that was the wait. The rest may have to be owed.
        state.debt += weight - 1 - self.room.forget_permits(weight - 1);
        let is_first = state.open.is_empty();
        if is_first {
            self.open(&mut state);
        }
        state.columns.accepted += 1;
        state.open.push(record);
        state.open_bytes += weight;
        let is_full = state.open.len() == self.limits.batch_size || state.open_bytes >= self.limits.batch_bytes;
        if is_full {
            state.pack();
        }
        // The first one starts the clock, a full batch stops it, and what fills the buffer must not wait for more.
        if is_first || is_full || state.writer == Writer::Goodbye || self.room.available_permits() == 0 {
            self.ring(&state);
        }
        Ok(())
    }

    /// A new batch is begun.
    fn open(&self, state: &mut QueueState<T>) {
        state.since = Some(Instant::now());
        if state.open.capacity() == 0 {
            state.open = state.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.limits.batch_size));
        }
    }

    /// Tells whoever writes that there may be something to do.
    fn ring(&self, state: &QueueState<T>) {
        match state.writer {
            Writer::Flusher => self.wake.notify_one(),
            Writer::Goodbye => self.changed.notify_one(),
            Writer::Nobody | Writer::Closed => {}
        }
    }

    fn not_flushed(&self, reason: &Error) -> Error {
        let error = Error::new(ErrorKind::Write, "not everything could be written");
        error.of(self.name.as_str()).with_source(reason.clone())
    }

    fn nobody_writes(&self) -> Error {
        let message =
            "the runtime this buffer was initialised on has ended, or its pool is gone: only the drain writes now";
        Error::new(ErrorKind::Checkout, message).of(self.name.as_str())
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::ShuttingDown, "shutting down: the buffer is closed").of(self.name.as_str())
    }

    fn state(&self) -> MutexGuard<'_, QueueState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waits.
impl<T: Send + Sync> Queue<T> {
    /// Returns when everything that was accepted before has left.
    ///
    /// # Cancel safety
    /// Cancel safe: what was asked for is written all the same.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        let done = {
            let mut state = self.state();
            let to = state.columns.accepted;
            if state.oldest() == to {
                return Ok(());
            }
            match state.writer {
                Writer::Flusher | Writer::Goodbye => {}
                Writer::Nobody => return Err(self.nobody_writes()),
                Writer::Closed => return Err(self.closed()),
            }
            let (done, result) = oneshot::channel();
            state.flush_to = to;
            state.flushes.retain(|flush| !flush.done.is_closed());
            state.flushes.push(Flush { to, error: None, done });
            result
        };
        self.wake.notify_one();
        done.await.unwrap_or_else(|_| Err(self.nobody_writes()))
    }
}

impl<T> QueueState<T> {
    /// What is open is a batch, if there is anything.
    fn pack(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let records = mem::take(&mut self.open);
        self.since = None;
        let first = self.columns.accepted - records.len() as u64;
        let bytes = mem::take(&mut self.open_bytes);
        self.ready.push_back(Packed::new(first, bytes, Batch::from(records)));
    }

    /// The number of the first record that has not left; that of the next one, if all have.
    fn oldest(&self) -> u64 {
        let out = self.out.iter().map(|out| out.packed.first);
        let packed = self.ready.front().map(|packed| packed.first).into_iter().chain(out);
        packed.min().unwrap_or(self.columns.accepted - self.open.len() as u64)
    }

    fn insert(&mut self, packed: Packed<T>) {
        let index = self.ready.partition_point(|before| before.first < packed.first);
        self.ready.insert(index, packed);
    }

    /// A batch has left, with this error if it was not written; returns the flushes that are over with it.
    fn flushed(&mut self, first: u64, error: Option<Error>) -> Vec<Flush> {
        if self.flushes.is_empty() {
            return Vec::new();
        }
        if let Some(error) = error {
            for flush in self.flushes.iter_mut().filter(|flush| first < flush.to) {
                flush.error.get_or_insert_with(|| error.clone());
            }
        }
        let oldest = self.oldest();
        let (over, waiting) = mem::take(&mut self.flushes).into_iter().partition(|flush| flush.to <= oldest);
        self.flushes = waiting;
        over
    }
}

impl<T: Send + Sync> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).field("accounting", &self.records()).finish_non_exhaustive()
    }
}
