//! What a buffer writes through sqlx, by what the database has.

use std::{collections::BTreeSet, time::Duration};

use winddown_buffer::{Batch, BatchWriter, Push as _, Sink, WriteError};
use winddown_core::{Lifecycle, ShutdownGuard};
use winddown_sqlx::{
    Backend, Dialect, Insert, Parameters, Sqlx,
    sqlx::{self, Connection as _, Executor as _, MySql, Postgres, Row as _, Sqlite},
};
use winddown_testkit::{Harness, ServerUse, Setup, scene::lifecycle};

use crate::{
    mysql::SqlxMySql,
    mysql_server::{self, MariaDb},
    postgres::SqlxPostgres,
    sqlite::SqlxSqlite,
};

type Record = (i64, String);

fn record(id: i64) -> Record {
    (id, format!("record\t{id} with 'quotes', \\ and\nlines"))
}

/// What the tests say in SQL of each database's own.
trait Database: Backend + Dialect {
    fn run(db: &ShutdownGuard<Sqlx<Self>>, sql: &'static str) -> impl Future<Output = ()> + Send;
    fn ids(db: &ShutdownGuard<Sqlx<Self>>) -> impl Future<Output = Vec<i64>> + Send;
    const CREATE: &'static str;
    const IGNORE: &'static str;
}

macro_rules! database {
    ($database:ty, $create:literal, $ignore:literal) => {
        impl Database for $database {
            async fn run(db: &ShutdownGuard<Sqlx<Self>>, sql: &'static str) {
                db.get().await.unwrap().execute(sqlx::raw_sql(sql)).await.unwrap();
            }

            async fn ids(db: &ShutdownGuard<Sqlx<Self>>) -> Vec<i64> {
                let mut connection = db.get().await.unwrap();
                let rows = connection.fetch_all("SELECT id, what FROM audit ORDER BY id").await.unwrap();
                for row in &rows {
                    let id: i64 = row.get(0);
                    assert_eq!(row.get::<String, _>(1), record(id).1);
                }
                rows.iter().map(|row| row.get(0)).collect()
            }

            const CREATE: &'static str = $create;
            const IGNORE: &'static str = $ignore;
        }
    };
}

database!(
    Postgres,
    "CREATE TABLE audit(id int8 PRIMARY KEY CHECK (id >= 0), what text NOT NULL)",
    "ON CONFLICT DO NOTHING"
);
database!(
    MySql,
    "CREATE TABLE audit(id BIGINT PRIMARY KEY, what VARCHAR(100) NOT NULL, CHECK (id >= 0))",
    "ON DUPLICATE KEY UPDATE id = id"
);
database!(
    Sqlite,
    "CREATE TABLE audit(id INTEGER PRIMARY KEY CHECK (id >= 0), what TEXT NOT NULL)",
    "ON CONFLICT DO NOTHING"
);

fn insert<DB: Database>() -> Insert<DB> {
    Insert::into("audit", ["id", "what"])
}

/// On each database: `claim` gets a guard of it.
async fn on_each(claim: impl Claim) {
    async fn on<DB: Database, H: Harness<Resource = Sqlx<DB>>>(claim: &impl Claim)
    where
        Record: Parameters<DB>,
    {
        let harness = H::start(ServerUse::Shared).await.unwrap();
        let lifecycle = lifecycle(Duration::from_secs(30));
        let db = lifecycle.guard_as("db", harness.resource(&Setup::default()));
        DB::run(&db, DB::CREATE).await;
        claim.of(&lifecycle, &db).await;
        let report = lifecycle.drain().await;
        assert!(report.resource("db").is_none_or(|row| row.sessions.cut == 0), "{}: {report}", H::NAME);
        harness.end().await.unwrap();
    }
    on::<Postgres, SqlxPostgres>(&claim).await;
    on::<MySql, SqlxMySql<mysql_server::MySql>>(&claim).await;
    on::<MySql, SqlxMySql<MariaDb>>(&claim).await;
    on::<Sqlite, SqlxSqlite>(&claim).await;
}

/// What is so on each.
trait Claim: Send + Sync {
    fn of<DB: Database>(&self, lifecycle: &Lifecycle, db: &ShutdownGuard<Sqlx<DB>>) -> impl Future<Output = ()> + Send
    where
        Record: Parameters<DB>;
}

pub(crate) async fn a_batch_is_written_once_however_often_it_comes() {
    struct Once;
    impl Claim for Once {
        async fn of<DB: Database>(&self, _: &Lifecycle, db: &ShutdownGuard<Sqlx<DB>>)
        where
            Record: Parameters<DB>,
        {
            let sink = insert::<DB>();
            // More rows than a statement has, and a rest of each size.
            let batch = Batch::from((0..300 + 127).map(record).collect::<Vec<_>>());
            let mut checkout = db.get().await.unwrap();
            Sink::<Record>::check(&sink, &mut checkout).await.unwrap();
            for _ in 0..3 {
                sink.write(&mut checkout, &batch).await.unwrap();
            }
            drop(checkout);
            assert_eq!(DB::ids(db).await, (0..427).collect::<Vec<_>>());
        }
    }
    on_each(Once).await;
}

pub(crate) async fn what_is_wrong_with_a_record_is_told_from_what_is_wrong_with_the_table() {
    struct Wrong;
    impl Claim for Wrong {
        async fn of<DB: Database>(&self, _: &Lifecycle, db: &ShutdownGuard<Sqlx<DB>>)
        where
            Record: Parameters<DB>,
        {
            let mut checkout = db.get().await.unwrap();
            let good = Batch::from(vec![record(1)]);
            insert::<DB>().write(&mut checkout, &good).await.unwrap();
            for bad in [-1, 1] {
                let batch = Batch::from(vec![record(2), record(bad)]);
                match insert::<DB>().write(&mut checkout, &batch).await {
                    Err(WriteError::Rejected(error)) => assert!(!error.to_string().contains("record\t"), "{error}"),
                    other => panic!("{bad}: {other:?}"),
                }
            }
            // Nothing of it is there, nor its key.
            let ignoring = insert::<DB>().on_conflict(DB::IGNORE);
            ignoring.write(&mut checkout, &Batch::from(vec![record(2), record(1)])).await.unwrap();
            let elsewhere = Insert::<DB>::into("nowhere", ["id", "what"]);
            assert!(Sink::<Record>::check(&elsewhere, &mut checkout).await.is_err());
            assert!(matches!(elsewhere.write(&mut checkout, &good).await, Err(WriteError::Failed(_)) | Ok(())));
            let batch = Batch::from(vec![record(7)]);
            assert!(matches!(elsewhere.write(&mut checkout, &batch).await, Err(WriteError::Failed(_))));
            drop(checkout);
            assert_eq!(DB::ids(db).await, [1, 2]);
        }
    }
    on_each(Wrong).await;
}

pub(crate) async fn everything_that_was_accepted_is_in_the_table_after_the_drain() {
    struct All;
    impl Claim for All {
        async fn of<DB: Database>(&self, lifecycle: &Lifecycle, db: &ShutdownGuard<Sqlx<DB>>)
        where
            Record: Parameters<DB>,
        {
            let buffer = lifecycle.guard(BatchWriter::new(db, insert::<DB>()).batch_size(50));
            for id in 0..1000 {
                // Every hundredth is refused for what is in it.
                let id = if id % 100 == 99 { -id } else { id };
                buffer.push(record(id)).await.unwrap();
            }
            assert!(lifecycle.flush().await.is_err(), "it says that some were refused");
            let written: BTreeSet<i64> = DB::ids(db).await.into_iter().collect();
            assert_eq!(written.len(), 990);
            for id in 1000..1100 {
                buffer.push(record(id)).await.unwrap();
            }
            let report = lifecycle.drain().await;
            let records = report.resources.iter().find_map(|row| row.records).unwrap();
            assert_eq!((records.accepted, records.written, records.lost), (1100, 1090, 10), "{report}");
        }
    }
    on_each(All).await;
}

/// It waits for a lock that somebody else has: it is stopped on the server, so that the batch can be written elsewhere.
pub(crate) async fn a_write_that_hangs_is_stopped_on_the_server_and_its_batch_is_written_once() {
    let server = crate::scene::start().await;
    let lifecycle = lifecycle(Duration::from_secs(60));
    let db = lifecycle.guard_as("db", server.resource(&Setup::default()));
    Postgres::run(&db, Postgres::CREATE).await;
    let writer = BatchWriter::new(&db, insert::<Postgres>()).batch_size(10).write_within(Duration::from_millis(500));
    let buffer = lifecycle.guard(writer);
    // It looks at the table before there is a record.
    lifecycle.init().await.unwrap();
    let mut locks = db.get().await.unwrap();
    let mut transaction = locks.begin().await.unwrap();
    transaction.execute("LOCK TABLE audit IN EXCLUSIVE MODE").await.unwrap();
    for id in 0..10 {
        buffer.push(record(id)).await.unwrap();
    }
    let log = || async { server.0.server.container.lock().await.logs().await.unwrap() };
    let ours = format!(" {}@", server.0.tenant.name);
    crate::scene::until("a write was stopped", || async {
        log().await.lines().any(|line| line.contains(&ours) && line.contains("canceling statement due to user request"))
    })
    .await;
    transaction.commit().await.unwrap();
    drop(locks);
    crate::scene::until("it is written", || async { Postgres::ids(&db).await.len() == 10 }).await;
    let report = lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    let records = report.resources.iter().find_map(|row| row.records).unwrap();
    assert_eq!((records.accepted, records.written), (10, 10), "{report}");
    assert_eq!(server.sessions().await.unwrap(), 0);
    server.end().await.unwrap();
}
