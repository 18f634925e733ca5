//! A resource without a server process, for tests and examples: a pool of sessions with a [`Server`] that can be asked
//! what it sees, paused, killed, and made to refuse.

use std::{
    collections::BTreeMap,
    fmt,
    future::{Future, poll_fn},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    Error, ErrorKind,
    adapter::{Capabilities, Checkouts, Drain, End, Ends, News, Resource, Size, Source},
};

/// The far side: lists sessions and running statements as a database server would, and can be paused, killed, slow and
/// full as one.
#[derive(Debug, Clone, Default)]
pub struct Server {
    inner: Arc<ServerInner>,
}

#[derive(Debug, Default)]
struct ServerInner {
    listed: Mutex<Listed>,
    goodbyes: AtomicUsize,
    losses: AtomicUsize,
    refusals: AtomicUsize,
    standing: watch::Sender<Standing>,
}

#[derive(Debug, Default)]
struct Listed {
    last: u64,
    sessions: BTreeMap<u64, Session>,
    /// All that ever ran.
    statements: Vec<Statement>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    paused: bool,
    down: bool,
    slow: Duration,
    ignores_cancels: bool,
}

#[derive(Debug, Default)]
struct Session {
    statement: Option<Statement>,
    /// The client has gone without a goodbye; seen when the statement is over.
    lost: bool,
    /// What the client sees when the server ends the session.
    ended: Arc<AtomicBool>,
}

impl Session {
    fn runs(&self) -> bool {
        self.statement.as_ref().is_some_and(Statement::runs)
    }
}

#[derive(Debug, Clone)]
struct Statement {
    ends: Instant,
    cancelled: watch::Sender<bool>,
}

impl Statement {
    fn runs(&self) -> bool {
        self.ends > Instant::now() && !*self.cancelled.borrow()
    }

    fn is_complete(&self) -> bool {
        self.ends <= Instant::now() && !*self.cancelled.borrow()
    }

    /// Ready when it has ended or was cancelled; says which.
    async fn ended(&self) -> Result<(), Error> {
        let mut cancelled = self.cancelled.subscribe();
        tokio::select! {
            biased;
            _ = cancelled.wait_for(|cancelled| *cancelled) => Err(Error::new(ErrorKind::Work, "the statement was cancelled")),
            () = sleep_until(self.ends) => Ok(()),
        }
    }
}

impl Server {
    /// A server with no sessions.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many sessions it lists. One whose client has gone without a goodbye is listed until its statement is over,
    /// and while the server is paused.
    pub fn sessions(&self) -> usize {
        let paused = self.inner.standing.borrow().paused;
        self.lock().sessions.values().filter(|session| !session.lost || session.runs() || paused).count()
    }

    /// How many sessions run a statement.
    pub fn running(&self) -> usize {
        self.lock().sessions.values().filter(|session| session.runs()).count()
    }

    /// How many statements have run to their end, as if each had left one row behind.
    pub fn rows(&self) -> usize {
        self.lock().statements.iter().filter(|statement| statement.is_complete()).count()
    }

    /// How many sessions have said goodbye.
    pub fn goodbyes(&self) -> usize {
        self.inner.goodbyes.load(Ordering::SeqCst)
    }

    /// How many sessions have ended without a goodbye: what a server complains of in its log.
    pub fn losses(&self) -> usize {
        self.inner.losses.load(Ordering::SeqCst)
    }

    /// Refuses the next so many new sessions with a retryable error: "too many connections".
    pub fn refuse(&self, sessions: usize) {
        self.inner.refusals.store(sessions, Ordering::SeqCst);
    }

    /// Answers nothing more until [`resume`](Self::resume): initialisations, statements and goodbyes hang. A
    /// network that is cut looks the same.
    pub fn pause(&self) {
        self.inner.standing.send_modify(|standing| standing.paused = true);
    }

    /// Answers again.
    pub fn resume(&self) {
        self.inner.standing.send_modify(|standing| standing.paused = false);
    }

    /// Answers each goodbye so much later.
    pub fn slow(&self, by: Duration) {
        self.inner.standing.send_modify(|standing| standing.slow = by);
    }

    /// Takes requests to cancel, and ends nothing for them.
    pub fn ignore_cancels(&self, ignore: bool) {
        self.inner.standing.send_modify(|standing| standing.ignores_cancels = ignore);
    }

    /// Ends all sessions and statements, and refuses new ones until [`start`](Self::start).
    pub fn kill(&self) {
        self.inner.standing.send_modify(|standing| standing.down = true);
        self.end(|_| true);
    }

    /// Is there again, with no sessions.
    pub fn start(&self) {
        self.inner.standing.send_modify(|standing| standing.down = false);
    }

    /// Ends the sessions that run no statement, as an idle timeout does.
    pub fn close_idle(&self) {
        self.end(|session| !session.runs());
    }

    fn end(&self, which: impl Fn(&Session) -> bool) {
        self.lock().sessions.retain(|_, session| {
            let ends = which(session);
            if ends {
                session.ended.store(true, Ordering::SeqCst);
                if let Some(statement) = &session.statement
                    && statement.runs()
                {
                    statement.cancelled.send_replace(true);
                }
            }
            !ends
        });
    }

    fn open(&self, failure: ErrorKind) -> Result<MemorySession, Error> {
        if self.inner.standing.borrow().down {
            return Err(Error::new(failure, "connection refused").retryable());
        }
        let refused = self.inner.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match refused {
            Ok(_) => Err(Error::new(failure, "too many connections").retryable()),
            Err(_) => {
                let mut listed = self.lock();
                listed.last += 1;
                let (id, session) = (listed.last, Session::default());
                let ended = Arc::clone(&session.ended);
                listed.sessions.insert(id, session);
                drop(listed);
                let connection = Connection { id, server: self.clone(), ended, said_goodbye: false };
                Ok(MemorySession { inner: Box::new(connection) })
            }
        }
    }

    /// Ready when it answers, or is not there any more.
    async fn answers(&self) {
        let mut standing = self.inner.standing.subscribe();
        // The sender is in `self`, so it cannot be closed.
        let _ = standing.wait_for(|standing| !standing.paused || standing.down).await;
    }

    async fn goodbye(&self, id: u64) {
        let slow = self.inner.standing.borrow().slow;
        if !slow.is_zero() {
            sleep(slow).await;
        }
        self.answers().await;
        let statement = self.lock().sessions.get(&id).and_then(|session| session.statement.clone());
        if let Some(statement) = statement {
            // As servers do: the goodbye is read when the statement is over, however it ended.
            let _ = statement.ended().await;
        }
        if self.lock().sessions.remove(&id).is_some() {
            self.inner.goodbyes.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn lost(&self, id: u64) {
        if let Some(session) = self.lock().sessions.get_mut(&id) {
            session.lost = true;
            self.inner.losses.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn cancel_all(&self, ids: &[u64]) -> usize {
        let is_ignored = self.inner.standing.borrow().ignores_cancels;
        let listed = self.lock();
        let running = ids.iter().filter_map(|id| listed.sessions.get(id)?.statement.as_ref()).filter(|s| s.runs());
        running.fold(0, |cancelled, statement| {
            if !is_ignored {
                statement.cancelled.send_replace(true);
            }
            cancelled + 1
        })
    }

    fn lock(&self) -> MutexGuard<'_, Listed> {
        self.inner.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pool of sessions of a [`Server`] in memory.
#[derive(Debug, Clone)]
pub struct Memory {
    name: String,
    size: usize,
    server: Server,
}

impl Memory {
    /// A pool of up to ten sessions with a server of its own.
    pub fn new(name: impl Into<String>) -> Self {
        Self::on(&Server::new(), name)
    }

    /// A pool of up to ten sessions of this server.
    pub fn on(server: &Server, name: impl Into<String>) -> Self {
        Self { name: name.into(), size: 10, server: server.clone() }
    }

    /// The same with another number of sessions at most.
    #[must_use]
    pub fn size(mut self, sessions: usize) -> Self {
        self.size = sessions;
        self
    }

    /// Its server.
    pub fn server(&self) -> &Server {
        &self.server
    }
}

/// The pool of a [`Memory`].
pub struct MemoryPool {
    server: Server,
    size: usize,
    state: Arc<Mutex<PoolState>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct PoolState {
    idle: Vec<MemorySession>,
    /// Every session that has not said goodbye: idle, checked out, or saying it.
    open: Vec<u64>,
    /// Those of them that say it now: nobody has them any more.
    leaving: Vec<u64>,
    /// When what nobody waits for has had its time, for each group of those.
    graces: Vec<Instant>,
    /// How those that are not open any more have ended.
    ends: Ends,
    waiting: Vec<Waker>,
    /// Somebody says goodbye on what comes back.
    draining: bool,
    /// Nobody does any more: what comes back ends without one.
    over: bool,
}

impl MemoryPool {
    /// How many sessions are open.
    pub fn open(&self) -> usize {
        self.state().open.len()
    }

    /// How many sessions are idle.
    pub fn idle(&self) -> usize {
        self.state().idle.len()
    }

    /// One session, to be [`put`](Self::put) back; waits while all are checked out.
    ///
    /// # Cancel safety
    /// Cancel safe.
    ///
    /// # Errors
    /// When the server refuses the session.
    pub fn get(&self) -> impl Future<Output = Result<MemorySession, Error>> + Send + use<'_> {
        poll_fn(|context| {
            let mut state = self.state();
            while let Some(session) = state.idle.pop() {
                if !session.is_ended() {
                    return Poll::Ready(Ok(session));
                }
                // Ended by the server while it was idle: nobody gets it.
                state.open.retain(|open| *open != session.inner.id);
            }
            if state.open.len() == self.size {
                state.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
            let opened = self.server.open(ErrorKind::Checkout);
            Poll::Ready(opened.inspect(|session| state.open.push(session.inner.id)))
        })
    }

    /// Takes a session back.
    pub fn put(&self, session: MemorySession) {
        let mut state = self.state();
        if state.over {
            return;
        }
        state.idle.push(session);
        if state.waiting.is_empty() && !state.draining {
            return;
        }
        // All of them: the first may belong to a caller that has given up.
        let waiting = std::mem::take(&mut state.waiting);
        let draining = state.draining;
        drop(state);
        for waker in waiting {
            waker.wake();
        }
        if draining {
            self.changed.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<PoolState>) -> MutexGuard<'_, PoolState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Source for MemoryPool {
    type Session = MemorySession;

    fn news(&self, drain: &Drain) -> News<MemorySession> {
        let mut state = self.state();
        state.draining = true;
        let returned = std::mem::take(&mut state.idle);
        if !returned.is_empty() {
            state.graces.push(Instant::now() + drain.grace());
        }
        state.leaving.extend(returned.iter().map(|session| session.inner.id));
        News { returned, ends: std::mem::take(&mut state.ends), open: state.open.len() }
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }

    fn close(&self, session: MemorySession) -> impl Future<Output = ()> + Send + 'static {
        let state = Arc::clone(&self.state);
        async move {
            let id = session.goodbye().await;
            let mut state = lock(&state);
            state.open.retain(|open| *open != id);
            state.leaving.retain(|leaving| *leaving != id);
            state.ends.record(End::Closed);
        }
    }

    /// Whose future was dropped runs on where its session waits to say goodbye.
    fn stop_abandoned(&self, drain: &Drain) -> Option<Instant> {
        let mut state = self.state();
        let now = Instant::now();
        let due = state.graces.iter().filter(|grace| **grace <= now).count();
        if due > 0 {
            state.graces.drain(..due);
            let leaving = state.leaving.clone();
            drop(state);
            drain.count_cancelled(self.server.cancel_all(&leaving));
            state = self.state();
        }
        state.graces.first().copied()
    }
}

impl fmt::Debug for MemoryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryPool").field("open", &self.open()).field("idle", &self.idle()).finish()
    }
}

/// A session of a [`Server`]. Dropped, it ends without a goodbye.
#[derive(Debug)]
pub struct MemorySession {
    // One word, as a driver's connection is: it moves with every checkout.
    inner: Box<Connection>,
}

#[derive(Debug)]
struct Connection {
    id: u64,
    server: Server,
    ended: Arc<AtomicBool>,
    said_goodbye: bool,
}

impl MemorySession {
    /// Runs a statement that takes so long. Like a database's it runs on when this future is dropped.
    ///
    /// # Errors
    /// When it was cancelled, or the server has ended the session.
    pub async fn run(&self, takes: Duration) -> Result<(), Error> {
        let Connection { id, server, .. } = &*self.inner;
        let statement = Statement { ends: Instant::now() + takes, cancelled: watch::Sender::new(false) };
        {
            let mut listed = server.lock();
            let session = listed.sessions.get_mut(id).ok_or_else(gone)?;
            session.statement = Some(statement.clone());
            listed.statements.push(statement.clone());
        }
        let result = statement.ended().await;
        server.answers().await;
        if self.is_ended() { Err(gone()) } else { result }
    }

    /// One round trip.
    ///
    /// # Errors
    /// When the server has ended the session.
    pub async fn ping(&self) -> Result<(), Error> {
        self.inner.server.answers().await;
        if self.is_ended() { Err(gone()) } else { Ok(()) }
    }

    /// Whether the server has ended it.
    pub fn is_ended(&self) -> bool {
        self.inner.ended.load(Ordering::SeqCst)
    }

    async fn goodbye(mut self) -> u64 {
        let connection = &mut *self.inner;
        connection.server.goodbye(connection.id).await;
        connection.said_goodbye = true;
        connection.id
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.said_goodbye {
            self.server.lost(self.id);
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Work, "the server has ended the session")
}

impl Resource for Memory {
    type Pool = MemoryPool;

    fn name(&self) -> &str {
        &self.name
    }

    async fn init(&self) -> Result<MemoryPool, Error> {
        self.server.answers().await;
        let first = self.server.open(ErrorKind::Init)?;
        let state = PoolState { open: vec![first.inner.id], idle: vec![first], ..PoolState::default() };
        let (server, size) = (self.server.clone(), self.size);
        Ok(MemoryPool { server, size, state: Arc::new(Mutex::new(state)), changed: Arc::default() })
    }

    async fn goodbye(&self, pool: &MemoryPool, drain: &Drain) -> Result<(), Error> {
        if !drain.sessions(pool).await? {
            let mut state = pool.state();
            state.over = true;
            state.idle.clear();
            let mut ends = std::mem::take(&mut state.ends);
            ends.cut += state.open.len();
            drop(state);
            drain.count(ends, 0);
        }
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    async fn cancel(&self, pool: &MemoryPool, drain: &Drain) -> Result<(), Error> {
        let open = pool.state().open.clone();
        drain.count_cancelled(self.server.cancel_all(&open));
        Ok(())
    }

    fn size(&self, pool: &MemoryPool) -> Option<Size> {
        let state = pool.state();
        Some(Size { open: state.open.len(), idle: Some(state.idle.len()) })
    }
}

impl Checkouts for Memory {
    type Checkout = MemorySession;

    fn checkout(&self, pool: &MemoryPool) -> impl Future<Output = Result<MemorySession, Error>> + Send {
        pool.get()
    }

    fn give_back(&self, pool: &MemoryPool, session: MemorySession) {
        pool.put(session);
    }
}
