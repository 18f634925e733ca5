//! SQLite of both, in one program: cargo allows one `libsqlite3-sys`, so there has to be a version that both accept.

use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use winddown::{Lifecycle, sqlite::Sqlite};

#[tokio::test(flavor = "multi_thread")]
async fn one_file_is_read_and_written_by_both_and_the_log_is_gone_after_the_drain() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.db");
    let log = directory.path().join("app.db-wal");
    let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
    let db = lifecycle.guard(Sqlite::open(&path));
    lifecycle.init().await.unwrap();

    let ours = db.get().await.unwrap();
    let wrote =
        ours.interact(|sqlite| sqlite.execute_batch("CREATE TABLE kept(what); INSERT INTO kept VALUES ('ours')"));
    wrote.await.unwrap().unwrap();
    drop(ours);
    let theirs = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&path)).await.unwrap();
    sqlx::query("INSERT INTO kept VALUES ('theirs')").execute(&theirs).await.unwrap();
    let read = "SELECT group_concat(what) FROM (SELECT what FROM kept ORDER BY rowid)";
    assert_eq!(sqlx::query_scalar::<_, String>(read).fetch_one(&theirs).await.unwrap(), "ours,theirs");
    theirs.close().await;
    assert!(log.exists(), "winddown has the file open, so its log is there");

    let ours = db.get().await.unwrap();
    let all: String = ours.interact(|sqlite| sqlite.query_row(read, [], |row| row.get(0))).await.unwrap().unwrap();
    assert_eq!(all, "ours,theirs");
    drop(ours);
    let report = lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    assert!(!log.exists(), "the log of {} is left", path.display());
}
