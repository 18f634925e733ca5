//! One life of a lifecycle, from its start to the end of its drain: what is registered, where it stands, why it ends.

use std::{
    panic::{AssertUnwindSafe, Location, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::Duration,
};

use tokio::{runtime::Handle, signal::unix::SignalKind, sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Budget, Error, ErrorKind, Platform, Reason, Report, ReportFormat, Resource, Tracked,
    gate::{Admits, wake},
    log_line::warning_line,
    node::{Node, Order, Renewal, Settings, Slot},
    standard_error::write_line,
    standby::{Drainer, Needs},
    ticket::{Gated, Ticket},
    work::TrackedWork,
};

/// Where a lifecycle stands. In one life, states only ever move down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum State {
    /// Resources are being registered and initialised.
    Starting,
    /// [`Lifecycle::init`](crate::Lifecycle::init) has succeeded.
    Running,
    /// The application is refused, resources say goodbye.
    Draining,
    /// All is over, and the report is there.
    Drained,
}

pub(crate) struct LifecycleState {
    pub(crate) platform: Platform,
    pub(crate) budget: Budget,
    pub(crate) report_format: Option<ReportFormat>,
    /// Receives signals, and ends the process at the deadline.
    pub(crate) owns_process: bool,
    /// Those that it receives then.
    pub(crate) signals: Vec<SignalKind>,
    /// Somebody else begins its drain.
    pub(crate) embedded: bool,
    pub(crate) settings: Settings,
    pub(crate) init_limit: Option<Duration>,
    /// Of the budget, for tracked work alone.
    pub(crate) work_share: f64,
    /// How long the process may go on when its runtime is being shut down.
    pub(crate) exit_after: Duration,
    /// How the application ends.
    pub(crate) ending: watch::Sender<Ending>,
    pub(crate) lives: watch::Sender<Lives>,
    /// Held while a life is made, and never waited for.
    pub(crate) beginning: Mutex<()>,
}

/// The life that is lived now, and whether it is the last.
#[derive(Clone)]
pub(crate) struct Lives {
    pub(crate) now: Arc<Life>,
    pub(crate) is_last: bool,
}

/// How the application ends, as far as it can be seen.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ending {
    /// [`Lifecycle::run`] has returned an error.
    pub(crate) failed: bool,
    /// A runtime on which it has returned is being shut down.
    pub(crate) shut_down: bool,
}

/// Lives in a task of a runtime, which drops it when it is shut down.
pub(crate) struct Witness(watch::Sender<Ending>);

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.send_modify(|ending| ending.shut_down = true);
    }
}

/// One life of a lifecycle: from its start to the end of its drain. A further life is another one of these, so nothing
/// that was said of this one is ever taken back.
pub(crate) struct Life {
    registry: Mutex<Vec<Arc<dyn Node>>>,
    tracked: Arc<Slot<TrackedWork>>,
    state: watch::Sender<State>,
    /// Cancelled when draining begins: what the application's tokens are children of.
    token: CancellationToken,
    begun: watch::Sender<Option<Begun>>,
    report: watch::Sender<Option<Arc<Report>>>,
    /// What its drain is conducted on, where no thread waits for signals.
    pub(crate) conductor: Drainer,
}

/// When and why draining began.
#[derive(Clone)]
pub(crate) struct Begun {
    pub(crate) reason: Reason,
    pub(crate) at: Instant,
    /// What went wrong, where that is why.
    pub(crate) error: Option<String>,
    /// Less than that of the lifecycle, where the platform has less.
    pub(crate) budget: Option<Budget>,
    /// What is drained: what was registered until then.
    pub(crate) nodes: Arc<[Arc<dyn Node>]>,
}

impl Begun {
    /// The budget of this drain.
    pub(crate) fn budget(&self, shared: &LifecycleState) -> Budget {
        self.budget.unwrap_or(shared.budget)
    }
}

/// A request to stop.
pub(crate) struct Stop {
    pub(crate) reason: Reason,
    pub(crate) at: Instant,
    pub(crate) error: Option<String>,
    pub(crate) budget: Option<Budget>,
}

impl Stop {
    pub(crate) fn now(reason: Reason) -> Self {
        Self { reason, at: Instant::now(), error: None, budget: None }
    }
}

impl LifecycleState {
    /// Warns of what must be seen: through tracing where the application has set it up by then, else on standard error.
    pub(crate) fn warn(message: &str, why: &str) {
        if tracing::dispatcher::has_been_set() {
            tracing::warn!("{message}: {why}");
        } else {
            write_line(&warning_line(message, why));
        }
    }

    /// An error where nothing would ever say stop.
    pub(crate) fn check_stoppable(&self) -> Result<(), Error> {
        if self.owns_process || self.embedded {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Config,
            "this lifecycle receives no signals, so SIGTERM would end the process without a drain: build it without \
             `signals(false)`, or with `embedded()` where something else calls `begin_drain`",
        ))
    }

    /// The end of what [`Lifecycle::run`] does. From here on it is seen when this runtime is shut down.
    pub(crate) async fn finish(&self, life: &Life, work: Result<(), Error>) -> Result<Arc<Report>, Error> {
        let result = life.finish(work).await;
        if self.owns_process {
            self.ending.send_modify(|ending| ending.failed |= result.is_err());
            if let Ok(runtime) = Handle::try_current() {
                let witness = Witness(self.ending.clone());
                runtime.spawn(async move {
                    let _witness = witness;
                    std::future::pending::<()>().await;
                });
            }
        }
        result
    }

    /// The life that is lived now.
    pub(crate) fn life(&self) -> Arc<Life> {
        Arc::clone(&self.lives.borrow().now)
    }

    /// Ready when another life than this has begun.
    pub(crate) async fn life_after(&self, life: &Arc<Life>) -> Arc<Life> {
        let mut lives = self.lives.subscribe();
        let after = lives.wait_for(|lives| !Arc::ptr_eq(&lives.now, life)).await.map(|lives| Arc::clone(&lives.now));
        match after {
            Ok(life) => life,
            // The sender is in `self`, so it cannot be closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// Lets no further life begin after this one. Returns whether that came in time.
    pub(crate) fn is_the_last(&self, life: &Arc<Life>) -> bool {
        self.lives.send_if_modified(|lives| {
            let in_time = Arc::ptr_eq(&lives.now, life);
            lives.is_last |= in_time;
            in_time
        })
    }

    pub(crate) fn restart(&self) -> Result<(), Error> {
        let ended = || Error::new(ErrorKind::ShuttingDown, "shutting down: the process was told to stop");
        let _beginning = match self.beginning.try_lock() {
            Ok(beginning) => beginning,
            // A resource that panicked when it was asked about itself.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(ErrorKind::Config, "another call begins a life at this moment: one is enough"));
            }
        };
        let Lives { now, is_last } = self.lives.borrow().clone();
        if now.state() < State::Drained {
            return Err(Error::new(ErrorKind::Config, "the life before is not over: drain it first"));
        }
        if is_last {
            return Err(ended());
        }
        let nodes = now.begun.borrow().as_ref().map(|begun| Arc::clone(&begun.nodes)).unwrap_or_default();
        let tracked = Arc::new(TrackedWork::slot(self.settings));
        let mut registry: Vec<Arc<dyn Node>> = vec![Arc::clone(&tracked) as _];
        let mut links = Vec::new();
        // Without those that were tracked: nobody has a guard of them.
        for node in nodes.iter().filter(|node| node.facts().order != Order::First) {
            match Arc::clone(node).renew() {
                Some(Renewal { node, link }) => {
                    registry.push(node);
                    links.push(link);
                }
                None => tracing::warn!(
                    resource = node.facts().name,
                    "it has only one life, which is over: it is refused, and not drained"
                ),
            }
        }
        let life = Life::new(registry, tracked);
        life.prepare(self.owns_process);
        let began = self.lives.send_if_modified(|lives| {
            if lives.is_last {
                return false;
            }
            // Nobody calls foreign code or waits in here: whoever asks for the life that is lived sees it with its guards.
            links.drain(..).for_each(|link| link());
            lives.now = Arc::new(life);
            true
        });
        if began { Ok(()) } else { Err(ended()) }
    }
}

impl Life {
    pub(crate) fn new(registry: Vec<Arc<dyn Node>>, tracked: Arc<Slot<TrackedWork>>) -> Self {
        Self {
            registry: Mutex::new(registry),
            tracked,
            state: watch::Sender::new(State::Starting),
            token: CancellationToken::new(),
            begun: watch::Sender::new(None),
            report: watch::Sender::new(None),
            conductor: Drainer::default(),
        }
    }

    /// Where that cannot be had now, it is tried again when the drain begins.
    pub(crate) fn prepare(&self, owns_process: bool) {
        if !owns_process {
            let _ = self.conductor.prepare(Needs::Nothing);
        }
    }

    pub(crate) fn track(&self, site: &'static Location<'static>, name: Option<Box<str>>) -> Result<Tracked, Error> {
        let ticket = Ticket::enter(&self.tracked, site)?;
        if let Some(name) = name {
            ticket.label(name);
        }
        ticket.hand_out()?;
        Ok(Tracked::new(ticket))
    }

    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    pub(crate) fn token(&self) -> CancellationToken {
        self.token.child_token()
    }

    pub(crate) async fn draining(&self) {
        // The sender is in `self`, so it cannot be closed.
        let _ = self.state.subscribe().wait_for(|state| *state >= State::Draining).await;
    }

    pub(crate) async fn drained(&self) -> Arc<Report> {
        let mut report = self.report.subscribe();
        loop {
            if let Some(report) = &*report.borrow_and_update() {
                return Arc::clone(report);
            }
            // The sender is in `self`, so it cannot be closed.
            let _ = report.changed().await;
        }
    }

    pub(crate) async fn wait_if_stopped(&self, error: &Error) -> bool {
        error.is_shutting_down() && self.drained().await.reason != Reason::InitFailed
    }

    pub(crate) async fn finish(&self, work: Result<(), Error>) -> Result<Arc<Report>, Error> {
        let report = self.drained().await;
        work?;
        if report.is_clean() {
            Ok(report)
        } else {
            Err(Error::new(ErrorKind::Incomplete, "not everything was drained, see the report"))
        }
    }

    /// From here on the application is refused everywhere (S2). Whoever waits for that is woken here, which is foreign
    /// code: nobody who keeps the time calls this.
    pub(crate) fn refuse(&self, reason: Reason, at: Instant) -> bool {
        self.stop(Stop { at, ..Stop::now(reason) })
    }

    pub(crate) fn stop(&self, stop: Stop) -> bool {
        let Stop { reason, at, error, budget } = stop;
        let mut woken = Vec::new();
        let nodes: Arc<[_]>;
        {
            // Under the registry's lock: a resource that is registered later is refused and not drained.
            let registry = self.registry();
            if self.begun.borrow().is_some() {
                return false;
            }
            nodes = registry.clone().into();
            for node in nodes.iter() {
                woken.extend(node.gate().refuse(Admits::Dependents));
            }
            // After all are refused: the drain begins with this.
            self.begun.send_replace(Some(Begun { reason, at, error, budget, nodes: Arc::clone(&nodes) }));
        }
        // Whoever sees this state is refused everywhere (S2). It may be over already: states only move on. Before those
        // that waited: one of them may block, and a server waits for this.
        let _ = catch_unwind(AssertUnwindSafe(|| self.advance(State::Draining)));
        let _ = catch_unwind(AssertUnwindSafe(|| self.token.cancel()));
        for node in nodes.iter() {
            let _ = catch_unwind(AssertUnwindSafe(|| node.draining()));
        }
        wake(woken);
        true
    }

    /// When and why draining began, once it has.
    pub(crate) async fn begun(&self) -> Begun {
        let mut begun = self.begun.subscribe();
        loop {
            if let Some(begun) = &*begun.borrow_and_update() {
                return begun.clone();
            }
            // The sender is in `self`, so it cannot be closed.
            let _ = begun.changed().await;
        }
    }

    /// When and why draining began, if it has.
    pub(crate) fn has_begun(&self) -> Option<Begun> {
        self.begun.borrow().clone()
    }

    pub(crate) fn publish(&self, report: Arc<Report>) {
        // Before: who has the report may end the process, and what exports the numbers with it. One at a time publishes.
        #[cfg(feature = "metrics")]
        if self.report.borrow().is_none() {
            let _ = catch_unwind(AssertUnwindSafe(|| crate::numbers::count(&report)));
        }
        // The state first: whoever has the report sees it. A waker that panics must not keep the report from the others.
        let _ = catch_unwind(AssertUnwindSafe(|| self.advance(State::Drained)));
        self.report.send_if_modified(|there| {
            let first = there.is_none();
            there.get_or_insert(report);
            first
        });
    }

    /// Moves to this state, unless it is there or further. Returns whether this call did it.
    pub(crate) fn advance(&self, to: State) -> bool {
        self.state.send_if_modified(|state| {
            let moves = *state < to;
            if moves {
                *state = to;
            }
            moves
        })
    }

    pub(crate) fn nodes(&self) -> Vec<Arc<dyn Node>> {
        self.registry().clone()
    }

    pub(crate) fn register<R: Resource>(&self, name: String, resource: R, settings: Settings) -> Arc<Slot<R>> {
        // Not under the lock: the resource is asked about itself here.
        let slot = Arc::new(Slot::new(resource, name, settings));
        {
            let mut registry = self.registry();
            if self.begun.borrow().is_none() {
                registry.push(Arc::clone(&slot) as Arc<dyn Node>);
                drop(registry);
                return slot;
            }
        }
        // Nobody has it yet, so nobody waits.
        drop(Gated::gate(&*slot).refuse(Admits::Nobody));
        // Not under the lock either: a subscriber is foreign code.
        tracing::warn!(resource = slot.name(), "registered after draining had begun: it is refused, and not drained");
        slot
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Vec<Arc<dyn Node>>> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
