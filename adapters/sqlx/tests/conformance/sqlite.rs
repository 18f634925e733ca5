//! Pools of sqlx on a file of SQLite's as a harness: which files the process has open the kernel says, as for the other adapter.

use std::{
    cmp::Ordering,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use winddown_core::BoxError;
use winddown_sqlx::{
    Sqlx,
    sqlx::{
        self, Sqlite,
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
    },
};
use winddown_testkit::{CheckoutOf, Harness, Need, ServerUse, Setup, Stranger};

use crate::sqlite_file::Embedded;

/// Counts one statement while SQLite is inside of it.
struct Inside {
    running: Arc<AtomicUsize>,
    is_counted: AtomicBool,
}

impl Inside {
    fn enter(&self) {
        if !self.is_counted.swap(true, SeqCst) {
            self.running.fetch_add(1, SeqCst);
        }
    }

    fn leave(&self) {
        if self.is_counted.swap(false, SeqCst) {
            self.running.fetch_sub(1, SeqCst);
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.leave();
    }
}

pub(crate) struct SqlxSqlite {
    file: Embedded,
    running: Arc<AtomicUsize>,
}

impl SqlxSqlite {
    pub(crate) fn path(&self) -> &Path {
        &self.file.path
    }
}

impl Harness for SqlxSqlite {
    type Resource = Sqlx<Sqlite>;

    const NAME: &'static str = "sqlx_sqlite";
    const LACKS: &'static [(Need, &'static str)] = Embedded::LACKS;
    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        Embedded::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        Ok(Self { file: Embedded::start(use_of_it).await?, running: Arc::default() })
    }

    fn resource(&self, setup: &Setup) -> Sqlx<Sqlite> {
        let connect = SqliteConnectOptions::new().filename(&self.file.path).journal_mode(SqliteJournalMode::Wal);
        Sqlx::new(SqlitePoolOptions::new().max_connections(setup.size.try_into().unwrap()), connect)
    }

    /// A statement that takes so long and leaves a row. It is counted from when SQLite is inside of it until it has ended, or its
    /// connection was closed.
    async fn run(&self, connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        let until = Instant::now() + takes;
        let inside = Arc::new(Inside { running: Arc::clone(&self.running), is_counted: AtomicBool::new(false) });
        let counted = Arc::clone(&inside);
        // SQLite asks it for every row, and looks in between whether it is interrupted.
        let more = move |_: &str, _: &str| {
            counted.enter();
            std::thread::sleep(Duration::from_millis(1));
            if Instant::now() < until { Ordering::Less } else { Ordering::Equal }
        };
        connection.lock_handle().await?.create_collation("takes_longer", more)?;
        let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
                    WHERE CAST(i AS TEXT) < 'x' COLLATE takes_longer) SELECT count(*) FROM n";
        // Not one statement with the insert: that would keep all others from writing meanwhile.
        let ended = sqlx::query(rows).execute(connection.as_mut()).await;
        inside.leave();
        ended?;
        sqlx::query("INSERT INTO t VALUES (1)").execute(connection.as_mut()).await?;
        Ok(())
    }

    async fn ping(&self, connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        sqlx::query("SELECT count(*) FROM t").execute(connection.as_mut()).await?;
        Ok(())
    }

    async fn stranger(&self) -> Result<Stranger, BoxError> {
        self.file.stranger().await
    }

    async fn rows(&self) -> Result<usize, BoxError> {
        self.file.rows().await
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        self.file.sessions().await
    }

    async fn running(&self) -> Result<usize, BoxError> {
        Ok(self.running.load(SeqCst))
    }

    async fn complaints(&self) -> Result<Vec<String>, BoxError> {
        self.file.complaints().await
    }

    async fn end(self) -> Result<(), BoxError> {
        self.file.end().await
    }
}
