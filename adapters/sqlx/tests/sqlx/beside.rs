//! SQLite through the other adapter and through sqlx, and PostgreSQL, in one program: cargo allows one `libsqlite3-sys`.

use winddown_core::Outcome;
use winddown_sqlite::Sqlite as Own;
use winddown_sqlx::sqlx::{self, Executor as _};
use winddown_testkit::{Harness as _, ServerUse, Setup, scene::lifecycle};

use crate::{scene::start, sqlite::SqlxSqlite};

pub(crate) async fn one_lifecycle_drains_both_ways_to_one_file_and_a_server() {
    let (server, file) = (start().await, SqlxSqlite::start(ServerUse::Shared).await.unwrap());
    let lifecycle = lifecycle(std::time::Duration::from_secs(30));
    let own = lifecycle.guard_as("own", Own::open(file.path()));
    let sqlite = lifecycle.guard_as("sqlite", file.resource(&Setup::default()));
    let postgres = lifecycle.guard_as("postgres", server.resource(&Setup::default()));
    lifecycle.init().await.unwrap();
    let ours = own.get().await.unwrap();
    ours.interact(|sqlite| sqlite.execute_batch("INSERT INTO t VALUES (1)")).await.unwrap().unwrap();
    drop(ours);
    sqlite.get().await.unwrap().execute("INSERT INTO t VALUES (2)").await.unwrap();
    postgres.get().await.unwrap().execute("INSERT INTO rows VALUES (now())").await.unwrap();
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(sqlite.get().await.unwrap().as_mut()).await.unwrap();
    assert_eq!(count, 2);
    let report = lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    for name in ["own", "sqlite", "postgres"] {
        let row = report.resource(name).unwrap();
        assert_eq!((row.outcome, row.sessions.unconfirmed, row.sessions.cut), (Outcome::Drained, 0, 0), "{report}");
        assert!(row.sessions.closed > 0, "{report}");
    }
    assert_eq!((server.sessions().await.unwrap(), server.rows().await.unwrap()), (0, 1));
    assert_eq!(file.complaints().await.unwrap(), Vec::<String>::new());
    server.end().await.unwrap();
    file.end().await.unwrap();
}
