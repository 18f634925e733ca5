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
use tokio::{
    runtime::Handle,
    task::{AbortHandle, yield_now},
    time::sleep,
};
use winddown_core::{Checkout, Drain, Error, ErrorKind, ShutdownGuard, as_dependent};

use crate::{
    Sink, WriteError,
    queue::{Queue, Writer},
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
}

/// What came of one try.
enum Attempt {
    /// There was nothing to write, or another writes now.
    Nothing,
    /// The batch has left, one way or another.
    Over,
    /// It is to be tried again.
    Again(Error),
}

impl<T: Send + Sync + 'static, S: Sink<T>> Flusher<T, S> {
    /// Starts the task on the current runtime.
    pub(crate) fn start(queue: Queue<T>, sink: Arc<S>, target: ShutdownGuard<S::Target>) -> Result<Self, Error> {
        let runtime = Handle::try_current().map_err(|error| {
            Error::new(ErrorKind::Init, "initialise from inside a tokio runtime").with_source(error)
        })?;
        let writing = Arc::new(Writing { queue: Arc::new(queue), sink, target });
        // As a dependent, so that it goes on while tracked work, which is drained before it, still pushes.
        let task = runtime.spawn(as_dependent(Arc::clone(&writing).run())).abort_handle();
        Ok(Self { writing, task })
    }

    pub(crate) fn queue(&self) -> &Arc<Queue<T>> {
        &self.writing.queue
    }

    /// Writes everything, until [`Drain::cut`] at the latest; what is left then is lost.
    pub(crate) async fn goodbye(&self, drain: &Drain) -> Result<(), Error> {
        let queue = self.queue();
        queue.begin_drain();
        // What kept the rest from being written when time was up.
        let mut obstacle = None;
        let result = tokio::select! {
            biased;
            () = drain.cut() => {
                // Its write, if there is one, is in doubt; this gives the checkout back, so that the target can go on.
                self.task.abort();
                obstacle.map_or(Ok(()), Err)
            }
            result = self.writing.rest(drain, &mut obstacle) => result,
        };
        let reason = match &result {
            Ok(()) => Error::new(ErrorKind::Timeout, "the drain's time was up before they could be written"),
            Err(error) => error.clone(),
        };
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
        let queue = &self.queue;
        let _ends = Ends(queue);
        let mut stopped = pin!(queue.stopped());
        let mut pauses = pauses(PAUSES_RUNNING);
        loop {
            let mut checkout = tokio::select! {
                biased;
                () = &mut stopped => return,
                checkout = async {
                    queue.due().await;
                    self.target.get().await
                } => checkout,
            };
            // Not to be cancelled: a write whose outcome nobody hears of is in doubt.
            let error = match &mut checkout {
                Ok(checkout) => match self.attempt(checkout, Writer::Flusher).await {
                    Attempt::Nothing => continue,
                    Attempt::Over => {
                        pauses = self::pauses(PAUSES_RUNNING);
                        continue;
                    }
                    Attempt::Again(error) => error,
                },
                // The target is drained for good: it belongs to another lifecycle, or did not wait for us.
                Err(error) if error.is_shutting_down() => return,
                // Nothing is wrong with the records, so whatever the error, they wait.
                Err(error) => error.clone(),
            };
            drop(checkout);
            let pause = pauses.next().unwrap_or(PAUSES_RUNNING.1);
            tracing::warn!(buffer = queue.name(), %error, ?pause, "cannot write, trying again");
            tokio::select! {
                biased;
                () = &mut stopped => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Writes what is left, and what still comes in. Ready when that is all.
    async fn rest(&self, drain: &Drain, obstacle: &mut Option<Error>) -> Result<(), Error> {
        let queue = &self.queue;
        let mut settled = pin!(drain.settled());
        let mut all_in = false;
        let mut pauses = pauses(PAUSES_DRAINING);
        loop {
            // The flusher's batch comes first: its outcome decides what is left, and keeps the order.
            if queue.quiet().await {
                if all_in {
                    return Ok(());
                }
                // A room that was checked out before may still be filled.
                tokio::select! {
                    () = queue.changed() => {}
                    () = &mut settled => all_in = true,
                }
                continue;
            }
            let mut checkout = self.target.get().await;
            let error = match &mut checkout {
                Ok(checkout) => match self.attempt(checkout, Writer::Goodbye).await {
                    Attempt::Nothing => continue,
                    Attempt::Over => {
                        *obstacle = None;
                        pauses = self::pauses(PAUSES_DRAINING);
                        // A sink that never waits would otherwise hide the cut.
                        yield_now().await;
                        continue;
                    }
                    Attempt::Again(error) => error,
                },
                Err(error) if error.is_shutting_down() => return Err(error.clone()),
                Err(error) => error.clone(),
            };
            drop(checkout);
            *obstacle = Some(error);
            sleep(pauses.next().unwrap_or(PAUSES_DRAINING.1)).await;
        }
    }

    /// Writes one batch, if there is one.
    async fn attempt(&self, checkout: &mut Checkout<S::Target>, writer: Writer) -> Attempt {
        let Some(taken) = self.queue.take(writer) else { return Attempt::Nothing };
        let result = catch(async { self.sink.write(checkout, taken.batch()).await }).await;
        match result {
            Ok(Ok(())) => taken.written(),
            Ok(Err(WriteError::Retry(error))) => {
                taken.returned(error.clone());
                return Attempt::Again(error);
            }
            Ok(Err(WriteError::Rejected(error) | WriteError::Failed(error))) => taken.lost(error),
            Ok(Err(WriteError::Unknown(error))) => taken.in_doubt(error),
            Err(panic) => taken.in_doubt(panic),
        }
        Attempt::Over
    }
}

fn pauses((first, longest): (Duration, Duration)) -> impl Iterator<Item = Duration> + Send + use<> {
    ExponentialBuilder::default()
        .with_min_delay(first)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
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
