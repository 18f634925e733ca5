//! A database file as a harness. There is no server to ask: what counts is which files the process has open, as the kernel
//! lists them.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use rusqlite::functions::FunctionFlags;
use tempfile::TempDir;
use winddown_core::BoxError;
use winddown_sqlite::{Config, Connection, Sqlite, rusqlite};
use winddown_testkit::{Harness, Need, ServerUse, Setup, Stranger, gone};

/// A database file of its own.
pub(crate) struct Embedded {
    directory: TempDir,
    pub(crate) path: PathBuf,
    /// How many statements SQLite is inside of.
    running: Arc<AtomicUsize>,
    /// Writes, and keeps all others from it.
    writes: Mutex<Option<rusqlite::Connection>>,
}

const NO_SERVER: &str = "there is no server process";

impl Embedded {
    fn beside(&self, end: &str) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(end);
        name.into()
    }

    /// Another connection begins to write, and does not come to an end.
    pub(crate) fn lock(&self) -> Result<(), BoxError> {
        let database = rusqlite::Connection::open(&self.path)?;
        database.execute_batch("PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE")?;
        *self.writes.lock().expect("nobody panics with it") = Some(database);
        Ok(())
    }

    /// The end of [`lock`](Self::lock).
    pub(crate) fn unlock(&self) -> Result<(), BoxError> {
        let database = self.writes.lock().expect("nobody panics with it").take();
        Ok(database.ok_or("nobody was writing")?.execute_batch("ROLLBACK")?)
    }

    /// How many descriptors of this process are of this file, also when it is unlinked.
    fn descriptors(file: &Path) -> Result<usize, BoxError> {
        let mut deleted = OsString::from(file);
        deleted.push(" (deleted)");
        let open = fs::read_dir("/proc/self/fd")?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        Ok(open.filter(|target| target == file || target.as_os_str() == deleted).count())
    }
}

impl Harness for Embedded {
    type Resource = Sqlite;

    const NAME: &'static str = "sqlite";
    const LACKS: &'static [(Need, &'static str)] = &[
        (Need::Pause, NO_SERVER),
        (Need::Kill, NO_SERVER),
        (Need::Partition, "there is no network"),
        (Need::Slow, "there is no network"),
        (Need::Proxy, "there is no network"),
        (Need::Full, "a file has room for all; that it is locked is in tests/sqlite.rs"),
        (Need::CloseIdle, NO_SERVER),
        (Need::Password, "nobody logs in"),
    ];

    fn skipped() -> Option<String> {
        (!cfg!(target_os = "linux")).then(|| "open files are counted in /proc, which only Linux has".into())
    }

    async fn start(_: ServerUse) -> Result<Self, BoxError> {
        let directory = TempDir::new()?;
        // As the kernel names it.
        let path = directory.path().canonicalize()?.join("test.db");
        let database = rusqlite::Connection::open(&path)?;
        database.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t(x)")?;
        database.close().map_err(|(_, error)| error)?;
        Ok(Self { directory, path, running: Arc::default(), writes: Mutex::default() })
    }

    fn resource(&self, setup: &Setup) -> Sqlite {
        let mut config = Config::new(&self.path);
        config.pool_size = Some(setup.size);
        Sqlite::new(config)
    }

    async fn run(&self, connection: &mut Connection, takes: Duration) -> Result<(), BoxError> {
        run(connection, takes, &self.running).await
    }

    async fn ping(&self, connection: &mut Connection) -> Result<(), BoxError> {
        ask(connection).await
    }

    /// A connection of the same process that is in a statement, with a file of its own: one more with the same file would be
    /// among those that are counted.
    async fn stranger(&self) -> Result<Stranger, BoxError> {
        let path = self.directory.path().join("stranger.db");
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (release, released) = mpsc::channel::<()>();
        let waits = tokio::task::spawn_blocking(move || {
            let database = rusqlite::Connection::open(path)?;
            let begun = Mutex::new(Some((begun, released)));
            let wait = move |_: &rusqlite::functions::Context<'_>| {
                let taken = begun.lock().ok().and_then(|mut begun| begun.take());
                let Some((begun, released)) = taken else { return Ok(false) };
                // Whoever waits for it may have gone.
                let _ = begun.send(());
                Ok(released.recv().is_ok())
            };
            database.create_scalar_function("waits", 0, FunctionFlags::SQLITE_UTF8, wait)?;
            let was_released: bool = database.query_row("SELECT waits()", [], |row| row.get(0))?;
            database.close().map_err(|(_, error)| error)?;
            Ok::<_, BoxError>(was_released)
        });
        let waits = async {
            match waits.await?? {
                true => Ok(()),
                false => Err("nobody has released it".into()),
            }
        };
        let lets_go = async move { Ok(release.send(())?) };
        let stranger = Stranger::new(waits, lets_go);
        has_begun.await?;
        Ok(stranger)
    }

    async fn rows(&self) -> Result<usize, BoxError> {
        let database = rusqlite::Connection::open(&self.path)?;
        let rows: u32 = database.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
        database.close().map_err(|(_, error)| error)?;
        Ok(rows as usize)
    }

    /// Each connection has a descriptor of the log. Those of the database file itself are closed late, when no other
    /// connection of the process has a lock on it: they count once the log is closed.
    async fn sessions(&self) -> Result<usize, BoxError> {
        match Self::descriptors(&self.beside("-wal"))? {
            0 => Self::descriptors(&self.path),
            sessions => Ok(sessions),
        }
    }

    async fn running(&self) -> Result<usize, BoxError> {
        Ok(self.running.load(Ordering::SeqCst))
    }

    /// After a clean drain there is no log beside the file.
    async fn complaints(&self) -> Result<Vec<String>, BoxError> {
        let left = ["-wal", "-shm"].into_iter().map(|end| self.beside(end)).filter(|file| file.exists());
        Ok(left.map(|file| format!("{} is left", file.display())).collect())
    }

    async fn end(self) -> Result<(), BoxError> {
        // What was cut, or dropped without a drain, is closed on a thread that nobody waits for.
        match gone(|| self.sessions()).await? {
            0 => {}
            left => return Err(format!("{left} sessions are left").into()),
        }
        // The driver opens a connection on such a thread too: where its caller has gone meanwhile, the file comes, and with it goes
        // what makes the directory empty.
        let directory = self.directory.keep();
        let removed = gone(|| async {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(1),
                removed => Ok(removed.map(|()| 0)?),
            }
        });
        match removed.await? {
            0 => Ok(()),
            _ => Err(format!("{} does not become empty", directory.display()).into()),
        }
    }
}

/// One query.
pub(crate) async fn ask(connection: &Connection) -> Result<(), BoxError> {
    let read = |database: &mut rusqlite::Connection| database.query_row("SELECT count(*) FROM t", [], |_| Ok(()));
    Ok(connection.interact(read).await.map_err(|error| error.to_string())??)
}

/// A statement that takes so long and leaves a row. It is counted while SQLite is inside of it.
pub(crate) async fn run(connection: &Connection, takes: Duration, running: &Arc<AtomicUsize>) -> Result<(), BoxError> {
    /// Counts one statement while SQLite is inside of it.
    struct Inside(Arc<AtomicUsize>);
    impl Drop for Inside {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let running = Arc::clone(running);
    let statement = move |database: &mut rusqlite::Connection| -> rusqlite::Result<()> {
        let until = Instant::now() + takes;
        running.fetch_add(1, Ordering::SeqCst);
        let inside = Inside(running);
        // SQLite asks it for every row, and looks in between whether it is interrupted.
        let more = move |_: &rusqlite::functions::Context<'_>| {
            std::thread::sleep(Duration::from_millis(1));
            Ok(Instant::now() < until)
        };
        database.create_scalar_function("takes_longer", 0, FunctionFlags::SQLITE_UTF8, more)?;
        let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE takes_longer())
                    SELECT count(*) FROM n";
        // Not one statement with the insert: that would keep all others from writing meanwhile.
        database.query_row(rows, [], |_| Ok(()))?;
        database.execute("INSERT INTO t VALUES (1)", [])?;
        drop(inside);
        Ok(())
    };
    Ok(connection.interact(statement).await.map_err(|error| error.to_string())??)
}
