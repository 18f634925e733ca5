//! Real files: the conformance suite, what only this adapter promises, and what is claimed about many drains.

#[path = "sqlite/logs.rs"]
mod logs;
#[path = "conformance/server.rs"]
#[cfg_attr(not(feature = "buffer"), expect(dead_code, reason = "only what is claimed about sinks needs all of it"))]
mod server;
#[cfg(feature = "buffer")]
#[path = "sqlite/soak.rs"]
mod soak;
#[path = "sqlite/transactions.rs"]
mod transactions;
#[path = "conformance/wrapped.rs"]
mod wrapped_pool;

use std::{
    error::Error as _,
    ffi::OsString,
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use deadpool_sqlite::Runtime;
use rusqlite::OptionalExtension as _;
use tempfile::TempDir;
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Lifecycle, Outcome, Report, Resource, ResourceReport, ShutdownGuard,
    adapter::Drain,
};
use winddown_sqlite::{Config, Connection, Sqlite, deadpool_sqlite, rusqlite};
use winddown_testkit::{Suite, trials};

use crate::server::Embedded;

fn main() -> ExitCode {
    #[cfg(feature = "buffer")]
    if let Some(ended) = soak::program() {
        return ended;
    }
    let suite = Suite::new().harness::<Embedded>().harness::<wrapped_pool::WrappedPool>().tests(
        None,
        trials! {
            nothing_is_opened_and_no_file_is_made_before_first_use
            the_log_is_gone_after_draining_idle_connections_and_the_data_is_there
            each_connection_has_the_settings_of_the_configuration
            a_connection_that_comes_back_while_draining_is_closed_when_it_does
            a_connection_that_comes_back_on_a_thread_without_a_runtime_is_closed_too
            a_straggler_is_interrupted_and_the_report_names_its_site
            a_dropped_future_whose_statement_runs_on_is_interrupted
            an_open_transaction_is_rolled_back_and_does_not_keep_the_log
            a_connection_in_which_a_closure_panicked_is_closed_too
            a_checkout_that_never_comes_back_is_cut_and_draining_ends_by_the_deadline
            a_statement_that_begins_after_cancelling_is_interrupted_at_the_cut
            a_wrapped_pool_is_drained_even_if_it_was_never_used_through_the_guard
            connections_of_a_wrapped_pool_can_be_interrupted_once_the_guard_has_handed_them_out
            a_wrapped_pool_that_is_not_in_wal_mode_is_left_in_its_mode
            a_connection_taken_from_the_pool_directly_is_waited_for
            a_connection_that_the_driver_drops_somewhere_is_interrupted_and_waited_for
            a_connection_that_only_the_wrapped_pool_knows_is_waited_for_and_counted_as_cut
            a_log_that_somebody_else_keeps_open_is_not_our_failure
            a_log_that_cannot_be_removed_is_an_error_that_names_it
            a_path_that_cannot_be_used_is_one_line_that_says_what_to_do
            a_database_that_is_locked_while_it_is_opened_is_tried_again
            two_hundred_of_two_hundred_drains_under_writers_leave_no_log_and_lose_nothing
            what_was_written_is_there_for_the_next_life_of_the_process
        },
    );
    let suite = suite.tests(
        None,
        trials! {
            logs:
                a_log_that_is_too_large_for_the_budget_stays_and_the_report_names_it
                a_database_that_is_only_read_is_wrapped_and_drained;
            transactions:
                s8_the_next_caller_finds_no_transaction_and_its_rows_stay
                s8_a_write_lock_that_was_left_is_let_go_when_its_checkout_comes_back
                s8_what_a_closure_leaves_that_nobody_waits_for_is_rolled_back
                s8_a_closure_that_begins_when_its_checkout_is_back_leaves_nothing_either
                s8_a_closure_that_panicked_in_a_transaction_locks_nobody_out
                s8_what_was_taken_from_the_pool_directly_leaves_nothing_to_the_next_caller
                s8_a_wrapped_pool_hands_out_no_transaction_through_its_guard;
        },
    );
    #[cfg(feature = "buffer")]
    let suite = suite.tests(None, soak::trials()).tests(
        None,
        trials! {
            sink:
                a_batch_is_written_whole_or_not_at_all
                a_batch_that_comes_again_is_written_once
                what_is_wrong_with_a_record_is_told_from_what_is_wrong_with_the_table
                a_batch_that_finds_the_database_locked_can_be_written_again
                a_batch_for_which_there_is_no_room_can_be_written_again
                a_record_that_panics_costs_the_batch_and_nothing_else
                an_error_that_a_function_makes_of_a_record_is_the_records
                a_write_that_is_given_up_is_interrupted_and_its_batch_written_once
                a_write_that_is_given_up_between_two_records_is_rolled_back
                what_is_wrong_with_the_table_is_said_before_a_record_is_lost
                the_sink_says_where_records_go
                names_are_taken_as_they_are
                keys_are_forgotten_when_they_are_old
                a_transaction_that_was_left_open_does_not_swallow_a_batch
                everything_a_buffer_has_accepted_is_in_the_file_after_the_drain;
            transactions: s8_a_buffer_commits_nothing_of_what_others_have_left;
        },
    );
    suite.run()
}

/// Well above what a drain takes here, well below the budget: whoever waits for the deadline is not quick.
const QUICK: Duration = Duration::from_secs(20);
const BUDGET: Duration = Duration::from_secs(60);
const ENDLESS: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i > 0) SELECT count(*) FROM n WHERE i = 0";

fn lifecycle(budget: Duration) -> Lifecycle {
    Lifecycle::builder().signals(false).budget(budget).build().unwrap()
}

struct Database {
    _directory: TempDir,
    path: PathBuf,
}

impl Database {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("test.db");
        Self { _directory: directory, path }
    }

    fn beside(&self, end: &str) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(end);
        name.into()
    }

    fn logs(&self) -> Vec<&'static str> {
        ["-wal", "-shm"].into_iter().filter(|end| self.beside(end).exists()).collect()
    }

    fn pool(&self) -> deadpool_sqlite::Pool {
        let config = deadpool_sqlite::Config::new(&self.path);
        config.builder(Runtime::Tokio1).unwrap().max_size(4).build().unwrap()
    }

    /// What a reader sees that comes later.
    fn rows(&self) -> i64 {
        let connection = rusqlite::Connection::open(&self.path).unwrap();
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }
}

/// The same with more time for cancelling and for what follows it: the 50 ms that core keeps for a file are enough for a
/// machine that does little else, and no fair test of one that builds something at the same time.
struct Patient(Sqlite);

impl Resource for Patient {
    type Pool = deadpool_sqlite::Pool;

    fn name(&self) -> &str {
        self.0.name()
    }

    async fn init(&self) -> Result<Self::Pool, Error> {
        self.0.init().await
    }

    fn opened(&self) -> Option<Self::Pool> {
        self.0.opened()
    }

    async fn goodbye(&self, pool: &Self::Pool, drain: &Drain) -> Result<(), Error> {
        self.0.goodbye(pool, drain).await
    }

    async fn cancel(&self, pool: &Self::Pool, drain: &Drain) -> Result<(), Error> {
        self.0.cancel(pool, drain).await
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn reserve(&self, _: &Self::Pool) -> Duration {
        Duration::from_secs(6)
    }
}

impl Checkouts for Patient {
    type Checkout = Connection;

    async fn checkout(&self, pool: &Self::Pool) -> Result<Connection, Error> {
        self.0.checkout(pool).await
    }

    fn give_back(&self, pool: &Self::Pool, connection: Connection) {
        self.0.give_back(pool, connection);
    }
}

/// With a [`Patient`] resource: settles for 6 s, then has 6 s, the last quarter of them after the cut.
const PATIENT: Duration = Duration::from_secs(12);

async fn run(connection: &deadpool_sqlite::Object, sql: &'static str) {
    connection.interact(move |connection| connection.execute_batch(sql)).await.unwrap().unwrap();
}

/// A guard whose database has a table and a log with something in it.
async fn prepared<R>(lifecycle: &Lifecycle, sqlite: R) -> ShutdownGuard<R>
where
    R: Checkouts<Checkout = Connection>,
{
    let db = lifecycle.guard(sqlite);
    lifecycle.init().await.unwrap();
    run(&db.get().await.unwrap(), "PRAGMA journal_mode = wal; CREATE TABLE t(x); INSERT INTO t VALUES (1)").await;
    db
}

/// Opens so many connections, and leaves them idle.
async fn idle<R: Checkouts<Checkout = Connection>>(db: &ShutdownGuard<R>, count: usize) {
    let mut out = Vec::new();
    for _ in 0..count {
        out.push(db.get().await.unwrap());
        run(out.last().unwrap(), "SELECT count(*) FROM t").await;
    }
}

/// Begins a closure that says when it runs; returns its future, polled once.
async fn begin<'a, R: Send + 'static>(
    connection: &'a Connection,
    f: impl FnOnce(&mut rusqlite::Connection) -> R + Send + 'static,
) -> std::pin::Pin<Box<dyn Future<Output = Result<R, deadpool_sqlite::InteractError>> + Send + 'a>> {
    let (begun, running) = tokio::sync::oneshot::channel();
    let mut future = Box::pin(connection.interact(move |connection| {
        begun.send(()).unwrap();
        f(connection)
    }));
    tokio::select! {
        biased;
        _ = &mut future => panic!("it ended at once"),
        begun = running => begun.unwrap(),
    }
    future
}

fn endless(connection: &mut rusqlite::Connection) -> rusqlite::Result<i64> {
    connection.query_row(ENDLESS, [], |row| row.get(0))
}

async fn drain(lifecycle: &Lifecycle) -> Arc<Report> {
    lifecycle.drain().await
}

fn row(report: &Report) -> &ResourceReport {
    report.resources.iter().find(|row| row.name == "sqlite").unwrap()
}

async fn nothing_is_opened_and_no_file_is_made_before_first_use() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = lifecycle.guard(Sqlite::open(&database.path));
    let report = drain(&lifecycle).await;
    assert_eq!(row(&report).outcome, Outcome::NotInitialised, "{report}");
    assert!(!database.path.exists());
    assert!(db.get().await.unwrap_err().is_shutting_down());
    assert!(!database.path.exists());
}

async fn the_log_is_gone_after_draining_idle_connections_and_the_data_is_there() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let mut config = Config::new(&database.path);
    config.pool_size = Some(8);
    let db = prepared(&lifecycle, Sqlite::new(config)).await;
    idle(&db, 8).await;
    assert_eq!(database.logs(), ["-wal", "-shm"]);

    let report = drain(&lifecycle).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(row(&report).sessions.closed, 8, "{report}");
    assert!(report.took < QUICK, "{report}");
    assert!(row(&report).cannot.is_empty());
    assert_eq!(database.logs(), [""; 0]);
    assert_eq!(database.rows(), 1);
}

async fn each_connection_has_the_settings_of_the_configuration() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let mut config = Config::new(&database.path);
    config.busy_timeout = Duration::from_millis(1234);
    config.pragmas.push(("foreign_keys".into(), "on".into()));
    let db = prepared(&lifecycle, Sqlite::new(config)).await;
    let (first, second) = (db.get().await.unwrap(), db.get().await.unwrap());
    for connection in [&first, &second] {
        let read = |pragma: &'static str| async move {
            let read = move |c: &mut rusqlite::Connection| {
                c.query_row(pragma, [], |row| row.get::<_, rusqlite::types::Value>(0)).unwrap()
            };
            connection.interact(read).await.unwrap()
        };
        assert_eq!(read("PRAGMA journal_mode").await, "wal".to_owned().into());
        assert_eq!(read("PRAGMA busy_timeout").await, 1234.into());
        assert_eq!(read("PRAGMA foreign_keys").await, 1.into());
    }
    drop((first, second));
    assert!(drain(&lifecycle).await.is_clean());
}

async fn a_connection_that_comes_back_while_draining_is_closed_when_it_does() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
    idle(&db, 3).await;
    let held = db.get().await.unwrap();
    let (report, ()) = tokio::join!(drain(&lifecycle), async {
        lifecycle.draining().await;
        run(&held, "INSERT INTO t VALUES (2)").await;
        drop(held);
    });
    assert!(report.is_clean(), "{report}");
    assert_eq!((row(&report).sessions.closed, row(&report).sessions.cancelled), (3, 0), "{report}");
    assert!(report.took < QUICK, "{report}");
    assert_eq!(database.logs(), [""; 0]);
    assert_eq!(database.rows(), 2);
}

async fn a_connection_that_comes_back_on_a_thread_without_a_runtime_is_closed_too() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
    let held = db.get().await.unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        wait.recv().unwrap();
        drop(held);
    });
    let (report, ()) = tokio::join!(drain(&lifecycle), async {
        lifecycle.draining().await;
        go.send(()).unwrap();
    });
    holder.join().unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(database.logs(), [""; 0]);
}

async fn a_straggler_is_interrupted_and_the_report_names_its_site() {
    let database = Database::new();
    let lifecycle = lifecycle(PATIENT);
    let db = prepared(&lifecycle, Patient(Sqlite::open(&database.path))).await;
    idle(&db, 2).await;
    let (begun, running) = tokio::sync::oneshot::channel();
    let straggler = tokio::spawn(async move {
        let held = db.get().await.unwrap();
        let statement = |connection: &mut rusqlite::Connection| {
            begun.send(()).unwrap();
            endless(connection)
        };
        held.interact(statement).await.unwrap()
    });
    running.await.unwrap();
    let report = drain(&lifecycle).await;
    let error = straggler.await.unwrap().unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::OperationInterrupted));
    let row = row(&report);
    assert_eq!(row.outcome, Outcome::Drained, "{report}");
    assert_eq!((row.sessions.closed, row.sessions.cancelled, row.sessions.cut), (2, 1, 0), "{report}");
    assert_eq!(row.stragglers.len(), 1, "{report}");
    assert!(row.stragglers[0].site.contains("sqlite.rs"), "{report}");
    assert_eq!(database.logs(), [""; 0]);
}

async fn a_dropped_future_whose_statement_runs_on_is_interrupted() {
    let database = Database::new();
    let lifecycle = lifecycle(PATIENT);
    let db = prepared(&lifecycle, Patient(Sqlite::open(&database.path))).await;
    let connection = db.get().await.unwrap();
    drop(begin(&connection, endless).await);
    drop(connection);
    let report = drain(&lifecycle).await;
    let row = row(&report);
    assert_eq!(row.outcome, Outcome::Drained, "{report}");
    assert_eq!((row.sessions.closed, row.sessions.cancelled), (1, 1), "{report}");
    assert!(row.stragglers.is_empty(), "{report}");
    assert_eq!(database.logs(), [""; 0]);
}

async fn an_open_transaction_is_rolled_back_and_does_not_keep_the_log() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
    idle(&db, 2).await;
    run(&db.get().await.unwrap(), "BEGIN; INSERT INTO t VALUES (2)").await;
    let report = drain(&lifecycle).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(database.logs(), [""; 0]);
    assert_eq!(database.rows(), 1);
}

async fn a_connection_in_which_a_closure_panicked_is_closed_too() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
    let connection = db.get().await.unwrap();
    let panicked = connection.interact(|_| std::panic::resume_unwind(Box::new(()))).await;
    assert!(matches!(panicked, Err(deadpool_sqlite::InteractError::Panic(_))));
    drop(connection);
    let report = drain(&lifecycle).await;
    assert!(report.is_clean(), "{report}");
    // It ends when it comes back: before the drain, or in it.
    let sessions = row(&report).sessions;
    assert!(sessions.closed <= 1 && (sessions.cut, sessions.cancelled) == (0, 0), "{report}");
    assert_eq!(database.logs(), [""; 0]);
}

async fn a_checkout_that_never_comes_back_is_cut_and_draining_ends_by_the_deadline() {
    let database = Database::new();
    let lifecycle = lifecycle(PATIENT);
    let db = prepared(&lifecycle, Patient(Sqlite::open(&database.path))).await;
    idle(&db, 2).await;
    let held = db.get().await.unwrap();
    let begun = Instant::now();
    let report = drain(&lifecycle).await;
    assert!(begun.elapsed() < PATIENT + QUICK, "{report}");
    let row = row(&report);
    assert_eq!(row.outcome, Outcome::Incomplete, "{report}");
    assert_eq!((row.sessions.closed, row.sessions.cut, row.sessions.cancelled), (1, 1, 0), "{report}");
    assert_eq!(row.left_out, 1, "{report}");

    // It is of use to its holder as before, and is closed when it is dropped.
    run(&held, "INSERT INTO t VALUES (2)").await;
    std::thread::spawn(move || drop(held)).join().unwrap();
    assert_eq!(database.rows(), 2);
}

async fn a_statement_that_begins_after_cancelling_is_interrupted_at_the_cut() {
    let database = Database::new();
    let lifecycle = lifecycle(PATIENT);
    let db = prepared(&lifecycle, Patient(Sqlite::open(&database.path))).await;
    let held = db.get().await.unwrap();
    let running = begin(&held, |connection| {
        let first = endless(connection).unwrap_err();
        (first, endless(connection).unwrap_err())
    })
    .await;
    let (report, results) = tokio::join!(drain(&lifecycle), running);
    let (first, second) = results.unwrap();
    for error in [first, second] {
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::OperationInterrupted));
    }
    assert_eq!((row(&report).sessions.cut, row(&report).sessions.cancelled), (1, 1), "{report}");
}

async fn a_wrapped_pool_is_drained_even_if_it_was_never_used_through_the_guard() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let pool = database.pool();
    {
        let (first, second) = (pool.get().await.unwrap(), pool.get().await.unwrap());
        run(&first, "PRAGMA journal_mode = wal; CREATE TABLE t(x); INSERT INTO t VALUES (1)").await;
        run(&second, "SELECT count(*) FROM t").await;
    }
    assert_eq!(database.logs(), ["-wal", "-shm"]);
    let _db = lifecycle.guard(Sqlite::wrap(pool.clone()));
    let report = drain(&lifecycle).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(row(&report).sessions.closed, 2, "{report}");
    assert_eq!(row(&report).cannot, ["see every session"]);
    assert!(report.took < QUICK, "{report}");
    assert!(pool.is_closed());
    assert_eq!(database.logs(), [""; 0]);
}

async fn connections_of_a_wrapped_pool_can_be_interrupted_once_the_guard_has_handed_them_out() {
    let database = Database::new();
    let lifecycle = lifecycle(PATIENT);
    // Opened by the guard in a pool that was empty when it was wrapped.
    let db = prepared(&lifecycle, Patient(Sqlite::wrap(database.pool()))).await;
    let held = db.get().await.unwrap();
    let running = begin(&held, endless).await;
    drop(running);
    drop(held);
    let report = drain(&lifecycle).await;
    assert_eq!((row(&report).sessions.closed, row(&report).sessions.cancelled), (1, 1), "{report}");
    assert_eq!(row(&report).outcome, Outcome::Drained, "{report}");
    assert_eq!(database.logs(), [""; 0]);
}

async fn a_wrapped_pool_that_is_not_in_wal_mode_is_left_in_its_mode() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = lifecycle.guard(Sqlite::wrap(database.pool()));
    run(&db.get().await.unwrap(), "CREATE TABLE t(x); INSERT INTO t VALUES (1)").await;
    let report = drain(&lifecycle).await;
    assert!(report.is_clean(), "{report}");
    let connection = rusqlite::Connection::open(&database.path).unwrap();
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "delete");
}

async fn a_connection_taken_from_the_pool_directly_is_waited_for() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
    idle(&db, 2).await;
    let raw = db.pool().await.unwrap().get().await.unwrap();
    let (report, ()) = tokio::join!(drain(&lifecycle), async {
        lifecycle.draining().await;
        run(&raw, "INSERT INTO t VALUES (2)").await;
        drop(raw);
    });
    assert!(report.is_clean(), "{report}");
    assert_eq!(row(&report).sessions.closed, 2, "{report}");
    assert!(report.took < QUICK, "{report}");
    assert_eq!(database.logs(), [""; 0]);
    assert_eq!(database.rows(), 2);
}

async fn a_connection_that_the_driver_drops_somewhere_is_interrupted_and_waited_for() {
    let database = Database::new();
    let lifecycle = lifecycle(PATIENT);
    let db = prepared(&lifecycle, Patient(Sqlite::open(&database.path))).await;
    let taken = deadpool_sqlite::Object::take(db.pool().await.unwrap().get().await.unwrap());
    idle(&db, 2).await;
    let (begun, running) = tokio::sync::oneshot::channel();
    tokio::select! {
        biased;
        _ = taken.interact(|connection| { begun.send(()).unwrap(); endless(connection) }) => panic!("it ended at once"),
        begun = running => begun.unwrap(),
    }
    // Nobody has it any more: the driver closes it on some thread when the statement is over.
    drop(taken);
    let report = drain(&lifecycle).await;
    assert_eq!(row(&report).outcome, Outcome::Drained, "{report}");
    assert_eq!(row(&report).sessions.closed, 3, "{report}");
    assert_eq!(database.logs(), [""; 0]);
}

async fn a_connection_that_only_the_wrapped_pool_knows_is_waited_for_and_counted_as_cut() {
    let database = Database::new();
    let lifecycle = lifecycle(PATIENT);
    let pool = database.pool();
    let raw = pool.get().await.unwrap();
    let db = prepared(&lifecycle, Patient(Sqlite::wrap(pool))).await;
    let report = drain(&lifecycle).await;
    assert_eq!((row(&report).sessions.closed, row(&report).sessions.cut), (1, 1), "{report}");
    assert_eq!(row(&report).outcome, Outcome::Incomplete, "{report}");
    drop((raw, db));
}

async fn a_log_that_somebody_else_keeps_open_is_not_our_failure() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let _db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
    let other = rusqlite::Connection::open(&database.path).unwrap();
    other.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
    let report = drain(&lifecycle).await;
    assert!(report.is_clean(), "{report}");
    assert!(report.took < QUICK, "{report}");
    assert_eq!(database.logs(), ["-wal", "-shm"]);
    other.close().unwrap();
    assert_eq!(database.logs(), [""; 0]);
}

async fn a_log_that_cannot_be_removed_is_an_error_that_names_it() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let _db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
    // SQLite has its own file open; what stands in its place now cannot be unlinked, also not by root.
    fs::remove_file(database.beside("-wal")).unwrap();
    fs::create_dir(database.beside("-wal")).unwrap();
    let report = drain(&lifecycle).await;
    let row = row(&report);
    assert_eq!(row.outcome, Outcome::Failed, "{report}");
    let error = row.error.as_deref().unwrap();
    assert!(error.contains("test.db-wal is left"), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

async fn a_path_that_cannot_be_used_is_one_line_that_says_what_to_do() {
    let directory = TempDir::new().unwrap();
    let garbage = directory.path().join("garbage.db");
    fs::write(&garbage, [7_u8; 4096]).unwrap();
    let cases: [(&Path, &str); 4] = [
        (&directory.path().join("missing/a.db"), "create it or give another path"),
        (directory.path(), "it is a directory, give the path of a file"),
        (&garbage, "not an SQLite database, give another path"),
        (Path::new(":memory:"), "give the path of a file on a local disk"),
    ];
    for (path, advice) in cases {
        let lifecycle = lifecycle(BUDGET);
        let _db = lifecycle.guard(Sqlite::open(path));
        let error = lifecycle.init().await.unwrap_err();
        let text = error.to_string();
        println!("{text}");
        assert!(text.starts_with(&format!("sqlite: cannot open {}: ", path.display())), "{text}");
        assert!(text.contains(advice), "{text}");
        assert!(!text.contains('\n'), "{text}");
        assert!(!error.is_retryable(), "{text}");
        assert!(error.source().is_some(), "the driver's error is kept");
        if path != Path::new(":memory:") {
            assert_eq!(error.kind(), ErrorKind::Config, "{text}");
        }
    }
}

async fn a_database_that_is_locked_while_it_is_opened_is_tried_again() {
    let database = Database::new();
    let other = rusqlite::Connection::open(&database.path).unwrap();
    other.execute_batch("CREATE TABLE t(x); BEGIN EXCLUSIVE").unwrap();
    let lifecycle = lifecycle(BUDGET);
    let mut config = Config::new(&database.path);
    config.busy_timeout = Duration::from_millis(1);
    let db = lifecycle.guard(Sqlite::new(config.clone()));
    let pool = db.resource();
    let error = pool.init().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(error.kind(), ErrorKind::Init);
    other.execute_batch("COMMIT").unwrap();
    lifecycle.init().await.unwrap();
    assert!(drain(&lifecycle).await.is_clean());
}

async fn two_hundred_of_two_hundred_drains_under_writers_leave_no_log_and_lose_nothing() {
    for wrapped in [false, true] {
        let written_at_all = AtomicI64::new(0);
        for round in 0..100 {
            let database = Database::new();
            let lifecycle = lifecycle(BUDGET);
            let sqlite = if wrapped {
                Sqlite::wrap(database.pool())
            } else {
                let mut config = Config::new(&database.path);
                config.pool_size = Some(4);
                Sqlite::new(config)
            };
            let db = prepared(&lifecycle, sqlite).await;
            // More writers than connections: some wait in line, some are inside the driver when draining begins.
            let (first, mut begun) = tokio::sync::mpsc::channel(1);
            let writers: Vec<_> = (0..6)
                .map(|_| {
                    let (db, first) = (db.clone(), first.clone());
                    tokio::spawn(async move {
                        let mut written = 0_i64;
                        loop {
                            let connection = match db.get().await {
                                Ok(connection) => connection,
                                Err(error) if error.is_shutting_down() => return written,
                                Err(error) => panic!("{error}"),
                            };
                            let insert = |c: &mut rusqlite::Connection| {
                                // Writers may starve each other for longer than the 5 s that both pools give them.
                                c.busy_timeout(BUDGET)?;
                                c.execute("INSERT INTO t VALUES (2)", [])
                            };
                            let rows =
                                connection.interact(insert).await.unwrap().unwrap_or_else(|error| panic!("{error}"));
                            written += rows as i64;
                            let _ = first.try_send(());
                        }
                    })
                })
                .collect();
            for _ in 0..=round % 5 {
                begun.recv().await.unwrap();
            }
            let report = drain(&lifecycle).await;
            let logs = database.logs();
            assert!(report.is_clean(), "round {round}: {report}");
            assert_eq!(logs, [""; 0], "round {round}: {report}");
            let mut written = 1;
            for writer in writers {
                written += writer.await.unwrap();
            }
            assert_eq!(database.rows(), written, "round {round}: {report}");
            written_at_all.fetch_add(written, Ordering::Relaxed);
        }
        println!("wrapped {wrapped}: {} rows", written_at_all.into_inner());
    }
}

async fn what_was_written_is_there_for_the_next_life_of_the_process() {
    let database = Database::new();
    for life in 1..=3_i64 {
        let lifecycle = lifecycle(BUDGET);
        let db = lifecycle.guard(Sqlite::open(&database.path));
        let rows = move |c: &mut rusqlite::Connection| -> rusqlite::Result<i64> {
            c.execute_batch("CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (1)")?;
            Ok(c.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).optional()?.unwrap_or(0))
        };
        assert_eq!(db.get().await.unwrap().interact(rows).await.unwrap().unwrap(), life);
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!(database.logs(), [""; 0]);
    }
}

#[cfg(feature = "buffer")]
mod sink {
    use std::time::SystemTime;

    use tokio::time::timeout;
    use winddown_buffer::{Batch, BatchKey, BatchWriter, Delivery, Push as _, Sink, WriteError};
    use winddown_sqlite::Insert;

    use super::*;

    fn insert() -> Insert {
        Insert::into("t", ["x"])
    }

    fn batch<const N: usize>(records: [i64; N]) -> Batch<(i64,)> {
        Batch::from(records.map(|record| (record,)).to_vec())
    }

    async fn write<const N: usize>(db: &ShutdownGuard<Sqlite>, records: [i64; N]) -> Result<(), WriteError> {
        insert().write(&mut db.get().await?, &batch(records)).await
    }

    /// What a reader sees that comes later.
    fn count(database: &Database, what: &str) -> i64 {
        let connection = rusqlite::Connection::open(&database.path).unwrap();
        connection.query_row(&format!("SELECT count(*) FROM {what}"), [], |row| row.get(0)).unwrap()
    }

    pub(super) async fn a_batch_is_written_whole_or_not_at_all() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
        run(&db.get().await.unwrap(), "CREATE UNIQUE INDEX i ON t(x)").await;
        write(&db, [2, 3]).await.unwrap();
        let error = write(&db, [4, 5, 2, 6]).await.unwrap_err();
        assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
        assert_eq!(error.error().kind(), ErrorKind::Write, "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
        write(&db, [4]).await.unwrap();
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!(database.rows(), 1 + 2 + 1);
        assert_eq!(count(&database, "winddown_batch"), 2);
    }

    pub(super) async fn a_batch_that_comes_again_is_written_once() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
        let batch = batch([2, 3]);
        for _ in 0..2 {
            insert().write(&mut db.get().await.unwrap(), &batch).await.unwrap();
        }
        assert_eq!(database.rows(), 1 + 2);
        // By several at the same time, and by another sink.
        let batch = self::batch([4, 5]);
        let writers = (0..4).map(|_| {
            let (db, batch) = (db.clone(), batch.clone());
            tokio::spawn(async move { insert().write(&mut db.get().await.unwrap(), &batch).await })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap().unwrap();
        }
        assert_eq!(database.rows(), 1 + 2 + 2);
        // Who wants it more often gets it.
        let twice = insert().delivery(Delivery::AtLeastOnce);
        assert_eq!(Sink::<(i64,)>::delivery(&twice), Delivery::AtLeastOnce);
        for _ in 0..2 {
            twice.write(&mut db.get().await.unwrap(), &batch).await.unwrap();
        }
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!(database.rows(), 1 + 2 + 2 + 4);
        assert_eq!(count(&database, "winddown_batch"), 2);
    }

    /// What SQLite has no type for.
    #[derive(Clone)]
    struct Unfit;

    impl rusqlite::ToSql for Unfit {
        fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
            Err(rusqlite::Error::ToSqlConversionFailure("no type for it".into()))
        }
    }

    pub(super) async fn what_is_wrong_with_a_record_is_told_from_what_is_wrong_with_the_table() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
        let tables = "CREATE TABLE parents(id INTEGER PRIMARY KEY);
            CREATE TABLE strict(a INTEGER CHECK (a < 10), b TEXT NOT NULL,
                c INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED) STRICT;
            CREATE TRIGGER guarded BEFORE INSERT ON strict WHEN new.a = 7 BEGIN SELECT raise(ABORT, 'seven'); END;
            CREATE TABLE loose(key); CREATE TABLE picky(key PRIMARY KEY, why NOT NULL);
            CREATE VIEW v AS SELECT * FROM t; PRAGMA foreign_keys = on";
        let mut connection = db.get().await.unwrap();
        run(&connection, tables).await;
        let strict = Insert::into("strict", ["a", "b", "c"]);
        let good = (rusqlite::types::Value::Integer(1), Some("b"), None);
        let (text, null) = (rusqlite::types::Value::Text("x".into()), None);
        let bad = [
            (text, good.1, good.2),
            (10.into(), good.1, good.2),
            (good.0.clone(), null, good.2),
            (7.into(), good.1, good.2),
            // The commit says so.
            (good.0.clone(), good.1, Some(1)),
        ];
        for record in bad {
            let error = strict.write(&mut connection, &vec![good.clone(), record].into()).await.unwrap_err();
            assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
        }
        for insert in [
            Insert::into("missing", ["x"]),
            Insert::into("t", ["missing"]),
            Insert::into("v", ["x"]),
            Insert::into("t", ["x"; 2]),
            Insert::into("t", [""; 0]),
            Insert::into("t\0", ["x"]),
            insert().schema("missing"),
            insert().key_table("v"),
            // Where a key could be there twice, or not at all.
            insert().key_table("loose"),
            insert().key_table("picky"),
        ] {
            let error = insert.write(&mut connection, &batch([2])).await.unwrap_err();
            assert!(matches!(error, WriteError::Failed(_)), "{error:?}");
        }
        let unfit = vec![(Unfit,)].into();
        let error = insert().write(&mut connection, &unfit).await.unwrap_err();
        assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
        strict.write(&mut connection, &vec![good].into()).await.unwrap();
        drop(connection);
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!((database.rows(), count(&database, "strict")), (1, 1));
    }

    pub(super) async fn a_batch_that_finds_the_database_locked_can_be_written_again() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let mut config = Config::new(&database.path);
        config.busy_timeout = Duration::from_millis(1);
        let db = prepared(&lifecycle, Sqlite::new(config)).await;
        let other = rusqlite::Connection::open(&database.path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let error = write(&db, [2]).await.unwrap_err();
        assert!(matches!(error, WriteError::Retry(_)), "{error:?}");
        other.execute_batch("COMMIT").unwrap();
        other.close().unwrap();
        write(&db, [2]).await.unwrap();
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!(database.rows(), 2);
    }

    pub(super) async fn a_batch_for_which_there_is_no_room_can_be_written_again() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let mut config = Config::new(&database.path);
        config.pool_size = Some(1);
        let db = prepared(&lifecycle, Sqlite::new(config)).await;
        run(&db.get().await.unwrap(), "PRAGMA max_page_count = 3").await;
        let large: Batch<_> = (0..10_000).map(|record| (record,)).collect::<Vec<_>>().into();
        let error = insert().write(&mut db.get().await.unwrap(), &large).await.unwrap_err();
        assert!(matches!(error, WriteError::Retry(_)), "{error:?}");
        run(&db.get().await.unwrap(), "PRAGMA max_page_count = 1000000").await;
        insert().write(&mut db.get().await.unwrap(), &large).await.unwrap();
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!(database.rows(), 1 + 10_000);
    }

    pub(super) async fn a_record_that_panics_costs_the_batch_and_nothing_else() {
        #[derive(Clone)]
        struct Panics;
        impl rusqlite::ToSql for Panics {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                panic!("a bug of the application")
            }
        }
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
        let error = insert().write(&mut db.get().await.unwrap(), &vec![(Panics,)].into()).await.unwrap_err();
        assert!(matches!(error, WriteError::Failed(_)), "{error:?}");
        write(&db, [2]).await.unwrap();
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!(database.rows(), 2);
    }

    pub(super) async fn an_error_that_a_function_makes_of_a_record_is_the_records() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
        run(&db.get().await.unwrap(), "CREATE TABLE documents(body CHECK (json(body) <> '[]'))").await;
        let documents = Insert::into("documents", ["body"]);
        let mut connection = db.get().await.unwrap();
        let error = documents.write(&mut connection, &vec![("{}",), ("{",)].into()).await.unwrap_err();
        assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
        documents.write(&mut connection, &vec![("{}",)].into()).await.unwrap();
        drop(connection);
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!(count(&database, "documents"), 1);
    }

    pub(super) async fn a_write_that_is_given_up_is_interrupted_and_its_batch_written_once() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let mut config = Config::new(&database.path);
        config.busy_timeout = Duration::from_millis(10);
        config.pool_size = Some(2);
        let db = prepared(&lifecycle, Sqlite::new(config)).await;
        let endless = "CREATE TABLE many(n);
            WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 1000) INSERT INTO many SELECT n FROM s;
            CREATE TRIGGER endless BEFORE INSERT ON t WHEN new.x = 7
                BEGIN SELECT count(*) FROM many a, many b, many c, many d, many e; END";
        run(&db.get().await.unwrap(), endless).await;

        let batch = batch([5, 7, 8]);
        let mut checkout = db.get().await.unwrap();
        let written = timeout(Duration::from_secs(1), insert().write(&mut checkout, &batch)).await;
        assert!(written.is_err(), "{written:?}");
        let abandoned = timeout(Duration::from_secs(20), Sink::<(i64,)>::abandon(&insert(), checkout)).await;
        abandoned.expect("it has a limit");
        // For which the lock is needed that it had.
        run(&db.get().await.unwrap(), "DROP TRIGGER endless").await;
        insert().write(&mut db.get().await.unwrap(), &batch).await.unwrap();
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!((database.rows(), count(&database, "winddown_batch")), (1 + 3, 1));
    }

    /// Says when it is being sent, and waits.
    #[derive(Clone)]
    struct Waits(Arc<(tokio::sync::Notify, std::sync::Barrier)>);

    impl rusqlite::ToSql for Waits {
        fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
            self.0.0.notify_one();
            self.0.1.wait();
            Ok(2.into())
        }
    }

    pub(super) async fn a_write_that_is_given_up_between_two_records_is_rolled_back() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
        let gate = Arc::new((tokio::sync::Notify::new(), std::sync::Barrier::new(2)));
        let batch: Batch<(Waits,)> = vec![(Waits(Arc::clone(&gate)),)].into();
        let mut checkout = db.get().await.unwrap();
        let insert = insert();
        tokio::select! {
            biased;
            written = insert.write(&mut checkout, &batch) => panic!("it has written: {written:?}"),
            () = gate.0.notified() => {}
        }
        // Nothing is there to be interrupted, and nothing is in its way.
        gate.1.wait();
        timeout(Duration::from_secs(20), Sink::<(i64,)>::abandon(&insert, checkout)).await.expect("it has a limit");
        write(&db, [3]).await.unwrap();
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!((database.rows(), count(&database, "winddown_batch")), (1 + 1, 1));
    }

    pub(super) async fn what_is_wrong_with_the_table_is_said_before_a_record_is_lost() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
        let mut connection = db.get().await.unwrap();
        run(&connection, "CREATE TABLE loose(key); CREATE VIEW v AS SELECT * FROM t").await;
        for insert in [insert(), insert().schema("main"), insert().or_ignore(), insert().key_table("keys")] {
            Sink::<(i64,)>::check(&insert, &mut connection).await.unwrap();
        }
        assert_eq!(count(&database, "sqlite_schema WHERE name LIKE 'winddown%'"), 0, "nothing is changed");
        insert().write(&mut connection, &batch([2])).await.unwrap();
        Sink::<(i64,)>::check(&insert(), &mut connection).await.unwrap();
        for (insert, words) in [
            (Insert::into("missing", ["x"]), ["missing", "no such table"]),
            (Insert::into("t", ["wrong"]), ["t cannot be written to", "no column named wrong"]),
            (Insert::into("v", ["x"]), ["v cannot be written to", "view"]),
            (insert().schema("nowhere"), ["nowhere.t", "nowhere"]),
            (insert().key_table("v"), ["v cannot be written to", "`CREATE TABLE"]),
            (insert().key_table("loose"), ["loose cannot be written to", "`CREATE TABLE"]),
        ] {
            let error = Sink::<(i64,)>::check(&insert, &mut connection).await.unwrap_err();
            assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Config, false), "{error}");
            let text = error.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{words:?} in: {text}");
        }
        run(&connection, "PRAGMA query_only = on").await;
        let error = Sink::<(i64,)>::check(&insert(), &mut connection).await.unwrap_err();
        assert!(error.to_string().contains("read-only"), "{error}");
        run(&connection, "PRAGMA query_only = off").await;
        drop(connection);
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!(database.rows(), 2);
    }

    pub(super) async fn the_sink_says_where_records_go() {
        assert_eq!(Sink::<(i64,)>::target(&insert()), Some("t"));
        assert_eq!(Sink::<(i64,)>::target(&insert().schema("main")), Some("main.t"));
    }

    pub(super) async fn names_are_taken_as_they_are() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
        run(&db.get().await.unwrap(), r#"CREATE TABLE "My ""x""; --"("select" UNIQUE, "a'b" DEFAULT 5)"#).await;
        let table = r#"My "x"; --"#;
        let insert = Insert::into(table, ["select"]).schema("main").key_table(r#"The "keys""#).or_ignore();
        let mut connection = db.get().await.unwrap();
        insert.write(&mut connection, &batch([1, 2, 1])).await.unwrap();
        insert.write(&mut connection, &batch([2, 3])).await.unwrap();
        drop(connection);
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!(count(&database, r#""My ""x""; --" WHERE "a'b" = 5"#), 3);
        assert_eq!(count(&database, r#""The ""keys""" WHERE written_at > '2000'"#), 2);
    }

    pub(super) async fn keys_are_forgotten_when_they_are_old() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
        write(&db, [2]).await.unwrap();
        let aged = |seconds| {
            let first = BatchKey::first_at(SystemTime::now() - Duration::from_secs(seconds));
            *first.as_bytes()
        };
        let connection = rusqlite::Connection::open(&database.path).unwrap();
        for seconds in [3700, 3500] {
            connection.execute("INSERT INTO winddown_batch(key) VALUES (?1)", [aged(seconds)]).unwrap();
        }
        // The default is longer than that.
        write(&db, [3]).await.unwrap();
        assert_eq!(count(&database, "winddown_batch"), 4);
        let insert = insert().remember(Duration::from_secs(3600));
        insert.write(&mut db.get().await.unwrap(), &batch([4])).await.unwrap();
        assert_eq!(count(&database, "winddown_batch"), 4);
        // Not with each batch.
        connection.execute("INSERT INTO winddown_batch(key) VALUES (?1)", [aged(3700)]).unwrap();
        insert.write(&mut db.get().await.unwrap(), &batch([5])).await.unwrap();
        assert_eq!(count(&database, "winddown_batch"), 6);
        // What cannot be deleted costs nothing.
        connection
            .execute_batch("CREATE TRIGGER kept BEFORE DELETE ON winddown_batch BEGIN SELECT raise(ABORT, 'kept'); END")
            .unwrap();
        let insert = self::insert().remember(Duration::ZERO);
        insert.write(&mut db.get().await.unwrap(), &batch([6])).await.unwrap();
        drop(connection);
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!((count(&database, "winddown_batch"), database.rows()), (7, 6));
    }

    pub(super) async fn a_transaction_that_was_left_open_does_not_swallow_a_batch() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let mut config = Config::new(&database.path);
        config.pool_size = Some(1);
        let db = prepared(&lifecycle, Sqlite::new(config)).await;
        run(&db.get().await.unwrap(), "BEGIN; INSERT INTO t VALUES (7)").await;
        write(&db, [2]).await.unwrap();
        assert!(drain(&lifecycle).await.is_clean());
        assert_eq!(database.rows(), 2);
    }

    pub(super) async fn everything_a_buffer_has_accepted_is_in_the_file_after_the_drain() {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let db = prepared(&lifecycle, Sqlite::open(&database.path)).await;
        let buffer = lifecycle.guard(BatchWriter::new(&db, insert()).max_age(Duration::from_secs(60)));
        for record in 0..500_i64 {
            buffer.push((record,)).await.unwrap();
        }
        let report = drain(&lifecycle).await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.resources.iter().find_map(|row| row.records).unwrap().written, 500, "{report}");
        assert_eq!(database.rows(), 1 + 500);
        assert_eq!(database.logs(), [""; 0]);
    }
}
