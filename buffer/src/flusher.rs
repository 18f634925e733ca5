//! Who writes: a task on the application's runtime while it runs, the goodbye while it drains.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, sleep_until},
};
use winddown_core::{
    Error, ErrorKind, ShutdownGuard,
    adapter::{Accounting as _, Drain, error_line, with_dependent_access, write_line},
};

use crate::{
    Sink, Spill,
    pace::Pace,
    queue::Queue,
    spilling::put_elsewhere,
    writing::{Until, Writing},
};

/// What an initialised buffer has: its queue, and the task that writes. The pool of a
/// [`BatchWriter`](crate::BatchWriter).
///
/// The task ends when the buffer is drained, and also when this is dropped: with the lifecycle and the last guard. What
/// is buffered then is lost; how many records that are is logged, and the callback for lost records gets them.
pub struct Flusher<T: Send + Sync + 'static, S: Sink<T>> {
    writing: Arc<Writing<T, S>>,
    task: AbortHandle,
}

impl<T: Send + Sync + 'static, S: Sink<T>> Flusher<T, S> {
    /// Starts the task on the current runtime.
    pub(crate) fn start(
        queue: Arc<Queue<T>>,
        sink: Arc<S>,
        target: ShutdownGuard<S::Target>,
        spill: Option<Spill<T>>,
        pace: Pace,
    ) -> Result<Self, Error> {
        let runtime = Handle::try_current().map_err(|error| {
            Error::new(ErrorKind::Init, "initialise from inside a tokio runtime").with_source(error)
        })?;
        let writing = Arc::new(Writing { queue, sink, target, spill, pace: Mutex::new(pace) });
        // As a dependent, so that it goes on while tracked work, which is drained before it, still pushes.
        let task = runtime.spawn(with_dependent_access(Arc::clone(&writing).run())).abort_handle();
        Ok(Self { writing, task })
    }

    pub(crate) fn queue(&self) -> &Arc<Queue<T>> {
        &self.writing.queue
    }

    /// Writes everything. What cannot be written in time is spilled, or else lost.
    pub(crate) async fn goodbye(&self, drain: &Drain) -> Result<(), Error> {
        let Writing { queue, spill, .. } = &*self.writing;
        // Where this is left at its deadline, whoever waits is told all the same.
        let _left = Left(queue);
        let end = end_of_writing(queue, spill.as_ref(), drain);
        let left = end.saturating_duration_since(Instant::now());
        let patience = self.writing.pace().patience(left);
        queue.begin_drain(patience);
        // What kept the rest from being written when time was up.
        let mut obstacle = None;
        let result = tokio::select! {
            biased;
            () = time_is_up(queue, spill.as_ref(), drain) => {
                // What it writes has no outcome then; this gives the checkouts back, so that the target can go on.
                self.task.abort();
                obstacle.map_or(Ok(()), Err)
            }
            result = self.writing.drive(Until::At(end), drain.until_returned(), &mut obstacle) => result,
        };
        let reason = match &result {
            Ok(()) => Error::new(ErrorKind::Timeout, "the drain's time was up before they could be written"),
            Err(error) => error.clone(),
        };
        if let Some(spill) = spill {
            let left = queue.give_up();
            let batches = left.iter().map(|left| left.batch.clone()).collect();
            match put_elsewhere(spill, queue.name(), batches, &reason).await {
                Ok(refused) => left.into_iter().zip(refused).for_each(|(left, refused)| queue.ended(left, Ok(refused))),
                Err(error) => left.into_iter().for_each(|left| queue.ended(left, Err(error.clone()))),
            }
        }
        queue.close(&reason);
        result
    }
}

/// Closes the queue when the goodbye ends, or is left.
struct Left<'a, T: Send + Sync>(&'a Queue<T>);

impl<T: Send + Sync> Drop for Left<'_, T> {
    fn drop(&mut self) {
        self.0
            .close(&Error::new(ErrorKind::Timeout, "the drain was left at its deadline before they could be written"));
    }
}

impl<T: Send + Sync + 'static, S: Sink<T>> Drop for Flusher<T, S> {
    fn drop(&mut self) {
        self.task.abort();
        let queue = self.queue();
        if queue.is_over() {
            return;
        }
        let records = queue.records().pending;
        let name = queue.name();
        if records > 0 {
            let message = format!("{name}: {records} records were accepted and are not written");
            let advice =
                "the buffer was dropped without a drain: call `Lifecycle::drain` or `run` before the process ends";
            tracing::error!(buffer = name, records, "{message}: {advice}");
            if !tracing::dispatcher::has_been_set() {
                // Nobody would see it.
                write_line(&error_line(&message, advice));
            }
        }
        queue.close(&Error::new(ErrorKind::ShuttingDown, "the buffer was dropped without a drain"));
    }
}

impl<T: Send + Sync + 'static, S: Sink<T>> fmt::Debug for Flusher<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flusher").field("queue", self.queue()).finish_non_exhaustive()
    }
}

/// The last moment at which what is left now can still be spilled; without a spill that of the drain.
fn end_of_writing<T: Send + Sync + 'static>(queue: &Queue<T>, spill: Option<&Spill<T>>, drain: &Drain) -> Instant {
    let needed = spill.map_or(Duration::ZERO, |spill| spill.time_for(queue.bytes()));
    drain.deadline().checked_sub(needed).unwrap_or_else(Instant::now)
}

/// Ready when writing must end: as late as what is left can be spilled, but not before settling has ended, and of what is left then half
/// is for the spill; without a spill when it must be cut.
async fn time_is_up<T: Send + Sync + 'static>(queue: &Queue<T>, spill: Option<&Spill<T>>, drain: &Drain) {
    if let Some(spill) = spill {
        drain.until_cancel().await;
        // A disk takes longer at times, and a long budget has more than it needs.
        let half = drain.halfway();
        tokio::select! {
            () = drain.until_cut() => {}
            () = sleep_until(half.min(end_of_writing(queue, Some(spill), drain))) => {}
        }
    } else {
        drain.until_cut().await;
    }
}
