//! A resource without a server process, for tests and examples: a pool of sessions with a [`Server`] that can be asked
//! what it sees, paused, and made to refuse.

use std::{
    fmt,
    future::{Future, poll_fn},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use slab::Slab;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{Drain, Error, ErrorKind, Resource};

/// The far side: lists sessions and running statements as a database server would.
#[derive(Debug, Clone, Default)]
pub struct Server {
    inner: Arc<ServerInner>,
}

#[derive(Debug, Default)]
struct ServerInner {
    sessions: Mutex<Slab<Session>>,
    goodbyes: AtomicUsize,
    refusals: AtomicUsize,
    paused: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Session {
    statement: Option<Statement>,
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

    /// How many sessions it lists.
    pub fn sessions(&self) -> usize {
        self.lock().len()
    }

    /// How many sessions run a statement.
    pub fn running(&self) -> usize {
        self.lock().iter().filter(|(_, session)| session.statement.as_ref().is_some_and(Statement::runs)).count()
    }

    /// How many sessions have said goodbye.
    pub fn goodbyes(&self) -> usize {
        self.inner.goodbyes.load(Ordering::SeqCst)
    }

    /// Refuses the next so many new sessions with a retryable error: "too many connections".
    pub fn refuse(&self, sessions: usize) {
        self.inner.refusals.store(sessions, Ordering::SeqCst);
    }

    /// Answers nothing more until [`resume`](Self::resume): goodbyes hang.
    pub fn pause(&self) {
        self.inner.paused.send_replace(true);
    }

    /// Answers again.
    pub fn resume(&self) {
        self.inner.paused.send_replace(false);
    }

    fn open(&self, failure: ErrorKind) -> Result<MemorySession, Error> {
        let refused = self.inner.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match refused {
            Ok(_) => Err(Error::new(failure, "too many connections").retryable()),
            Err(_) => {
                let connection = Connection { id: self.lock().insert(Session::default()), server: self.clone() };
                Ok(MemorySession { inner: Box::new(connection) })
            }
        }
    }

    async fn goodbye(&self, id: usize) {
        let mut paused = self.inner.paused.subscribe();
        // The sender is in `self`, so it cannot be closed.
        let _ = paused.wait_for(|paused| !paused).await;
        let statement = self.lock()[id].statement.clone();
        if let Some(statement) = statement {
            // As servers do: the goodbye is read when the statement is over, however it ended.
            let _ = statement.ended().await;
        }
        self.lock().remove(id);
        self.inner.goodbyes.fetch_add(1, Ordering::SeqCst);
    }

    fn cancel_all(&self, ids: &[usize]) -> usize {
        let sessions = self.lock();
        let running = ids.iter().filter_map(|id| sessions.get(*id)?.statement.as_ref()).filter(|s| s.runs());
        running.fold(0, |cancelled, statement| {
            statement.cancelled.send_replace(true);
            cancelled + 1
        })
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Session>> {
        self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner)
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
    state: Mutex<PoolState>,
    came_back: Notify,
}

#[derive(Default)]
struct PoolState {
    idle: Vec<MemorySession>,
    /// Every session that has not said goodbye: idle, checked out, or saying it.
    open: Vec<usize>,
    waiting: Vec<Waker>,
    closed: bool,
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
            if let Some(session) = state.idle.pop() {
                return Poll::Ready(Ok(session));
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
        state.idle.push(session);
        // All of them: the first may belong to a caller that has given up.
        let waiting = if state.waiting.is_empty() { Vec::new() } else { std::mem::take(&mut state.waiting) };
        let closed = state.closed;
        drop(state);
        for waker in waiting {
            waker.wake();
        }
        if closed {
            self.came_back.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryPool").field("open", &self.open()).field("idle", &self.idle()).finish()
    }
}

/// A session of a [`Server`].
#[derive(Debug)]
pub struct MemorySession {
    // One word, as a driver's connection is: it moves with every checkout.
    inner: Box<Connection>,
}

#[derive(Debug)]
struct Connection {
    id: usize,
    server: Server,
}

impl MemorySession {
    /// Runs a statement that takes so long. Like a database's it runs on when this future is dropped.
    ///
    /// # Errors
    /// When it was cancelled.
    pub async fn run(&self, takes: Duration) -> Result<(), Error> {
        let statement = Statement { ends: Instant::now() + takes, cancelled: watch::Sender::new(false) };
        self.inner.server.lock()[self.inner.id].statement = Some(statement.clone());
        statement.ended().await
    }

    async fn goodbye(self) -> usize {
        let Connection { id, server } = *self.inner;
        server.goodbye(id).await;
        id
    }
}

impl Resource for Memory {
    type Pool = MemoryPool;
    type Checkout = MemorySession;

    fn name(&self) -> &str {
        &self.name
    }

    async fn init(&self) -> Result<MemoryPool, Error> {
        let first = self.server.open(ErrorKind::Init)?;
        let state = PoolState { open: vec![first.inner.id], idle: vec![first], ..PoolState::default() };
        let (server, size) = (self.server.clone(), self.size);
        Ok(MemoryPool { server, size, state: Mutex::new(state), came_back: Notify::new() })
    }

    fn checkout(&self, pool: &MemoryPool) -> impl Future<Output = Result<MemorySession, Error>> + Send {
        pool.get()
    }

    fn give_back(&self, pool: &MemoryPool, session: MemorySession) {
        pool.put(session);
    }

    async fn goodbye(&self, pool: &MemoryPool, drain: &Drain) -> Result<(), Error> {
        pool.state().closed = true;
        let mut leaving = JoinSet::new();
        let mut settled = false;
        loop {
            let (idle, open) = {
                let mut state = pool.state();
                (std::mem::take(&mut state.idle), state.open.len())
            };
            // A caller that was connecting may open one more session until it has left.
            if open == 0 && settled {
                return Ok(());
            }
            for session in idle {
                leaving.spawn(session.goodbye());
            }
            tokio::select! {
                Some(Ok(id)) = leaving.join_next() => {
                    pool.state().open.retain(|open| *open != id);
                    drain.closed(1);
                }
                () = pool.came_back.notified() => {}
                () = drain.settled(), if !settled => settled = true,
                () = drain.cut() => {
                    drain.was_cut(open);
                    return Ok(());
                }
            }
        }
    }

    async fn cancel(&self, pool: &MemoryPool, drain: &Drain) -> Result<(), Error> {
        let open = pool.state().open.clone();
        drain.cancelled(self.server.cancel_all(&open));
        Ok(())
    }
}
