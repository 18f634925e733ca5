//! One session: what is known of it, what its users say of it, and how it is cut.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Instant,
};

use winddown_core::{
    Error,
    adapter::{End, Opening},
};

use super::{Phase, Sessions, task::Task};
use crate::{Link, handover::Handover, spare::Spare};

/// All that happens on a session, to its end.
pub type Driver = Pin<Box<dyn Future<Output = End> + Send>>;

/// One session, from when the server is connected to when it has closed its side.
pub struct Session<P> {
    pub(super) id: u64,
    sessions: Weak<Sessions<P>>,
    /// Not its own: a session that somebody holds must not keep a socket open that was cut.
    pub(super) link: Weak<Link>,
    pub(super) driver: Handover<Driver>,
    pub(super) task: Task,
    /// It was open at some time.
    pub(super) opened: AtomicBool,
    /// Nobody has the client of it any more.
    abandoned: AtomicBool,
    /// How what runs on it is stopped when it is given up.
    pub(super) stop: OnceLock<Stop<P>>,
    /// To ask its server something where the process has no descriptor left.
    _spare: Arc<Spare>,
    began: Instant,
    part: P,
}

/// Has the server stop what runs on a session, if anything does, and sees it end.
pub type Stop<P> = fn(Arc<Session<P>>) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

impl<P: Send + Sync + 'static> Session<P> {
    /// One that nobody runs yet, with what happens on it, given the session itself.
    pub(super) fn new(
        id: u64,
        sessions: &Arc<Sessions<P>>,
        link: &Arc<Link>,
        spare: Arc<Spare>,
        part: P,
        driver: impl FnOnce(Weak<Self>) -> Driver,
    ) -> Arc<Self> {
        Arc::new_cyclic(|session| Self {
            id,
            sessions: Arc::downgrade(sessions),
            link: Arc::downgrade(link),
            driver: Handover::new(driver(Weak::clone(session))),
            task: Task::default(),
            opened: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            stop: OnceLock::new(),
            _spare: spare,
            began: Instant::now(),
            part,
        })
    }

    /// What the adapter keeps for it.
    pub fn part(&self) -> &P {
        &self.part
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.driver.is_over()
    }

    /// Records its end, for whoever has seen it.
    pub(super) fn ends_with(&self, end: Option<End>) {
        if let (Some(end), Some(sessions)) = (end, self.sessions.upgrade()) {
            sessions.over(self.id, end);
        }
    }

    /// Nobody has the client of it any more: nobody waits for what it does.
    pub fn abandon(&self) {
        // SeqCst, here and below: it is read under no lock, and nothing is gained by less.
        self.abandoned.store(true, Ordering::SeqCst);
        self.is_left();
    }

    /// Somebody has given up waiting for something on it: a drain looks whether it is to be stopped.
    pub fn is_left(&self) {
        if let Some(sessions) = self.sessions.upgrade() {
            sessions.abandoned.notify_one();
        }
    }

    /// Whether nobody has the client of it any more.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// Waits for one step of its opening, see [`Opening::step`]: on the caller's own clock, since the session may move to another
    /// runtime. At the limit the session is cut.
    ///
    /// # Cancel safety
    /// As that of the step, which is dropped at the limit.
    ///
    /// # Errors
    /// As [`Opening::step`].
    pub async fn opening<F: Future>(&self, opening: &Opening, step: &str, done: F) -> Result<F::Output, Error> {
        let done = opening.step(step, done).await;
        if done.is_err() {
            self.cut();
        }
        done
    }

    /// It is open now: notes how long that took.
    pub fn is_open(&self) {
        self.opened.store(true, Ordering::SeqCst);
        if let Some(sessions) = self.sessions.upgrade() {
            // Connecting is over by then; what follows is about four answers of the server.
            sessions.latency.saw(self.began.elapsed() / 4);
        }
    }

    /// Something that was asked for on it may run on at the server, for this reason: the next report has it, or that of the drain
    /// that is under way.
    pub fn runs_on(&self, error: Error) {
        if let Some(sessions) = self.sessions.upgrade() {
            sessions.runs_on(error);
        }
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.sessions.upgrade().is_some_and(|sessions| sessions.state().phase != Phase::Open)
    }

    /// What runs on it is stopped in this way before it is given up outside of a drain. Once.
    pub fn is_stopped_by(&self, stop: Stop<P>) {
        // Whoever opens it says so, nobody else.
        let _ = self.stop.set(stop);
    }

    /// Does at once, on this thread, what it was woken for and has not come to: what its client was asked for is on its way then,
    /// and what has come from the server is known. Costs one load where there is nothing to do.
    pub fn catch_up(&self) {
        if let Poll::Ready(end) = self.driver.poll_if_woken() {
            self.ends_with(end);
        }
    }

    /// Closes the socket as it is, and counts that as a failure with this error.
    pub fn fail(&self, error: Error) {
        self.end_driver(self.driver.end(), End::Cut(Some(error)));
    }

    /// Ends it if its server has closed its side: seen in the kernel, without a round trip.
    pub fn sweep(&self) {
        if self.link.upgrade().is_some_and(|link| link.is_closed()) {
            self.cut();
        }
    }

    /// Closes the socket, as it is.
    pub fn cut(&self) {
        self.cut_with(self.driver.end());
    }

    /// Nobody polls this driver any more, if it was not over before. One that was never open is in no count.
    pub(super) fn cut_with(&self, driver: Option<Driver>) {
        let was_open = self.opened.load(Ordering::SeqCst);
        self.end_driver(driver, if was_open { End::Cut(None) } else { End::Uncounted });
    }

    fn end_driver(&self, driver: Option<Driver>, end: End) {
        if driver.is_none() {
            return;
        }
        // It drops the driver's half of everything that waits for it.
        drop(driver);
        self.stop_task();
        self.ends_with(Some(end));
    }
}

impl<P: fmt::Debug> fmt::Debug for Session<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("part", &self.part).finish_non_exhaustive()
    }
}
