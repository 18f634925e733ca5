//! A log that there is no time for, and a database that is only read.

use std::{fs, time::Duration};

use deadpool_sqlite::Runtime;
use winddown_core::Outcome;
use winddown_sqlite::{Config, Sqlite, deadpool_sqlite, rusqlite};

use crate::{BUDGET, Database, drain, lifecycle, prepared, row, run};

/// Rows of 4 kB that are in the log and nowhere else.
const ROWS: i64 = 20_000;

pub(super) async fn a_log_that_is_too_large_for_the_budget_stays_and_the_report_names_it() {
    let database = Database::new();
    let lifecycle = lifecycle(Duration::from_millis(60));
    let mut config = Config::new(&database.path);
    config.pool_size = Some(2);
    config.pragmas = vec![("wal_autocheckpoint".into(), "0".into()), ("synchronous".into(), "normal".into())];
    let db = prepared(&lifecycle, Sqlite::new(config)).await;
    let fill = "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i <= 20000)
        INSERT INTO t SELECT zeroblob(4000) FROM n";
    run(&db.get().await.unwrap(), fill).await;
    let report = drain(&lifecycle).await;
    let log = database.beside("-wal");
    let stays = fs::metadata(&log).map(|file| file.len()).unwrap_or_default();
    let named = row(&report).reasons.iter().find(|reason| reason.contains("stays"));
    // It stays on most machines. Whatever a machine does, what is there is named, and nothing is lost; one that is too slow
    // for the cut is left at the deadline, and a connection that is cut ends with the process: that is named instead.
    if row(&report).outcome != Outcome::Hung && row(&report).sessions.cut == 0 {
        assert_eq!(stays > 0, named.is_some(), "{stays}: {report}");
    }
    if let Some(named) = named {
        assert!(named.contains(&log.display().to_string()), "{report}");
        if row(&report).outcome == Outcome::Drained {
            assert!(named.contains(&stays.to_string()), "{stays}: {report}");
        }
    }
    let rows = tokio::task::spawn_blocking(move || database.rows());
    assert_eq!(rows.await.unwrap(), 1 + ROWS);
}

pub(super) async fn a_database_that_is_only_read_is_wrapped_and_drained() {
    let database = Database::new();
    let made = rusqlite::Connection::open(&database.path).unwrap();
    made.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
    made.close().unwrap();
    let path = format!("file:{}?immutable=1", database.path.display());
    let pool = deadpool_sqlite::Config::new(path).builder(Runtime::Tokio1).unwrap().max_size(2).build().unwrap();
    let lifecycle = lifecycle(BUDGET);
    let db = lifecycle.guard(Sqlite::wrap(pool));
    lifecycle.init().await.unwrap();
    let count = |connection: &mut rusqlite::Connection| {
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
    };
    assert_eq!(db.get().await.unwrap().interact(count).await.unwrap().unwrap(), 1);
    assert_eq!(database.logs(), [""; 0], "nothing is written beside it");
    let report = drain(&lifecycle).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(row(&report).sessions.closed, 1, "{report}");
}
