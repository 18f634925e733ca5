//! The process-wide registry and state machine.

mod builder;
mod starting;

use std::{
    fmt,
    future::{Future, IntoFuture, poll_fn},
    panic::Location,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use tokio::task::JoinHandle;
#[cfg(all(any(test, feature = "test-util"), not(winddown_loom)))]
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::builder::Builder;
use crate::{
    Budget, Error, ErrorKind, Hook, Platform, Reason, Report, Resource, ShutdownGuard, State, Tracked, conductor,
    error::BoxError,
    life::{Life, LifecycleState, Stop},
    node::Node,
    panics, signals,
};

/// All resources of a process: initialises them, and drains them when the platform says stop.
///
/// Cheap to clone; all clones are the same lifecycle. `docs/spec.md` has the states and the allowed moves.
///
/// ```
/// use winddown_core::{Lifecycle, memory::Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), winddown_core::Error> {
/// let lifecycle = Lifecycle::builder().signals(false).build()?; // `Lifecycle::detect()` in a real program
/// let db = lifecycle.guard(Memory::new("db")); // nothing is opened yet
/// lifecycle.init().await?;
/// let session = db.get().await?;
/// drop(session);
///
/// let report = lifecycle.drain().await;
/// assert!(report.is_clean(), "{report}");
/// assert!(db.get().await.is_err_and(|error| error.is_shutting_down()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Lifecycle {
    pub(crate) shared: Arc<LifecycleState>,
}

/// Whether a lifecycle receives the signals of this process. Never taken back: after its drain it still ends the process
/// when it is told to stop, and a second one would be ended with it.
static OWNED: Mutex<bool> = Mutex::new(false);

fn own_process(shared: &Arc<LifecycleState>) -> Result<(), Error> {
    let mut owned = OWNED.lock().unwrap_or_else(PoisonError::into_inner);
    if *owned {
        return Err(Error::new(
            ErrorKind::Config,
            "this process has a lifecycle that receives signals: use that one, or build this one with `signals(false)`",
        ));
    }
    let handled = signals::handled(&shared.signals).unwrap_or_default();
    conductor::start(shared, &shared.life())?;
    *owned = true;
    drop(owned);
    for kind in handled {
        let message = format!("{} had a handler before the lifecycle was made", signals::name(kind));
        LifecycleState::warn(
            &message,
            "it runs first, and if it ends the process nothing is drained: make the lifecycle first",
        );
    }
    Ok(())
}

impl Lifecycle {
    /// A lifecycle for this process: the platform and its budget are recognised, SIGTERM and SIGINT are received from
    /// here on, and the report is written to standard error.
    ///
    /// Make one per process, before anything slow: a platform may say stop while the process still starts.
    ///
    /// # Other handlers
    /// What else handles SIGTERM or SIGINT in this process can keep it from being drained:
    /// - a handler that was there before is called first, and then ours. There is a warning; if it ends the process by itself,
    ///   nothing is drained.
    /// - a later one by tokio or `signal-hook` runs beside ours. That cannot be seen: it must not end the process
    ///   (`std::process::exit`), and has [`draining`](Self::draining) to wait for instead.
    /// - a later one by `sigaction` replaces ours, and the signal begins no drain any more. The crate `ctrlc` does that: with
    ///   Ctrl-C, and with its feature `termination` also with SIGTERM and SIGHUP. When [`init`](Self::init) or
    ///   [`run`](Self::run) finds its thread, or finds that one of the signals is handled by nobody any more (on Linux), there is a
    ///   warning; others cannot be seen. Call
    ///   [`begin_drain`](Self::begin_drain) in such a handler, or do without it: Ctrl-C is handled here already.
    ///
    /// # As process 1
    /// The first process of a container (PID 1) has no default action for signals: until this is called SIGTERM does nothing at
    /// all, and from then on it drains as everywhere. A shell as process 1 (`CMD my-server` in shell form) does not pass the
    /// signal on: write `CMD ["my-server"]`, or `exec my-server` in a script. Zombies of other processes' children are not
    /// reaped here: where there are any, put an init (`docker run --init`, tini) first, which passes SIGTERM on.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when `WINDDOWN_BUDGET_MS` is not a number, the signal thread cannot be started, or the
    /// process has such a lifecycle already.
    pub fn detect() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// To set what [`detect`](Self::detect) decides by itself.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Takes a resource in. Nothing is opened yet: that happens in [`init`](Self::init), or on first use.
    ///
    /// Once draining has begun it is too late: the guard refuses, and the resource is not drained.
    #[must_use = "the guard is the way to the resource"]
    pub fn guard<R: Resource>(&self, resource: R) -> ShutdownGuard<R> {
        let name = resource.name().to_owned();
        self.guard_as(name, resource)
    }

    /// The same under another name, where two resources would have the same one in the report.
    #[must_use = "the guard is the way to the resource"]
    pub fn guard_as<R: Resource>(&self, name: impl Into<String>, resource: R) -> ShutdownGuard<R> {
        ShutdownGuard { slot: self.shared.life().register(name.into(), resource, self.shared.settings) }
    }

    /// Runs this once when the lifecycle drains: an async closure, or a [`Hook`] that says when. Once draining has begun
    /// it is too late, and the hook does not run.
    pub fn on_drain(&self, name: impl Into<String>, hook: impl Into<Hook>) {
        self.shared.life().register(name.into(), hook.into(), self.shared.settings);
    }

    /// Counts a piece of work that drain waits for.
    ///
    /// # Errors
    /// [`ErrorKind::ShuttingDown`] once draining has begun.
    #[track_caller]
    pub fn track(&self) -> Result<Tracked, Error> {
        self.shared.life().track(Location::caller(), None)
    }

    /// The same with a name for the report, which has it where the work does not end in time: a request's id, a route, a job.
    ///
    /// # Errors
    /// [`ErrorKind::ShuttingDown`] once draining has begun.
    #[track_caller]
    pub fn track_as(&self, name: impl Into<String>) -> Result<Tracked, Error> {
        self.shared.life().track(Location::caller(), Some(name.into().into()))
    }

    /// Spawns a task that drain waits for, on the runtime of the caller: guards hand out to it also while the lifecycle drains,
    /// until it ends or its share of the budget does. It is [tracked](Self::track) work; give it a [`token`](Self::token), so that
    /// it ends when it should.
    ///
    /// # Errors
    /// [`ErrorKind::ShuttingDown`] once draining has begun.
    ///
    /// # Panics
    /// Outside of a tokio runtime, as `tokio::spawn`.
    #[track_caller]
    pub fn spawn<F>(&self, task: F) -> Result<JoinHandle<F::Output>, Error>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        Ok(tokio::spawn(self.track()?.scope(task)))
    }

    /// Initialises every resource, all at once. If one fails, the others are drained again and the lifecycle is over.
    ///
    /// Where draining begins meanwhile, it returns when that is over: a `main` that ends with the error (`?`) then ends
    /// nothing in the middle, and its exit status is that of a failure. [`run`](Self::run) counts it as a success, and
    /// [`wait_if_stopped`](Self::wait_if_stopped) tells the two apart.
    ///
    /// Work that the drain waits for gets the refusal at once, if it runs in [`Tracked::scope`], the work given to `run`, or a
    /// hook. Nobody can tell that of code that holds a checkout or a [`Tracked`] and calls this outside of them: do not, the
    /// two would wait for each other until the deadline.
    ///
    /// # Cancel safety
    /// Cancel safe: initialisations that have begun go on.
    ///
    /// # Errors
    /// - the first failure, after the rollback;
    /// - [`ErrorKind::ShuttingDown`] when draining began meanwhile, after its end;
    /// - [`ErrorKind::Timeout`] where there is a [limit](Builder::init_limit), as [`init_within`](Self::init_within) has it;
    /// - [`ErrorKind::Config`] when a resource depends on one of another lifecycle.
    pub async fn init(&self) -> Result<(), Error> {
        self.shared.init(&self.shared.life(), self.shared.init_limit).await
    }

    /// The same where the platform has a limit for it, counted from this call: a second before that, or a quarter of the
    /// limit where that is less, it fails and says what was not initialised, so that there is a reason in the log and the
    /// others are still drained. What is left of the limit is the budget of that drain, where it is less than the
    /// lifecycle's.
    ///
    /// # Cancel safety
    /// Cancel safe: initialisations that have begun go on.
    ///
    /// # Errors
    /// Those of [`init`](Self::init), and [`ErrorKind::Timeout`], which names what was not initialised, its
    /// [address](Resource::address), how long it was waited for, and what its last try failed of.
    pub async fn init_within(&self, limit: Duration) -> Result<(), Error> {
        self.shared.init(&self.shared.life(), Some(limit)).await
    }

    /// Flushes every initialised resource, all at once: when this returns, what buffers and exporters held is where it
    /// belongs. For the moment before a process stops running for a while, as at the end of a Lambda invocation; a drain
    /// flushes by itself.
    ///
    /// With the feature `metrics` gauges are written first, as by `record_metrics`.
    ///
    /// Waits for the slowest, and for a server that is away as long as it is away: put a timeout round it where that
    /// matters.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is lost by it, and what is under way goes on.
    ///
    /// # Errors
    /// The first error, after all have ended.
    pub async fn flush(&self) -> Result<(), Error> {
        // Before: an exporter that is flushed has them.
        #[cfg(feature = "metrics")]
        self.record_metrics();
        let mut flushing: Vec<_> = self.shared.life().nodes().into_iter().map(Node::flush).collect();
        let mut outcome = Ok(());
        // In this task and not in others, so that what counts as a dependent here does so there.
        poll_fn(|context| {
            flushing.retain_mut(|flush| match flush.as_mut().poll(context) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    if outcome.is_ok() {
                        outcome = result;
                    }
                    false
                }
            });
            if flushing.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        outcome
    }

    /// Writes how each resource stands to the recorder of the crate `metrics`, as gauges with the label `resource`: call it where
    /// somebody asks for them, as at the scrape of an exporter. Nothing writes them by itself while nothing happens, and a
    /// checkout does not either (C1, C2); [`flush`](Self::flush) does, and so does each Lambda invocation that flushes.
    ///
    /// | gauge | |
    /// | --- | --- |
    /// | `winddown_sessions_open`, `winddown_sessions_idle` | as [`Status`](crate::Status) has them; none where the adapter does not know, or it is not initialised |
    /// | `winddown_checkouts_out`, `winddown_callers_waiting` | the same |
    /// | `winddown_records_pending` | records that are buffered or being written, of what has records |
    ///
    /// When a drain is over it is counted by itself, from the rows of its report, before anybody gets that; rows that were never
    /// initialised are left out:
    ///
    /// | counter | |
    /// | --- | --- |
    /// | `winddown_drains_total` | drains, with the label `outcome`: `drained`, `incomplete`, `failed`, `panicked`, `hung`, `not_reached` |
    /// | `winddown_sessions_closed_total`, `winddown_sessions_unconfirmed_total`, `winddown_sessions_cut_total`, `winddown_sessions_left_behind_total` | sessions, by how they ended |
    /// | `winddown_statements_cancelled_total` | statements that the server was asked to stop |
    /// | `winddown_records_accepted_total`, `winddown_records_written_total`, `winddown_records_spilled_total`, `winddown_records_lost_total`, `winddown_records_in_doubt_total` | records, of what has records |
    ///
    /// and the histogram `winddown_drain_seconds` has what each drain took. All others are counts. An exporter that is to have
    /// them must look after [`drained`](Self::drained) or [`run`](Self::run), and where a second signal ends the process none are
    /// written. The recorder is the one that is installed then: it must not block.
    #[cfg(feature = "metrics")]
    pub fn record_metrics(&self) {
        crate::numbers::write_gauges(&self.shared.life().nodes());
    }

    /// Drains now, and returns the report. Whoever calls it, and however often, it happens once (S3).
    ///
    /// Not from work that the drain waits for ([tracked](Self::track) work, the work given to [`run`](Self::run), a
    /// hook): the two would wait for each other until the deadline. There [`begin_drain`](Self::begin_drain) is right.
    ///
    /// # Cancel safety
    /// Cancel safe: the drain goes on.
    pub async fn drain(&self) -> Arc<Report> {
        let life = self.shared.life();
        self.shared.begin(&life, Reason::Requested);
        life.drained().await
    }

    /// The same in tasks of this runtime, on its clock: for tests under tokio's paused time, which pin limits to the
    /// millisecond. Nothing has a thread of its own here: what blocks holds up everything, the deadline too. Only without
    /// signals.
    #[cfg(all(any(test, feature = "test-util"), not(winddown_loom)))]
    pub async fn drain_in_tasks(&self) -> Arc<Report> {
        assert!(!self.shared.owns_process, "a lifecycle with signals is drained by its own thread");
        let life = self.shared.life();
        if life.refuse(Reason::Requested, Instant::now()) {
            let begun = life.begun().await;
            let report = conductor::conduct(&self.shared, &begun, conductor::Place::Task, std::future::pending()).await;
            life.publish(Arc::new(report));
        }
        life.drained().await
    }

    /// Begins to drain and does not wait for it: the application's own way to say stop. Returns whether it was this
    /// call.
    pub fn begin_drain(&self) -> bool {
        self.shared.begin(&self.shared.life(), Reason::Requested)
    }

    /// Ready when draining has begun: what a server's graceful shutdown waits for. A `main` that waits for nothing else returns
    /// in the middle of the drain; [`run`](Self::run) waits for its end.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        let life = self.shared.life();
        async move { life.draining().await }
    }

    /// Whether draining has begun: for a loop that asks between two pieces of work.
    pub fn is_draining(&self) -> bool {
        self.state() >= State::Draining
    }

    /// A token that is cancelled when draining begins, for code that takes one: a child, so that cancelling it stops nothing
    /// else. Of the life in which this is called.
    pub fn token(&self) -> CancellationToken {
        self.shared.life().token()
    }

    /// Ready when everything is drained.
    pub async fn drained(&self) -> Arc<Report> {
        self.shared.life().drained().await
    }

    /// Begins a further life, when the one before is [drained](Self::drained): for a process that has to be without sessions
    /// for a while and goes on, as around the snapshot of Lambda's SnapStart.
    ///
    /// Everything that was registered is there again, not initialised: [`init`](Self::init) does that, or the first use.
    /// Guards stay as they are and hand out again. The life has its own drain, with its own report, in which the accounting of
    /// buffers begin at zero, and the signals are received in each.
    ///
    /// What has only one life keeps refusing, and a warning names it: pools of the application's own that were wrapped,
    /// which nobody could open again, and telemetry that was shut down. A hook runs in the life that it was given to, or
    /// [in each](Hook::on_every_drain). What was registered while there was no life is not taken in.
    ///
    /// What waits for something of a life ([`draining`](Self::draining), [`drained`](Self::drained), [`run`](Self::run)) waits
    /// for that of the life in which it was called.
    ///
    /// # Errors
    /// - [`ErrorKind::ShuttingDown`] when the process was told to stop: there is no further life;
    /// - [`ErrorKind::Config`] when the life before is not over, or another call begins one at this moment.
    pub fn restart(&self) -> Result<(), Error> {
        self.shared.restart()
    }

    /// Where it stands now.
    pub fn state(&self) -> State {
        self.shared.life().state()
    }

    /// The budget of this lifecycle.
    pub fn budget(&self) -> Budget {
        self.shared.budget
    }

    /// The limit of init that was [set](Builder::init_limit), if one was.
    pub fn init_limit(&self) -> Option<Duration> {
        self.shared.init_limit
    }

    /// The platform of this lifecycle.
    pub fn platform(&self) -> &Platform {
        &self.shared.platform
    }

    /// Initialises everything, runs the work, and drains: the last line of a `main`.
    ///
    /// The work counts as [tracked](Self::track): when the platform says stop, it may end by itself before anything is
    /// drained, as far as the budget goes. Give it [`draining`](Self::draining) so that it does:
    ///
    /// ```no_run
    /// # use winddown_core::{Error, Lifecycle};
    /// # async fn serve(stop: impl Future<Output = ()>) -> std::io::Result<()> { Ok(stop.await) }
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Error> {
    /// let lifecycle = Lifecycle::detect()?;
    /// // axum: `axum::serve(listener, app).with_graceful_shutdown(lifecycle.draining())`
    /// lifecycle.run(serve(lifecycle.draining())).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`ErrorKind::Config`] where the lifecycle receives no signals, and is not [embedded](Builder::embedded) either;
    /// - what [`init`](Self::init) returns, but for a stop that arrives meanwhile: that is drained and counts as a
    ///   success;
    /// - [`ErrorKind::Work`] when the work failed, [`ErrorKind::Panicked`] when it panicked: drained all the same;
    /// - [`ErrorKind::Incomplete`] when the report is not clean.
    ///
    /// # After it
    /// What `main` does then has what is left of the budget, and its own exit status. Where it was told to stop and the
    /// report is clean, the process does not wait for blocking tasks when the runtime is shut down: see
    /// [`Builder::exit_after`].
    #[track_caller]
    pub fn run<W, E>(&self, work: W) -> impl Future<Output = Result<Arc<Report>, Error>> + use<'_, W, E>
    where
        W: IntoFuture<Output = Result<(), E>>,
        E: Into<BoxError>,
    {
        let site = Location::caller();
        async move {
            self.shared.check_stoppable()?;
            let life = self.shared.life();
            match self.shared.init(&life, self.shared.init_limit).await {
                Ok(()) => {}
                Err(error) if life.wait_if_stopped(&error).await => return self.shared.finish(&life, Ok(())).await,
                Err(error) => return Err(error),
            }
            // Not before: a rollback of init would wait for it.
            let result = match life.track(site, Some("run".into())) {
                Ok(tracked) => {
                    let failed = |error: E| Error::new(ErrorKind::Work, "the work failed").with_source(error);
                    let work = async { work.into_future().await.map_err(failed) };
                    // Boxed, as it is once in a life: else it nests too deep for the compiler, with what it asks of a driver.
                    let mut work = Box::pin(tracked.scope(panics::catch(work)));
                    tokio::select! {
                        biased;
                        result = &mut work => result,
                        // The work never saw the stop, or did not heed it: the report names the line that ran it.
                        _ = life.drained() => Ok(()),
                    }
                }
                Err(_) => Ok(()),
            };
            self.shared.begin(&life, Reason::WorkEnded);
            self.shared.finish(&life, result).await
        }
    }

    /// What [`run`](Self::run) asks first: for other functions that run the work of a process.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where nothing would ever begin the drain.
    pub fn check_stoppable(&self) -> Result<(), Error> {
        self.shared.check_stoppable()
    }

    /// Whether an error of [`init`](Self::init) says that the platform or the application stopped it, and not that a
    /// resource failed. Waits for the end of the drain.
    pub async fn wait_if_stopped(&self, error: &Error) -> bool {
        self.shared.life().wait_if_stopped(error).await
    }

    /// The report, as a result: what went wrong first, or that not everything was drained.
    ///
    /// # Errors
    /// The error it was given, or [`ErrorKind::Incomplete`].
    pub async fn finish(&self, work: Result<(), Error>) -> Result<Arc<Report>, Error> {
        self.shared.finish(&self.shared.life(), work).await
    }
}

impl LifecycleState {
    /// Begins to drain, if nobody has. Returns whether it was this call.
    pub(crate) fn begin(self: &Arc<Self>, life: &Arc<Life>, reason: Reason) -> bool {
        self.stop(life, Stop::now(reason))
    }

    fn stop(self: &Arc<Self>, life: &Arc<Life>, stop: Stop) -> bool {
        let first = life.stop(stop);
        // A lifecycle that owns the process has its thread from the start.
        if first
            && !self.owns_process
            && let Err(error) = conductor::start_drain(self, life)
        {
            // Without a thread nothing can be drained: the report says so of every resource.
            tracing::error!(%error, "cannot drain");
            conductor::publish_failure(self, life, &error);
        }
        first
    }
}

impl fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.shared.life().nodes().iter().map(|node| node.facts().name.clone()).collect();
        f.debug_struct("Lifecycle")
            .field("state", &self.state())
            .field("platform", &self.shared.platform.name)
            .field("budget", &self.shared.budget.total())
            .field("resources", &names)
            .finish()
    }
}
