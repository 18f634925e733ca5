//! The connections of one resource, from before they touch the file until SQLite has closed it.
//!
//! The driver closes a connection wherever its last owner happens to drop it: on a blocking thread that nobody waits
//! for. So every connection carries a [`Witness`], and drain is over when all witnesses are gone, whoever closed.
//!
//! Locks, none of them held across an await or while another of them is taken but in this order: the pool's, SQLite's
//! own and rusqlite's of one connection, [`Sessions::state`], [`Sessions::moving`]. [`Sessions::turn`] comes before all.

use std::{
    collections::HashMap,
    ffi::OsString,
    mem,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use deadpool_sqlite::{
    Object, ObjectId,
    rusqlite::{self, ErrorCode, InterruptHandle, OpenFlags, config::DbConfig, functions::FunctionFlags},
};
use tokio::{runtime::Handle, sync::Notify};
use winddown_core::{
    Error, ErrorKind,
    adapter::{End, Ends, Latency},
};

use crate::error::{Failure, error};

/// The driver's `SyncWrapper`, which it does not export.
pub(crate) type Session = <Object as Deref>::Target;

/// Every connection of one resource, from before it touches the file until SQLite has closed it.
#[derive(Default)]
pub(crate) struct Sessions {
    pub(crate) state: Mutex<SessionTable>,
    pub(crate) changed: Notify,
    /// How long opening a connection takes.
    pub(crate) latency: Arc<Latency>,
    /// Closures that run now or are about to, also those whose future was dropped.
    calls: Mutex<Calls>,
    /// How many checkouts there have been.
    checkouts: AtomicU64,
    /// Held while one connection closes: two that close at the same moment each take the other for one that stays, and
    /// both leave the log.
    pub(crate) turn: Mutex<()>,
    /// What moves the log into the database file now.
    moving: Mutex<Moving>,
}

/// The log on its way into the database file, for which there may be too little time.
#[derive(Default)]
struct Moving {
    by: Option<Arc<InterruptHandle>>,
    /// It is to stay where it is, with all that was committed in it.
    is_left: bool,
}

#[derive(Default)]
pub(crate) struct SessionTable {
    pub(crate) phase: Phase,
    pub(crate) last: i64,
    pub(crate) open: HashMap<i64, Open>,
    /// How those have ended that are not open any more, since that was last asked for.
    pub(crate) ends: Ends,
    /// The first that SQLite, or a panic, has kept from being closed.
    pub(crate) failed: Option<Error>,
    /// How many SQLite refuses to close.
    pub(crate) stuck: usize,
    /// Given back while draining, to be closed.
    pub(crate) returned: Vec<Session>,
    /// The database file, as SQLite names it; none for one in memory.
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Open,
    Draining,
    /// Drained, or given up: nobody takes in what is given back.
    Over,
}

pub(crate) struct Open {
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
        if open.is_some() {
            state.ends.record(End::Closed);
        }
        drop(state);
        drop(open);
        self.sessions.changed.notify_one();
    }
}

impl Sessions {
    pub(crate) fn state(&self) -> MutexGuard<'_, SessionTable> {
        // Each change is one statement, so a poisoned lock carries no broken state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to drain; the drain is over when what this returns is dropped.
    pub(crate) fn begin(&self) -> Over<'_> {
        let mut state = self.state();
        state.phase = Phase::Draining;
        (state.ends, state.failed) = (Ends::default(), None);
        self.log().is_left = false;
        Over(self)
    }

    /// What is open and not being closed, and the log, which stays from here on if it is being moved.
    pub(crate) fn interruptible_and_log(&self) -> Vec<Arc<InterruptHandle>> {
        let mut handles: Vec<_> = self.state().open.values().filter_map(|open| open.interrupt.clone()).collect();
        handles.extend(self.leave_log());
        handles
    }

    /// The number of this connection, which it is given now if it has none.
    ///
    /// Reads the file if it has none: SQLite looks at the schema before it says that there is no such function.
    pub(crate) fn adopt(self: &Arc<Self>, connection: &rusqlite::Connection) -> rusqlite::Result<i64> {
        let number = connection.query_row(&format!("SELECT {WITNESS}()"), [], |row| row.get(0));
        match number {
            Ok(id) if self.state().open.contains_key(&id) => Ok(id),
            _ => self.register(connection),
        }
    }

    /// Gives a number to a connection that has none. Touches no file.
    pub(crate) fn register(self: &Arc<Self>, connection: &rusqlite::Connection) -> rusqlite::Result<i64> {
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
    pub(crate) fn recognise(self: &Arc<Self>, object: &Object, wrapped_at: Instant) {
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

    /// A number that no other checkout has.
    pub(crate) fn next_checkout(&self) -> u64 {
        // Relaxed: only uniqueness is asked of it.
        self.checkouts.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes a connection back. What still runs on one that `is_left` may not hold up whoever would be next. A transaction
    /// ends here, whoever would be next (S8): rolled back at once, or by the last closure that is still to run.
    pub(crate) fn give_back(self: &Arc<Self>, object: Object, checkout: u64, is_left: bool) {
        if is_left && self.state().phase == Phase::Open {
            return leave(Object::take(object));
        }
        let Some(object) = self.unless_running(object, checkout) else { return };
        if self.state().phase != Phase::Open {
            // Closing it rolls back.
            return self.hand_back(object, false);
        }
        let is_over = match object.try_lock() {
            Ok(connection) => Some(connection.is_autocommit()),
            // A closure has panicked: the pool would close it, but only when somebody asks for it.
            Err(TryLockError::Poisoned(_)) => None,
            // Something that was begun on the driver's own object.
            Err(TryLockError::WouldBlock) => Some(false),
        };
        match is_over {
            Some(true) => self.hand_back(object, true),
            Some(false) => self.roll_back(object),
            None => self.hand_back(object, false),
        }
    }

    /// Rolls back where that may block.
    fn roll_back(self: &Arc<Self>, object: Object) {
        let leaving = Leaving { sessions: Arc::clone(self), object: Some(object) };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || leaving.roll_back())),
            Err(_) => {
                // If there can be no thread the connection is closed.
                let _ = thread::Builder::new().name("winddown-rollback".into()).spawn(move || leaving.roll_back());
            }
        }
    }

    /// Gives a connection to whoever is to have it now: the pool, if it is as it was handed out, or the drain.
    fn hand_back(&self, object: Object, is_clean: bool) {
        let phase = self.state().phase;
        match phase {
            Phase::Open if is_clean => drop(object),
            Phase::Open => leave(Object::take(object)),
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
    pub(crate) fn close(self: &Arc<Self>, session: &Session) -> Result<(), Error> {
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
        let interrupt = self.state().open.get_mut(&id).and_then(|open| open.interrupt.take());
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.is_autocommit() {
            // Closing does it too, but it would be in the way of the checkpoint.
            let _ = connection.execute_batch("ROLLBACK");
        }
        let is_moved = self.moving(interrupt).is_some_and(|_moving| {
            checkpoint(&connection);
            true
        });
        if !is_moved || self.is_log_left() {
            // Closing the last one would begin it again.
            let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        }
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

impl Sessions {
    fn log(&self) -> MutexGuard<'_, Moving> {
        // As for the state.
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to move the log, by a connection that is interrupted so; none where it is to stay.
    fn moving(&self, by: Option<Arc<InterruptHandle>>) -> Option<MovingNow<'_>> {
        let mut log = self.log();
        if log.is_left {
            return None;
        }
        log.by = by;
        Some(MovingNow(self))
    }

    /// The log stays if it is being moved at this moment: there is no more time for it. What interrupts that.
    fn leave_log(&self) -> Option<Arc<InterruptHandle>> {
        let mut log = self.log();
        let by = log.by.take();
        log.is_left |= by.is_some();
        by
    }

    pub(crate) fn is_log_left(&self) -> bool {
        self.log().is_left
    }

    /// What is said of a log that stays: which file it is, and how large.
    pub(crate) fn log_that_stays(&self) -> Option<String> {
        let path = self.state().path.clone()?;
        let log = beside(&path, "-wal");
        let size = log.metadata().ok().map(|file| file.len()).filter(|size| *size > 0)?;
        Some(format!(
            "no time to move all of the log: {} stays, {size} bytes, with all that was committed; the next one to open the \
             database reads it, so keep the two together",
            log.display()
        ))
    }
}

/// The log is being moved until this is dropped.
struct MovingNow<'a>(&'a Sessions);

impl Drop for MovingNow<'_> {
    fn drop(&mut self) {
        self.0.log().by = None;
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut file = OsString::from(path);
    file.push(end);
    file.into()
}

/// Ends the drain of these sessions, also where it is dropped at its deadline.
pub(crate) struct Over<'a>(&'a Sessions);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.phase = Phase::Over;
        let returned = mem::take(&mut state.returned);
        drop(state);
        returned.into_iter().for_each(leave);
    }
}

/// A connection that was given back in a transaction. It is closed where that cannot be rolled back.
struct Leaving {
    sessions: Arc<Sessions>,
    object: Option<Object>,
}

impl Leaving {
    /// Waits for a closure that still runs.
    fn roll_back(mut self) {
        let Some(object) = self.object.take() else { return };
        let is_over = object.lock().is_ok_and(|connection| is_rolled_back(&connection));
        self.sessions.hand_back(object, is_over);
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            self.sessions.hand_back(object, false);
        }
    }
}

/// Rolls back what is open on a connection; whether nothing is open any more.
fn is_rolled_back(connection: &rusqlite::Connection) -> bool {
    connection.is_autocommit() || (connection.execute_batch("ROLLBACK").is_ok() && connection.is_autocommit())
}

/// Whether a connection of the pool is in no transaction and nothing runs on it, as far as that can be known at no wait.
pub(crate) fn is_at_rest(session: &Session) -> bool {
    session.try_lock().is_ok_and(|connection| connection.is_autocommit())
}

/// Closures that run now or are about to, by number.
#[derive(Default)]
struct Calls {
    last: u64,
    running: HashMap<u64, Call>,
    /// Connections that were given back before their closures had ended, by checkout.
    left: HashMap<u64, Object>,
}

/// One closure.
struct Call {
    /// The checkout that it has its connection from.
    checkout: u64,
    /// `None` until it runs.
    interrupt: Option<Arc<InterruptHandle>>,
    /// When its future was dropped.
    abandoned: Arc<OnceLock<Instant>>,
    /// When it was last interrupted for that.
    interrupted: Option<Instant>,
    /// It is counted as cancelled.
    is_counted: bool,
}

/// What there is to do about closures that nobody waits for.
pub(crate) struct Abandoned {
    /// To be interrupted now.
    pub(crate) interrupts: Vec<Arc<InterruptHandle>>,
    /// How many of them for the first time.
    pub(crate) fresh: usize,
    /// When to look again.
    pub(crate) next: Option<Instant>,
}

impl Sessions {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        // As for the state.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, if no closure has it any more; else the last one that does gives it back.
    fn unless_running(&self, object: Object, checkout: u64) -> Option<Object> {
        let mut calls = self.calls();
        if !calls.running.values().any(|call| call.checkout == checkout) {
            return Some(object);
        }
        calls.left.insert(checkout, object);
        None
    }

    /// Counts the closures that run as cancelled; how many were not yet.
    pub(crate) fn count_running(&self) -> usize {
        let mut calls = self.calls();
        let running = calls.running.values_mut().filter(|call| call.interrupt.is_some());
        running.filter_map(|call| (!mem::replace(&mut call.is_counted, true)).then_some(())).count()
    }

    /// How closures of this checkout are interrupted that nobody waits for.
    #[cfg(feature = "buffer")]
    pub(crate) fn abandoned_of(&self, checkout: u64) -> Vec<Arc<InterruptHandle>> {
        let calls = self.calls();
        let left = calls.running.values().filter(|call| call.checkout == checkout && call.abandoned.get().is_some());
        left.filter_map(|call| call.interrupt.clone()).collect()
    }

    /// What is to be done about closures that nobody has waited for since this moment, or later: each is interrupted when it has
    /// gone on for this long, and again each time that it has, since a statement that it begins then knows of nothing.
    pub(crate) fn abandoned(&self, since: Instant, grace: Duration) -> Abandoned {
        let now = Instant::now();
        let mut found = Abandoned { interrupts: Vec::new(), fresh: 0, next: None };
        for call in self.calls().running.values_mut() {
            let Some(abandoned) = call.abandoned.get() else { continue };
            let mut due = call.interrupted.unwrap_or_else(|| (*abandoned).max(since)) + grace;
            if due <= now {
                let Some(interrupt) = &call.interrupt else {
                    // It has not begun; it is looked at again.
                    due = now + grace;
                    found.next = Some(found.next.map_or(due, |next| next.min(due)));
                    continue;
                };
                found.interrupts.push(Arc::clone(interrupt));
                found.fresh += usize::from(!mem::replace(&mut call.is_counted, true));
                call.interrupted = Some(now);
                due = now + grace;
            }
            found.next = Some(found.next.map_or(due, |next| next.min(due)));
        }
        found
    }
}

/// Counts one closure, from before it is given to a thread to its end.
pub(crate) struct Running {
    sessions: Arc<Sessions>,
    number: u64,
    checkout: u64,
}

impl Running {
    pub(crate) fn new(caller: &Caller, checkout: u64) -> Self {
        let sessions = Arc::clone(&caller.sessions);
        let abandoned = Arc::clone(&caller.abandoned);
        let mut calls = sessions.calls();
        calls.last += 1;
        let number = calls.last;
        let call = Call { checkout, interrupt: None, abandoned, interrupted: None, is_counted: false };
        calls.running.insert(number, call);
        drop(calls);
        Self { sessions, number, checkout }
    }

    /// It has the connection now.
    pub(crate) fn begins(&self, interrupt: InterruptHandle) {
        if let Some(call) = self.sessions.calls().running.get_mut(&self.number) {
            call.interrupt = Some(Arc::new(interrupt));
        }
    }

    /// It has come to its end, and still has the connection.
    pub(crate) fn ends(self, connection: &rusqlite::Connection) {
        if let Some(object) = self.over() {
            let is_over = is_rolled_back(connection);
            self.sessions.hand_back(object, is_over);
        }
    }

    /// Counts it no more. What it was the last to use is what this returns.
    fn over(&self) -> Option<Object> {
        let mut calls = self.sessions.calls();
        let over = calls.running.remove(&self.number);
        let is_last = over.is_some() && !calls.running.values().any(|call| call.checkout == self.checkout);
        let left = if is_last { calls.left.remove(&self.checkout) } else { None };
        drop(calls);
        drop(over);
        left
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has panicked, or there was no thread for it any more.
        if let Some(object) = self.over() {
            self.sessions.hand_back(object, false);
        }
    }
}

/// The future of a closure. When it is dropped nobody waits for the closure any more, if that is not over.
pub(crate) struct Caller {
    sessions: Arc<Sessions>,
    abandoned: Arc<OnceLock<Instant>>,
}

impl Caller {
    pub(crate) fn new(sessions: &Arc<Sessions>) -> Self {
        Self { sessions: Arc::clone(sessions), abandoned: Arc::default() }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // Set once, here.
        let _ = self.abandoned.set(Instant::now());
        self.sessions.changed.notify_one();
    }
}

/// Drops what the driver then closes. It does so on the current runtime, and panics where there is none: then it is left to
/// the end of the process.
pub(crate) fn leave<T>(left: T) {
    if Handle::try_current().is_ok() { drop(left) } else { mem::forget(left) }
}

/// Moves what it can of the log into the database file, without waiting for anybody, and clears the mark of an earlier
/// interrupt. The last connection to close does the rest. Its result is not asked for: what counts is what `sweep` finds.
pub(crate) fn checkpoint(connection: &rusqlite::Connection) {
    let _ = connection.query_row("PRAGMA wal_checkpoint(passive)", [], |_| Ok(()));
}

/// How often the database is opened and closed for its log to go. Others that close it at the same moment keep the log there
/// for each other, and each time fewer of them; what is there after this many times stays for another reason. An odd number: the
/// last time is one that takes the index along.
const SWEEPS: usize = 15;

/// Sees to it that no log is left behind once all is closed.
///
/// # Errors
/// [`ErrorKind::Incomplete`] naming the file when it is there although nobody else has the database open, as far as can be seen.
pub(crate) fn sweep(path: &Path) -> Result<(), Error> {
    let remains = || ["-wal", "-shm"].into_iter().find_map(|end| Some(beside(path, end)).filter(|file| file.exists()));
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
    // Every second time it is to be had alone, which it is not while somebody else has it open. That leaves the file with the
    // index where it is, so there is a time after that.
    for pragma in ["", "PRAGMA locking_mode = exclusive"].into_iter().cycle().take(SWEEPS) {
        match once_more(pragma) {
            // The log is theirs then. They may have the database alone for a moment, as whoever closes it last has.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => return Ok(()),
            Err(error) => return Err(failed(error)),
            Ok(()) if remains().is_none() => return Ok(()),
            Ok(()) => {}
        }
    }
    let file = remains().unwrap_or_else(|| path.to_owned());
    let message = format!("all is closed, but {} is left: see its permissions", file.display());
    Err(Error::new(ErrorKind::Incomplete, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_somebody_else_has_alone_is_theirs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        let log = beside(&path, "-wal");
        let open = || rusqlite::Connection::open(&path).unwrap();
        let before = open();
        before.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t(x)").unwrap();
        before.close().unwrap();

        // As whoever closes the database last has it, for that moment.
        let other = open();
        other.execute_batch("PRAGMA locking_mode = exclusive; INSERT INTO t VALUES (1)").unwrap();
        assert!(log.exists());
        sweep(&path).unwrap();
        assert!(log.exists());
        other.close().unwrap();
        assert!(!log.exists());
    }

    #[test]
    fn the_index_of_a_log_is_swept_where_there_is_no_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        let made = rusqlite::Connection::open(&path).unwrap();
        made.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t(x)").unwrap();
        made.close().unwrap();
        // Those that close at the same moment may leave it.
        let index = beside(&path, "-shm");
        std::fs::write(&index, []).unwrap();
        sweep(&path).unwrap();
        assert!(!index.exists());
    }

    #[test]
    fn a_log_that_nobody_has_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        let open = || rusqlite::Connection::open(&path).unwrap();
        let (writer, reader) = (open(), open());
        writer.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
        let count = |of: &rusqlite::Connection| of.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
        assert_eq!(count(&reader).unwrap(), 1);
        let keep = |of: &rusqlite::Connection| of.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        assert!(keep(&writer).unwrap() && keep(&reader).unwrap());
        writer.close().unwrap();
        reader.close().unwrap();
        assert!(beside(&path, "-wal").exists());
        sweep(&path).unwrap();
        assert!(!beside(&path, "-wal").exists());
        assert_eq!(count(&open()).unwrap(), 1);
    }
}
