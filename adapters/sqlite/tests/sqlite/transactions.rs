//! A transaction ends with its checkout (S8), whoever left it open and however.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Barrier},
    task::Context,
    thread,
    time::Duration,
};

use winddown_core::{Checkouts, ShutdownGuard};
use winddown_sqlite::{Config, Connection, Sqlite, deadpool_sqlite, rusqlite};

use crate::{BUDGET, Database, begin, drain, lifecycle, prepared, row, run};

fn pool_of(database: &Database, size: usize) -> Sqlite {
    let mut config = Config::new(&database.path);
    config.pool_size = Some(size);
    Sqlite::new(config)
}

/// What another process sees, which waits for a lock as long as any test lasts.
fn other(database: &Database) -> rusqlite::Connection {
    let other = rusqlite::Connection::open(&database.path).unwrap();
    other.busy_timeout(Duration::from_secs(20)).unwrap();
    other
}

/// The lock of the writer is free, without anybody's asking for another connection.
async fn is_not_locked(database: &Database) {
    let other = other(database);
    let wrote = tokio::task::spawn_blocking(move || {
        other.execute_batch("INSERT INTO t VALUES (100)")?;
        other.close().map_err(|(_, error)| error)
    });
    wrote.await.unwrap().expect("nobody has the lock");
}

async fn is_in_a_transaction(connection: &Connection) -> bool {
    !connection.interact(|connection| connection.is_autocommit()).await.unwrap()
}

async fn the_next_one_writes_for_good<R>(db: &ShutdownGuard<R>)
where
    R: Checkouts<Checkout = Connection>,
{
    let connection = db.get().await.unwrap();
    assert!(!is_in_a_transaction(&connection).await);
    run(&connection, "INSERT INTO t VALUES (2)").await;
}

/// All but the first row and what others have written since.
fn values(database: &Database) -> Vec<i64> {
    let connection = rusqlite::Connection::open(&database.path).unwrap();
    let mut values = connection.prepare("SELECT x FROM t WHERE x > 1 ORDER BY x").unwrap();
    values.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

pub(super) async fn s8_the_next_caller_finds_no_transaction_and_its_rows_stay() {
    for left in ["BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT half"] {
        let database = Database::new();
        let lifecycle = lifecycle(BUDGET);
        let db = prepared(&lifecycle, pool_of(&database, 1)).await;
        let connection = db.get().await.unwrap();
        connection.interact(|connection| connection.execute_batch(left)).await.unwrap().unwrap();
        run(&connection, "INSERT INTO t VALUES (7)").await;
        drop(connection);
        the_next_one_writes_for_good(&db).await;
        let report = drain(&lifecycle).await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(row(&report).sessions.closed, 1, "{report}");
        assert_eq!(values(&database), [2], "{left}");
        assert_eq!(database.logs(), [""; 0]);
    }
}

pub(super) async fn s8_a_write_lock_that_was_left_is_let_go_when_its_checkout_comes_back() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = prepared(&lifecycle, pool_of(&database, 4)).await;
    run(&db.get().await.unwrap(), "BEGIN IMMEDIATE; INSERT INTO t VALUES (7)").await;
    is_not_locked(&database).await;
    // On a thread without a runtime.
    let connection = db.get().await.unwrap();
    run(&connection, "BEGIN IMMEDIATE; INSERT INTO t VALUES (7)").await;
    thread::spawn(move || drop(connection)).join().unwrap();
    is_not_locked(&database).await;
    let report = drain(&lifecycle).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(values(&database), [100, 100]);
}

pub(super) async fn s8_what_a_closure_leaves_that_nobody_waits_for_is_rolled_back() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = prepared(&lifecycle, pool_of(&database, 1)).await;
    let connection = db.get().await.unwrap();
    let gate = Arc::new(Barrier::new(2));
    let held = Arc::clone(&gate);
    let transfer = begin(&connection, move |connection| {
        held.wait();
        connection.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (7)").unwrap();
    });
    drop(transfer.await);
    drop(connection);
    gate.wait();
    the_next_one_writes_for_good(&db).await;
    is_not_locked(&database).await;
    let report = drain(&lifecycle).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(row(&report).sessions.closed, 1, "the pool keeps its connection: {report}");
    assert_eq!(values(&database), [2, 100]);
}

/// Its thread is busy, so it has not begun when its checkout is back.
pub(super) async fn s8_a_closure_that_begins_when_its_checkout_is_back_leaves_nothing_either() {
    let threads = |how_many| {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(1).max_blocking_threads(how_many).enable_all().build().unwrap()
    };
    let database = Database::new();
    let path = database.path.clone();
    let scene = move || {
        let runtime = threads(1);
        let drained = runtime.block_on(async {
            let lifecycle = lifecycle(BUDGET);
            let mut config = Config::new(&path);
            config.pool_size = Some(1);
            let db = prepared(&lifecycle, Sqlite::new(config)).await;
            let connection = db.get().await.unwrap();
            let gate = Arc::new(Barrier::new(2));
            let held = Arc::clone(&gate);
            let busy = tokio::task::spawn_blocking(move || held.wait());
            {
                let transfer = pin!(connection.interact(|connection| {
                    connection.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (7)").unwrap();
                }));
                let mut context = Context::from_waker(std::task::Waker::noop());
                assert!(transfer.poll(&mut context).is_pending());
            }
            drop(connection);
            gate.wait();
            busy.await.unwrap();
            the_next_one_writes_for_good(&db).await;
            drain(&lifecycle).await
        });
        runtime.shutdown_timeout(Duration::from_secs(20));
        drained
    };
    let report = tokio::task::spawn_blocking(scene).await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(values(&database), [2]);
}

pub(super) async fn s8_a_closure_that_panicked_in_a_transaction_locks_nobody_out() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = prepared(&lifecycle, pool_of(&database, 1)).await;
    let connection = db.get().await.unwrap();
    let panicked = connection.interact(|connection| {
        connection.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (7)").unwrap();
        std::panic::resume_unwind(Box::new(()))
    });
    let panicked: Result<(), _> = panicked.await;
    assert!(panicked.is_err());
    drop(connection);
    is_not_locked(&database).await;
    the_next_one_writes_for_good(&db).await;
    assert!(drain(&lifecycle).await.is_clean());
    assert_eq!(values(&database), [2, 100]);
}

pub(super) async fn s8_what_was_taken_from_the_pool_directly_leaves_nothing_to_the_next_caller() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = prepared(&lifecycle, pool_of(&database, 1)).await;
    let pool = db.pool().await.unwrap().clone();
    run(&pool.get().await.unwrap(), "BEGIN; INSERT INTO t VALUES (7)").await;
    the_next_one_writes_for_good(&db).await;
    run(&pool.get().await.unwrap(), "BEGIN; INSERT INTO t VALUES (7)").await;
    run(&pool.get().await.unwrap(), "INSERT INTO t VALUES (3)").await;
    // A closure that nobody waits for, of which the guard does not know.
    let taken = db.get().await.unwrap();
    let gate = Arc::new(Barrier::new(2));
    let (held, (begun, running)) = (Arc::clone(&gate), tokio::sync::oneshot::channel());
    {
        let object: &deadpool_sqlite::Object = &taken;
        let mut transfer = pin!(object.interact(move |connection| {
            begun.send(()).unwrap();
            held.wait();
            connection.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (7)").unwrap();
        }));
        tokio::select! {
            biased;
            ended = &mut transfer => panic!("it ended at once: {ended:?}"),
            begun = running => begun.unwrap(),
        }
    }
    drop(taken);
    gate.wait();
    is_not_locked(&database).await;
    the_next_one_writes_for_good(&db).await;
    assert!(drain(&lifecycle).await.is_clean());
    assert_eq!(values(&database), [2, 2, 3, 100]);
}

pub(super) async fn s8_a_wrapped_pool_hands_out_no_transaction_through_its_guard() {
    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let pool = database.pool();
    let db = prepared(&lifecycle, Sqlite::wrap(pool.clone())).await;
    run(&db.get().await.unwrap(), "BEGIN IMMEDIATE; INSERT INTO t VALUES (7)").await;
    is_not_locked(&database).await;
    run(&pool.get().await.unwrap(), "BEGIN; INSERT INTO t VALUES (7)").await;
    the_next_one_writes_for_good(&db).await;
    // Its own callers get what they left, but the drain commits none of it.
    run(&pool.get().await.unwrap(), "BEGIN; INSERT INTO t VALUES (7)").await;
    let report = drain(&lifecycle).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(values(&database), [2, 100]);
    assert_eq!(database.logs(), [""; 0]);
}

#[cfg(feature = "buffer")]
pub(super) async fn s8_a_buffer_commits_nothing_of_what_others_have_left() {
    use winddown_buffer::{Batch, BatchWriter, Delivery, Push, WriteError, WriteWith};
    use winddown_core::{Checkout, Error, ErrorKind};

    let database = Database::new();
    let lifecycle = lifecycle(BUDGET);
    let db = prepared(&lifecycle, pool_of(&database, 1)).await;
    // Commits whatever is open, as a sink may that knows nothing of its connection.
    let sink = WriteWith::new(Delivery::AtLeastOnce, |connection: &mut Checkout<Sqlite>, batch: &Batch<i64>| {
        let values = batch.to_vec();
        Box::pin(async move {
            let written = connection.interact(move |connection| {
                if connection.is_autocommit() {
                    connection.execute_batch("BEGIN")?;
                }
                values.iter().try_for_each(|x| connection.execute("INSERT INTO t VALUES (?1)", [x]).map(drop))?;
                connection.execute_batch("COMMIT")
            });
            let failed = |error| WriteError::Failed(Error::new(ErrorKind::Write, "not written").with_source(error));
            written.await.unwrap().map_err(failed)
        })
    });
    let buffer = lifecycle.guard(BatchWriter::new(&db, sink));
    run(&db.get().await.unwrap(), "BEGIN; INSERT INTO t VALUES (7)").await;
    buffer.push(2).await.unwrap();
    let report = drain(&lifecycle).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(values(&database), [2]);
}
