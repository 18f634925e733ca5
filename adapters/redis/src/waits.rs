//! Commands that wait at the server for something to take: ended as soon as draining has begun, while the drain still waits for
//! others; and what they took for nobody.
//!
//! The goodbye of a server comes after that of what uses it, and a job that is taken meanwhile by a command that nobody waits for is
//! lost. So this does not wait for the goodbye. It runs on the application's runtime, and only ever before its time: where that
//! runtime does not run, the goodbye does the same.

use std::{
    fmt, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::{runtime::Handle, task::JoinSet, time::timeout_at};
use winddown_core::adapter::Drain;

use crate::{
    cancel::Prepared,
    marks::Wait,
    sessions::{Part, Session, Sessions},
};

/// All commands that wait on the sessions of one pool.
#[derive(Default)]
pub(crate) struct Waits {
    state: Mutex<Begun>,
    is_draining: AtomicBool,
    /// How many are being ended.
    ending: AtomicUsize,
    prepared: Prepared,
}

#[derive(Default)]
struct Begun {
    /// The application's.
    runtime: Option<Handle>,
    tasks: JoinSet<()>,
    stopped: usize,
    /// What was taken for nobody, and how often.
    taken: Vec<(String, usize)>,
}

impl Waits {
    fn state(&self) -> MutexGuard<'_, Begun> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A life of the pool begins, on this runtime.
    pub(crate) fn restart(&self) {
        // SeqCst, here and below: asked for few commands, and nothing is gained by less.
        self.is_draining.store(false, Ordering::SeqCst);
        let before =
            mem::replace(&mut *self.state(), Begun { runtime: Handle::try_current().ok(), ..Begun::default() });
        drop(before);
    }

    /// Draining has begun, of whatever uses this pool at first.
    pub(crate) fn begin_drain(self: &Arc<Self>, sessions: &Sessions) {
        self.is_draining.store(true, Ordering::SeqCst);
        for session in sessions.open() {
            self.look_at(&session);
        }
    }

    /// Ends what waits on this session, if that is to be ended by now.
    pub(crate) fn look_at(self: &Arc<Self>, session: &Arc<Session>) {
        if !self.is_draining.load(Ordering::SeqCst) || !session.part().waits_too_long() {
            return;
        }
        let mut state = self.state();
        let Some(runtime) = Handle::try_current().ok().or_else(|| state.runtime.clone()) else { return };
        let ending = Ending::begin(self);
        let session = Arc::clone(session);
        state.tasks.spawn_on(async move { ending.run(session).await }, &runtime);
    }

    /// What these commands have taken was given to nobody.
    pub(crate) fn taken(&self, waits: &[Wait], has_taken: impl Fn(usize) -> bool) {
        for from in waits.iter().filter(|wait| has_taken(wait.at)).filter_map(|wait| wait.takes.as_ref()) {
            tracing::warn!(from, "what a command took was given to nobody");
            let taken = &mut self.state().taken;
            match taken.iter_mut().find(|(known, _)| known == from) {
                Some((_, times)) => *times += 1,
                None => taken.push((from.clone(), 1)),
            }
        }
    }

    /// Waits until the connections that were opened for that are closed, but not longer than half of what is left of the drain.
    pub(crate) async fn settle(&self, drain: &Drain) {
        // What has not begun has nothing to do any more.
        if !self.prepared.is_open() {
            return;
        }
        let mut tasks = mem::take(&mut self.state().tasks);
        let settling = async { while tasks.join_next().await.is_some() {} };
        // What is left then was not seen to end, and is counted as that.
        let _ = timeout_at(drain.halfway(), settling).await;
    }

    /// What was ended, cut and taken is in the report when this is dropped.
    pub(crate) fn report_to<'a>(&'a self, drain: &'a Drain) -> impl Drop + 'a {
        Reported { waits: self, drain, _left_behind: self.prepared.count_left_behind(drain) }
    }
}

/// One that is being ended, counted until it is over or dropped.
struct Ending(Arc<Waits>);

impl Ending {
    fn begin(waits: &Arc<Waits>) -> Self {
        waits.ending.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(waits))
    }

    async fn run(self, session: Arc<Session>) {
        let waits = Arc::clone(&self.0);
        match waits.prepared.stop_left(session, Part::waits_too_long).await {
            Ok(stopped) => waits.state().stopped += stopped,
            // The goodbye comes to the same, and says so.
            Err(error) => tracing::debug!(%error, "a command that waits was not ended at once"),
        }
        drop(self);
        // Whoever begins now waits until they are closed, and opens its own.
        if waits.ending.load(Ordering::SeqCst) == 0 {
            waits.prepared.close(None).await;
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ending.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Reported<'a, L> {
    waits: &'a Waits,
    drain: &'a Drain,
    _left_behind: L,
}

impl<L> Drop for Reported<'_, L> {
    fn drop(&mut self) {
        let Begun { tasks, stopped, taken, .. } = mem::take(&mut *self.waits.state());
        self.drain.count_cancelled(stopped);
        for (from, times) in taken {
            let often = if times == 1 { String::new() } else { format!(", {times} times") };
            self.drain.incomplete(format!("{from}: took what nobody waited for{often}"));
        }
        drop(tasks);
    }
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waits").field("is_draining", &self.is_draining).finish_non_exhaustive()
    }
}
