//! The resource: how sessions are opened, handed out, given back and closed.

#[cfg(feature = "buffer")]
use std::time::Duration;
use std::{
    fmt,
    future::Future,
    mem,
    ops::Deref,
    panic::resume_unwind,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use deadpool_sqlite::{
    Hook, HookError, InteractError, Object, Pool, Runtime,
    rusqlite::{self, InterruptHandle},
};
use tokio::task::spawn_blocking;
#[cfg(feature = "buffer")]
use tokio::time::timeout;
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Resource,
    adapter::{Drain, Latency, News, Size, Source as _},
};

use crate::{
    config::Config,
    error::{self, error},
    sessions::{Abandoned, Caller, Phase, Running, Session, Sessions, is_at_rest, leave, sweep},
};

/// A database file as a resource.
///
/// Its goodbye closes every connection for real, and the last one to close moves what is in the write-ahead log into
/// the database file: afterwards there is neither a `-wal` nor a `-shm` file beside it, unless other processes have it open:
/// then the last of them to close it does that. A log that is too large for the budget stays as it is, with all that was
/// committed, and the report names it with its size; that is no failure.
pub struct Sqlite {
    source: Source,
    sessions: Arc<Sessions>,
}

enum Source {
    Config(Config),
    Wrapped {
        pool: Pool,
        /// Connections that were made after this are new to us.
        at: Instant,
    },
}

impl Sqlite {
    /// The database file at this path, with the defaults of [`Config::new`]. Nothing is opened yet.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self::new(Config::new(path))
    }

    /// The database file of this configuration. Nothing is opened yet.
    pub fn new(config: Config) -> Self {
        Self { source: Source::Config(config), sessions: Arc::default() }
    }

    /// The database file that `SQLITE_PATH` names. Nothing is opened yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the variable is not set or empty.
    pub fn from_env() -> Result<Self, Error> {
        Ok(Self::new(Config::from_env()?))
    }

    /// A pool that the application built. It is drained even if it was never used through the guard; its connections
    /// are used as they are, in whatever journal mode.
    ///
    /// Connections that are taken from such a pool directly, and were never handed out by the guard, are seen by drain
    /// only in the pool's own count: it waits for them to its deadline, cannot interrupt them, and says so in the
    /// report.
    pub fn wrap(pool: Pool) -> Self {
        let sessions = Arc::<Sessions>::default();
        pool.retain(|session, _| {
            if let Ok(connection) = session.try_lock() {
                // One that cannot take a witness now is asked again when it is handed out.
                let _ = sessions.register(&connection);
            }
            true
        });
        Self { source: Source::Wrapped { pool, at: Instant::now() }, sessions }
    }

    fn is_wrapped(&self) -> bool {
        matches!(self.source, Source::Wrapped { .. })
    }

    async fn open_pool(&self, config: &Config) -> Result<Pool, Error> {
        let bad = |message: String| Error::new(ErrorKind::Config, message);
        if config.pool_size == Some(0) {
            return Err(bad("a pool of 0 connections hands out nothing: set pool_size to 1 or more".into()));
        }
        let mut driver = deadpool_sqlite::Config::new(&config.path);
        let mut pool = driver.get_pool_config();
        pool.max_size = config.pool_size.unwrap_or(pool.max_size);
        pool.timeouts.wait = config.wait_timeout;
        driver.pool = Some(pool);
        let Ok(builder) = driver.builder(Runtime::Tokio1);
        let pool = builder
            .post_create(on_create(config.clone(), Arc::clone(&self.sessions)))
            // Also for those who take from the pool directly. What is not at rest is closed, and the next one asked for.
            .post_recycle(Hook::sync_fn(|session, _| {
                if is_at_rest(session) { Ok(()) } else { Err(HookError::message("left in a transaction")) }
            }))
            .build()
            .map_err(|error| bad("cannot build the pool".into()).with_source(error))?;
        let first = pool.get().await.map_err(|failure| error::open(&config.path, failure.into()))?;
        drop(first);
        Ok(pool)
    }
}

/// What is done to each new connection before anybody gets it.
fn on_create(config: Config, sessions: Arc<Sessions>) -> Hook {
    let shared = Arc::new((config, sessions));
    Hook::async_fn(move |session, _| {
        let shared = Arc::clone(&shared);
        Box::pin(async move {
            let prepared = session.interact(move |connection| prepare(connection, &shared.0, &shared.1)).await;
            prepared.unwrap_or_else(|error| Err(HookError::message(error.to_string())))
        })
    })
}

fn prepare(connection: &rusqlite::Connection, config: &Config, sessions: &Arc<Sessions>) -> Result<(), HookError> {
    let Config { path, pool_size: _, wait_timeout: _, busy_timeout, pragmas } = config;
    sessions.register(connection).map_err(HookError::Backend)?;
    // After it is known of and before it touches the file: a caller that gave up may have left this behind.
    if sessions.state().phase != Phase::Open {
        return Err(HookError::message("shutting down"));
    }
    let began = Instant::now();
    let set = || {
        connection.busy_timeout(*busy_timeout)?;
        let mode: String = connection.query_row("PRAGMA journal_mode = wal", [], |row| row.get(0))?;
        for (name, value) in pragmas {
            connection.pragma_update(None, name, value)?;
        }
        Ok(mode)
    };
    let mode = set().map_err(HookError::Backend)?;
    sessions.latency.saw(began.elapsed());
    match mode.as_str() {
        "wal" => Ok(()),
        _ => Err(HookError::message(format!(
            "{} cannot have a write-ahead log, give the path of a file on a local disk",
            path.display()
        ))),
    }
}

impl Resource for Sqlite {
    type Pool = Pool;

    fn name(&self) -> &str {
        "sqlite"
    }

    async fn init(&self) -> Result<Pool, Error> {
        match &self.source {
            Source::Config(config) => {
                self.sessions.state().phase = Phase::Open;
                self.open_pool(config).await
            }
            Source::Wrapped { pool, .. } => Ok(pool.clone()),
        }
    }

    fn opened(&self) -> Option<Pool> {
        match &self.source {
            Source::Config(_) => None,
            Source::Wrapped { pool, .. } => Some(pool.clone()),
        }
    }

    async fn goodbye(&self, pool: &Pool, drain: &Drain) -> Result<(), Error> {
        let sessions = &self.sessions;
        // What is given back from here on comes to us.
        let _over = sessions.begin();
        let idle = pool.retain(|_, _| false).removed;
        // What was taken from the pool directly cannot go back to it any more: then the driver closes it.
        pool.close();
        sessions.state().returned.extend(idle);

        let closing = Closing { sessions, pool, began: Instant::now(), under_way: Arc::default() };
        let all_ended = drain.sessions(&closing).await?;
        if !all_ended {
            // One that was between two statements when it was cancelled may be in the next by now. On a thread of its own: it may
            // have to wait for one that is just being closed, and this runtime ends now. If there can be no thread any more, the
            // end of the process does it.
            let _ = thread::Builder::new()
                .name("winddown-interrupt".into())
                .spawn(interrupt(sessions.interruptible_and_log()));
        }
        let News { mut ends, open, .. } = closing.news(drain);
        let failed = {
            let mut state = sessions.state();
            ends.cut += state.stuck + if all_ended { 0 } else { open };
            state.failed.take()
        };
        drain.count(ends, 0);
        if sessions.is_log_left() {
            sessions.log_that_stays().into_iter().for_each(|stays| drain.reason(stays));
        }
        if let Some(failed) = failed {
            return Err(failed);
        }
        if !all_ended || sessions.is_log_left() {
            return Ok(());
        }

        let Some(path) = sessions.state().path.clone() else { return Ok(()) };
        tokio::select! {
            swept = spawn_blocking(move || sweep(&path)) => {
                swept.unwrap_or_else(|error| Err(Error::new(ErrorKind::Panicked, "sweeping panicked").with_source(error)))
            }
            () = drain.until_cut() => Err(Error::new(ErrorKind::Timeout, "all is closed, but the log was still being moved")),
        }
    }

    async fn cancel(&self, _: &Pool, drain: &Drain) -> Result<(), Error> {
        drain.count_cancelled(self.sessions.count_running());
        // Not here: it waits for a connection that is just being closed.
        // The log, if it is still being moved, stays: the rest of the time is for closing in order.
        let asked = spawn_blocking(interrupt(self.sessions.interruptible_and_log())).await;
        asked.map_err(|error| Error::new(ErrorKind::Panicked, "interrupting panicked").with_source(error))
    }

    fn capabilities(&self) -> Capabilities {
        if self.is_wrapped() { Capabilities::ALL.without_all_sessions() } else { Capabilities::ALL }
    }

    fn latency(&self) -> Option<Arc<Latency>> {
        // There is no server, but an interrupt and a last checkpoint wait for the disk, as opening the file does.
        Some(Arc::clone(&self.sessions.latency))
    }

    fn address(&self) -> Option<String> {
        match &self.source {
            Source::Config(config) => Some(config.path.display().to_string()),
            Source::Wrapped { .. } => None,
        }
    }

    fn size(&self, pool: &Pool) -> Option<Size> {
        let status = pool.status();
        Some(Size { open: status.size, idle: Some(status.available) })
    }
}

impl Checkouts for Sqlite {
    type Checkout = Connection;

    async fn checkout(&self, pool: &Pool) -> Result<Connection, Error> {
        let no_connection =
            |failure: deadpool_sqlite::PoolError| error(ErrorKind::Checkout, "no connection", failure.into());
        let mut object = pool.get().await.map_err(no_connection)?;
        if let Source::Wrapped { at, .. } = self.source {
            // Who takes from such a pool directly may have left something. One that is new is as its pool makes it.
            while Object::metrics(&object).recycle_count > 0 && !is_at_rest(&object) {
                leave(Object::take(object));
                object = pool.get().await.map_err(no_connection)?;
            }
            self.sessions.recognise(&object, at);
        }
        let number = self.sessions.next_checkout();
        Ok(Connection { object, sessions: Arc::clone(&self.sessions), number, is_left: false })
    }

    fn give_back(&self, _: &Pool, connection: Connection) {
        self.sessions.give_back(connection.object, connection.number, connection.is_left);
    }
}

/// One connection that is being closed, to the end of that.
struct UnderWay {
    sessions: Arc<Sessions>,
    count: Arc<AtomicUsize>,
}

impl UnderWay {
    fn begin(sessions: &Arc<Sessions>, count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self { sessions: Arc::clone(sessions), count: Arc::clone(count) }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
        self.sessions.changed.notify_one();
    }
}

/// The connections as a drain closes them, on threads that may block.
struct Closing<'a> {
    sessions: &'a Arc<Sessions>,
    pool: &'a Pool,
    began: Instant,
    /// How many are being closed.
    under_way: Arc<AtomicUsize>,
}

impl winddown_core::adapter::Source for Closing<'_> {
    type Session = Session;

    fn news(&self, _: &Drain) -> News<Session> {
        let mut state = self.sessions.state();
        let (returned, ends) = (mem::take(&mut state.returned), mem::take(&mut state.ends));
        // Those that the guard never saw have no witness; the pool counts them until they are taken out of it.
        let taken_out = returned.len() + self.under_way.load(Ordering::SeqCst);
        News { open: state.open.len().max(self.pool.status().size + taken_out), returned, ends }
    }

    async fn changed(&self) {
        self.sessions.changed.notified().await;
    }

    fn close(&self, session: Session) -> impl Future<Output = ()> + Send + 'static {
        let under_way = UnderWay::begin(self.sessions, &self.under_way);
        let closing = spawn_blocking(move || {
            let sessions = &under_way.sessions;
            if let Err(failed) = sessions.close(&session) {
                sessions.state().failed.get_or_insert(failed);
            }
        });
        async move {
            if let Err(error) = closing.await
                && let Ok(panic) = error.try_into_panic()
            {
                resume_unwind(panic);
            }
        }
    }

    fn all_returned(&self) {
        // A caller that gave up while it waited may have left a connection in the closed pool.
        let left = self.pool.retain(|_, _| false).removed;
        self.sessions.state().returned.extend(left);
    }

    fn stop_abandoned(&self, drain: &Drain) -> Option<tokio::time::Instant> {
        let Abandoned { interrupts, fresh, next } = self.sessions.abandoned(self.began, drain.grace());
        drain.count_cancelled(fresh);
        if !interrupts.is_empty() {
            // Not here: as in `cancel`.
            drop(spawn_blocking(interrupt(interrupts)));
        }
        next.map(tokio::time::Instant::from_std)
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Sqlite");
        match &self.source {
            Source::Config(config) => out.field("config", config),
            Source::Wrapped { pool, .. } => out.field("wrapped", &pool.status()),
        };
        out.finish_non_exhaustive()
    }
}

fn interrupt(handles: Vec<Arc<InterruptHandle>>) -> impl FnOnce() + Send + 'static {
    move || handles.iter().for_each(|handle| handle.interrupt())
}

/// A connection that is checked out. Derefs to the driver's; the guard's checkout gives it back to the pool, and to be
/// closed when the resource drains.
///
/// What is open in a transaction or a savepoint when it is given back is rolled back at once. Nothing else of its state is
/// undone: what it has set with a `PRAGMA`, attached, or created in its temporary database is there for whoever has this
/// connection next.
pub struct Connection {
    object: Object,
    sessions: Arc<Sessions>,
    /// Of this checkout.
    number: u64,
    /// Something runs on it that nobody waits for, and that does not end.
    is_left: bool,
}

impl Connection {
    /// Runs a closure with the connection, on a thread where it may block. The driver's
    /// `interact`, but that drain counts what runs: a statement that it has to interrupt is in the report.
    ///
    /// # Cancel safety
    /// The closure runs on when this future is dropped, and the connection is not used by anybody else before its end: then
    /// what it has left in a transaction is rolled back, if the checkout is back. A drain interrupts what it does: nobody
    /// waits for it.
    ///
    /// # Errors
    /// When the closure panics. The connection is then of no more use, and the pool replaces it.
    pub async fn interact<F, R>(&self, f: F) -> Result<R, InteractError>
    where
        F: FnOnce(&mut rusqlite::Connection) -> R + Send + 'static,
        R: Send + 'static,
    {
        let caller = Caller::new(&self.sessions);
        let running = Running::new(&caller, self.number);
        let counted = move |connection: &mut rusqlite::Connection| {
            running.begins(connection.get_interrupt_handle());
            let result = f(connection);
            running.ends(connection);
            result
        };
        self.object.interact(counted).await
    }

    /// Interrupts what runs on it and nobody waits for, and waits for the end of that. What does not end in time, for it
    /// waits for a disk or a lock, takes the connection out of the pool.
    #[cfg(feature = "buffer")]
    pub(crate) async fn abandon(&mut self) {
        self.is_left = true;
        let handles = self.sessions.abandoned_of(self.number);
        let ended = async {
            // Not here: as in `cancel`.
            let _ = spawn_blocking(interrupt(handles)).await;
            // It comes behind what runs.
            self.object.interact(|_| ()).await
        };
        if timeout(ABANDON_PATIENCE, ended).await.is_ok_and(|ended| ended.is_ok()) {
            self.is_left = false;
        }
    }
}

/// How long what was interrupted may take to end and to roll back.
#[cfg(feature = "buffer")]
const ABANDON_PATIENCE: Duration = Duration::from_secs(2);

impl Deref for Connection {
    type Target = Object;

    fn deref(&self) -> &Object {
        &self.object
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &Object::id(&self.object)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_a_caller_left_behind_does_not_touch_the_file_once_draining_has_begun() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::new(directory.path().join("test.db"));
        let log = directory.path().join("test.db-wal");
        let connect = || rusqlite::Connection::open(&config.path).unwrap();
        let sessions = Arc::<Sessions>::default();

        let before = connect();
        prepare(&before, &config, &sessions).unwrap();
        before.execute_batch("CREATE TABLE t(x)").unwrap();
        assert!(log.exists());
        before.close().unwrap();
        assert!(!log.exists());

        let _over = sessions.begin();
        let after = connect();
        prepare(&after, &config, &sessions).unwrap_err();
        assert!(!log.exists());
        assert_eq!(sessions.state().open.len(), 1);
        after.close().unwrap();
        let state = sessions.state();
        assert_eq!((state.open.len(), state.ends.closed), (0, 1), "it counts as closed when it is");
    }
}
