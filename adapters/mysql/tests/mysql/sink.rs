//! `Insert`: one transaction for each batch.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use winddown_buffer::{Batch, BatchWriter, Push as _, Sink as _};
use winddown_core::{Error, ErrorKind, Lifecycle, ShutdownGuard};
use winddown_mysql::{Insert, Mysql, mysql_async::prelude::Queryable as _};
use winddown_testkit::Harness as _;

use crate::{
    scene::{assert_nothing_left, code, config, lifecycle, mysql},
    server::{MySql, Tenancy},
};

const STATEMENT: &str = "INSERT INTO audit(id, what) VALUES (?, ?)";

type Record = (i64, String);

async fn start() -> (Tenancy<MySql>, Lifecycle, ShutdownGuard<Mysql>) {
    let server = mysql().await;
    let lifecycle = lifecycle(Duration::from_secs(30));
    let db = lifecycle.guard_as("db", Mysql::new(config(&server)));
    let create = "CREATE TABLE audit(at BIGINT AUTO_INCREMENT PRIMARY KEY, id BIGINT UNIQUE, what TEXT)";
    db.get().await.unwrap().query_drop(create).await.unwrap();
    (server, lifecycle, db)
}

fn record(id: i64) -> Record {
    (id, format!("did {id}"))
}

async fn write(db: &ShutdownGuard<Mysql>, ids: &[i64]) -> Result<(), Error> {
    let batch = Batch::from(ids.iter().copied().map(record).collect::<Vec<_>>());
    Ok(Insert::new(STATEMENT).write(&mut db.get().await?, &batch).await?)
}

/// What another session sees, in the order in which it was written.
async fn audit(server: &Tenancy<MySql>) -> Vec<Record> {
    let mut superuser = server.server.superuser().await.unwrap();
    superuser.query(format!("SELECT id, what FROM {}.audit ORDER BY at", server.tenant.name)).await.unwrap()
}

pub(crate) async fn a_batch_is_written_whole_or_not_at_all() {
    let (server, lifecycle, db) = start().await;
    write(&db, &[1, 2, 3]).await.unwrap();
    let error = write(&db, &[4, 5, 2, 6]).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Write, false), "{error}");
    assert_eq!(code(&error), Some(1062), "{error}");
    // The connection is as good as before.
    write(&db, &[7]).await.unwrap();
    assert_eq!(audit(&server).await, [1, 2, 3, 7].map(record));
    assert!(lifecycle.drain().await.is_clean());
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_batch_that_the_table_refuses_loses_its_own_records_alone_and_says_so() {
    let (server, lifecycle, db) = start().await;
    let lost = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&lost);
    let writer = BatchWriter::new(&db, Insert::new(STATEMENT))
        .batch_size(4)
        .max_age(Duration::MAX)
        .on_lost(move |records: &[Record], _| told.lock().unwrap().extend_from_slice(records));
    let buffer = lifecycle.guard(writer);
    for id in [1, 2, 3, 4, 5, 6, 2, 7, 8, 9, 10] {
        buffer.push(record(id)).await.unwrap();
    }
    let report = lifecycle.drain().await;
    let records = report.resource("db-buffer").unwrap().records.unwrap();
    assert_eq!((records.accepted, records.written, records.lost, records.in_doubt), (11, 7, 4, 0), "{report}");
    assert!(!report.is_clean(), "{report}");
    assert_eq!(*lost.lock().unwrap(), [5, 6, 2, 7].map(record));
    assert_eq!(audit(&server).await, [1, 2, 3, 4, 8, 9, 10].map(record));
    server.end().await.unwrap();
}

pub(crate) async fn everything_that_was_accepted_is_in_the_table_after_the_drain() {
    let (server, lifecycle, db) = start().await;
    let buffer = lifecycle.guard(BatchWriter::new(&db, Insert::new(STATEMENT)).max_age(Duration::from_secs(60)));
    for id in 0..1234 {
        buffer.push(record(id)).await.unwrap();
    }
    let report = lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    let records = report.resource("db-buffer").unwrap().records.unwrap();
    assert_eq!((records.accepted, records.written), (1234, 1234), "{report}");
    assert_eq!(audit(&server).await, (0..1234).map(record).collect::<Vec<_>>());
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}
