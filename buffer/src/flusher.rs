//! Who writes: a task on the application's runtime while it runs, the goodbye while it drains.

use std::{
    any::Any,
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{
    runtime::Handle,
    task::{AbortHandle, spawn_blocking, yield_now},
    time::{Instant, sleep_until},
};
use winddown_core::{BoxError, Drain, Error, ErrorKind, ShutdownGuard, as_dependent};

use crate::{
    Batch, Delivery, Sink, Spill, WriteError,
    queue::{Next, Queue, Started, Taken, Writer},
};

/// While running, a target that is away is asked again after pauses from the first to the second, doubling, each with
/// random jitter up to its own length. Up to a few seconds: a restart of a server takes that long, and memory is bounded.
const PAUSES_RUNNING: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The same while draining, where some hundred milliseconds are all there is.
const PAUSES_DRAINING: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// What an initialised buffer has: its queue, and the task that writes. The pool of a
/// [`BatchWriter`](crate::BatchWriter).
///
/// The task ends when the buffer is drained, and also when this is dropped: with the lifecycle and the last guard. What
/// is buffered then is gone, as with any value that is dropped.
pub struct Flusher<T: Send + Sync + 'static, S: Sink<T>> {
    writing: Arc<Writing<T, S>>,
    task: AbortHandle,
}

/// What both writers need.
struct Writing<T: Send + Sync + 'static, S: Sink<T>> {
    queue: Arc<Queue<T>>,
    sink: Arc<S>,
    target: ShutdownGuard<S::Target>,
    spill: Option<Spill<T>>,
}

/// What came of one try.
enum Attempt {
    /// There was nothing to write any more.
    Nothing,
    /// The batch has left, one way or another, or comes again in halves.
    Over,
    /// It is to be tried again.
    Again(Error),
    /// The target is drained for good: it belongs to another lifecycle, or did not wait for us.
    Gone(Error),
}

impl<T: Send + Sync + 'static, S: Sink<T>> Flusher<T, S> {
    /// Starts the task on the current runtime.
    pub(crate) fn start(
        queue: Queue<T>,
        sink: Arc<S>,
        target: ShutdownGuard<S::Target>,
        spill: Option<Spill<T>>,
    ) -> Result<Self, Error> {
        let runtime = Handle::try_current().map_err(|error| {
            Error::new(ErrorKind::Init, "initialise from inside a tokio runtime").with_source(error)
        })?;
        let writing = Arc::new(Writing { queue: Arc::new(queue), sink, target, spill });
        // As a dependent, so that it goes on while tracked work, which is drained before it, still pushes.
        let task = runtime.spawn(as_dependent(Arc::clone(&writing).run())).abort_handle();
        Ok(Self { writing, task })
    }

    pub(crate) fn queue(&self) -> &Arc<Queue<T>> {
        &self.writing.queue
    }

    /// Writes everything. What cannot be written in time is spilled, or else lost.
    pub(crate) async fn goodbye(&self, drain: &Drain) -> Result<(), Error> {
        let Writing { queue, spill, .. } = &*self.writing;
        queue.begin_drain();
        // What kept the rest from being written when time was up.
        let mut obstacle = None;
        let result = tokio::select! {
            biased;
            () = time_is_up(queue, spill.as_ref(), drain) => {
                // What it writes has no outcome then; this gives the checkouts back, so that the target can go on.
                self.task.abort();
                obstacle.map_or(Ok(()), Err)
            }
            result = self.writing.drive(Writer::Goodbye, drain.settled(), &mut obstacle) => result,
        };
        let reason = match &result {
            Ok(()) => Error::new(ErrorKind::Timeout, "the drain's time was up before they could be written"),
            Err(error) => error.clone(),
        };
        if let Some(spill) = spill {
            let left = queue.give_up();
            let batches = left.iter().map(|left| left.batch.clone()).collect();
            let spilled = put_elsewhere(spill, queue.name(), batches, &reason).await;
            for left in left {
                queue.ended(left, spilled.clone());
            }
        }
        queue.close(&reason);
        result
    }
}

impl<T: Send + Sync + 'static, S: Sink<T>> Drop for Flusher<T, S> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T: Send + Sync + 'static, S: Sink<T>> fmt::Debug for Flusher<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flusher").field("queue", self.queue()).finish_non_exhaustive()
    }
}

/// Ready when writing must end: as late as what is left can be spilled, but not before settling has ended; without a spill
/// when it must be cut.
async fn time_is_up<T: Send + Sync + 'static>(queue: &Queue<T>, spill: Option<&Spill<T>>, drain: &Drain) {
    if let Some(spill) = spill {
        drain.settle_ended().await;
        let needed = spill.time_for(queue.bytes());
        tokio::select! {
            () = drain.cut() => {}
            () = sleep_until(drain.deadline().checked_sub(needed).unwrap_or_else(Instant::now)) => {}
        }
    } else {
        drain.cut().await;
    }
}

impl<T: Send + Sync + 'static, S: Sink<T>> Writing<T, S> {
    /// The flusher. Waits on events only; holds no records while it waits for a checkout, so that a goodbye can have
    /// them all when the application's runtime is starved.
    async fn run(self: Arc<Self>) {
        struct Ends<'a, T>(&'a Queue<T>);
        impl<T> Drop for Ends<'_, T> {
            fn drop(&mut self) {
                self.0.abandoned();
            }
        }
        let _ends = Ends(&self.queue);
        // An error says that the target is gone, and then the goodbye will find the same.
        let _ = self.drive(Writer::Flusher, self.queue.stopped(), &mut None).await;
    }

    /// Writes, so many batches at once as may be. The flusher writes what is due, and ends when it is stopped, after what it
    /// has begun; the goodbye writes everything, and ends when `over` is ready and nothing is left. `obstacle` is what keeps
    /// it from writing just now.
    async fn drive(
        &self,
        writer: Writer,
        over: impl Future<Output = ()>,
        obstacle: &mut Option<Error>,
    ) -> Result<(), Error> {
        let queue = &self.queue;
        let mut over = pin!(over);
        let mut is_over = false;
        let mut writes = FuturesUnordered::new();
        let mut pauses = pauses(writer);
        let mut paused_until: Option<Instant> = None;
        loop {
            if is_over && writer == Writer::Flusher && writes.is_empty() {
                return Ok(());
            }
            let may_start = paused_until.is_none() && (writer == Writer::Goodbye || !is_over);
            tokio::select! {
                biased;
                () = &mut over, if !is_over => is_over = true,
                Some(attempt) = writes.next() => match attempt {
                    Attempt::Nothing => {}
                    Attempt::Over => {
                        *obstacle = None;
                        pauses = self::pauses(writer);
                        // A sink that never waits would otherwise hide all else.
                        yield_now().await;
                    }
                    Attempt::Again(error) => {
                        if paused_until.is_none() {
                            let pause = pauses.next().unwrap_or_else(|| longest_pause(writer));
                            if writer == Writer::Flusher {
                                tracing::warn!(buffer = queue.name(), %error, ?pause, "cannot write, trying again");
                            }
                            paused_until = Instant::now().checked_add(pause);
                        }
                        *obstacle = Some(error);
                    }
                    Attempt::Gone(error) => return Err(error),
                },
                () = sleep_until(paused_until.unwrap_or_else(Instant::now)), if paused_until.is_some() => {
                    paused_until = None;
                }
                next = queue.next(writer), if may_start => match next {
                    Next::Write(started) => writes.push(self.attempt(started)),
                    Next::Nothing if is_over => return Ok(()),
                    // A room that was checked out before may still be filled.
                    Next::Nothing => tokio::select! {
                        () = queue.changed() => {}
                        () = &mut over => is_over = true,
                    },
                },
            }
        }
    }

    /// Writes one batch, if there is one.
    async fn attempt(&self, started: Started<'_, T>) -> Attempt {
        let mut checkout = match self.target.get().await {
            Ok(checkout) => checkout,
            Err(error) if error.is_shutting_down() => return Attempt::Gone(error),
            // Nothing is wrong with the records, so whatever the error, they wait.
            Err(error) => return Attempt::Again(error),
        };
        let Some(taken) = started.take() else { return Attempt::Nothing };
        // Not to be cancelled: nobody would hear of the outcome.
        let result = catch(async { self.sink.write(&mut checkout, taken.batch()).await }).await;
        drop(checkout);
        match result {
            Ok(Ok(())) => taken.written(),
            Ok(Err(WriteError::Retry(error))) => {
                taken.returned(error.clone());
                return Attempt::Again(error);
            }
            Ok(Err(WriteError::Unknown(error))) => {
                taken.unknown(error.clone());
                if self.queue.delivery() != Delivery::AtMostOnce {
                    return Attempt::Again(error);
                }
            }
            Ok(Err(WriteError::TooLarge(error))) if taken.batch().len() == 1 => {
                taken.returned(error.clone());
                return Attempt::Again(error);
            }
            Ok(Err(WriteError::Rejected(error) | WriteError::TooLarge(error))) => taken.rejected(error),
            Ok(Err(WriteError::Failed(error))) => match self.put_elsewhere(&taken, error).await {
                Ok(()) => taken.spilled(),
                Err(error) => taken.lost(error),
            },
            // It would panic again; and it may have been written before.
            Err(panic) if self.queue.delivery() == Delivery::AtMostOnce => taken.in_doubt(panic),
            Err(panic) => match self.put_elsewhere(&taken, panic).await {
                Ok(()) => taken.spilled(),
                Err(error) => taken.in_doubt(error),
            },
        }
        Attempt::Over
    }

    /// Spills one batch, for this reason; an error if it is not to be had elsewhere.
    async fn put_elsewhere(&self, taken: &Taken<'_, T>, reason: Error) -> Result<(), Error> {
        match &self.spill {
            Some(spill) => put_elsewhere(spill, self.queue.name(), vec![taken.batch().clone()], &reason).await,
            None => Err(reason),
        }
    }
}

/// Spills these, on a thread that may block.
async fn put_elsewhere<T: Send + Sync + 'static>(
    spill: &Spill<T>,
    name: &str,
    batches: Vec<Batch<T>>,
    reason: &Error,
) -> Result<(), Error> {
    if batches.is_empty() {
        return Ok(());
    }
    let (spill, name, why) = (spill.clone(), name.to_owned(), reason.clone());
    let spilling = spawn_blocking(move || spill.write(&name, &batches, &why));
    let failed = |error: BoxError| Error::new(ErrorKind::Write, "neither written nor spilled").with_source(error);
    match spilling.await {
        Ok(Ok(unspilled)) => unspilled.into_iter().next().map_or(Ok(()), |one| Err(failed(one.error.into()))),
        Ok(Err(error)) => Err(failed(error)),
        Err(panic) => Err(failed(panic.into())),
    }
}

fn pauses(writer: Writer) -> impl Iterator<Item = Duration> + Send + use<> {
    let (first, longest) = if writer == Writer::Goodbye { PAUSES_DRAINING } else { PAUSES_RUNNING };
    ExponentialBuilder::default()
        .with_min_delay(first)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
}

fn longest_pause(writer: Writer) -> Duration {
    if writer == Writer::Goodbye { PAUSES_DRAINING.1 } else { PAUSES_RUNNING.1 }
}

/// The future's output, or the error for its panic. It is dropped, not polled again, after it has panicked.
async fn catch<O>(future: impl Future<Output = O>) -> Result<O, Error> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panicked(&*panic))),
    })
    .await
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    Error::new(ErrorKind::Panicked, format!("the sink panicked: {}", text.replace('\n', " ")))
}
