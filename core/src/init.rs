//! Initialise once (S1): one attempt at a time, at most one success, whoever asks and whoever gives up asking.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::{runtime::Handle, sync::watch, task::AbortHandle, time::Instant};

use crate::{Error, ErrorKind, panics};

/// A value that is made once.
///
/// The making runs in a task of its own, so that a caller that is cancelled neither cancels nor repeats it for the
/// others. A failure reaches everyone who waited for that attempt; the next caller starts another.
#[derive(Debug)]
pub(crate) struct InitCell<T> {
    value: OnceLock<T>,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
enum Progress {
    Idle,
    Running {
        outcome: Outcome,
        /// There as soon as it is spawned.
        task: Option<AbortHandle>,
    },
    Done,
    /// Draining has begun: a value made later is dropped at once.
    Stopped,
}

type Outcome = watch::Receiver<Option<Result<(), Error>>>;

impl<T: Send + Sync + 'static> InitCell<T> {
    /// An empty cell, or one that is full from the start.
    pub(crate) fn new(value: Option<T>) -> Self {
        let progress = Mutex::new(if value.is_some() { Progress::Done } else { Progress::Idle });
        let cell = OnceLock::new();
        if let Some(value) = value {
            // The cell is new, so this cannot fail.
            let _ = cell.set(value);
        }
        Self { value: cell, progress }
    }

    /// The value, if it has been made.
    pub(crate) fn get(&self) -> Option<&T> {
        self.value.get()
    }

    /// The outcome of the attempt that is running, or of one that `make` starts now. `this` finds the cell again from
    /// the task's own handle on its owner.
    ///
    /// # Errors
    /// [`ErrorKind::Init`] when called outside a tokio runtime.
    pub(crate) fn start<O, M>(owner: &Arc<O>, this: fn(&O) -> &Self, make: impl FnOnce() -> M) -> Result<Outcome, Error>
    where
        O: Send + Sync + 'static,
        M: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let cell = this(owner);
        let mut progress = cell.progress();
        match &*progress {
            Progress::Running { outcome, .. } => return Ok(outcome.clone()),
            Progress::Done => return Ok(watch::channel(Some(Ok(()))).1),
            Progress::Stopped => return Err(stopped()),
            Progress::Idle => {}
        }
        let runtime = Handle::try_current().map_err(|error| {
            Error::new(ErrorKind::Init, "initialise from inside a tokio runtime").with_source(error)
        })?;
        let (sender, outcome) = watch::channel(None);
        *progress = Progress::Running { outcome: outcome.clone(), task: None };
        drop(progress);
        // Not under the lock: a runtime that has ended drops the task at once, and the attempt then takes the lock.
        let attempt = Attempt { owner: Arc::clone(owner), this, sender };
        let make = make();
        let spawned = runtime.spawn(async move {
            let made = panics::catch(make).await;
            attempt.finish(made);
        });
        match &mut *cell.progress() {
            // It may be over already, and a later one be running.
            Progress::Running { outcome: running, task } if running.same_channel(&outcome) => {
                *task = Some(spawned.abort_handle());
            }
            // `stop` was quicker than this line.
            Progress::Stopped => spawned.abort(),
            _ => {}
        }
        Ok(outcome)
    }

    /// Whether an attempt is under way.
    pub(crate) fn is_running(&self) -> bool {
        matches!(*self.progress(), Progress::Running { .. })
    }

    /// Lets no further attempt begin, waits for one that is under way, and ends it at `until`. Returns the value if
    /// there is one: then, and only then, it has to be drained (S3).
    pub(crate) async fn stop(&self, until: Instant) -> Option<&T> {
        let running = {
            let mut progress = self.progress();
            match &*progress {
                Progress::Running { outcome, .. } => Some(outcome.clone()),
                Progress::Idle => {
                    *progress = Progress::Stopped;
                    None
                }
                Progress::Done | Progress::Stopped => None,
            }
        };
        if let Some(mut outcome) = running {
            // A closed channel is an attempt that was aborted: over as well.
            let _ = tokio::time::timeout_at(until, outcome.wait_for(Option::is_some)).await;
            let mut progress = self.progress();
            if let Progress::Running { task: Some(task), .. } = &*progress {
                task.abort();
            }
            if !matches!(*progress, Progress::Done) {
                *progress = Progress::Stopped;
            }
        }
        self.value.get()
    }

    /// Ends an attempt that is under way, and lets no further one begin.
    pub(crate) fn give_up(&self) {
        let mut progress = self.progress();
        let Progress::Running { task, .. } = &*progress else { return };
        if let Some(task) = task {
            task.abort();
        }
        *progress = Progress::Stopped;
    }

    /// Waits for an attempt's outcome.
    ///
    /// # Cancel safety
    /// Cancel safe: the attempt goes on.
    pub(crate) async fn outcome(&self, mut outcome: Outcome) -> Result<(), Error> {
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) if matches!(*self.progress(), Progress::Stopped) => Err(stopped()),
            Err(_) => Err(Error::new(ErrorKind::Init, "the runtime ended while it was initialised")),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::ShuttingDown, "shutting down: not initialised any more")
}

/// One attempt. Dropped unfinished (its runtime has ended), it leaves the cell as it found it.
struct Attempt<O, T: Send + Sync + 'static> {
    owner: Arc<O>,
    this: fn(&O) -> &InitCell<T>,
    sender: watch::Sender<Option<Result<(), Error>>>,
}

impl<O, T: Send + Sync + 'static> Attempt<O, T> {
    fn finish(self, made: Result<T, Error>) {
        let cell = (self.this)(&self.owner);
        let mut progress = cell.progress();
        let outcome = match made {
            // Under the lock: either `stop` sees the value, or this sees that it was stopped.
            Ok(_) if matches!(*progress, Progress::Stopped) => Err(stopped()),
            Ok(value) => {
                // One attempt at a time, and the last one failed: the cell is empty.
                let _ = cell.value.set(value);
                *progress = Progress::Done;
                Ok(())
            }
            Err(error) => {
                if matches!(*progress, Progress::Running { .. }) {
                    *progress = Progress::Idle;
                }
                Err(error)
            }
        };
        drop(progress);
        self.sender.send_replace(Some(outcome));
    }
}

impl<O, T: Send + Sync + 'static> Drop for Attempt<O, T> {
    fn drop(&mut self) {
        let mut progress = (self.this)(&self.owner).progress();
        // After `finish` the state is never `Running`, unless a later attempt is: then the outcome was sent.
        if self.sender.borrow().is_none() && matches!(*progress, Progress::Running { .. }) {
            *progress = Progress::Idle;
        }
    }
}

/// How often a failed attempt is tried again, and after which pauses.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    times: usize,
    first: Duration,
    longest: Duration,
}

impl Retry {
    /// So many tries after the first, with pauses from `first` up, doubling to `longest`, each with random jitter up to
    /// its own length, so that a fleet that starts together does not come back together.
    ///
    /// Defaults to 5 tries, 50 ms, 1 s: about 2 to 4 s in all, well inside Lambda's 10 s for init.
    pub fn new(times: usize, first: Duration, longest: Duration) -> Self {
        Self { times, first, longest }
    }

    /// No second try.
    pub fn never() -> Self {
        Self { times: 0, ..Self::default() }
    }

    pub(crate) fn pauses(&self) -> impl Iterator<Item = Duration> + use<> {
        ExponentialBuilder::default()
            .with_max_times(self.times)
            .with_min_delay(self.first)
            .with_max_delay(self.longest)
            .with_jitter()
            .build()
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { times: 5, first: Duration::from_millis(50), longest: Duration::from_secs(1) }
    }
}
