//! The records between push and sink, and their books. No input or output happens here, and what waits is at
//! the end.
//!
//! One mutex guards all of it, and every change of the books is made under it, so that:
//!
//! 1. A record is accepted exactly when it is in the queue, and it leaves exactly once: written, spilled, lost or in doubt
//!    (S5).
//! 2. At most so many batches are out as may be in flight, and only the current [`Writer`] takes one out. Those that come
//!    back are taken first, the oldest of them before the others.
//! 3. Each batch knows the number of its first record; so what has left up to a record is known without a count of each.
//!
//! The lock is never held across an await. No foreign code runs under it: records and wakers are dropped, and callbacks
//! called, after it is released.

use std::{
    collections::VecDeque,
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore, TryAcquireError, oneshot},
    time::{Instant, sleep_until},
};
use winddown_core::{Error, ErrorKind, Ledger};

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
    ledger: Arc<Ledger>,
    callbacks: Callbacks<T>,
    state: Mutex<State<T>>,
    /// One permit for each byte that there is room for. Closed when nobody writes any more.
    room: Semaphore,
    /// For the flusher: something may be due.
    wake: Notify,
    /// For the flusher: end.
    stop: Notify,
    /// For the goodbye: a batch ended, or a record came in after all.
    changed: Notify,
}

struct State<T> {
    writer: Writer,
    /// How many records have ever been accepted.
    accepted: u64,
    /// The batch that records go into, the newest of all. Its memory is there before its records.
    open: Vec<T>,
    open_bytes: usize,
    /// When its first record came, if it has one: the clock is read once a batch.
    since: Option<Instant>,
    /// Full batches, and those that the sink did not take, by the number of their first record.
    ready: VecDeque<Packed<T>>,
    /// Those that are being written.
    out: Vec<Packed<T>>,
    /// Writers that have begun, and have not taken a batch yet.
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
}

/// A batch, and where it stands among the others.
struct Packed<T> {
    /// The number of its first record.
    first: u64,
    bytes: usize,
    batch: Batch<T>,
    /// It was handed to the sink, and nobody knows what became of that. It cannot be called lost any more.
    unknown: bool,
}

impl<T> Clone for Packed<T> {
    fn clone(&self) -> Self {
        Self { batch: self.batch.clone(), ..*self }
    }
}

/// One caller of `flush`.
struct Flush {
    /// Over when all records before this one have left.
    to: u64,
    error: Option<Error>,
    done: oneshot::Sender<Result<(), Error>>,
}

/// How a batch left.
enum End {
    Written,
    Spilled,
    Lost(Error),
    Rejected(Error),
    InDoubt(Error),
}

enum Due {
    Now,
    At(Instant),
    /// Not before something happens.
    Idle,
    /// There is nothing at all.
    Nothing,
}

/// What a writer has to do next.
pub(crate) enum Next<'a, T> {
    /// Write a batch.
    Write(Started<'a, T>),
    /// Nothing is left, nor being written.
    Nothing,
}

impl<T> Queue<T> {
    pub(crate) fn new(
        name: &str,
        limits: Limits,
        delivery: Delivery,
        ledger: Arc<Ledger>,
        callbacks: Callbacks<T>,
    ) -> Self {
        let state = State {
            writer: Writer::Flusher,
            accepted: 0,
            open: Vec::new(),
            open_bytes: 0,
            since: None,
            ready: VecDeque::new(),
            out: Vec::with_capacity(limits.in_flight),
            started: 0,
            debt: 0,
            spare: Vec::new(),
            flush_to: 0,
            flushes: Vec::new(),
            given_up: false,
        };
        Self {
            name: name.to_owned(),
            limits,
            delivery,
            ledger,
            callbacks,
            state: Mutex::new(state),
            room: Semaphore::new(limits.capacity),
            wake: Notify::new(),
            stop: Notify::new(),
            changed: Notify::new(),
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
        let packed = state.ready.iter().chain(&state.out).map(|packed| packed.bytes).sum::<usize>();
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

    /// From here on only the goodbye takes batches.
    pub(crate) fn begin_drain(&self) {
        self.state().writer = Writer::Goodbye;
        self.stop.notify_one();
    }

    /// Takes nothing in or out any more, and hands over what is left, for it to be put elsewhere: also what is being
    /// written, unless the target is to have it at most once. It counts as being written until [`ended`](Self::ended).
    pub(crate) fn give_up(&self) -> Vec<Left<T>> {
        let mut state = self.state();
        state.writer = Writer::Closed;
        self.pack(&mut state);
        let mut left: Vec<Packed<T>> = mem::take(&mut state.ready).into();
        self.ledger.writing(left.iter().filter(|packed| !packed.unknown).map(|packed| packed.batch.len() as u64).sum());
        if self.delivery != Delivery::AtMostOnce {
            // Whether the sink has it, nobody will hear.
            left.extend(state.out.drain(..).map(|packed| Packed { unknown: true, ..packed }));
            state.given_up = true;
        }
        left.sort_unstable_by_key(|packed| packed.first);
        // Each of them is out now.
        state.out.extend_from_slice(&left);
        left.into_iter().map(|packed| Left { batch: packed.batch, first: packed.first }).collect()
    }

    /// What was given up has been put elsewhere, or is lost for this reason.
    pub(crate) fn ended(&self, left: Left<T>, spilled: Result<(), Error>) {
        self.leave(left.first, left.batch, spilled.map_or_else(End::Lost, |()| End::Spilled));
    }

    /// The drain is over: takes nothing in or out any more. What is left is lost, for this reason.
    pub(crate) fn close(&self, reason: &Error) {
        let (rest, flushes) = {
            let mut state = self.state();
            state.writer = Writer::Closed;
            self.pack(&mut state);
            let rest = mem::take(&mut state.ready);
            for packed in &rest {
                // The ledger keeps the others as being written, and calls that in doubt when it is closed.
                if !packed.unknown {
                    self.ledger.lost(packed.batch.len() as u64);
                }
            }
            (rest, mem::take(&mut state.flushes))
        };
        for packed in rest {
            if packed.unknown {
                self.tell_doubt(&packed.batch, reason);
            } else {
                self.tell(self.callbacks.on_lost.as_ref(), &packed.batch, reason, "records lost");
            }
        }
        for flush in flushes {
            let error = flush.error.unwrap_or_else(|| self.not_flushed(reason));
            // Whoever asked may have gone.
            let _ = flush.done.send(Err(error));
        }
    }

    /// The batch that was out, from this record on, has left. Nothing happens if it has left before.
    fn leave(&self, first: u64, batch: Batch<T>, mut end: End) {
        let count = batch.len() as u64;
        let (gone, over) = {
            let mut state = self.state();
            let Some(gone) = state.take_back(first) else { return };
            if gone.unknown
                && let End::Lost(error) = end
            {
                end = End::InDoubt(error);
            }
            let mut failed = None;
            match &end {
                End::Written => self.ledger.written(count),
                End::Spilled => self.ledger.spilled(count),
                End::Lost(error) | End::Rejected(error) => {
                    self.ledger.returned(count);
                    self.ledger.lost(count);
                    failed = Some(self.not_flushed(error));
                }
                // The ledger keeps it as being written, and calls that in doubt when it is closed.
                End::InDoubt(error) => failed = Some(self.not_flushed(error)),
            }
            let room = gone.bytes.saturating_sub(state.debt);
            state.debt -= gone.bytes - room;
            self.room.add_permits(room);
            self.ring(&state);
            (gone, state.flushed(first, failed))
        };
        drop(gone);
        match &end {
            End::Written | End::Spilled => {}
            End::Lost(error) => self.tell(self.callbacks.on_lost.as_ref(), &batch, error, "records lost"),
            End::Rejected(error) => {
                let callbacks = &self.callbacks;
                let callback = callbacks.on_rejected.as_ref().or(callbacks.on_lost.as_ref());
                self.tell(callback, &batch, error, "a record was rejected");
            }
            End::InDoubt(error) => self.tell_doubt(&batch, error),
        }
        for flush in over {
            // Whoever asked may have gone.
            let _ = flush.done.send(flush.error.map_or(Ok(()), Err));
        }
        self.reuse(batch);
    }

    /// The memory of a batch that has left is that of a later one.
    fn reuse(&self, batch: Batch<T>) {
        // The sink may have kept a handle.
        let Some(mut records) = batch.into_memory() else { return };
        records.clear();
        let mut state = self.state();
        if state.spare.len() <= self.limits.in_flight && records.capacity() == self.limits.batch_size {
            state.spare.push(records);
        }
    }

    /// The batch that was out comes again, where there is somebody left to try. `unknown`: the target may have it.
    fn put_back(&self, first: u64, batch: Batch<T>, error: Error, unknown: bool) {
        let mut state = self.state();
        if state.writer == Writer::Closed {
            let given_up = state.given_up;
            drop(state);
            if !given_up {
                self.leave(first, batch, if unknown { End::InDoubt(error) } else { End::Lost(error) });
            }
            return;
        }
        if let Some(mut packed) = state.take_back(first) {
            packed.unknown |= unknown;
            // Where the target may have it, it counts as being written until it is known: the books may be closed at any moment.
            if !packed.unknown {
                self.ledger.returned(packed.batch.len() as u64);
            }
            state.insert(packed);
            self.ring(&state);
        }
    }

    /// What became of the batch that was out is not known.
    fn unknown(&self, first: u64, batch: Batch<T>, error: Error) {
        match self.delivery {
            Delivery::ExactlyOnce | Delivery::AtLeastOnce => self.put_back(first, batch, error, true),
            Delivery::AtMostOnce => self.leave(first, batch, End::InDoubt(error)),
        }
    }

    /// The batch that was out comes again in two halves.
    fn divide(&self, first: u64, batch: Batch<T>, error: Error) {
        let mut state = self.state();
        if state.writer == Writer::Closed {
            drop(state);
            return self.put_back(first, batch, error, false);
        }
        let Some(whole) = state.take_back(first) else { return };
        let unknown = whole.unknown;
        if !unknown {
            self.ledger.returned(batch.len() as u64);
        }
        let [front, behind] = batch.halves();
        let bytes = front.iter().map(|record| self.weight(record)).sum();
        state.insert(Packed { first: first + front.len() as u64, bytes: whole.bytes - bytes, batch: behind, unknown });
        state.insert(Packed { first, bytes, batch: front, unknown });
        self.ring(&state);
    }

    fn tell_doubt(&self, records: &[T], error: &Error) {
        tracing::error!(buffer = self.name, records = records.len(), %error, "records in doubt");
    }

    fn tell(&self, callback: Option<&OnLost<T>>, records: &[T], error: &Error, what: &str) {
        tracing::error!(buffer = self.name, records = records.len(), %error, "{what}");
        let Some(callback) = callback else { return };
        // Records are only lent to it, so a panic leaves nothing of ours half done.
        if catch_unwind(AssertUnwindSafe(|| callback(records, error))).is_err() {
            tracing::error!(buffer = self.name, "the callback for lost records panicked");
        }
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
        // The books are closed when the report has been made without it: a drain that was cut short.
        if state.writer == Writer::Closed || !self.ledger.accepted(1) {
            drop(state);
            return Err(PushError::new(record, self.closed()));
        }
        // One byte is there: that was the wait. The rest may have to be owed.
        state.debt += weight - 1 - self.room.forget_permits(weight - 1);
        let is_first = state.open.is_empty();
        if is_first {
            self.open(&mut state);
        }
        state.accepted += 1;
        state.open.push(record);
        state.open_bytes += weight;
        let is_full = state.open.len() == self.limits.batch_size || state.open_bytes >= self.limits.batch_bytes;
        if is_full {
            self.pack(&mut state);
        }
        // The first one starts the clock, a full batch stops it, and what fills the buffer must not wait for more.
        if is_first || is_full || state.writer == Writer::Goodbye || self.room.available_permits() == 0 {
            self.ring(&state);
        }
        Ok(())
    }

    /// A new batch is begun.
    fn open(&self, state: &mut State<T>) {
        state.since = Some(Instant::now());
        if state.open.capacity() == 0 {
            state.open = state.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.limits.batch_size));
        }
    }

    /// What is open is a batch, if there is anything.
    fn pack(&self, state: &mut State<T>) {
        if state.open.is_empty() {
            return;
        }
        let records = mem::take(&mut state.open);
        state.since = None;
        let first = state.accepted - records.len() as u64;
        let bytes = mem::take(&mut state.open_bytes);
        state.ready.push_back(Packed { first, bytes, batch: Batch::from(records), unknown: false });
    }

    /// Tells whoever writes that there may be something to do.
    fn ring(&self, state: &State<T>) {
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

    /// What this writer has to do now.
    fn due(&self, state: &State<T>, writer: Writer) -> Due {
        if state.writer != writer {
            return Due::Idle;
        }
        let everything = writer == Writer::Goodbye;
        let is_open = !state.open.is_empty();
        if everything && !is_open && state.ready.is_empty() && state.out.is_empty() && state.started == 0 {
            return Due::Nothing;
        }
        if state.out.len() + state.started >= self.limits.in_flight {
            return Due::Idle;
        }
        let age = state.since.map(|since| since.checked_add(self.limits.max_age));
        let asked_for = everything
            || state.flush_to > state.accepted - state.open.len() as u64
            || self.room.available_permits() == 0
            || age.flatten().is_some_and(|at| at <= Instant::now());
        let due = state.ready.len() + usize::from(is_open && asked_for);
        match age.flatten() {
            _ if due > state.started => Due::Now,
            Some(at) if !asked_for => Due::At(at),
            // Nothing is open, or its age is so far away that the clock cannot say it.
            _ => Due::Idle,
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waits.
impl<T: Send + Sync> Queue<T> {
    /// Room for one record; waits for it.
    ///
    /// # Cancel safety
    /// Cancel safe; the place in the line is lost.
    pub(crate) async fn room(self: &Arc<Self>) -> Result<Room<T>, Error> {
        // First without tokio's cooperative budget: where there is room this must not wait, or `try_push` would take an
        // exhausted budget for a full buffer. It cannot overtake, since permits are free only where nobody waits.
        let permit = match self.room.try_acquire() {
            Err(TryAcquireError::NoPermits) => self.room.acquire().await.ok(),
            permit => permit.ok(),
        };
        match permit {
            Some(permit) => {
                // Given back by hand, by whatever becomes of the record.
                permit.forget();
                Ok(Room { queue: Arc::clone(self), filled: false })
            }
            None => Err(self.nobody_writes()),
        }
    }

    /// Ready when this writer should write a batch: for its size, its age, because a flush was asked for, or because the
    /// goodbye writes everything. While nothing is buffered it waits without a timer (C2).
    ///
    /// # Cancel safety
    /// Cancel safe. There is one place to wait for each writer.
    pub(crate) async fn next(&self, writer: Writer) -> Next<'_, T> {
        let bell = if writer == Writer::Goodbye { &self.changed } else { &self.wake };
        loop {
            let due = {
                let mut state = self.state();
                let due = self.due(&state, writer);
                if matches!(due, Due::Now) {
                    state.started += 1;
                }
                due
            };
            match due {
                Due::Now => return Next::Write(Started { queue: self, writer }),
                Due::Nothing => return Next::Nothing,
                Due::Idle => bell.notified().await,
                Due::At(instant) => tokio::select! {
                    () = sleep_until(instant) => {}
                    () = bell.notified() => {}
                },
            }
        }
    }

    /// Returns when everything that was accepted before has left.
    ///
    /// # Cancel safety
    /// Cancel safe: what was asked for is written all the same.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        let done = {
            let mut state = self.state();
            let to = state.accepted;
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

    /// Ready when the flusher must end.
    ///
    /// # Cancel safety
    /// Cancel safe. For the flusher alone, and only once.
    pub(crate) async fn stopped(&self) {
        self.stop.notified().await;
    }

    /// Ready when something has changed since the goodbye last looked.
    ///
    /// # Cancel safety
    /// Cancel safe. For the goodbye alone.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl<T> State<T> {
    /// The number of the first record that has not left; that of the next one, if all have.
    fn oldest(&self) -> u64 {
        let packed = self.ready.front().into_iter().chain(&self.out).map(|packed| packed.first);
        packed.min().unwrap_or(self.accepted - self.open.len() as u64)
    }

    /// The batch that was out and begins with this record. `None` if it has left already: it was given up.
    fn take_back(&mut self, first: u64) -> Option<Packed<T>> {
        let index = self.out.iter().position(|packed| packed.first == first)?;
        Some(self.out.swap_remove(index))
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

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).field("books", &self.ledger.records()).finish_non_exhaustive()
    }
}

/// A batch that was given up, to be spilled.
pub(crate) struct Left<T> {
    pub(crate) batch: Batch<T>,
    first: u64,
}

/// The right to take one batch out. Given back when it is dropped unused.
pub(crate) struct Started<'a, T> {
    queue: &'a Queue<T>,
    writer: Writer,
}

impl<'a, T> Started<'a, T> {
    /// Takes the next batch out, if this writer still may and there is one.
    pub(crate) fn take(self) -> Option<Taken<'a, T>> {
        let queue = self.queue;
        let mut state = queue.state();
        if state.writer != self.writer {
            return None;
        }
        if state.ready.is_empty() {
            queue.pack(&mut state);
        }
        let next = state.ready.front()?;
        if !queue.ledger.writing(if next.unknown { 0 } else { next.batch.len() as u64 }) {
            // The report was made without the goodbye, which hung, and calls them lost: so they are.
            state.writer = Writer::Closed;
            return None;
        }
        let packed = state.ready.pop_front()?;
        state.out.push(packed.clone());
        let Packed { first, batch, .. } = packed;
        Some(Taken { queue, batch: Some(batch), first })
    }
}

impl<T> Drop for Started<'_, T> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.started -= 1;
        self.queue.ring(&state);
    }
}

/// A batch that is out. Dropped without an outcome, nobody knows what became of it.
pub(crate) struct Taken<'a, T> {
    queue: &'a Queue<T>,
    first: u64,
    /// Gone when it has ended.
    batch: Option<Batch<T>>,
}

impl<T> Taken<'_, T> {
    pub(crate) fn batch(&self) -> &Batch<T> {
        self.batch.as_ref().expect("it is there until it has ended, and that takes it all")
    }

    /// The sink has it.
    pub(crate) fn written(self) {
        self.leave(End::Written);
    }

    /// It has been put elsewhere.
    pub(crate) fn spilled(self) {
        self.leave(End::Spilled);
    }

    /// The sink does not have it, for this reason; it comes again.
    pub(crate) fn returned(mut self, error: Error) {
        if let Some(batch) = self.batch.take() {
            self.queue.put_back(self.first, batch, error, false);
        }
    }

    /// Whether the sink has it is not known: it comes again, if it may.
    pub(crate) fn unknown(mut self, error: Error) {
        if let Some(batch) = self.batch.take() {
            self.queue.unknown(self.first, batch, error);
        }
    }

    /// The sink does not want a record of it: if there are more, they are tried apart.
    pub(crate) fn rejected(mut self, error: Error) {
        let Some(batch) = self.batch.take() else { return };
        if batch.len() > 1 {
            self.queue.divide(self.first, batch, error);
        } else {
            self.queue.leave(self.first, batch, End::Rejected(error));
        }
    }

    /// The sink does not have it, and never will.
    pub(crate) fn lost(self, error: Error) {
        self.leave(End::Lost(error));
    }

    /// Nobody knows.
    pub(crate) fn in_doubt(self, error: Error) {
        self.leave(End::InDoubt(error));
    }

    fn leave(mut self, end: End) {
        if let Some(batch) = self.batch.take() {
            self.queue.leave(self.first, batch, end);
        }
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        let Some(batch) = self.batch.take() else { return };
        let error = Error::new(ErrorKind::Write, "the write was cut off before the target answered");
        self.queue.unknown(self.first, batch, error);
    }
}

/// Room for one record: what a checkout of a buffer is. Free again if it is dropped unused.
///
/// [`Push::push`](crate::Push::push) checks one out, fills it and drops it; there is nothing else to do with it.
#[derive(Debug)]
pub struct Room<T> {
    queue: Arc<Queue<T>>,
    filled: bool,
}

impl<T> Room<T> {
    /// Accepts the record. Fails only after the drain is over, for a room that was held until then.
    pub(crate) fn put(&mut self, record: T) -> Result<(), PushError<T>> {
        self.queue.put(record)?;
        self.filled = true;
        Ok(())
    }
}

impl<T> Drop for Room<T> {
    fn drop(&mut self) {
        if !self.filled {
            self.queue.room.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn queue() -> Arc<Queue<u8>> {
        let limits = Limits { capacity: 4, batch_size: 2, batch_bytes: 4, max_age: Duration::MAX, in_flight: 1 };
        let callbacks = Callbacks { heap_size: None, on_lost: None, on_rejected: None };
        Arc::new(Queue::new("audit", limits, Delivery::AtMostOnce, Arc::default(), callbacks))
    }

    async fn push(queue: &Arc<Queue<u8>>, record: u8) {
        queue.room().await.unwrap().put(record).unwrap();
    }

    /// The next batch, if there is one for this writer at once.
    fn take(queue: &Queue<u8>, writer: Writer) -> Option<Taken<'_, u8>> {
        match pin!(queue.next(writer)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Next::Write(started)) => started.take(),
            Poll::Ready(Next::Nothing) | Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn once_the_drain_has_begun_the_flusher_gets_nothing() {
        let queue = queue();
        push(&queue, 1).await;
        push(&queue, 2).await;
        let Next::Write(started) = queue.next(Writer::Flusher).await else { panic!("a batch is full") };
        queue.begin_drain();
        assert!(started.take().is_none());
        assert!(take(&queue, Writer::Flusher).is_none());
        take(&queue, Writer::Goodbye).unwrap().written();
        assert_eq!(queue.ledger.records().written, 2);
    }

    #[tokio::test]
    async fn no_more_batches_are_out_than_may_be_in_flight() {
        let queue = queue();
        for record in 0..4 {
            push(&queue, record).await;
        }
        let first = take(&queue, Writer::Flusher).unwrap();
        assert!(take(&queue, Writer::Flusher).is_none());
        let key = first.batch().key();
        first.returned(Error::new(ErrorKind::Write, "not now"));
        let again = take(&queue, Writer::Flusher).unwrap();
        assert_eq!(**again.batch(), [0, 1], "the oldest first");
        assert_eq!(again.batch().key(), key);
    }

    #[tokio::test]
    async fn a_rejected_batch_comes_again_in_halves_whose_keys_are_always_the_same() {
        let queue = queue();
        push(&queue, 1).await;
        push(&queue, 2).await;
        let whole = take(&queue, Writer::Flusher).unwrap();
        let keys = whole.batch().halves().map(|half| half.key());
        assert!(keys[0] != keys[1] && !keys.contains(&whole.batch().key()));
        whole.rejected(Error::new(ErrorKind::Write, "too long"));
        for (record, key) in [1, 2].into_iter().zip(keys) {
            let half = take(&queue, Writer::Flusher).unwrap();
            assert_eq!((&**half.batch(), half.batch().key()), (&[record][..], key));
            half.rejected(Error::new(ErrorKind::Write, "too long"));
        }
        let records = queue.ledger.records();
        assert_eq!((records.lost, records.pending, queue.bytes()), (2, 0, 0));
        assert_eq!(queue.room.available_permits(), 4);
    }

    #[tokio::test]
    async fn what_is_being_written_when_the_drain_gives_up_is_handed_over_and_ends_but_once() {
        let limits = Limits { capacity: 4, batch_size: 2, batch_bytes: 4, max_age: Duration::MAX, in_flight: 1 };
        let callbacks = Callbacks { heap_size: None, on_lost: None, on_rejected: None };
        let queue = Arc::new(Queue::new("audit", limits, Delivery::ExactlyOnce, Arc::default(), callbacks));
        for record in 0..3 {
            push(&queue, record).await;
        }
        let out = take(&queue, Writer::Flusher).unwrap();
        queue.begin_drain();
        let left = queue.give_up();
        assert_eq!(left.iter().map(|left| left.batch.to_vec()).collect::<Vec<_>>(), [vec![0, 1], vec![2]]);
        out.returned(Error::new(ErrorKind::Write, "not now"));
        for left in left {
            queue.ended(left, Ok(()));
        }
        let records = queue.ledger.records();
        assert_eq!((records.accepted, records.spilled, records.lost, records.pending), (3, 3, 0, 0));
    }

    #[tokio::test]
    async fn a_record_that_is_larger_than_the_room_is_owed() {
        let limits = Limits { capacity: 4, batch_size: 9, batch_bytes: 4, max_age: Duration::MAX, in_flight: 1 };
        let heap_size: HeapSize<u8> = Arc::new(|record| usize::from(*record));
        let callbacks = Callbacks { heap_size: Some(heap_size), on_lost: None, on_rejected: None };
        let queue = Arc::new(Queue::new("audit", limits, Delivery::AtMostOnce, Arc::default(), callbacks));
        push(&queue, 1).await;
        push(&queue, 9).await;
        assert_eq!((queue.bytes(), queue.state().debt, queue.room.available_permits()), (12, 8, 0));
        take(&queue, Writer::Flusher).unwrap().written();
        assert_eq!((queue.bytes(), queue.state().debt, queue.room.available_permits()), (0, 0, 4));
    }

    #[tokio::test]
    async fn room_that_was_held_can_be_filled_until_the_drain_is_over() {
        let queue = queue();
        let (mut early, mut late) = (queue.room().await.unwrap(), queue.room().await.unwrap());
        queue.begin_drain();
        early.put(1).unwrap();
        queue.changed().await;
        assert_eq!(queue.bytes(), 1);
        queue.close(&Error::new(ErrorKind::Timeout, "time is up"));
        let refused = late.put(2).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ShuttingDown);
        assert_eq!(refused.into_record(), 2);
        let records = queue.ledger.records();
        assert_eq!((records.accepted, records.lost, records.pending), (1, 1, 0));
    }

    #[tokio::test]
    async fn s5_what_the_target_may_have_stays_in_doubt_whenever_the_books_are_closed() {
        let limits = Limits { capacity: 4, batch_size: 2, batch_bytes: 4, max_age: Duration::MAX, in_flight: 1 };
        let callbacks = Callbacks { heap_size: None, on_lost: None, on_rejected: None };
        let queue = Arc::new(Queue::new("audit", limits, Delivery::ExactlyOnce, Arc::default(), callbacks));
        push(&queue, 1).await;
        push(&queue, 2).await;
        // Cut off in the middle: it comes again.
        drop(take(&queue, Writer::Flusher).unwrap());
        // What is being written cannot be called lost, and is what closing the books calls in doubt.
        queue.ledger.lost(2);
        assert_eq!(queue.ledger.records().lost, 0);
        // Divided, too.
        take(&queue, Writer::Flusher).unwrap().rejected(Error::new(ErrorKind::Write, "not these"));
        queue.ledger.lost(2);
        assert_eq!(queue.ledger.records().lost, 0);
        take(&queue, Writer::Flusher).unwrap().written();
        take(&queue, Writer::Flusher).unwrap().written();
        let records = queue.ledger.records();
        assert_eq!((records.accepted, records.written, records.pending), (2, 2, 0));
    }

    #[tokio::test]
    async fn a_batch_that_comes_back_after_the_drain_is_lost() {
        let queue = queue();
        push(&queue, 1).await;
        push(&queue, 2).await;
        let out = take(&queue, Writer::Flusher).unwrap();
        queue.begin_drain();
        queue.close(&Error::new(ErrorKind::Timeout, "time is up"));
        out.returned(Error::new(ErrorKind::Write, "not now"));
        let records = queue.ledger.records();
        assert_eq!((records.accepted, records.lost, records.pending), (2, 2, 0));
    }
}
