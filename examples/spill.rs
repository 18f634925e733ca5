//! Records that cannot be written in time, and how they come back: a database that is locked when the process has to end,
//! a spill file, and its replay.
//!
//! ```text
//! cargo run --example spill --features sqlite,buffer
//! ```

use std::{path::Path, sync::Arc, time::Duration};

use winddown::{
    Lifecycle, Report,
    buffer::{BatchWriter, Push, Replay, Spill},
    sqlite::{Config, Insert, Sqlite, rusqlite},
};

const RECORDS: i64 = 1_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (database, spills) = (directory.path().join("audit.db"), directory.path().join("spills"));
    rusqlite::Connection::open(&database)?.execute_batch("CREATE TABLE audit(id INTEGER, what TEXT)")?;

    println!("{}", life(&database, &spills).await?);

    // The next process, or somebody with a shell: whatever a spill file has is written, once, however often it is tried.
    let lifecycle = Lifecycle::builder().signals(false).build()?;
    let db = lifecycle.guard(Sqlite::new(Config::new(&database)));
    let replayed = Replay::<(i64, String), _>::new(&db, sink(), "audit").run(&spills).await?;
    println!("replayed {} records from {} file", replayed.written, replayed.files);
    lifecycle.drain().await;

    let database = rusqlite::Connection::open(&database)?;
    let rows: i64 = database.query_row("SELECT count(DISTINCT id) FROM audit", [], |row| row.get(0))?;
    anyhow::ensure!(rows == RECORDS, "{rows} rows of {RECORDS}");
    println!("{rows} of {RECORDS} records are in the database");
    Ok(())
}

/// A process that pushes records, is told to end within five seconds, and cannot write one of them.
async fn life(database: &Path, spills: &Path) -> anyhow::Result<Arc<Report>> {
    let lifecycle = Lifecycle::builder().signals(false).budget(Duration::from_secs(5)).build()?;
    let db = lifecycle.guard(Sqlite::new(Config::new(database)));
    let audit = lifecycle.guard(BatchWriter::new(&db, sink()).name("audit").spill(Spill::directory(spills)));
    lifecycle.init().await?;
    // Somebody else writes, and does not come to an end before this process does.
    let other = rusqlite::Connection::open(database)?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    for id in 0..RECORDS {
        audit.push((id, format!("did {id}"))).await?;
    }
    let report = lifecycle.drain().await;
    other.execute_batch("ROLLBACK")?;
    Ok(report)
}

fn sink() -> Insert {
    Insert::into("audit", ["id", "what"])
}
