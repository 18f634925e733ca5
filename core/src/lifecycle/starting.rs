//! From nothing to running: everything initialised at once, in the time that there is, or taken back.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    Budget, Error, ErrorKind, Reason, State,
    dependent::is_dependent,
    life::{Life, LifecycleState, Stop},
    node::{Node, Unfinished},
    notify, signals,
};

/// What the platform allows for init: when that is over, and when it is given up, so that the rest can be taken back and
/// reported.
#[derive(Debug, Clone, Copy)]
struct Limit {
    whole: Duration,
    ends: Instant,
    given_up: Instant,
}

/// What is kept of a limit, at the most and as a part of it.
const KEPT: Duration = Duration::from_secs(1);
const KEPT_SHARE: u32 = 4;

impl Limit {
    fn of(whole: Duration, began: Instant) -> Option<Self> {
        // One that no clock can have is none.
        let ends = began.checked_add(whole)?;
        Some(Self { whole, ends, given_up: ends - KEPT.min(whole / KEPT_SHARE) })
    }

    /// What is left of it, for a drain.
    fn budget(self, most: Budget) -> Budget {
        let left = self.ends.saturating_duration_since(Instant::now());
        // Less than the smallest budget is no time for a drain: it takes what that takes.
        Budget::new(left.min(most.total())).unwrap_or(Budget::SMALLEST)
    }
}

impl LifecycleState {
    pub(super) async fn init(self: &Arc<Self>, life: &Arc<Life>, limit: Option<Duration>) -> Result<(), Error> {
        Handle::try_current().map_err(|error| {
            Error::new(ErrorKind::Init, "initialise from inside a tokio runtime").with_source(error)
        })?;
        let limit = limit.and_then(|limit| Limit::of(limit, Instant::now()));
        if life.state() >= State::Draining {
            return Err(refused(life).await);
        }
        let nodes = life.nodes();
        let mut outcome = foreign(&nodes).map_or(Ok(()), Err);
        let mut running = JoinSet::new();
        if outcome.is_ok() {
            for node in &nodes {
                running.spawn(Arc::clone(node).init());
            }
        }
        let given_up = async {
            match limit {
                Some(limit) => {
                    sleep_until(limit.given_up).await;
                    limit
                }
                None => pending().await,
            }
        };
        tokio::pin!(given_up);
        let mut unfinished = Vec::new();
        while outcome.is_ok() {
            tokio::select! {
                biased;
                next = running.join_next() => match next {
                    None => break,
                    Some(Ok(result)) => outcome = result,
                    // The task only waits for the real one, whose panic is an error already.
                    Some(Err(error)) => {
                        outcome = Err(Error::new(ErrorKind::Panicked, "initialisation ended").with_source(error));
                    }
                },
                () = life.draining() => return Err(refused(life).await),
                limit = &mut given_up => {
                    unfinished = nodes.iter().filter(|node| node.unfinished().is_some()).collect();
                    outcome = Err(too_slow(&unfinished, limit));
                }
            }
        }
        match outcome {
            Ok(()) => {
                let first = life.advance(State::Running);
                if first && self.owns_process {
                    self.check_handlers();
                    notify::ready().await;
                }
                if life.state() == State::Running { Ok(()) } else { Err(refused(life).await) }
            }
            Err(error) => {
                let stop = Stop {
                    error: Some(error.to_string()),
                    budget: limit.map(|limit| limit.budget(self.budget)),
                    ..Stop::now(Reason::InitFailed)
                };
                if self.stop(life, stop) {
                    tracing::debug!(%error, "initialisation failed, taking back the rest");
                }
                // What has had all the time that there was is not waited for again.
                for node in unfinished {
                    node.give_up();
                }
                until_drained(life).await;
                Err(error)
            }
        }
    }
}

impl LifecycleState {
    /// Warns where somebody has taken a signal away since the lifecycle was made, as far as that can be seen.
    fn check_handlers(&self) {
        if signals::has_ctrlc() {
            let why = "it has replaced the lifecycle's, so Ctrl-C, and with its feature `termination` SIGTERM, drains nothing: \
                       call `begin_drain` in it, or do without it";
            Self::warn("the crate ctrlc has a handler for signals", why);
        }
        let Some(handled) = signals::handled(&self.signals) else { return };
        for kind in self.signals.iter().filter(|kind| !handled.contains(kind)) {
            let message = format!("{} is not handled any more", signals::name(*kind));
            Self::warn(&message, "something has set it to be ignored, or to end the process: it drains nothing");
        }
    }
}

/// The error where a resource depends on one that this life does not have.
fn foreign(nodes: &[Arc<dyn Node>]) -> Option<Error> {
    let node = nodes.iter().find(|node| {
        let known = |id| nodes.iter().any(|other| other.facts().id == id);
        !node.facts().depends_on.iter().all(|id| known(*id))
    })?;
    let what = "depends on a resource of another lifecycle, or on one whose only life is over: make both guards with the same one";
    Some(Error::new(ErrorKind::Config, what).of(&node.facts().name))
}

/// The refusal, when the drain is over: a `main` that returns with it would end the process in the middle of that.
async fn refused(life: &Life) -> Error {
    until_drained(life).await;
    Error::new(ErrorKind::ShuttingDown, "shutting down: draining began during start")
}

/// Whom the drain waits for does not wait for the drain.
async fn until_drained(life: &Life) {
    if !is_dependent() {
        life.drained().await;
    }
}

/// What was not initialised when the limit was near; but for what only waits for one of the others.
fn too_slow(nodes: &[&Arc<dyn Node>], limit: Limit) -> Error {
    let depends = |node: &Arc<dyn Node>| {
        nodes.iter().any(|other| node.facts().depends_on.iter().any(|id| *id == other.facts().id))
    };
    let slow: Vec<_> = nodes
        .iter()
        .filter(|node| !depends(node))
        .filter_map(|node| Some((node.facts().name.as_str(), node.unfinished()?)))
        .collect();
    let whole = limit.whole;
    match slow.as_slice() {
        [(name, Unfinished { error, .. })] => error.clone().of(*name),
        // All have come to their end at this very moment.
        [] => Error::new(ErrorKind::Timeout, format!("initialised too late: {whole:.1?} are the limit")),
        [(_, first), ..] => {
            let names: Vec<_> = slow.iter().map(|(name, Unfinished { whom, .. })| format!("{name}{whom}")).collect();
            let waited = first.waited;
            let message = format!("not initialised after {waited:.1?}: {}", names.join(", "));
            let error = Error::new(ErrorKind::Timeout, message);
            // The reasons of the first that has one.
            match slow.iter().find_map(|(name, slow)| Some(slow.last.clone()?.of(*name))) {
                Some(source) => error.with_source(source),
                None => error,
            }
        }
    }
}
