//! `Insert` and `LoadData`: each batch in one transaction, exactly once.

use std::{
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use winddown_buffer::{Batch, BatchKey, BatchWriter, Delivery, Push as _, Sink, WriteError, uuid::Uuid};
use winddown_core::{ErrorKind, Lifecycle, ShutdownGuard};
use winddown_mysql::{
    Insert, LoadData, Mysql, Parameters,
    mysql_async::{
        self, OptsBuilder, Value, WhiteListFsHandler,
        prelude::{FromRow, Queryable as _},
    },
};
use winddown_testkit::{Harness, ServerUse, proxy::Proxy, scene::until};

use crate::{
    scene::{assert_nothing_left, code, config, config_at, lifecycle, start, written},
    server::{MariaDb, MySql, Tenancy, Version},
};

pub(crate) type Record = (i64, String);

pub(crate) fn record(id: i64) -> Record {
    (id, format!("did {id}"))
}

pub(crate) fn batch(ids: impl IntoIterator<Item = i64>) -> Batch<Record> {
    ids.into_iter().map(record).collect::<Vec<_>>().into()
}

pub(crate) fn insert() -> Insert {
    Insert::into("audit", ["id", "what"])
}

pub(crate) fn load() -> LoadData {
    LoadData::into("audit", ["id", "what"])
}

pub(crate) const AUDIT: &str =
    "CREATE TABLE audit(at BIGINT AUTO_INCREMENT PRIMARY KEY, id BIGINT UNIQUE, what TEXT NOT NULL)";

/// A tenant with a table.
pub(crate) struct Scene<V> {
    pub(crate) server: Tenancy<V>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) db: ShutdownGuard<Mysql>,
}

impl<V: Version> Scene<V> {
    pub(crate) async fn new() -> Self {
        let server = start::<V>().await;
        let mysql = Mysql::new(config(&server));
        Self::of(server, mysql).await
    }

    pub(crate) async fn of(server: Tenancy<V>, mysql: Mysql) -> Self {
        let lifecycle = lifecycle(Duration::from_secs(30));
        let db = lifecycle.guard_as("db", mysql);
        let scene = Self { server, lifecycle, db };
        scene.run(AUDIT).await;
        scene
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.db.get().await.unwrap().query_drop(sql).await.unwrap();
    }

    pub(crate) async fn write<T: Parameters>(
        &self,
        sink: &impl Sink<T, Target = Mysql>,
        batch: &Batch<T>,
    ) -> Result<(), WriteError> {
        sink.write(&mut self.db.get().await?, batch).await
    }

    /// What another session sees.
    pub(crate) async fn rows<R: FromRow + Send + 'static>(&self, sql: &str) -> Vec<R> {
        let mut superuser = self.server.server.superuser().await.unwrap();
        superuser.query_drop(format!("USE {}", self.server.tenant.name)).await.unwrap();
        superuser.query(sql).await.unwrap()
    }

    pub(crate) async fn ids(&self) -> Vec<i64> {
        self.rows("SELECT id FROM audit ORDER BY id").await
    }

    async fn keys(&self) -> usize {
        self.rows("SELECT COUNT(*) FROM winddown_batch").await[0]
    }

    pub(crate) async fn end(self) {
        let Self { server, lifecycle, db } = self;
        let report = lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        drop(db);
        assert_nothing_left(&server).await;
        server.end().await.unwrap();
    }
}

/// The same on MySQL and on MariaDB.
macro_rules! on_both {
    ($($case:ident $on:ident;)*) => {
        $(pub(crate) async fn $case() {
            $on::<MySql>().await;
            $on::<MariaDb>().await;
        })*
    };
}
pub(crate) use on_both;

on_both! {
    a_batch_is_written_whole_or_not_at_all whole;
    a_batch_that_comes_again_is_written_once once;
    what_is_wrong_with_a_record_is_told_from_what_is_wrong_with_the_table told;
    what_passes_can_be_written_again passing;
    a_batch_whose_commit_was_cut_off_is_written_once cut;
    names_are_taken_as_they_are names;
    the_table_of_the_keys_is_created_or_it_is_said_how key_table;
    keys_are_forgotten_when_they_are_old forgotten;
    values_arrive_as_they_were_whichever_way values;
    a_large_batch_goes_in_several_statements large;
    what_is_there_already_is_ignored_or_updated there_already;
    the_records_that_the_table_refuses_are_found_and_the_others_are_written refused;
    everything_that_was_accepted_is_in_the_table_after_the_drain drained;
}

async fn whole<V: Version>() {
    let scene = Scene::<V>::new().await;
    whole_by(&scene, insert(), 0).await;
    whole_by(&scene, load(), 10).await;
    assert_eq!(scene.ids().await, [1, 2, 3, 7, 11, 12, 13, 17]);
    scene.end().await;
}

async fn whole_by<V: Version>(scene: &Scene<V>, sink: impl Sink<Record, Target = Mysql>, from: i64) {
    // By one connection, which is as good afterwards as before.
    let mut connection = scene.db.get().await.unwrap();
    sink.write(&mut connection, &batch([1, 2, 3].map(|id| from + id))).await.unwrap();
    let error = sink.write(&mut connection, &batch([4, 5, 2, 6].map(|id| from + id))).await.unwrap_err();
    assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
    assert_eq!(error.error().kind(), ErrorKind::Write, "{error}");
    assert!(error.to_string().contains("Duplicate entry"), "{error}");
    sink.write(&mut connection, &batch([from + 7])).await.unwrap();
}

async fn once<V: Version>() {
    let directory = TempDir::new().unwrap();
    let scene = with_a_file::<V>(&directory).await;
    // The table would take them twice.
    scene.run("ALTER TABLE audit DROP INDEX id").await;
    once_by(&scene, &directory, insert(), 1).await;
    once_by(&scene, &directory, load(), 2).await;
    assert_eq!(scene.keys().await, 4);
    let (twice, batch) = (insert().delivery(Delivery::AtLeastOnce), batch([3]));
    assert_eq!(Sink::<Record>::delivery(&twice), Delivery::AtLeastOnce);
    for _ in 0..2 {
        scene.write(&twice, &batch).await.unwrap();
    }
    assert_eq!(scene.keys().await, 4);
    assert_eq!(scene.ids().await, [1, 1, 2, 2, 3, 3]);
    scene.end().await;
}

async fn once_by<V: Version>(
    scene: &Scene<V>,
    directory: &TempDir,
    sink: impl Sink<Record, Target = Mysql> + Clone,
    id: i64,
) {
    let again = batch([id]);
    for _ in 0..2 {
        scene.write(&sink, &again).await.unwrap();
    }
    // By several at the same time.
    let again = batch([id]);
    let writers = (0..4).map(|_| {
        let (db, sink, again) = (scene.db.clone(), sink.clone(), again.clone());
        tokio::spawn(async move { sink.write(&mut db.get().await.unwrap(), &again).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        match writer.await.unwrap() {
            // Of some that wait for the same key, the server may roll one back.
            Err(WriteError::Retry(error)) => assert_eq!(code(&error), Some(1213), "{error}"),
            result => result.unwrap(),
        }
    }
    // What a batch that was there already has not used is not left with the connection.
    let mut connection = scene.db.get().await.unwrap();
    sink.write(&mut connection, &again).await.unwrap();
    connection.query_drop("CREATE TEMPORARY TABLE other(id BIGINT)").await.unwrap();
    let file = directory.path().join("file");
    let load = format!("LOAD DATA LOCAL INFILE '{}' INTO TABLE other", file.display());
    connection.query_drop(load).await.unwrap();
    let loaded: Option<i64> = connection.query_first("SELECT id FROM other").await.unwrap();
    assert_eq!(loaded, Some(77));
}

/// A tenant who may load the file with the line 77.
async fn with_a_file<V: Version>(directory: &TempDir) -> Scene<V> {
    let server = start::<V>().await;
    let mut config = config(&server);
    let handler = WhiteListFsHandler::new([written(directory.path(), "file", "77\n")]);
    config.driver = OptsBuilder::from_opts(config.driver).local_infile_handler(Some(handler)).into();
    Scene::of(server, Mysql::new(config)).await
}

async fn told<V: Version>() {
    let scene = Scene::<V>::new().await;
    scene.run("CREATE TABLE parents(id INT PRIMARY KEY)").await;
    scene
        .run(
            "CREATE TABLE typed(a TINYINT UNIQUE CHECK (a < 100), b VARCHAR(3) NOT NULL, c DATE, d ENUM('x', 'y'),
             e INT REFERENCES parents(id), f JSON, CONSTRAINT fk FOREIGN KEY (e) REFERENCES parents(id))",
        )
        .await;
    let raise = "SIGNAL SQLSTATE '45000' SET message_text = 'seven'";
    scene
        .run(&format!("CREATE TRIGGER seven BEFORE INSERT ON typed FOR EACH ROW IF new.a = 77 THEN {raise}; END IF"))
        .await;
    let columns = ["a", "b", "c", "d", "e", "f"];
    let (insert, load) = (Insert::into("typed", columns), LoadData::into("typed", columns));

    type Typed = (Value, Value, Value, Value, Value, Value);
    let good: Typed = (1.into(), "abc".into(), "2026-01-02".into(), "x".into(), Value::NULL, "{}".into());
    let bad: [fn(&mut Typed); 10] = [
        |typed| typed.0 = 1000.into(),
        |typed| typed.0 = "no number".into(),
        |typed| typed.0 = 101.into(),
        |typed| typed.0 = 77.into(),
        |typed| typed.1 = "abcd".into(),
        |typed| typed.1 = Value::NULL,
        |typed| typed.1 = vec![0xff_u8, 0xfe].into(),
        |typed| typed.2 = "2026-02-30".into(),
        |typed| typed.3 = "z".into(),
        |typed| typed.4 = 5.into(),
    ];
    let mut connection = scene.db.get().await.unwrap();
    for (index, spoil) in bad.into_iter().enumerate() {
        let mut record = good.clone();
        spoil(&mut record);
        let batch = vec![record].into();
        let result = insert.write(&mut connection, &batch).await;
        assert!(matches!(result, Err(WriteError::Rejected(_))), "{index}: {result:?}");
        let result = load.write(&mut connection, &batch).await;
        assert!(matches!(result, Err(WriteError::Rejected(_))), "{index}: {result:?}");
    }
    insert.write(&mut connection, &vec![good].into()).await.unwrap();

    let failing = [
        (insert_into("missing"), 1146),
        (self::insert().schema("missing"), 1142),
        (Insert::into("audit", ["id", "missing"]), 1054),
        (Insert::into("audit", ["id", "id"]), 1110),
        (self::insert().on_duplicate_key_update("nonsense"), 1064),
        (Insert::into("", ["id", "what"]), 1103),
    ];
    for (sink, number) in failing {
        let error = sink.write(&mut connection, &batch([1])).await.unwrap_err();
        assert!(matches!(error, WriteError::Failed(_)), "{error:?}");
        assert!([Some(number), Some(1049)].contains(&code(error.error())), "{error}");
    }
    for columns in [vec!["id"], vec![]] {
        let error = Insert::into("audit", columns).write(&mut connection, &batch([1])).await.unwrap_err();
        assert!(matches!(error, WriteError::Failed(_)), "{error:?}");
        assert!(error.to_string().contains("a record has 2 values"), "{error}");
    }
    let error = LoadData::into("missing", ["id", "what"]).write(&mut connection, &batch([1])).await.unwrap_err();
    assert!(matches!(error, WriteError::Failed(_)), "{error:?}");
    drop(connection);
    assert_eq!((scene.rows::<i64>("SELECT a FROM typed").await, scene.ids().await), (vec![1], vec![]));
    scene.end().await;
}

fn insert_into(table: &str) -> Insert {
    Insert::into(table, ["id", "what"])
}

async fn passing<V: Version>() {
    let scene = Scene::<V>::new().await;
    passing_by(&scene, insert(), 1).await;
    passing_by(&scene, load(), 2).await;
    assert_eq!(scene.ids().await, [1, 2, 11, 12, 21, 22]);
    scene.end().await;
}

async fn passing_by<V: Version>(scene: &Scene<V>, sink: impl Sink<Record, Target = Mysql>, id: i64) {
    let mut connection = scene.db.get().await.unwrap();
    let locked = batch([id]);
    // Another has it, and does not keep it.
    let mut other = scene.db.get().await.unwrap();
    other.query_drop(format!("BEGIN; INSERT INTO audit(id, what) VALUES ({id}, '')")).await.unwrap();
    connection.query_drop("SET innodb_lock_wait_timeout = 1").await.unwrap();
    let error = sink.write(&mut connection, &locked).await.unwrap_err();
    assert!(matches!(error, WriteError::Retry(_)), "{error:?}");
    assert_eq!(code(error.error()), Some(1205), "{error}");

    // Somebody ends the session meanwhile.
    connection.query_drop("SET innodb_lock_wait_timeout = 50").await.unwrap();
    let session = connection.id();
    let error = {
        let mut write = pin!(sink.write(&mut connection, &locked));
        tokio::select! {
            result = &mut write => panic!("nobody had the lock: {result:?}"),
            () = until("it waits for the lock", || async {
                let waits: Vec<(String, u64)> =
                    scene.rows("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'").await;
                waits[0].1 > 0
            }) => {}
        }
        scene.server.execute(&format!("KILL {session}")).await.unwrap();
        write.await.unwrap_err()
    };
    assert!(matches!(error, WriteError::Retry(_)), "{error:?}");
    other.query_drop("ROLLBACK").await.unwrap();
    drop((connection, other));
    scene.write(&sink, &locked).await.unwrap();

    // It is no primary for now.
    let mut connection = scene.db.get().await.unwrap();
    connection.query_drop("SET SESSION TRANSACTION READ ONLY").await.unwrap();
    let batch = batch([id + 10]);
    let error = sink.write(&mut connection, &batch).await.unwrap_err();
    assert!(matches!(error, WriteError::Retry(_)), "{error:?}");
    assert_eq!(code(error.error()), Some(1792), "{error}");
    connection.query_drop("SET SESSION TRANSACTION READ WRITE").await.unwrap();
    sink.write(&mut connection, &batch).await.unwrap();

    // The connection was closed while nothing was under way.
    let session = connection.id();
    scene.server.execute(&format!("KILL {session}")).await.unwrap();
    let batch = self::batch([id + 20]);
    let error = sink.write(&mut connection, &batch).await.unwrap_err();
    assert!(matches!(error, WriteError::Retry(_)), "{error:?}");
    drop(connection);
    scene.write(&sink, &batch).await.unwrap();
}

async fn cut<V: Version>() {
    for commits in [true, false] {
        cut_by::<V>(insert(), commits).await;
        cut_by::<V>(load(), commits).await;
    }
}

/// The connection is cut while the commit is on its way to the server, or its answer is on its way back.
async fn cut_by<V: Version>(sink: impl Sink<Record, Target = Mysql>, commits: bool) {
    let server = start::<V>().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address());
    config.pool.max_size = 1;
    let scene = Scene::of(server, Mysql::new(config)).await;
    // How many round trips there are, once everything is created.
    for id in [1, 2] {
        scene.write(&sink, &batch([id])).await.unwrap();
    }
    let mut connection = scene.db.get().await.unwrap();
    sink.write(&mut connection, &batch([0])).await.unwrap();
    let before = proxy.round_trips();
    sink.write(&mut connection, &batch([3])).await.unwrap();
    let trips = proxy.round_trips() - before;

    // The last of them is the commit: it arrives, and its answer does not come back; or it does not arrive.
    if commits {
        proxy.mute_after(trips - 1)
    } else {
        proxy.cut_after(trips - 1)
    }
    let superuser = scene.server.server.superuser().await.unwrap();
    let count = format!("SELECT COUNT(*) FROM {}.audit", scene.server.tenant.name);
    let superuser = &tokio::sync::Mutex::new(superuser);
    let (doubtful, before) = (batch([4]), proxy.round_trips());
    let error = {
        let mut write = pin!(sink.write(&mut connection, &doubtful));
        tokio::select! {
            result = &mut write => panic!("nobody can have answered: {result:?}"),
            () = until("the commit is on its way", || async {
                if commits { superuser.lock().await.query_first(&count).await.unwrap() == Some(5) } else { proxy.round_trips() == before + trips - 1 }
            }) => {}
        }
        if !commits {
            // What the client has heard it answers at once.
            tokio::select! {
                result = &mut write => panic!("nobody can have answered: {result:?}"),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
        drop(proxy);
        write.await.unwrap_err()
    };
    assert!(matches!(error, WriteError::Unknown(_)), "{error:?}");
    drop(connection);
    assert_eq!(scene.ids().await.len(), if commits { 5 } else { 4 });

    // Another process writes it again, and again.
    let lifecycle = lifecycle(Duration::from_secs(30));
    let db = lifecycle.guard(Mysql::new(self::config(&scene.server)));
    for _ in 0..2 {
        sink.write(&mut db.get().await.unwrap(), &doubtful).await.unwrap();
    }
    assert_eq!(scene.ids().await, [0, 1, 2, 3, 4]);
    assert!(lifecycle.drain().await.is_clean());
    let Scene { server, lifecycle, db, .. } = scene;
    // Nothing can be said to the server any more.
    lifecycle.drain().await;
    drop(db);
    server.end().await.unwrap();
}

async fn names<V: Version>() {
    let scene = Scene::<V>::new().await;
    let schema = &scene.server.tenant.name;
    scene
        .run("CREATE TABLE `My ``x``; -- :a ?`(`select` INT PRIMARY KEY, `a'b:c` VARBINARY(9), e INT DEFAULT 5)")
        .await;
    let (table, columns) = ("My `x`; -- :a ?", ["select", "a'b:c"]);
    let insert = Insert::into(table, columns).schema(schema).key_table("The `keys`");
    let load = LoadData::into(table, columns).schema(schema).key_table("The `keys`");
    let mut other = scene.db.get().await.unwrap();
    other.query_drop("USE information_schema").await.unwrap();
    insert.write(&mut other, &vec![(1, "one")].into()).await.unwrap();
    load.write(&mut other, &vec![(2, "two")].into()).await.unwrap();
    drop(other);
    let rows: Vec<(i64, String, i64)> = scene.rows("SELECT * FROM `My ``x``; -- :a ?` ORDER BY 1").await;
    assert_eq!(rows, [(1, "one".into(), 5), (2, "two".into(), 5)]);
    let keys = "SELECT COUNT(*) FROM `The ``keys``` WHERE written_at > NOW() - INTERVAL 1 HOUR";
    assert_eq!(scene.rows::<i64>(keys).await, [2]);
    scene.end().await;
}

async fn key_table<V: Version>() {
    let scene = Scene::<V>::new().await;
    let name = &scene.server.tenant.name;
    for grant in ["REVOKE ALL ON {}.* FROM {}@'%'", "GRANT INSERT, SELECT ON {}.* TO {}@'%'"] {
        scene.server.execute(&grant.replace("{}", name)).await.unwrap();
    }
    let denied = batch([1]);
    let mut connection = scene.db.get().await.unwrap();
    // From here on it has what it is granted.
    connection.query_drop(format!("USE {name}")).await.unwrap();
    let error = insert().write(&mut connection, &denied).await.unwrap_err();
    assert!(matches!(error, WriteError::Failed(_)), "{error:?}");
    let text = error.to_string();
    println!("{text}");
    let (_, statement) = text.split_once("run: ").unwrap();
    let (statement, _) = statement.split_once(": ").unwrap();
    // The table itself is as good without.
    insert().delivery(Delivery::AtMostOnce).write(&mut connection, &batch([2])).await.unwrap();
    // What it says helps.
    let mut superuser = scene.server.server.superuser().await.unwrap();
    superuser.query_drop(format!("USE {name}")).await.unwrap();
    superuser.query_drop(statement).await.unwrap();
    insert().write(&mut connection, &denied).await.unwrap();
    // Old keys stay, for they may not be deleted, and nothing else comes of it.
    insert().write(&mut connection, &batch([3])).await.unwrap();
    drop(connection);
    assert_eq!((scene.ids().await, scene.keys().await), (vec![1, 2, 3], 2));
    // One in which keys would be cut short, and so become each other's.
    superuser.query_drop("CREATE TABLE narrow(`key` BINARY(4) PRIMARY KEY)").await.unwrap();
    let narrow = insert().key_table("narrow");
    for mode in ["STRICT_ALL_TABLES", ""] {
        let mut connection = scene.db.get().await.unwrap();
        connection.query_drop(format!("SET sql_mode = '{mode}'")).await.unwrap();
        let error = narrow.write(&mut connection, &batch([4])).await.unwrap_err();
        assert!(matches!(error, WriteError::Failed(_)), "{error:?}");
    }
    assert_eq!(scene.ids().await, [1, 2, 3]);
    scene.end().await;
}

async fn forgotten<V: Version>() {
    let scene = Scene::<V>::new().await;
    scene.write(&insert(), &batch([1])).await.unwrap();
    let age = async |seconds| {
        let key = Uuid::from(BatchKey::first_at(SystemTime::now() - Duration::from_secs(seconds)));
        scene.run(&format!("INSERT INTO winddown_batch(`key`) VALUES (x'{}')", key.simple())).await;
    };
    for seconds in [3700, 3500] {
        age(seconds).await;
    }
    // The default is longer than that.
    scene.write(&insert(), &batch([2])).await.unwrap();
    assert_eq!(scene.keys().await, 4);
    let insert = insert().remember(Duration::from_secs(3600));
    scene.write(&insert, &batch([3])).await.unwrap();
    assert_eq!(scene.keys().await, 4);
    // Not with each batch.
    age(3700).await;
    scene.write(&insert, &batch([4])).await.unwrap();
    assert_eq!(scene.keys().await, 6);
    scene.write(&load().remember(Duration::from_secs(3600)), &batch([5])).await.unwrap();
    assert_eq!(scene.keys().await, 6);
    scene.end().await;
}

async fn values<V: Version>() {
    let scene = Scene::<V>::new().await;
    let table = "(id INT PRIMARY KEY, i BIGINT, u BIGINT UNSIGNED, f FLOAT, d DOUBLE, n DECIMAL(20, 5), t TEXT, \
        l VARCHAR(20) CHARACTER SET latin1, b BLOB, v BINARY(4), x BIT(12), at DATETIME(6), day DATE, took TIME(6), j JSON)";
    scene.run(&format!("CREATE TABLE inserted{table}; CREATE TABLE loaded{table}")).await;
    let every: Vec<u8> = (0..=255).collect();
    let texts = ["", "a\tb\nc\\d\0e\r\n", "\\N", "NULL", "'quoted', \"twice\"", "grüße 你好 🦀", ",;\\"];
    let mut records: Vec<Row> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let mut row: Vec<Value> = vec![
                index.into(),
                i64::MIN.into(),
                u64::MAX.into(),
                1.1_f32.into(),
                (0.1_f64 + 0.2).into(),
                "-123456789012345.12345".into(),
                (*text).into(),
                "grüße".into(),
                every.clone().into(),
                vec![0_u8, 9, 10, 92].into(),
                (0xabc_u64 - index as u64).into(),
                Value::Date(2026, 2, 28, 23, 59, 58, 7),
                Value::Date(2026, 2, 28, 0, 0, 0, 0),
                Value::Time(true, 3, 4, 5, 6, 7),
                r#"{"a": "b\n"}"#.into(),
            ];
            if index == 1 {
                // Bits as bytes, floats that are large, and a text for a number.
                row[10] = vec![0_u8, 0x0f, 0xff].into();
                row[3] = 1e38_f32.into();
                row[4] = 1.797e308_f64.into();
                row[1] = "12".into();
                // A number for bytes and for a text.
                row[6] = 5.into();
                row[8] = 5.into();
            }
            Row(row)
        })
        .collect();
    let mut nulls = vec![Value::NULL; 15];
    nulls[0] = 100.into();
    records.push(Row(nulls));
    let batch: Batch<Row> = records.into();
    let columns = ["id", "i", "u", "f", "d", "n", "t", "l", "b", "v", "x", "at", "day", "took", "j"];
    scene.write(&Insert::into("inserted", columns), &batch).await.unwrap();
    // Whatever the mode says of backslashes.
    let mut connection = scene.db.get().await.unwrap();
    connection.query_drop("SET sql_mode = CONCAT(@@sql_mode, ',NO_BACKSLASH_ESCAPES')").await.unwrap();
    LoadData::into("loaded", columns).write(&mut connection, &batch).await.unwrap();
    drop(connection);

    let sent: Vec<(String, String, Vec<u8>)> =
        scene.rows("SELECT t, l, b FROM inserted WHERE t IS NOT NULL ORDER BY id").await;
    for (index, (text, latin, bytes)) in sent.into_iter().enumerate() {
        let (expected, blob) = if index == 1 { ("5", &b"5"[..]) } else { (texts[index], &*every) };
        assert_eq!((&*text, &*latin, &*bytes), (expected, "grüße", blob));
    }
    let inserted: Vec<mysql_async::Row> = scene.rows("SELECT * FROM inserted ORDER BY id").await;
    let loaded: Vec<mysql_async::Row> = scene.rows("SELECT * FROM loaded ORDER BY id").await;
    assert_eq!(inserted.len(), texts.len() + 1);
    for (inserted, loaded) in inserted.into_iter().zip(loaded) {
        assert_eq!(inserted.unwrap(), loaded.unwrap());
    }
    // One column, in rows with nothing in them.
    scene.run("CREATE TABLE one(t TEXT)").await;
    let empty: Batch<_> = vec![("",), ("x",), ("",)].into();
    scene.write(&LoadData::into("one", ["t"]), &empty).await.unwrap();
    assert_eq!(scene.rows::<String>("SELECT t FROM one ORDER BY t").await, ["", "", "x"]);
    scene.end().await;
}

/// A record of whatever values.
struct Row(Vec<Value>);

impl Parameters for Row {
    fn parameters(&self, values: &mut Vec<Value>) {
        values.extend_from_slice(&self.0);
    }
}

async fn large<V: Version>() {
    let scene = Scene::<V>::new().await;
    // More parameters than a statement can have.
    scene.write(&insert(), &batch(0..40_000)).await.unwrap();
    scene.write(&load(), &batch(40_000..80_000)).await.unwrap();
    assert_eq!(scene.ids().await, (0..80_000).collect::<Vec<_>>());
    // Whether the last of them is refused or the first, nothing is there.
    let mut records: Vec<_> = (80_000..90_000).map(record).collect();
    records.push(record(5));
    let batch: Batch<_> = records.into();
    for result in [scene.write(&insert(), &batch).await, scene.write(&load(), &batch).await] {
        let error = result.unwrap_err();
        assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
    }
    scene.run("DELETE FROM audit; ALTER TABLE audit MODIFY what LONGTEXT").await;
    // More bytes than a packet can have: together, and one alone.
    let largest: usize = scene.rows("SELECT @@max_allowed_packet").await[0];
    let text = |length: usize| "x".repeat(length);
    let many: Batch<_> = (0..24).map(|id| (id, text(largest / 20))).collect::<Vec<_>>().into();
    scene.write(&insert(), &many).await.unwrap();
    let many: Batch<_> = (24..48).map(|id| (id, text(largest / 20))).collect::<Vec<_>>().into();
    scene.write(&load(), &many).await.unwrap();
    let sum: usize = scene.rows("SELECT SUM(LENGTH(what)) FROM audit").await[0];
    assert_eq!(sum, 48 * (largest / 20));
    let one: Batch<_> = vec![(100, text(largest + 1))].into();
    let error = scene.write(&insert(), &one).await.unwrap_err();
    println!("{error}");
    assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
    scene.write(&load(), &one).await.unwrap();
    assert_eq!(scene.ids().await.len(), 49);
    scene.end().await;
}

async fn there_already<V: Version>() {
    let scene = Scene::<V>::new().await;
    scene.write(&insert().ignore(), &batch([1, 2, 1])).await.unwrap();
    scene.write(&insert().ignore(), &batch([2, 3])).await.unwrap();
    let update = insert().on_duplicate_key_update("what = CONCAT(what, ' and ', VALUES(what))");
    scene.write(&update, &batch([3, 4])).await.unwrap();
    let rows: Vec<Record> = scene.rows("SELECT id, what FROM audit ORDER BY id").await;
    assert_eq!(rows, [record(1), record(2), (3, "did 3 and did 3".into()), record(4)]);
    scene.end().await;
}

async fn refused<V: Version>() {
    refused_by::<V>(insert()).await;
    refused_by::<V>(load()).await;
}

async fn refused_by<V: Version>(sink: impl Sink<Record, Target = Mysql>) {
    let scene = Scene::<V>::new().await;
    let poisonous = [17, 18, 150, 299];
    scene.write(&insert(), &batch(poisonous)).await.unwrap();
    let rejected = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&rejected);
    let writer = BatchWriter::new(&scene.db, sink).batch_size(100).in_flight(3).max_age(Duration::MAX).on_rejected(
        move |(id, _): &Record, error| {
            assert!(error.to_string().contains("Duplicate entry"), "{error}");
            told.lock().unwrap().push(*id);
        },
    );
    let buffer = scene.lifecycle.guard(writer);
    for id in 0..450 {
        buffer.push(record(id)).await.unwrap();
    }
    let report = scene.lifecycle.drain().await;
    let records = report.resources.iter().find_map(|row| row.records).unwrap();
    assert_eq!((records.accepted, records.written, records.lost, records.in_doubt), (450, 446, 4, 0), "{report}");
    rejected.lock().unwrap().sort_unstable();
    assert_eq!(*rejected.lock().unwrap(), poisonous);
    assert_eq!(scene.ids().await, (0..450).collect::<Vec<_>>());
    assert_nothing_left(&scene.server).await;
    scene.server.end().await.unwrap();
}

async fn drained<V: Version>() {
    drained_by::<V>(insert()).await;
    drained_by::<V>(load()).await;
}

async fn drained_by<V: Version>(sink: impl Sink<Record, Target = Mysql>) {
    let Scene { server, lifecycle, db } = Scene::<V>::new().await;
    let buffer = lifecycle.guard(BatchWriter::new(&db, sink).max_age(Duration::from_secs(60)));
    for id in 0..1234 {
        buffer.push(record(id)).await.unwrap();
    }
    let report = lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    let records = report.resources.iter().find_map(|row| row.records).unwrap();
    assert_eq!((records.accepted, records.written), (1234, 1234), "{report}");
    let scene = Scene { server, lifecycle, db };
    assert_eq!(scene.ids().await, (0..1234).collect::<Vec<_>>());
    assert_nothing_left(&scene.server).await;
    scene.server.end().await.unwrap();
}

pub(crate) async fn loading_that_the_server_does_not_allow_says_what_to_set() {
    let server = Tenancy::<MySql>::start(ServerUse::Own).await.unwrap();
    let mysql = Mysql::new(config(&server));
    let scene = Scene::of(server, mysql).await;
    scene.server.execute("SET GLOBAL local_infile = OFF").await.unwrap();
    let error = scene.write(&load(), &batch([1])).await.unwrap_err();
    assert!(matches!(error, WriteError::Failed(_)), "{error:?}");
    assert!(error.to_string().contains("set local_infile=ON"), "{error}");
    let error = Sink::<Record>::check(&load(), &mut scene.db.get().await.unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("set local_infile=ON"), "{error}");
    scene.server.execute("SET GLOBAL local_infile = ON").await.unwrap();
    scene.write(&load(), &batch([1])).await.unwrap();
    assert_eq!(scene.ids().await, [1]);
    scene.end().await;
}
