//! The resource: how sessions are opened, handed out, given back and closed.
//!
//! The driver closes a connection wherever its last owner happens to drop it: on a blocking thread that nobody waits
//! for. So every connection carries a [`Witness`], and drain is over when all witnesses are gone, whoever closed.
//!
//! Locks, none of them held across an await or while another of them is taken but in this order: the pool's, SQLite's
//! own and rusqlite's of one connection, [`Sessions::state`]. [`Sessions::turn`] comes before all.

use std::{
    collections::HashMap,
    ffi::OsString,
    fmt, mem,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use deadpool_sqlite::{
    Hook, HookError, InteractError, Object, ObjectId, Pool, Runtime,
    rusqlite::{self, ErrorCode, InterruptHandle, OpenFlags, functions::FunctionFlags},
};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{JoinSet, spawn_blocking},
};
use winddown_core::{Capabilities, Drain, Error, ErrorKind, Resource};

use crate::{
    config::Config,
    error::{self, Failure, error},
};

/// A database file as a resource.
///
/// Its goodbye closes every connection for real, and the last one to close moves what is in the write-ahead log into
/// the database file: afterwards there is neither a `-wal` nor a `-shm` file beside it.
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
    let set = || {
        connection.busy_timeout(*busy_timeout)?;
        let mode: String = connection.query_row("PRAGMA journal_mode = wal", [], |row| row.get(0))?;
        for (name, value) in pragmas {
            connection.pragma_update(None, name, value)?;
        }
        Ok(mode)
    };
    match set().map_err(HookError::Backend)?.as_str() {
        "wal" => Ok(()),
        _ => Err(HookError::message(format!(
            "{} cannot have a write-ahead log, give the path of a file on a local disk",
            path.display()
        ))),
    }
}

impl Resource for Sqlite {
    type Pool = Pool;
    type Checkout = Connection;

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

    async fn checkout(&self, pool: &Pool) -> Result<Connection, Error> {
        let object = pool.get().await;
        let object = object.map_err(|failure| error(ErrorKind::Checkout, "no connection", failure.into()))?;
        if let Source::Wrapped { at, .. } = self.source {
            self.sessions.recognise(&object, at);
        }
        Ok(Connection { object, sessions: Arc::clone(&self.sessions) })
    }

    fn give_back(&self, _: &Pool, connection: Connection) {
        self.sessions.give_back(connection.object);
    }

    async fn goodbye(&self, pool: &Pool, drain: &Drain) -> Result<(), Error> {
        let sessions = &self.sessions;
        // What is given back from here on comes to us.
        let _over = sessions.begin();
        let mut closing = JoinSet::new();
        let idle = pool.retain(|_, _| false).removed;
        // What was taken from the pool directly cannot go back to it any more: then the driver closes it.
        pool.close();
        sessions.state().returned.extend(idle);

        let mut settled = false;
        let mut result = Ok(());
        loop {
            let News { returned, ended, open, stuck } = sessions.news();
            drain.closed(ended);
            for session in returned {
                let sessions = Arc::clone(sessions);
                closing.spawn_blocking(move || sessions.close(&session));
            }
            if settled && closing.is_empty() && open == 0 && pool.status().size == 0 {
                drain.was_cut(stuck);
                break;
            }
            tokio::select! {
                Some(closed) = closing.join_next() => {
                    let panicked = || Error::new(ErrorKind::Panicked, "closing a connection panicked");
                    let closed = closed.unwrap_or_else(|error| Err(panicked().with_source(error)));
                    result = result.and(closed);
                }
                () = sessions.changed.notified() => {}
                () = drain.settled(), if !settled => settled = true,
                () = drain.cut() => {
                    // One that was between two statements when it was cancelled may be in the next by now. On a thread
                    // of its own: it may have to wait for one that is just being closed, and this runtime ends now. If
                    // there can be no thread any more, the end of the process does it.
                    let _ = thread::Builder::new()
                        .name("winddown-interrupt".into())
                        .spawn(interrupt(sessions.interruptible()));
                    while closing.try_join_next().is_some() {}
                    let News { returned: _, ended, open, stuck } = sessions.news();
                    drain.closed(ended);
                    // Those that the guard never saw have no witness; the pool counts them.
                    let unseen = if self.is_wrapped() { closing.len() + pool.status().size } else { 0 };
                    drain.was_cut(stuck + open.max(unseen));
                    return result;
                }
            }
        }
        result?;

        let Some(path) = sessions.state().path.clone() else { return Ok(()) };
        tokio::select! {
            swept = spawn_blocking(move || sweep(&path)) => {
                swept.unwrap_or_else(|error| Err(Error::new(ErrorKind::Panicked, "sweeping panicked").with_source(error)))
            }
            () = drain.cut() => Err(Error::new(ErrorKind::Timeout, "all is closed, but the log was still being moved")),
        }
    }

    async fn cancel(&self, _: &Pool, drain: &Drain) -> Result<(), Error> {
        drain.cancelled(self.sessions.running.load(Ordering::SeqCst));
        // Not here: it waits for a connection that is just being closed.
        let asked = spawn_blocking(interrupt(self.sessions.interruptible())).await;
        asked.map_err(|error| Error::new(ErrorKind::Panicked, "interrupting panicked").with_source(error))
    }

    fn capabilities(&self) -> Capabilities {
        if self.is_wrapped() { Capabilities::ALL.without_all_sessions() } else { Capabilities::ALL }
    }

    fn round_trip(&self, _: &Pool) -> Option<Duration> {
        // There is no server, but an interrupt and a last checkpoint take their time: the least that core keeps.
        None
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
pub struct Connection {
    object: Object,
    sessions: Arc<Sessions>,
}

impl Connection {
    /// Runs a closure with the connection, on a thread where it may block. The driver's
    /// `interact`, but that drain counts what runs: a statement that it has to interrupt is in the report.
    ///
    /// # Cancel safety
    /// The closure runs to its end also when this future is dropped; the connection is not used by anybody else before.
    ///
    /// # Errors
    /// When the closure panics. The connection is then of no more use, and the pool replaces it.
    pub async fn interact<F, R>(&self, f: F) -> Result<R, InteractError>
    where
        F: FnOnce(&mut rusqlite::Connection) -> R + Send + 'static,
        R: Send + 'static,
    {
        let sessions = Arc::clone(&self.sessions);
        let counted = move |connection: &mut rusqlite::Connection| {
            let _running = Running::new(&sessions);
            f(connection)
        };
        self.object.interact(counted).await
    }
}

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

/// The driver's `SyncWrapper`, which it does not export.
type Session = <Object as Deref>::Target;

/// Every connection of one resource, from before it touches the file until SQLite has closed it.
#[derive(Default)]
struct Sessions {
    state: Mutex<State>,
    changed: Notify,
    /// Closures that run now, also those whose future was dropped.
    running: AtomicUsize,
    /// Held while one connection closes: two that close at the same moment each take the other for one that stays, and
    /// both leave the log.
    turn: Mutex<()>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    last: i64,
    open: HashMap<i64, Open>,
    /// How many have closed since they were last asked for.
    ended: usize,
    /// How many SQLite refuses to close.
    stuck: usize,
    /// Given back while draining, to be closed.
    returned: Vec<Session>,
    /// The database file, as SQLite names it; none for one in memory.
    path: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    Draining,
    /// Drained, or given up: nobody takes in what is given back.
    Over,
}

/// See the fields of [`State`].
struct News {
    returned: Vec<Session>,
    ended: usize,
    open: usize,
    stuck: usize,
}

struct Open {
    /// `None` from when it is being closed: that is not to be interrupted.
    interrupt: Option<Arc<InterruptHandle>>,
    /// Known for those that a wrapped pool has handed out.
    object: Option<ObjectId>,
}

/// Lives inside of SQLite, in a function of the connection: SQLite drops it at the end of `sqlite3_close`, after it has
/// closed the files. Calling the function tells which connection it is.
struct Witness {
    sessions: Arc<Sessions>,
    id: i64,
}

const WITNESS: &str = "winddown_session";

impl Witness {
    fn id(&self) -> i64 {
        self.id
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let mut state = self.sessions.state();
        let open = state.open.remove(&self.id);
        state.ended += usize::from(open.is_some());
        drop(state);
        drop(open);
        self.sessions.changed.notify_one();
    }
}

impl Sessions {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one statement, so a poisoned lock carries no broken state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to drain; the drain is over when what this returns is dropped.
    fn begin(&self) -> Over<'_> {
        let mut state = self.state();
        state.phase = Phase::Draining;
        state.ended = 0;
        Over(self)
    }

    /// What has happened since this was last asked.
    fn news(&self) -> News {
        let mut state = self.state();
        News {
            returned: mem::take(&mut state.returned),
            ended: mem::take(&mut state.ended),
            open: state.open.len(),
            stuck: state.stuck,
        }
    }

    fn interruptible(&self) -> Vec<Arc<InterruptHandle>> {
        self.state().open.values().filter_map(|open| open.interrupt.clone()).collect()
    }

    /// The number of this connection, which it is given now if it has none.
    ///
    /// Reads the file if it has none: SQLite looks at the schema before it says that there is no such function.
    fn adopt(self: &Arc<Self>, connection: &rusqlite::Connection) -> rusqlite::Result<i64> {
        let number = connection.query_row(&format!("SELECT {WITNESS}()"), [], |row| row.get(0));
        match number {
            Ok(id) if self.state().open.contains_key(&id) => Ok(id),
            _ => self.register(connection),
        }
    }

    /// Gives a number to a connection that has none. Touches no file.
    fn register(self: &Arc<Self>, connection: &rusqlite::Connection) -> rusqlite::Result<i64> {
        let interrupt = Some(Arc::new(connection.get_interrupt_handle()));
        let path = connection.path().filter(|path| !path.is_empty()).map(PathBuf::from);
        let id = {
            let mut state = self.state();
            state.last += 1;
            let id = state.last;
            state.open.insert(id, Open { interrupt, object: None });
            state.path = state.path.take().or(path);
            id
        };
        let witness = Witness { sessions: Arc::clone(self), id };
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
        // A call, so that the closure has all of the witness and not only a copy of its number.
        connection.create_scalar_function(WITNESS, 0, flags, move |_| Ok(witness.id()))?;
        Ok(id)
    }

    /// Makes sure that a connection of a pool that was wrapped at this moment is known.
    fn recognise(self: &Arc<Self>, object: &Object, wrapped_at: Instant) {
        let known = Some(Object::id(object));
        if self.state().open.values().any(|open| open.object == known) {
            return;
        }
        let Ok(connection) = object.try_lock() else { return };
        let is_new = Object::metrics(object).created > wrapped_at;
        let id = if is_new { self.register(&connection) } else { self.adopt(&connection) };
        if let Ok(id) = id
            && let Some(open) = self.state().open.get_mut(&id)
        {
            open.object = known;
        }
    }

    fn give_back(&self, object: Object) {
        let phase = self.state().phase;
        match phase {
            Phase::Open => drop(object),
            Phase::Draining => {
                let session = Object::take(object);
                let mut state = self.state();
                if state.phase == Phase::Draining {
                    state.returned.push(session);
                    drop(state);
                    self.changed.notify_one();
                } else {
                    drop(state);
                    leave(session);
                }
            }
            Phase::Over => leave(object),
        }
    }

    /// Closes a connection for real. Blocks, also while a closure runs whose future was dropped.
    fn close(self: &Arc<Self>, session: &Session) -> Result<(), Error> {
        let failed = |failure| error(ErrorKind::Incomplete, "cannot close a connection", failure);
        let connection = match session.lock() {
            Ok(mut connection) => {
                // Its own drop would close it where nobody waits for it.
                let nothing = rusqlite::Connection::open_in_memory().map_err(|error| failed(error.into()))?;
                mem::replace(&mut *connection, nothing)
            }
            // A closure has panicked, which is no reason not to close.
            Err(poisoned) => match poisoned.into_inner().take() {
                Some(connection) => connection,
                None => return Ok(()),
            },
        };
        // Also one that was never seen before: it counts as closed when it is.
        let id = self.adopt(&connection).map_err(|error| failed(error.into()))?;
        if let Some(open) = self.state().open.get_mut(&id) {
            open.interrupt = None;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.is_autocommit() {
            // Closing does it too, but it would be in the way of the checkpoint.
            let _ = connection.execute_batch("ROLLBACK");
        }
        checkpoint(&connection);
        connection.close().map_err(|(_, error)| {
            // A statement was leaked, and nothing will close it any more.
            let mut state = self.state();
            let open = state.open.remove(&id);
            state.stuck += usize::from(open.is_some());
            drop(state);
            failed(error.into())
        })
    }
}

/// Ends the drain of these sessions, also where it is dropped at its deadline.
struct Over<'a>(&'a Sessions);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.phase = Phase::Over;
        let returned = mem::take(&mut state.returned);
        drop(state);
        returned.into_iter().for_each(leave);
    }
}

/// Counts one closure that runs.
struct Running<'a>(&'a Sessions);

impl<'a> Running<'a> {
    fn new(sessions: &'a Sessions) -> Self {
        // SeqCst, here and below: a count for a report, read from another thread; nothing depends on it.
        sessions.running.fetch_add(1, Ordering::SeqCst);
        Self(sessions)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Drops what drain has counted as cut. The driver closes on the current runtime and panics where there is none: then
/// it is left to the end of the process.
fn leave<T>(left: T) {
    if Handle::try_current().is_ok() { drop(left) } else { mem::forget(left) }
}

/// Moves what it can of the log into the database file, without waiting for anybody, and clears the mark of an earlier
/// interrupt. The last connection to close does the rest. Its result is not asked for: what counts is what `sweep` finds.
fn checkpoint(connection: &rusqlite::Connection) {
    let _ = connection.query_row("PRAGMA wal_checkpoint(passive)", [], |_| Ok(()));
}

/// Sees to it that no log is left behind once all is closed.
///
/// # Errors
/// [`ErrorKind::Incomplete`] naming the file when it is there although nobody else has the database open.
fn sweep(path: &Path) -> Result<(), Error> {
    let remains = || {
        ["-wal", "-shm"].into_iter().find_map(|end| {
            let mut file = OsString::from(path);
            file.push(end);
            Some(PathBuf::from(file)).filter(|file| file.exists())
        })
    };
    if remains().is_none() {
        return Ok(());
    }
    // Closed by the driver at the same moment as another one, perhaps: opening and closing it once more does it.
    let failed = |failure: rusqlite::Error| {
        let file = remains().unwrap_or_else(|| path.to_owned());
        error(ErrorKind::Incomplete, format!("all is closed, but {} is left", file.display()), Failure::from(failure))
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let once_more = |pragma: &str| {
        let connection = rusqlite::Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::ZERO)?;
        connection.execute_batch(pragma)?;
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        checkpoint(&connection);
        connection.close().map_err(|(_, error)| error)
    };
    once_more("").map_err(failed)?;
    if remains().is_none() {
        return Ok(());
    }
    // Somebody else has the database open, and then the log is theirs, if it cannot be had alone.
    match once_more("PRAGMA locking_mode = exclusive") {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(()) => match remains() {
            None => Ok(()),
            Some(file) => {
                let file = file.display();
                Err(Error::new(
                    ErrorKind::Incomplete,
                    format!("all is closed, but {file} is left: see its permissions"),
                ))
            }
        },
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
        assert_eq!(sessions.news().open, 1);
        after.close().unwrap();
        let News { open, ended, .. } = sessions.news();
        assert_eq!((open, ended), (0, 1), "it counts as closed when it is");
    }
}
