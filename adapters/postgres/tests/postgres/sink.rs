//! `CopyIn` and `Insert`: one transaction for each batch, and what becomes of it when something is wrong.

use std::{
    iter,
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use futures_util::future::try_join_all;
use tokio::join;
use winddown_buffer::{Batch, BatchKey, BatchWriter, Delivery, Push as _, Sink, WriteError, uuid::Uuid};
use winddown_core::{Checkout, Error, ErrorKind, Lifecycle, ShutdownGuard};
use winddown_postgres::{
    CopyIn, Insert, Parameters, Postgres,
    tokio_postgres::{Row, error::SqlState, types::ToSql},
};
use winddown_testkit::{Harness as _, ServerUse, Setup, proxy::Proxy};

use crate::{
    pgbouncer::PgBouncer,
    scene::{assert_nothing_left, config, config_at, driver_error, lifecycle, seventeen, until, until_running},
    server::{PostgreSql, Seventeen},
    wrapped,
};

pub(crate) type Record = (i64, String);

/// Either sink, so that a test can go over both.
#[derive(Debug, Clone)]
pub(crate) enum Either {
    Insert(Insert),
    CopyIn(CopyIn),
}

pub(crate) fn both<const N: usize>(table: &str, columns: [&str; N]) -> [Either; 2] {
    [Either::Insert(Insert::into(table, columns)), Either::CopyIn(CopyIn::into(table, columns))]
}

pub(crate) fn audit() -> [Either; 2] {
    both("audit", ["id", "what"])
}

macro_rules! set {
    ($($name:ident: $value:ty),+) => {
        $(pub(crate) fn $name(self, value: $value) -> Self {
            match self {
                Self::Insert(sink) => Self::Insert(sink.$name(value)),
                Self::CopyIn(sink) => Self::CopyIn(sink.$name(value)),
            }
        })+
    };
}

impl Either {
    set!(schema: &str, delivery: Delivery, key_table: &str, remember: Duration);

    pub(crate) fn is_copy(&self) -> bool {
        matches!(self, Self::CopyIn(_))
    }
}

impl<T: Parameters> Sink<T> for Either {
    type Target = Postgres;

    fn delivery(&self) -> Delivery {
        match self {
            Self::Insert(sink) => Sink::<T>::delivery(sink),
            Self::CopyIn(sink) => Sink::<T>::delivery(sink),
        }
    }

    async fn write(&self, checkout: &mut Checkout<Postgres>, batch: &Batch<T>) -> Result<(), WriteError> {
        match self {
            Self::Insert(sink) => sink.write(checkout, batch).await,
            Self::CopyIn(sink) => sink.write(checkout, batch).await,
        }
    }

    async fn check(&self, checkout: &mut Checkout<Postgres>) -> Result<(), Error> {
        match self {
            Self::Insert(sink) => Sink::<T>::check(sink, checkout).await,
            Self::CopyIn(sink) => Sink::<T>::check(sink, checkout).await,
        }
    }

    async fn abandon(&self, checkout: Checkout<Postgres>) {
        match self {
            Self::Insert(sink) => Sink::<T>::abandon(sink, checkout).await,
            Self::CopyIn(sink) => Sink::<T>::abandon(sink, checkout).await,
        }
    }

    fn target(&self) -> Option<&str> {
        match self {
            Self::Insert(sink) => Sink::<T>::target(sink),
            Self::CopyIn(sink) => Sink::<T>::target(sink),
        }
    }
}

pub(crate) struct Scene {
    pub(crate) server: PostgreSql<Seventeen>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) db: ShutdownGuard<Postgres>,
}

const CREATE: &str = "CREATE TABLE audit(at bigserial, id int8 UNIQUE, what text)";

impl Scene {
    pub(crate) async fn new() -> Self {
        Self::with(CREATE).await
    }

    pub(crate) async fn with(sql: &str) -> Self {
        let server = seventeen().await;
        let lifecycle = lifecycle(Duration::from_secs(30));
        let db = lifecycle.guard_as("db", Postgres::new(config(&server)));
        let scene = Self { server, lifecycle, db };
        scene.execute(sql).await;
        scene
    }

    /// As the tenant.
    pub(crate) async fn execute(&self, sql: &str) {
        self.db.get().await.unwrap().batch_execute(sql).await.unwrap();
    }

    /// As a superuser, who sees what another session sees.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<Row> {
        let client = self.server.server.superuser(&self.server.tenant.name).await.unwrap();
        client.query(sql, &[]).await.unwrap()
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.rows(sql).await[0].get(0)
    }

    pub(crate) async fn as_superuser(&self, sql: &str) {
        self.server.server.superuser(&self.server.tenant.name).await.unwrap().batch_execute(sql).await.unwrap();
    }

    /// In the order in which it was written.
    pub(crate) async fn audit(&self) -> Vec<Record> {
        let rows = self.rows("SELECT id, what FROM audit ORDER BY at").await;
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    pub(crate) async fn write<T: Parameters>(&self, sink: &Either, batch: &Batch<T>) -> Result<(), WriteError> {
        sink.write(&mut self.db.get().await.unwrap(), batch).await
    }

    pub(crate) async fn end(self) {
        let report = self.lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        assert_nothing_left(&self.server).await;
        self.server.end().await.unwrap();
    }

    /// The same where the server may complain of a session that was closed as it was.
    pub(crate) async fn end_of_sessions(self) {
        let report = self.lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        until("all are gone", || async { self.server.sessions().await.unwrap() == 0 }).await;
        self.server.end().await.unwrap();
    }
}

pub(crate) fn record(id: i64) -> Record {
    (id, format!("did {id}"))
}

pub(crate) fn batch(ids: impl IntoIterator<Item = i64>) -> Batch<Record> {
    Batch::from(ids.into_iter().map(record).collect::<Vec<_>>())
}

#[track_caller]
pub(crate) fn assert_rejected(result: Result<(), WriteError>, code: &SqlState) {
    match result {
        Err(WriteError::Rejected(error)) => assert_is(&error, code),
        other => panic!("not rejected: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn assert_retry(result: Result<(), WriteError>, code: &SqlState) {
    match result {
        Err(WriteError::Retry(error)) => assert_is(&error, code),
        other => panic!("not worth another try: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn assert_failed(result: Result<(), WriteError>, code: &SqlState) -> Error {
    match result {
        Err(WriteError::Failed(error)) => {
            assert_is(&error, code);
            error
        }
        other => panic!("not failed: {other:?}"),
    }
}

#[track_caller]
fn assert_is(error: &Error, code: &SqlState) {
    assert_eq!(error.kind(), ErrorKind::Write, "{error}");
    assert_eq!(driver_error(error).and_then(|error| error.code()), Some(code), "{error}");
}

pub(crate) async fn a_batch_is_written_whole_or_not_at_all() {
    for sink in audit() {
        let scene = Scene::new().await;
        scene.write(&sink, &batch([1, 2, 3])).await.unwrap();
        assert_rejected(scene.write(&sink, &batch([4, 5, 2, 6])).await, &SqlState::UNIQUE_VIOLATION);
        // The connection is as good as before, and so is the sink.
        scene.write(&sink, &batch([7])).await.unwrap();
        assert_eq!(scene.audit().await, [1, 2, 3, 7].map(record), "{sink:?}");
        assert_eq!(scene.number("SELECT count(*) FROM winddown_batch").await, 2);
        assert_eq!(scene.server.sessions().await.unwrap(), 1);
        scene.end().await;
    }
}

pub(crate) async fn a_batch_is_written_once_however_often_it_comes() {
    // A table that refuses it the second time for being there, and one that would take it twice.
    for is_unique in [true, false] {
        let scene = Scene::new().await;
        if !is_unique {
            scene.execute("ALTER TABLE audit DROP CONSTRAINT audit_id_key").await;
        }
        let [insert, copy] = audit();
        let first = batch(0..100);
        for sink in [&insert, &copy, &insert] {
            scene.write(sink, &first).await.unwrap();
        }
        assert_eq!(scene.audit().await, (0..100).map(record).collect::<Vec<_>>());

        // At the same time, on connections of their own, some of which have not done this before.
        for start in [100, 200, 300] {
            let next = batch(start..start + 100);
            let sinks = [&insert, &copy].into_iter().cycle().take(8);
            try_join_all(sinks.map(|sink| scene.write(sink, &next))).await.unwrap();
        }
        assert_eq!(scene.audit().await, (0..400).map(record).collect::<Vec<_>>());

        // The same records under another key are other records.
        match (is_unique, scene.write(&copy, &batch(0..100)).await) {
            (true, result) => assert_rejected(result, &SqlState::UNIQUE_VIOLATION),
            (false, result) => result.unwrap(),
        }
        let rows = scene.number("SELECT count(*) FROM audit").await;
        assert_eq!(rows, if is_unique { 400 } else { 500 });
        scene.end().await;
    }
}

pub(crate) async fn only_what_is_to_be_written_once_has_a_key() {
    for sink in audit() {
        let scene = Scene::new().await;
        for delivery in [Delivery::AtLeastOnce, Delivery::AtMostOnce] {
            let sink = sink.clone().delivery(delivery);
            assert_eq!(Sink::<Record>::delivery(&sink), delivery);
            scene.write(&sink, &batch([delivery as i64])).await.unwrap();
        }
        assert_eq!(scene.audit().await.len(), 2);
        assert_eq!(scene.number("SELECT count(*) FROM pg_tables WHERE tablename = 'winddown_batch'").await, 0);
        scene.end().await;
    }
}

pub(crate) async fn what_is_wrong_with_a_record_is_told_from_what_is_wrong_with_the_table() {
    let sql = "CREATE TABLE narrow(
                   id int8 UNIQUE, what varchar(8) NOT NULL CHECK (what <> 'bad'), parent int8 REFERENCES narrow(id)
               );
               CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN IF new.what = 'refuse' THEN RAISE EXCEPTION 'no'; END IF; RETURN new; END $$;
               CREATE TRIGGER refuse BEFORE INSERT ON narrow FOR EACH ROW EXECUTE FUNCTION refuse();
               CREATE TABLE others(id int8, what text);";
    type Narrow = (i64, Option<&'static str>, Option<i64>);
    for [sink, missing, misnamed, others] in iter::zip(
        iter::zip(both("narrow", ["id", "what", "parent"]), both("missing", ["id", "what", "parent"])),
        iter::zip(both("narrow", ["id", "what", "wrong"]), both("others", ["id", "what"])),
    )
    .map(|((a, b), (c, d))| [a, b, c, d])
    {
        let scene = Scene::with(sql).await;
        let with = |record: Narrow| Batch::from(vec![(10, Some("good"), None), record, (11, Some("good"), None)]);
        let refused: [(Narrow, SqlState); 7] = [
            ((10, Some("twice"), None), SqlState::UNIQUE_VIOLATION),
            ((1, None, None), SqlState::NOT_NULL_VIOLATION),
            ((1, Some("bad"), None), SqlState::CHECK_VIOLATION),
            ((1, Some("good"), Some(404)), SqlState::FOREIGN_KEY_VIOLATION),
            ((1, Some("too long for it"), None), SqlState::STRING_DATA_RIGHT_TRUNCATION),
            ((1, Some("nul \0"), None), SqlState::CHARACTER_NOT_IN_REPERTOIRE),
            ((1, Some("refuse"), None), SqlState::RAISE_EXCEPTION),
        ];
        for (record, code) in refused {
            assert_rejected(scene.write(&sink, &with(record)).await, &code);
        }
        let good: Narrow = (1, Some("good"), None);
        assert_failed(scene.write(&missing, &with(good)).await, &SqlState::UNDEFINED_TABLE);
        assert_failed(scene.write(&misnamed, &with(good)).await, &SqlState::UNDEFINED_COLUMN);
        // A value of another type than the column, and as many as there are columns of another table.
        for wrong in [
            scene.write(&sink, &Batch::from(vec![(1_i32, "good", None::<i64>)])).await,
            scene.write(&sink, &Batch::from(vec![(1_i64, "good")])).await,
            scene.write(&others, &with(good)).await,
        ] {
            let Err(WriteError::Failed(error)) = wrong else { panic!("not failed: {wrong:?}") };
            assert_eq!(driver_error(&error).and_then(|error| error.code()), None, "{error}");
        }
        assert_eq!(scene.number("SELECT count(*) FROM narrow").await, 0, "{sink:?}");
        assert_eq!(scene.number("SELECT count(*) FROM winddown_batch").await, 0);
        scene.write(&sink, &with(good)).await.unwrap();
        assert_eq!(scene.server.sessions().await.unwrap(), 1, "all went over one connection");
        scene.end().await;
    }
}

pub(crate) async fn a_table_that_may_not_be_written_to_is_no_records_fault() {
    for sink in audit() {
        let scene = Scene::new().await;
        let tenant = &scene.server.tenant.name;
        scene.write(&sink, &batch([1])).await.unwrap();
        scene.as_superuser(&format!("ALTER TABLE audit OWNER TO postgres; GRANT SELECT ON audit TO {tenant}")).await;
        assert_failed(scene.write(&sink, &batch([2])).await, &SqlState::INSUFFICIENT_PRIVILEGE);
        scene.as_superuser(&format!("GRANT ALL ON audit, audit_at_seq TO {tenant}")).await;
        scene.write(&sink, &batch([3])).await.unwrap();
        assert_eq!(scene.audit().await, [1, 3].map(record));
        let report = scene.lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        scene.server.end().await.unwrap();
    }
}

pub(crate) async fn a_row_that_a_policy_refuses_is_rejected() {
    let scene = Scene::new().await;
    let policy = "ALTER TABLE audit ENABLE ROW LEVEL SECURITY; ALTER TABLE audit FORCE ROW LEVEL SECURITY;
                  CREATE POLICY small ON audit WITH CHECK (id < 10)";
    scene.execute(policy).await;
    let [insert, copy] = audit();
    scene.write(&insert, &batch([1, 2])).await.unwrap();
    assert_rejected(scene.write(&insert, &batch([3, 10])).await, &SqlState::INSUFFICIENT_PRIVILEGE);
    // The server does not copy into such a table.
    assert_failed(scene.write(&copy, &batch([4])).await, &SqlState::FEATURE_NOT_SUPPORTED);
    scene.write(&insert, &batch([5])).await.unwrap();
    assert_eq!(scene.audit().await, [1, 2, 5].map(record));
    assert!(scene.lifecycle.drain().await.is_clean());
    scene.server.end().await.unwrap();
}

pub(crate) async fn after_a_copy_that_the_server_does_not_begin_no_answer_reaches_the_wrong_caller() {
    let [_, copy] = both("audit_view", ["id", "what"]);
    for wrap in [false, true] {
        let scene = Scene::new().await;
        scene.execute("CREATE VIEW audit_view AS SELECT id, what FROM audit WHERE id > 0 ORDER BY id LIMIT 5").await;
        let updatable = "CREATE FUNCTION put() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$;
                         CREATE OR REPLACE VIEW audit_view AS SELECT id, what FROM audit";
        scene.execute(updatable).await;
        let resource =
            if wrap { Postgres::wrap(wrapped::pool(&scene.server)) } else { Postgres::new(config(&scene.server)) };
        let db = scene.lifecycle.guard_as("other", resource);
        for id in 0..20 {
            let error = copy.write(&mut db.get().await.unwrap(), &batch([id])).await;
            assert_failed(error, &SqlState::WRONG_OBJECT_TYPE);
            let answer: i64 = db.get().await.unwrap().query_one("SELECT $1::int8", &[&id]).await.unwrap().get(0);
            assert_eq!(answer, id);
        }
        drop(db);
        scene.lifecycle.drain().await;
        until("all are gone", || async { scene.server.sessions().await.unwrap() == 0 }).await;
        scene.server.end().await.unwrap();
    }
}

/// Every row sleeps so long before it is there.
const SLOW_ROWS: &str = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                             $$ BEGIN PERFORM pg_sleep(300); RETURN new; END $$;
                         CREATE TRIGGER slow BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION slow()";

pub(crate) async fn what_passes_is_worth_another_try() {
    for sink in audit() {
        let scene = Scene::new().await;
        let tenant = &scene.server.tenant.name;
        // Locked by somebody else.
        let other = scene.server.server.superuser(tenant).await.unwrap();
        scene.as_superuser(&format!("ALTER ROLE {tenant} SET lock_timeout = '20ms'")).await;
        scene.server.end_all().await.unwrap();
        other.batch_execute("BEGIN; LOCK TABLE audit").await.unwrap();
        assert_retry(scene.write(&sink, &batch([1])).await, &SqlState::LOCK_NOT_AVAILABLE);
        other.batch_execute("COMMIT").await.unwrap();
        scene.write(&sink, &batch([1])).await.unwrap();

        // A server that does not allow writes for now.
        scene.as_superuser(&format!("ALTER ROLE {tenant} SET default_transaction_read_only = on")).await;
        scene.server.end_all().await.unwrap();
        assert_retry(scene.write(&sink, &batch([2])).await, &SqlState::READ_ONLY_SQL_TRANSACTION);
        scene.as_superuser(&format!("ALTER ROLE {tenant} RESET ALL")).await;
        scene.server.end_all().await.unwrap();
        scene.write(&sink, &batch([2])).await.unwrap();

        // Cancelled, and ended as by a server that restarts.
        scene.execute(SLOW_ROWS).await;
        for (function, code) in
            [("pg_cancel_backend", SqlState::QUERY_CANCELED), ("pg_terminate_backend", SqlState::ADMIN_SHUTDOWN)]
        {
            let sql = format!("SELECT {function}(pid) FROM pg_stat_activity WHERE usename = '{tenant}'");
            // One that says exactly what is known: the others commit at once.
            let sink = sink.clone().delivery(Delivery::AtMostOnce);
            let third = batch([3]);
            let (result, ()) = join!(scene.write(&sink, &third), async {
                until_running(&scene.server, 1).await;
                scene.as_superuser(&sql).await;
            });
            assert_retry(result, &code);
        }
        assert_eq!(scene.audit().await, [1, 2].map(record), "{sink:?}");
        assert_eq!(scene.number("SELECT count(*) FROM winddown_batch").await, 2);
        assert!(scene.lifecycle.drain().await.is_clean());
        scene.server.end().await.unwrap();
    }
}

/// Cuts the connection once the server sleeps in this batch.
async fn cut_while_it_sleeps(scene: &Scene, sink: &Either, batch: &Batch<Record>) -> Result<(), WriteError> {
    let proxy = Proxy::start(scene.server.server.address).await.unwrap();
    let db = scene.lifecycle.guard(Postgres::new(config_at(&scene.server, proxy.address())));
    let mut checkout = db.get().await.unwrap();
    let (result, ()) = join!(sink.write(&mut checkout, batch), async {
        until_running(&scene.server, 1).await;
        drop(proxy);
    });
    result
}

pub(crate) async fn a_batch_is_in_doubt_only_if_the_connection_broke_during_its_commit() {
    let at_commit = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                         $$ BEGIN PERFORM pg_sleep(3); RETURN new; END $$;
                     CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON audit DEFERRABLE INITIALLY DEFERRED
                         FOR EACH ROW EXECUTE FUNCTION slow()";
    for sink in audit() {
        let scene = Scene::new().await;
        scene.execute("ALTER TABLE audit DROP CONSTRAINT audit_id_key").await;
        scene.execute(at_commit).await;
        let first = batch([1]);
        let result = cut_while_it_sleeps(&scene, &sink, &first).await;
        assert!(matches!(result, Err(WriteError::Unknown(_))), "{result:?}");
        // The server is at it still, and commits. What comes again waits for that, and changes nothing.
        scene.write(&sink, &first).await.unwrap();
        assert_eq!(scene.audit().await, [record(1)], "{sink:?}");

        // Before the commit nothing is in doubt. One that would write it again anyway has sent the commit with the rows.
        scene.execute(&format!("DROP TRIGGER slow ON audit; DROP FUNCTION slow; {SLOW_ROWS}")).await;
        let second = batch([2]);
        if sink.is_copy() {
            let result = cut_while_it_sleeps(&scene, &sink, &second).await;
            assert!(matches!(result, Err(WriteError::Unknown(_))), "{result:?}");
            scene.server.end_all().await.unwrap();
        }
        let patient = sink.clone().delivery(Delivery::AtMostOnce);
        let result = cut_while_it_sleeps(&scene, &patient, &second).await;
        assert!(matches!(result, Err(WriteError::Retry(_))), "{result:?}");
        scene.server.end_all().await.unwrap();
        scene.execute("DROP TRIGGER slow ON audit").await;
        scene.write(&sink, &second).await.unwrap();
        assert_eq!(scene.audit().await, [1, 2].map(record), "{sink:?}");
        scene.lifecycle.drain().await;
        scene.server.end().await.unwrap();
    }
}

pub(crate) async fn what_is_refused_at_the_commit_is_not_in_doubt() {
    for sink in audit() {
        let scene = Scene::new().await;
        scene.execute("ALTER TABLE audit DROP CONSTRAINT audit_id_key").await;
        scene.execute("ALTER TABLE audit ADD UNIQUE (id) DEFERRABLE INITIALLY DEFERRED").await;
        assert_rejected(scene.write(&sink, &batch([1, 2, 1])).await, &SqlState::UNIQUE_VIOLATION);
        scene.write(&sink, &batch([1, 2])).await.unwrap();
        assert_eq!(scene.audit().await, [1, 2].map(record), "{sink:?}");
        scene.end().await;
    }
}

pub(crate) async fn a_write_that_is_given_up_leaves_no_transaction_open() {
    for sink in audit() {
        let scene = Scene::new().await;
        scene.execute(SLOW_ROWS).await;
        let given_up = batch([1]);
        {
            let mut writing = pin!(scene.write(&sink, &given_up));
            tokio::select! {
                result = &mut writing => panic!("it ended at once: {result:?}"),
                () = until_running(&scene.server, 1) => {}
            }
        }
        let tenant = &scene.server.tenant.name;
        let sessions = format!("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = '{tenant}'");
        scene.as_superuser(&sessions).await;
        // Over the same connection.
        scene.execute("DROP TRIGGER slow ON audit").await;
        assert_eq!(scene.server.sessions().await.unwrap(), 1);
        scene.write(&sink, &given_up).await.unwrap();
        assert_eq!(scene.audit().await, [record(1)], "{sink:?}");
        scene.end().await;
    }
}

pub(crate) async fn names_are_taken_as_they_are() {
    let sql = r#"CREATE SCHEMA "My ""Schema"; SET search_path = "My ""Schema";
                 CREATE TABLE "Audit ""log"" ; --"("Id" int8, "order" text, "a""b" text)"#;
    for sink in both(r#"Audit "log" ; --"#, ["Id", "order", r#"a"b"#]) {
        let scene = Scene::with(sql).await;
        let sink = sink.schema(r#"My "Schema"#).key_table("Keys; of \"it\"");
        scene.write(&sink, &Batch::from(vec![(1_i64, "x".to_owned(), Some("y".to_owned()))])).await.unwrap();
        let rows = scene.rows(r#"SELECT "Id", "order", "a""b" FROM "My ""Schema"."Audit ""log"" ; --""#).await;
        assert_eq!((rows[0].get(0), rows[0].get(1), rows[0].get(2)), (1_i64, "x", "y"));
        assert_eq!(scene.number(r#"SELECT count(*) FROM "My ""Schema"."Keys; of ""it""""#).await, 1);
        scene.end().await;
    }
}

/// A record of the application's own, of many types.
#[derive(Debug, Clone, PartialEq)]
struct Wide {
    small: i16,
    real: f64,
    is: bool,
    bytes: Vec<u8>,
    at: SystemTime,
    tags: Vec<Option<String>>,
    key: Uuid,
    nothing: Option<i32>,
    word: String,
    fixed: String,
}

impl Parameters for Wide {
    fn parameters<'a>(&'a self, values: &mut Vec<&'a (dyn ToSql + Sync)>) {
        let Self { small, real, is, bytes, at, tags, key, nothing, word, fixed } = self;
        values.extend([small as &(dyn ToSql + Sync), real, is, bytes, at, tags, key, nothing, word, fixed]);
    }
}

pub(crate) async fn values_of_all_types_arrive_as_they_were() {
    let sql =
        "CREATE TABLE wide(small int2, real float8, \"is\" bool, bytes bytea, at timestamptz, tags text[], key uuid,
                                 nothing int4, word text, fixed char(3))";
    let columns = ["small", "real", "is", "bytes", "at", "tags", "key", "nothing", "word", "fixed"];
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
    let wide = |n: i16| Wide {
        small: n,
        real: f64::from(n) / 3.0,
        is: n % 2 == 0,
        bytes: vec![0, 255, b'\\', n as u8],
        at: at + Duration::from_secs(n as u64),
        tags: vec![Some(format!("{{\"{n}\",}}")), None],
        key: BatchKey::first_at(at).into(),
        nothing: (n > 1).then_some(i32::from(n)),
        word: "word\t\n\\N".to_owned(),
        fixed: "abc".to_owned(),
    };
    for sink in both("wide", columns) {
        let scene = Scene::with(sql).await;
        let records = vec![wide(1), wide(2), wide(3)];
        scene.write(&sink, &Batch::from(records.clone())).await.unwrap();
        let rows = scene.rows("SELECT * FROM wide ORDER BY small").await;
        let read = rows.iter().map(|row| Wide {
            small: row.get(0),
            real: row.get(1),
            is: row.get(2),
            bytes: row.get(3),
            at: row.get(4),
            tags: row.get(5),
            key: row.get(6),
            nothing: row.get(7),
            word: row.get(8),
            fixed: row.get(9),
        });
        assert_eq!(read.collect::<Vec<_>>(), records, "{sink:?}");
        scene.end().await;
    }
}

pub(crate) async fn the_table_of_keys_is_made_if_it_is_missing_or_the_error_says_how() {
    for sink in audit() {
        let scene = Scene::new().await;
        // By all at once.
        let batches: Vec<_> = (0..8).map(|id| batch([id])).collect();
        try_join_all(batches.iter().map(|batch| scene.write(&sink, batch))).await.unwrap();
        // And once more when somebody has dropped it.
        scene.execute("DROP TABLE winddown_batch").await;
        assert_retry(scene.write(&sink, &batch([8])).await, &SqlState::UNDEFINED_TABLE);
        scene.write(&sink, &batch([8])).await.unwrap();
        assert_eq!(scene.number("SELECT count(*) FROM winddown_batch").await, 1);

        let tenant = &scene.server.tenant.name;
        let locked = "DROP TABLE winddown_batch; ALTER SCHEMA public OWNER TO postgres";
        scene.as_superuser(locked).await;
        // Over a connection that knows the table, or one that does not.
        assert!(scene.write(&sink, &batch([9])).await.is_err());
        let error = assert_failed(scene.write(&sink, &batch([9])).await, &SqlState::INSUFFICIENT_PRIVILEGE);
        let text = error.to_string();
        let statement = text.split('`').nth(1).unwrap_or_else(|| panic!("no statement in: {text}"));
        scene.as_superuser(&format!("{statement}; GRANT ALL ON winddown_batch TO {tenant}")).await;
        scene.write(&sink, &batch([9])).await.unwrap();
        assert_eq!(scene.number("SELECT count(*) FROM audit").await, 10, "{sink:?}");
        scene.end().await;
    }
}

pub(crate) async fn old_keys_are_deleted_behind_a_batch() {
    let day = Duration::from_secs(24 * 60 * 60);
    let ago = |time| Uuid::from(BatchKey::first_at(SystemTime::now() - time));
    for sink in audit() {
        let scene = Scene::new().await;
        // Makes the table, and is done with old keys for an hour.
        scene.write(&sink, &batch([0])).await.unwrap();
        for (days, keys) in [(6, 3), (8, 1500)] {
            let (first, fill) = (ago(day * days), "INSERT INTO winddown_batch(key)
                SELECT overlay($1::text placing lpad(to_hex(n), 12, '0') from 25)::uuid FROM generate_series(1, $2::int4) n");
            let client = scene.db.get().await.unwrap();
            client.execute(fill, &[&first.to_string(), &keys]).await.unwrap();
        }
        scene.write(&sink, &batch([1])).await.unwrap();
        assert_eq!(scene.number("SELECT count(*) FROM winddown_batch").await, 1505);
        // As many as may be behind one batch, the rest behind the next.
        let [insert, copy] = audit();
        let another = if sink.is_copy() { copy } else { insert }.remember(day * 7);
        for (id, left) in [(2, 506), (3, 7), (4, 8)] {
            scene.write(&another, &batch([id])).await.unwrap();
            assert_eq!(scene.number("SELECT count(*) FROM winddown_batch").await, left, "{another:?}");
        }
        scene.end().await;
    }
}

pub(crate) async fn old_keys_that_cannot_be_deleted_cost_nothing() {
    for sink in audit() {
        let scene = Scene::new().await;
        let tenant = &scene.server.tenant.name;
        let create = "CREATE TABLE winddown_batch(key uuid PRIMARY KEY, written_at timestamptz NOT NULL DEFAULT now())";
        scene.as_superuser(&format!("{create}; GRANT INSERT ON winddown_batch TO {tenant}")).await;
        scene.write(&sink, &batch([1])).await.unwrap();
        scene.write(&sink, &batch([2])).await.unwrap();
        assert_eq!(scene.audit().await, [1, 2].map(record), "{sink:?}");
        scene.end().await;
    }
}

pub(crate) async fn a_batch_may_have_more_values_than_a_statement() {
    let sql = "CREATE TABLE triples(a int4, b int4, c int4)";
    for sink in both("triples", ["a", "b", "c"]) {
        let scene = Scene::with(sql).await;
        for rows in [30_000, 1, 777, 1_023, 1_024, 1_025] {
            let batch = Batch::from((0..rows).map(|n: i32| (n, n, Some(n))).collect::<Vec<_>>());
            scene.write(&sink, &batch).await.unwrap();
            let counted = scene.number("SELECT count(DISTINCT a) FROM triples WHERE a = b AND a = c").await;
            assert_eq!(counted, i64::from(rows), "{sink:?}");
            scene.execute("TRUNCATE triples").await;
        }
        // However many sizes a batch may have.
        let client = scene.db.get().await.unwrap();
        let prepared = client.query_one("SELECT count(*) FROM pg_prepared_statements", &[]).await.unwrap();
        assert!(prepared.get::<_, i64>(0) <= 13, "{prepared:?}");
        drop(client);
        scene.end().await;
    }
    // As wide as few rows in a statement can be: 65535 / 1600.
    let columns: Vec<_> = (0..1600).map(|n| format!("c{n}")).collect();
    let scene = Scene::with(&format!("CREATE TABLE wide({} bool)", columns.join(" bool, "))).await;
    for sink in [Either::Insert(Insert::into("wide", columns.clone())), Either::CopyIn(CopyIn::into("wide", columns))] {
        let batch = Batch::from((0..100).map(|_| Many([Some(true); 1600])).collect::<Vec<_>>());
        scene.write(&sink, &batch).await.unwrap();
        assert_eq!(scene.number("SELECT count(*) FROM wide WHERE c0 AND c1599").await, 100, "{sink:?}");
        scene.execute("TRUNCATE wide").await;
    }
    scene.end().await;
}

struct Many([Option<bool>; 1600]);

impl Parameters for Many {
    fn parameters<'a>(&'a self, values: &mut Vec<&'a (dyn ToSql + Sync)>) {
        values.extend(self.0.iter().map(|value| value as &(dyn ToSql + Sync)));
    }
}

pub(crate) async fn a_row_that_is_there_already_is_left_or_replaced() {
    let scene = Scene::new().await;
    let write =
        async |sink: Insert, records: Vec<Record>| scene.write(&Either::Insert(sink), &Batch::from(records)).await;
    let insert = || Insert::into("audit", ["id", "what"]);
    write(insert(), vec![record(1), record(2)]).await.unwrap();
    write(insert().on_conflict_do_nothing(), vec![(2, "else".into()), record(3), record(3)]).await.unwrap();
    assert_eq!(scene.audit().await, [1, 2, 3].map(record));

    let update = || insert().on_conflict_do_update(["id"]);
    write(update(), vec![(2, "else".into()), record(4)]).await.unwrap();
    let twice = write(update(), vec![(5, "first".into()), (5, "second".into())]).await;
    assert_rejected(twice, &SqlState::CARDINALITY_VIOLATION);
    let rows = scene.rows("SELECT what FROM audit ORDER BY id").await;
    let what: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(what, ["did 1", "else", "did 3", "did 4"]);
    scene.end().await;
}

pub(crate) async fn a_table_that_was_altered_is_written_to_again() {
    let [_, copy] = both("numbers", ["n"]);
    let scene = Scene::with("CREATE TABLE numbers(n int4)").await;
    scene.write(&copy, &Batch::from(vec![(1_i32,)])).await.unwrap();
    for (sql, r#type) in [("int8", "bigint"), ("text USING n::text", "text")] {
        scene.execute(&format!("ALTER TABLE numbers ALTER n TYPE {sql}")).await;
        let write = async || match r#type {
            "bigint" => scene.write(&copy, &Batch::from(vec![(2_i64,)])).await,
            _ => scene.write(&copy, &Batch::from(vec![("3".to_owned(),)])).await,
        };
        assert!(write().await.is_err(), "the types were asked for once");
        write().await.unwrap();
    }
    assert_eq!(scene.number("SELECT sum(n::int8)::int8 FROM numbers").await, 6);
    scene.end().await;
}

pub(crate) async fn a_batch_takes_few_round_trips() {
    for sink in audit() {
        let scene = Scene::new().await;
        let proxy = Proxy::start(scene.server.server.address).await.unwrap();
        let db = scene.lifecycle.guard(Postgres::new(config_at(&scene.server, proxy.address())));
        let mut checkout = db.get().await.unwrap();
        for id in 0..2 {
            // Prepares, makes the table of keys, and deletes old ones.
            sink.write(&mut checkout, &batch([id])).await.unwrap();
        }
        // So that no answer comes before all is on its way that does not wait for it.
        proxy.set_delay(Duration::from_millis(100));
        let before = proxy.round_trips();
        sink.write(&mut checkout, &batch([2])).await.unwrap();
        assert_eq!(proxy.round_trips() - before, 2, "{sink:?}");
        proxy.set_delay(Duration::ZERO);
        drop(checkout);
        scene.end().await;
    }
}

pub(crate) async fn both_write_through_a_pooler_of_transactions() {
    let bouncer = PgBouncer::start(ServerUse::Shared).await.unwrap();
    let lifecycle = lifecycle(Duration::from_secs(30));
    let mut setup = Setup::default();
    setup.size = 6;
    let db = lifecycle.guard_as("db", bouncer.resource(&setup));
    db.get().await.unwrap().batch_execute(CREATE).await.unwrap();
    let [insert, copy] = audit();
    for round in 0..10 {
        // More clients than are at the server at any time, and each batch on whichever session is free.
        let batches: Vec<_> = (0..6).map(|n| batch(round * 600 + n * 100..round * 600 + (n + 1) * 100)).collect();
        let write = async |(n, batch): (usize, &Batch<Record>)| {
            let sink = if n % 2 == 0 { &insert } else { &copy };
            sink.write(&mut db.get().await.unwrap(), batch).await
        };
        try_join_all(batches.iter().enumerate().map(write)).await.unwrap();
        // Twice changes nothing, and what is refused leaves nothing.
        try_join_all(batches.iter().enumerate().map(write)).await.unwrap();
        for sink in [&insert, &copy] {
            let refused = sink.write(&mut db.get().await.unwrap(), &batch([-1, 0])).await;
            assert_rejected(refused, &SqlState::UNIQUE_VIOLATION);
        }
    }
    let count = db.get().await.unwrap().query_one("SELECT count(*) FROM audit", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 6000);
    assert!(lifecycle.drain().await.is_clean());
    bouncer.end().await.unwrap();
}

pub(crate) async fn the_records_that_the_table_refuses_are_found_and_the_others_are_written() {
    for sink in audit() {
        let scene = Scene::new().await;
        let rejected = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&rejected);
        let writer =
            BatchWriter::new(&scene.db, sink.clone()).batch_size(100).in_flight(3).max_age(Duration::MAX).on_rejected(
                move |(id, _): &Record, error| {
                    assert_is(error, &SqlState::CHARACTER_NOT_IN_REPERTOIRE);
                    told.lock().unwrap().push(*id);
                },
            );
        let buffer = scene.lifecycle.guard(writer);
        let poisonous = [17, 18, 150, 299];
        for id in 0..450 {
            let what = if poisonous.contains(&id) { "nul \0".to_owned() } else { record(id).1 };
            buffer.push((id, what)).await.unwrap();
        }
        let report = scene.lifecycle.drain().await;
        let records = report.resources.iter().find_map(|row| row.records).unwrap();
        assert_eq!((records.accepted, records.written, records.lost, records.in_doubt), (450, 446, 4, 0), "{report}");
        rejected.lock().unwrap().sort();
        assert_eq!(*rejected.lock().unwrap(), poisonous, "{sink:?}");
        let mut written = scene.audit().await;
        written.sort();
        assert_eq!(written, (0..450).filter(|id| !poisonous.contains(id)).map(record).collect::<Vec<_>>());
        assert_nothing_left(&scene.server).await;
        scene.server.end().await.unwrap();
    }
}

pub(crate) async fn everything_that_was_accepted_is_in_the_table_after_the_drain() {
    for sink in audit() {
        let scene = Scene::new().await;
        let buffer = scene.lifecycle.guard(BatchWriter::new(&scene.db, sink.clone()).max_age(Duration::from_secs(60)));
        for id in 0..1234 {
            buffer.push(record(id)).await.unwrap();
        }
        let report = scene.lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        let records = report.resources.iter().find_map(|row| row.records).unwrap();
        assert_eq!((records.accepted, records.written), (1234, 1234), "{report}");
        let mut audit = scene.audit().await;
        audit.sort();
        assert_eq!(audit, (0..1234).map(record).collect::<Vec<_>>());
        assert_nothing_left(&scene.server).await;
        scene.server.end().await.unwrap();
    }
}
