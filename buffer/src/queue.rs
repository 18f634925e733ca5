//! The records between push and sink, and their books. No input or output happens here, and what waits is at
//! the end.
//!
//! One mutex guards all of it, and every change of the books is made under it, so that:
//!
//! 1. A record is accepted exactly when it is in the queue, and it leaves exactly once: written, lost or in doubt (S5).
//! 2. At most one batch is out, and only the current [`Writer`] takes one out; so batches end in the order in which
//!    their records came.
//! 3. Records that have left are a prefix of those that were accepted; one number says how many they are.
//!
//! The lock is never held across an await. No foreign code runs under it: records and wakers are dropped, and callbacks
//! called, after it is released.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore, TryAcquireError, oneshot},
    time::{Instant, sleep_until},
};
use winddown_core::{Error, ErrorKind, Ledger};

use crate::{Batch, PushError};

/// Called with records that are given up.
pub(crate) type OnLost<T> = Arc<dyn Fn(&[T], &Error) + Send + Sync>;

/// How much is buffered, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) capacity: usize,
    pub(crate) batch_size: usize,
    pub(crate) max_age: Duration,
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
    ledger: Arc<Ledger>,
    on_lost: Option<OnLost<T>>,
    state: Mutex<State<T>>,
    /// One permit for each record that there is room for. Closed when nobody writes any more.
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
    /// A batch that the sink refused for now, older than everything in `queue`.
    returned: Option<Batch<T>>,
    queue: VecDeque<T>,
    /// When the records at 0, `batch_size`, 2 * `batch_size`, ... of `queue` came: the clock is read once per batch, and
    /// the oldest record's age is known exactly, since taking a batch takes one of these.
    since: VecDeque<Instant>,
    /// Records in the batch that is out, 0 if none is.
    out: usize,
    /// How many records have left.
    left: u64,
    /// Write up to this record without waiting for size or age.
    flush_to: u64,
    flushes: Vec<Flush>,
}

/// One caller of `flush`.
struct Flush {
    /// Over when so many records have left. Always more than have left already.
    to: u64,
    error: Option<Error>,
    done: oneshot::Sender<Result<(), Error>>,
}

/// How a batch left.
enum End {
    Written,
    Lost(Error),
    InDoubt(Error),
}

enum Due {
    Now,
    At(Instant),
    /// Not before something happens.
    Idle,
}

impl<T> Queue<T> {
    pub(crate) fn new(name: &str, limits: Limits, ledger: Arc<Ledger>, on_lost: Option<OnLost<T>>) -> Self {
        let state = State {
            writer: Writer::Flusher,
            returned: None,
            queue: VecDeque::new(),
            since: VecDeque::new(),
            out: 0,
            left: 0,
            flush_to: 0,
            flushes: Vec::new(),
        };
        Self {
            name: name.to_owned(),
            limits,
            ledger,
            on_lost,
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

    /// Takes the next batch out, if this writer may and there is one.
    pub(crate) fn take(&self, writer: Writer) -> Option<Taken<'_, T>> {
        let mut state = self.state();
        if state.writer != writer || state.out > 0 {
            return None;
        }
        let batch = match state.returned.take() {
            Some(batch) => batch,
            None => {
                let size = state.queue.len().min(self.limits.batch_size);
                if size == 0 {
                    return None;
                }
                state.since.pop_front();
                Batch::from(state.queue.drain(..size).collect::<Vec<T>>())
            }
        };
        state.out = batch.len();
        self.ledger.writing(batch.len() as u64);
        Some(Taken { queue: self, batch, ended: false })
    }

    /// The flusher has ended. If that was not for the drain, whoever waits for it is told.
    pub(crate) fn abandoned(&self) {
        let flushes = {
            let mut state = self.state();
            if state.writer != Writer::Flusher {
                return;
            }
            state.writer = Writer::Nobody;
            std::mem::take(&mut state.flushes)
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

    /// Takes nothing in or out any more: what is left is lost, for this reason.
    pub(crate) fn close(&self, reason: &Error) {
        let (returned, rest, flushes) = {
            let mut state = self.state();
            state.writer = Writer::Closed;
            let (returned, rest) = (state.returned.take(), std::mem::take(&mut state.queue));
            state.since.clear();
            let lost = (returned.as_ref().map_or(0, |batch| batch.len()) + rest.len()) as u64;
            self.ledger.lost(lost);
            state.left += lost;
            (returned, Vec::from(rest), std::mem::take(&mut state.flushes))
        };
        for records in [returned.as_deref().unwrap_or_default(), &rest] {
            if !records.is_empty() {
                self.tell_lost(records, reason);
            }
        }
        for flush in flushes {
            let error = flush.error.unwrap_or_else(|| self.not_flushed(reason));
            // Whoever asked may have gone.
            let _ = flush.done.send(Err(error));
        }
    }

    /// The batch that was out has left.
    fn leave(&self, batch: &Batch<T>, end: &End) {
        let count = batch.len() as u64;
        let over = {
            let mut state = self.state();
            state.out = 0;
            state.left += count;
            match end {
                End::Written => {
                    self.ledger.written(count);
                    state.flushed(None)
                }
                End::Lost(error) => {
                    self.ledger.returned(count);
                    self.ledger.lost(count);
                    state.flushed(Some(self.not_flushed(error)))
                }
                // The ledger keeps it as being written, and calls that in doubt when it is closed.
                End::InDoubt(error) => state.flushed(Some(self.not_flushed(error))),
            }
        };
        self.changed.notify_one();
        self.room.add_permits(batch.len());
        match end {
            End::Written => {}
            End::Lost(error) => self.tell_lost(batch, error),
            End::InDoubt(error) => {
                tracing::error!(buffer = self.name, records = count, %error, "records in doubt");
            }
        }
        for flush in over {
            // Whoever asked may have gone.
            let _ = flush.done.send(flush.error.map_or(Ok(()), Err));
        }
    }

    /// The batch that was out comes again, where there is somebody left to try.
    fn put_back(&self, batch: &Batch<T>, error: Error) {
        let mut state = self.state();
        if state.writer == Writer::Closed {
            drop(state);
            return self.leave(batch, &End::Lost(error));
        }
        state.out = 0;
        state.returned = Some(batch.clone());
        self.ledger.returned(batch.len() as u64);
        drop(state);
        self.changed.notify_one();
    }

    fn tell_lost(&self, records: &[T], error: &Error) {
        tracing::error!(buffer = self.name, records = records.len(), %error, "records lost");
        let Some(on_lost) = &self.on_lost else { return };
        // Records are only lent to it, so a panic leaves nothing of ours half done.
        if catch_unwind(AssertUnwindSafe(|| on_lost(records, error))).is_err() {
            tracing::error!(buffer = self.name, "the callback for lost records panicked");
        }
    }

    fn put(&self, record: T) -> Result<(), PushError<T>> {
        let mut state = self.state();
        if state.writer == Writer::Closed {
            drop(state);
            return Err(PushError::new(record, self.closed()));
        }
        if !self.ledger.accepted(1) {
            // The report has been made without it: a drain that was cut short.
            drop(state);
            return Err(PushError::new(record, self.closed()));
        }
        let before = state.queue.len();
        if before == state.since.len() * self.limits.batch_size {
            state.since.push_back(Instant::now());
        }
        state.queue.push_back(record);
        let writer = state.writer;
        drop(state);
        match writer {
            // The first one starts the clock, and a full batch stops it.
            Writer::Flusher if before == 0 || before + 1 == self.limits.batch_size => self.wake.notify_one(),
            Writer::Goodbye => self.changed.notify_one(),
            _ => {}
        }
        Ok(())
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

    /// Ready when a batch should be written, for its size, its age, or because a flush was asked for. While nothing is
    /// buffered it waits without a timer (C2).
    ///
    /// # Cancel safety
    /// Cancel safe. For the flusher alone: there is one place to wait.
    pub(crate) async fn due(&self) {
        loop {
            let due = self.state().due(&self.limits);
            match due {
                Due::Now => return,
                Due::Idle => self.wake.notified().await,
                Due::At(instant) => tokio::select! {
                    () = sleep_until(instant) => {}
                    () = self.wake.notified() => {}
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
            let to = state.accepted();
            if to == state.left {
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

    /// Ready when no batch is out; then says whether there is nothing left to write.
    ///
    /// # Cancel safety
    /// Cancel safe. For the goodbye alone.
    pub(crate) async fn quiet(&self) -> bool {
        loop {
            {
                let state = self.state();
                if state.out == 0 {
                    return state.returned.is_none() && state.queue.is_empty();
                }
            }
            self.changed.notified().await;
        }
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
    fn accepted(&self) -> u64 {
        let returned = self.returned.as_ref().map_or(0, |batch| batch.len());
        self.left + (self.out + returned + self.queue.len()) as u64
    }

    fn due(&self, limits: &Limits) -> Due {
        let Some(oldest) = self.since.front() else {
            return if self.returned.is_some() { Due::Now } else { Due::Idle };
        };
        if self.returned.is_some() || self.queue.len() >= limits.batch_size || self.flush_to > self.left {
            return Due::Now;
        }
        match oldest.checked_add(limits.max_age) {
            Some(instant) if instant <= Instant::now() => Due::Now,
            Some(instant) => Due::At(instant),
            // So far away that the clock cannot say it.
            None => Due::Idle,
        }
    }

    /// A batch has left, with this error if it was not written; returns the flushes that are over with it.
    fn flushed(&mut self, error: Option<Error>) -> Vec<Flush> {
        if self.flushes.is_empty() {
            return Vec::new();
        }
        if let Some(error) = error {
            // Each of them waited for the first record of this batch at least, or it would have been over already.
            for flush in &mut self.flushes {
                flush.error.get_or_insert_with(|| error.clone());
            }
        }
        let (over, waiting) = std::mem::take(&mut self.flushes).into_iter().partition(|flush| flush.to <= self.left);
        self.flushes = waiting;
        over
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).field("books", &self.ledger.records()).finish_non_exhaustive()
    }
}

/// A batch that is out. Dropped without an outcome, it is in doubt.
pub(crate) struct Taken<'a, T> {
    queue: &'a Queue<T>,
    batch: Batch<T>,
    ended: bool,
}

impl<T> Taken<'_, T> {
    pub(crate) fn batch(&self) -> &Batch<T> {
        &self.batch
    }

    /// The sink has it.
    pub(crate) fn written(self) {
        self.leave(&End::Written);
    }

    /// The sink does not have it, for this reason; it comes again.
    pub(crate) fn returned(mut self, error: Error) {
        self.ended = true;
        self.queue.put_back(&self.batch, error);
    }

    /// The sink does not have it, and never will.
    pub(crate) fn lost(self, error: Error) {
        self.leave(&End::Lost(error));
    }

    /// Nobody knows.
    pub(crate) fn in_doubt(self, error: Error) {
        self.leave(&End::InDoubt(error));
    }

    fn leave(mut self, end: &End) {
        self.ended = true;
        self.queue.leave(&self.batch, end);
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        if !self.ended {
            let error = Error::new(ErrorKind::Write, "the write was cut off before the target answered");
            self.queue.leave(&self.batch, &End::InDoubt(error));
        }
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
    use super::*;

    fn queue() -> Arc<Queue<u8>> {
        let limits = Limits { capacity: 4, batch_size: 2, max_age: Duration::MAX };
        Arc::new(Queue::new("audit", limits, Arc::default(), None))
    }

    async fn push(queue: &Arc<Queue<u8>>, record: u8) {
        queue.room().await.unwrap().put(record).unwrap();
    }

    #[tokio::test]
    async fn once_the_drain_has_begun_the_flusher_gets_nothing() {
        let queue = queue();
        push(&queue, 1).await;
        queue.begin_drain();
        assert!(queue.take(Writer::Flusher).is_none());
        queue.take(Writer::Goodbye).unwrap().written();
        assert_eq!(queue.ledger.records().written, 1);
    }

    #[tokio::test]
    async fn one_batch_is_out_at_a_time() {
        let queue = queue();
        for record in 0..3 {
            push(&queue, record).await;
        }
        let first = queue.take(Writer::Flusher).unwrap();
        assert!(queue.take(Writer::Flusher).is_none());
        first.returned(Error::new(ErrorKind::Write, "not now"));
        let again = queue.take(Writer::Flusher).unwrap();
        assert_eq!(**again.batch(), [0, 1], "first again, though it could be larger by now");
    }

    #[tokio::test]
    async fn room_that_was_held_can_be_filled_until_the_drain_is_over() {
        let queue = queue();
        let (mut early, mut late) = (queue.room().await.unwrap(), queue.room().await.unwrap());
        queue.begin_drain();
        early.put(1).unwrap();
        queue.changed().await;
        assert!(!queue.quiet().await);
        queue.close(&Error::new(ErrorKind::Timeout, "time is up"));
        let refused = late.put(2).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ShuttingDown);
        assert_eq!(refused.into_record(), 2);
        let records = queue.ledger.records();
        assert_eq!((records.accepted, records.lost, records.pending), (1, 1, 0));
    }

    #[tokio::test]
    async fn a_batch_that_comes_back_after_the_drain_is_lost() {
        let queue = queue();
        push(&queue, 1).await;
        let out = queue.take(Writer::Flusher).unwrap();
        queue.begin_drain();
        queue.close(&Error::new(ErrorKind::Timeout, "time is up"));
        out.returned(Error::new(ErrorKind::Write, "not now"));
        let records = queue.ledger.records();
        assert_eq!((records.accepted, records.lost, records.pending), (1, 1, 0));
    }
}
