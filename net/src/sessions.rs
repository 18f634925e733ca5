//! The book of sessions: which are open, who drives them, and how each one ended.
//!
//! A session is a future that somebody must poll for anything to happen, its [`Driver`]. It is kept here, in the book. A task of
//! the application polls it there, until the drain takes it over: then it goes on on the drain's own thread, whatever the
//! application's runtime does.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet, yield_now},
    time::{sleep, sleep_until, timeout},
};
use winddown_core::{
    Error,
    adapter::{Drain, End, Ends, Latency, News, Opening, Outdated, Source},
};

use crate::{
    Link,
    handover::Handover,
    orphans::{self, runtime_is_ending},
    spare::Spare,
};

/// How long a session that nobody wants any more may take to say goodbye: it may be opening, or in a statement. Drivers on
/// their own would cut it at once.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// All that happens on a session, to its end.
pub type Driver = Pin<Box<dyn Future<Output = End> + Send>>;

/// All sessions of one pool, each with what the adapter keeps for it, a `P`.
pub struct Sessions<P> {
    state: Mutex<Entries<P>>,
    /// A session was opened or has ended.
    changed: Notify,
    latency: Arc<Latency>,
    outdated: Arc<Outdated>,
    /// Something on a session is not waited for any more.
    abandoned: Notify,
}

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

/// The task that polls a session, of the application or of nobody any more.
type Task = Arc<Mutex<Option<AbortHandle>>>;

/// One session, from when the server is connected to when it has closed its side.
pub struct Session<P> {
    id: u64,
    sessions: Weak<Sessions<P>>,
    /// Not its own: a session that somebody holds must not keep a socket open that was cut.
    link: Weak<Link>,
    driver: Handover<Driver>,
    task: Task,
    /// It was open at some time.
    opened: AtomicBool,
    /// Nobody has the client of it any more.
    abandoned: AtomicBool,
    /// How what runs on it is stopped when it is given up.
    stop: OnceLock<Stop<P>>,
    /// To ask its server something where the process has no descriptor left.
    _spare: Arc<Spare>,
    began: Instant,
    part: P,
}

/// Has the server stop what runs on a session, if anything does, and sees it end.
pub type Stop<P> = fn(Arc<Session<P>>) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

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

    /// Begins to drain; the drain is over when what this returns is dropped.
    pub fn begin_drain(&self) -> Draining<'_, P> {
        let mut state = self.state();
        state.drains(Phase::Draining);
        let open: Vec<_> = state.open.values().cloned().collect();
        state.fresh.clone_from(&open);
        drop(state);
        // At once, and not when the drain first polls it: who lets go of one meanwhile would end it in no count.
        open.iter().for_each(|session| session.driver.take_over());
        Draining(self)
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
        let session = Arc::new_cyclic(|session: &Weak<Session<P>>| Session {
            id,
            sessions: Arc::downgrade(self),
            link: Arc::downgrade(link),
            driver: Handover::new(driver(Weak::clone(session))),
            task: Task::default(),
            opened: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            stop: OnceLock::new(),
            _spare: spare,
            began: Instant::now(),
            part,
        });
        state.open.insert(id, Arc::clone(&session));
        if state.phase == Phase::Draining {
            state.fresh.push(Arc::clone(&session));
        }
        drop(state);
        self.changed.notify_one();
        Some(session)
    }

    /// Nothing is opened any more; what has ended since the drain last asked, and what has not.
    fn close_book(&self) -> (Ends, Vec<Arc<Session<P>>>) {
        let mut state = self.state();
        state.phase = Phase::Over;
        let (ended, left) = (mem::take(&mut state.ended), mem::take(&mut state.open));
        (ended, left.into_values().collect())
    }

    fn runs_on(&self, error: Error) {
        let mut state = self.state();
        match state.phase {
            Phase::Open => state.runs_on = Some(error),
            Phase::Begun | Phase::Draining => state.ended.error = Some(error),
            Phase::Over => {}
        }
    }

    fn over(&self, id: u64, end: End) {
        self.state().end(id, end);
        self.changed.notify_one();
    }
}

impl<P> fmt::Debug for Sessions<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Sessions").field("phase", &state.phase).field("open", &state.open.len()).finish()
    }
}

/// A drain of all sessions. Dropped, also where its deadline drops it, it is over: what is open then is cut.
#[must_use = "dropped at once it cuts every session"]
pub struct Draining<'a, P: Send + Sync + 'static>(&'a Sessions<P>);

impl<P: Send + Sync + 'static> Draining<'_, P> {
    /// Takes over every session and drives it to its end, until all checkouts are back and none is left, or what is left must
    /// be cut. Counts as it goes. `all_returned` is called when all checkouts are back; `end` ends a session that is still open
    /// at the cut, although somebody holds it.
    ///
    /// # Cancel safety
    /// Cancel safe; what was counted stands.
    ///
    /// # Errors
    /// That of [`Drain::sessions`].
    pub async fn goodbye<F>(
        &self,
        drain: &Drain,
        all_returned: impl Fn() + Sync,
        end: impl Fn(Arc<Session<P>>) -> F,
    ) -> Result<(), Error>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let sessions = self.0;
        let _rest = Rest { sessions, drain };
        if drain.sessions(&Book { sessions, all_returned }).await? {
            return Ok(());
        }

        // What is still held by somebody. Half of the time is for its goodbye, the rest for saying how that went.
        let mut ending = JoinSet::new();
        for session in sessions.open() {
            ending.spawn(end(session));
        }
        let now = tokio::time::Instant::now();
        let limit = now + drain.deadline().saturating_duration_since(now) / 2;
        tokio::select! {
            () = async { while ending.join_next().await.is_some() {} } => {}
            () = sleep_until(limit) => {}
        }
        Ok(())
    }
}

/// The sessions as a drain takes them: all that are open, whoever has them, since their sockets must be driven.
struct Book<'a, P, F> {
    sessions: &'a Sessions<P>,
    all_returned: F,
}

impl<P: Send + Sync + 'static, F: Fn() + Sync> Source for Book<'_, P, F> {
    type Session = Arc<Session<P>>;

    fn news(&self, _: &Drain) -> News<Arc<Session<P>>> {
        let mut state = self.sessions.state();
        let (returned, ends) = (mem::take(&mut state.fresh), mem::take(&mut state.ended));
        News { returned, ends, open: state.open.len() }
    }

    async fn changed(&self) {
        self.sessions.changed.notified().await;
    }

    fn close(&self, session: Arc<Session<P>>) -> impl Future<Output = ()> + Send + 'static {
        session.driver.take_over();
        session.go_on()
    }

    fn all_returned(&self) {
        (self.all_returned)();
    }
}

impl<P: Send + Sync + 'static> Draining<'_, P> {
    /// Runs `goodbye`, and has `stop` end what nobody waits for any more meanwhile: on each session that `is_left` says it of,
    /// when that has lasted for the drain's grace, until settling ends. What `stop` returns is counted as cancelled. It ends one
    /// thing, and is called again while the session stays so, but not once it has failed, which is noted.
    ///
    /// # Cancel safety
    /// Cancel safe; what was counted stands.
    ///
    /// # Errors
    /// That of `goodbye`.
    pub async fn stop_abandoned<F>(
        &self,
        drain: &Drain,
        goodbye: impl Future<Output = Result<(), Error>>,
        is_left: impl Fn(&Session<P>) -> bool + Copy,
        stop: impl Fn(Arc<Session<P>>) -> F + Copy,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<usize, Error>>,
    {
        let sessions = self.0;
        let (over, is_over) = watch::channel(false);
        let over = async {
            let result = goodbye.await;
            over.send_replace(true);
            result
        };
        let mut over = pin!(over);
        let mut result = Ok(());
        let mut settled = false;
        // No tasks: what `stop` holds is given back at the moment when this is dropped.
        let mut stopping = FuturesUnordered::new();
        let mut looked_after = HashSet::new();
        loop {
            // What was asked of a server is counted when its answer is there, also where the session is gone sooner.
            if *is_over.borrow() && stopping.is_empty() {
                return result;
            }
            for session in sessions.open() {
                if !settled && is_left(&session) && looked_after.insert(session.id) {
                    let mut is_over = is_over.clone();
                    stopping.push(async move {
                        tokio::select! {
                            () = sleep(drain.grace()) => {}
                            _ = is_over.wait_for(|over| *over) => return (session.id, Ok(0)),
                        }
                        // Whoever drives the session has heard what the server has said meanwhile.
                        yield_now().await;
                        yield_now().await;
                        // It may have ended by itself.
                        let stopped = if is_left(&session) { stop(Arc::clone(&session)).await } else { Ok(0) };
                        (session.id, stopped)
                    });
                }
            }
            tokio::select! {
                () = sessions.abandoned.notified() => {}
                Some((id, stopped)) = stopping.next() => match stopped {
                    Ok(statements) => {
                        looked_after.remove(&id);
                        drain.count_cancelled(statements);
                    }
                    Err(error) => drain.note(&error),
                },
                // From here on all that runs is stopped, by whoever does that.
                () = drain.until_cancel(), if !settled => {
                    settled = true;
                    stopping.clear();
                }
                ended = &mut over, if !*is_over.borrow() => result = ended,
                // What is not counted by now is not known.
                () = drain.until_cut(), if *is_over.borrow() => return result,
            }
        }
    }
}

/// Counts what is left as cut, and cuts it, when it is dropped: at the end of a goodbye, also where the deadline drops that.
struct Rest<'a, P: Send + Sync + 'static> {
    sessions: &'a Sessions<P>,
    drain: &'a Drain,
}

impl<P: Send + Sync + 'static> Drop for Rest<'_, P> {
    fn drop(&mut self) {
        let (mut ended, left) = self.sessions.close_book();
        ended.cut += left.len();
        self.drain.count(ended, 0);
        for session in left {
            session.cut();
        }
    }
}

impl<P: Send + Sync + 'static> Drop for Draining<'_, P> {
    fn drop(&mut self) {
        let (_, left) = self.0.close_book();
        for session in left {
            session.cut();
        }
    }
}

impl<P: Send + Sync + 'static> fmt::Debug for Draining<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Draining").field(self.0).finish()
    }
}

/// The task of a session that somebody holds. Dropped with its holder it is aborted; the session then says goodbye, see
/// [`Session::run`].
#[derive(Debug)]
#[must_use = "dropped it ends the session"]
pub struct Held(Option<Task>);

impl Held {
    /// Leaves the task as it is: nobody is known any more to hold the session.
    pub fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(task) = &self.0
            && let Some(task) = &*task.lock().unwrap_or_else(PoisonError::into_inner)
        {
            task.abort();
        }
    }
}

/// The task of a session. It is aborted when nobody wants the session any more, before a goodbye can be said, and ends with its
/// runtime, whoever wants the session; so when it is dropped, another one begins where it ended.
struct Running<P: Send + Sync + 'static> {
    session: Arc<Session<P>>,
    /// Nobody wants it any more.
    leaves: bool,
}

impl<P: Send + Sync + 'static> Drop for Running<P> {
    fn drop(&mut self) {
        let Self { session, leaves } = self;
        if session.driver.is_taken() || session.is_over() {
            return;
        }
        if !runtime_is_ending() {
            session.run_on(&Handle::current(), true);
        } else if !session.opened.load(Ordering::SeqCst) {
            // Whoever waited for it was on that runtime, and what it waits for itself may be a timer of that.
            session.cut_with(session.driver.end_unless_taken());
        } else if let Some(runtime) = orphans::runtime() {
            if let Some(link) = session.link.upgrade() {
                link.move_to(&runtime);
            }
            session.run_on(&runtime, *leaves);
        }
        // Otherwise nothing can be done but by a drain, which brings its own.
    }
}

impl<P: Send + Sync + 'static> Session<P> {
    /// What the adapter keeps for it.
    pub fn part(&self) -> &P {
        &self.part
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.driver.is_over()
    }

    /// Polls the session to its end, or until the drain takes it over.
    async fn until_taken(&self) {
        let end = poll_fn(|cx| self.driver.poll_until_taken(cx)).await;
        self.ends_with(end);
    }

    /// Records its end, for whoever has seen it.
    fn ends_with(&self, end: Option<End>) {
        if let (Some(end), Some(sessions)) = (end, self.sessions.upgrade()) {
            sessions.over(self.id, end);
        }
    }

    /// Runs the session in a task of the current runtime. When the task is aborted another one gives the session a second to
    /// say goodbye, and then cuts it. When the runtime ends, the session goes on elsewhere.
    ///
    /// # Panics
    /// Without a runtime.
    pub fn run(self: &Arc<Self>) -> Held {
        self.run_on(&Handle::current(), false);
        Held(Some(Arc::clone(&self.task)))
    }

    fn run_on(self: &Arc<Self>, runtime: &Handle, leaves: bool) {
        let running = Running { session: Arc::clone(self), leaves };
        let task = runtime.spawn(async move {
            let Running { session, leaves } = &running;
            if *leaves { session.leave().await } else { session.until_taken().await }
        });
        // Where the runtime has ended meanwhile, another task is there already.
        if !task.is_finished() {
            *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
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

    /// Goes on without a holder: it says goodbye when its last statement is over. What takes too long is stopped first: the server
    /// would go on with it, and the book would not know of it any more.
    async fn leave(self: &Arc<Self>) {
        let mut ending = pin!(self.until_taken());
        if timeout(LEAVE_PATIENCE, &mut ending).await.is_ok() {
            return;
        }
        if let Some(stop) = self.stop.get() {
            let stopped = tokio::select! {
                biased;
                () = &mut ending => return,
                stopped = stop(Arc::clone(self)) => stopped,
            };
            match stopped {
                Ok(()) if timeout(LEAVE_PATIENCE, &mut ending).await.is_ok() => return,
                Ok(()) => {}
                Err(error) => {
                    if !self.driver.is_taken() {
                        self.runs_on(error);
                    }
                }
            }
        }
        self.cut_with(self.driver.end_unless_taken());
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

    fn stop_task(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Goes on with the session on this runtime, to its end.
    async fn go_on(self: Arc<Self>) {
        self.stop_task();
        if let Some(link) = self.link.upgrade() {
            link.move_to(&Handle::current());
        }
        self.finish().await;
    }

    /// Polls a session that was taken over to its end.
    pub async fn finish(&self) {
        let end = poll_fn(|cx| self.driver.poll(cx)).await;
        self.ends_with(end);
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
    fn cut_with(&self, driver: Option<Driver>) {
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
