//! The book of sessions: which are open, who drives them, and how each one ended.
//!
//! A session is a future that somebody must poll for anything to happen, its [`Driver`]. It is kept here, in the book. A task of
//! the application polls it there, until the drain takes it over: then it goes on on the drain's own thread, whatever the
//! application's runtime does.

mod abandoned;
mod draining;
mod session;
mod task;

use std::{
    collections::HashMap,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::Notify;
use winddown_core::{
    Error,
    adapter::{End, Ends, Latency, Outdated},
};

pub use crate::sessions::{
    draining::Draining,
    session::{Driver, Session, Stop},
    task::Held,
};
use crate::{Link, spare::Spare};

/// All sessions of one pool, each with what the adapter keeps for it, a `P`.
pub struct Sessions<P> {
    state: Mutex<Entries<P>>,
    /// A session was opened or has ended.
    changed: Notify,
    latency: Arc<Latency>,
    outdated: Arc<Outdated>,
    /// Something on a session is not waited for any more.
    abandoned: Notify,
    /// A session has ended, for all who wait for one.
    ended: Notify,
}

/// What stands in the book.
struct Entries<P> {
    phase: Phase,
    last: u64,
    open: HashMap<u64, Arc<Session<P>>>,
    /// While draining: those that the drain has not taken over yet.
    fresh: Vec<Arc<Session<P>>>,
    ended: Ends,
    /// Why something may run on at a server that was asked for on a session that was given up before any drain.
    runs_on: Option<Error>,
}

impl<P> Entries<P> {
    /// A drain has come so far. What ends from here on is in its counts, and nothing that ended before.
    fn drains(&mut self, phase: Phase) {
        if !self.phase.is_draining() {
            self.ended = Ends { error: self.runs_on.take(), ..Ends::default() };
        }
        self.phase = phase;
    }

    /// The one place where the end of a session is recorded: it is taken out of the book for it, so there is no second time.
    fn end(&mut self, id: u64, end: End) {
        if self.open.remove(&id).is_none() {
            return;
        }
        self.ended.record(end);
    }
}

/// How far the pool's life has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Draining has begun, and the goodbye has not: what uses this pool is drained first.
    Begun,
    Draining,
    /// Drained, or given up: nothing is opened any more.
    Over,
}

impl Phase {
    fn is_draining(self) -> bool {
        matches!(self, Self::Begun | Self::Draining)
    }
}

impl<P> Default for Sessions<P> {
    fn default() -> Self {
        let (open, ended) = (HashMap::new(), Ends::default());
        let state = Entries { phase: Phase::Open, last: 0, open, fresh: Vec::new(), ended, runs_on: None };
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
            latency: Arc::default(),
            outdated: Arc::default(),
            abandoned: Notify::new(),
            ended: Notify::new(),
        }
    }
}

impl<P: Send + Sync + 'static> Sessions<P> {
    fn state(&self) -> MutexGuard<'_, Entries<P>> {
        // Each change is complete before anything can panic, so a poisoned lock carries no broken state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool is opened, or opened again.
    pub fn restart(&self) {
        self.state().phase = Phase::Open;
    }

    /// Draining has begun, and the goodbye may come later: each session that ends from here on is counted, whoever ends it. For an
    /// adapter that ends something then; without it they are counted from the goodbye on.
    pub fn count_ends(&self) {
        let mut state = self.state();
        // The goodbye may be quicker.
        if state.phase == Phase::Open {
            state.drains(Phase::Begun);
        }
    }

    /// Whether the drain is over: nothing is opened any more, so nobody need try.
    pub fn is_over(&self) -> bool {
        self.state().phase == Phase::Over
    }

    /// What the sessions have shown of how long their servers take to answer.
    pub fn latency(&self) -> &Arc<Latency> {
        &self.latency
    }

    /// Which of the sessions a pool is to replace without asking them.
    pub fn outdated(&self) -> &Arc<Outdated> {
        &self.outdated
    }

    /// The sessions that are open, or being opened.
    pub fn open(&self) -> Vec<Arc<Session<P>>> {
        self.state().open.values().cloned().collect()
    }

    /// Ends those of these whose server has closed its side: it may have done so while nobody looked.
    pub fn sweep(&self, these: impl Fn(&Session<P>) -> bool) {
        for session in self.open() {
            if these(&session) {
                session.sweep();
            }
        }
    }

    /// Ready when these have ended, whoever drives them.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn until_over(&self, these: &[Arc<Session<P>>]) {
        loop {
            let mut ended = pin!(self.ended.notified());
            // Before it is looked at: an end that comes in between is heard.
            ended.as_mut().enable();
            if these.iter().all(|session| session.is_over()) {
                return;
            }
            ended.await;
        }
    }

    /// Enters a session in the book. `driver` is what happens on it, given the session itself; nothing does before somebody
    /// [runs](Session::run) it. `None` once the drain is over: nothing is opened any more.
    pub fn enter(
        self: &Arc<Self>,
        link: &Arc<Link>,
        part: P,
        driver: impl FnOnce(Weak<Session<P>>) -> Driver,
    ) -> Option<Arc<Session<P>>> {
        let spare = Spare::of(link.address());
        let mut state = self.state();
        if state.phase == Phase::Over {
            return None;
        }
        state.last += 1;
        let id = state.last;
        let session = Session::new(id, self, link, spare, part, driver);
        state.open.insert(id, Arc::clone(&session));
        if state.phase == Phase::Draining {
            state.fresh.push(Arc::clone(&session));
        }
        drop(state);
        self.changed.notify_one();
        Some(session)
    }

    /// Something may run on at a server, for this reason: the next report has it, or that of the drain that is under way.
    fn runs_on(&self, error: Error) {
        let mut state = self.state();
        match state.phase {
            Phase::Open => state.runs_on = Some(error),
            Phase::Begun | Phase::Draining => state.ended.error = Some(error),
            Phase::Over => {}
        }
    }

    /// A session has ended.
    fn over(&self, id: u64, end: End) {
        self.state().end(id, end);
        self.changed.notify_one();
        self.ended.notify_waiters();
    }
}

impl<P> fmt::Debug for Sessions<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Sessions").field("phase", &state.phase).field("open", &state.open.len()).finish()
    }
}
