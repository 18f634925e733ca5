//! What the sinks make of warnings and of limits.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use winddown_buffer::{Batch, BatchWriter, Push as _, Sink, WriteError};
use winddown_core::Checkout;
use winddown_mysql::{
    Insert, LoadData, Mysql,
    mysql_async::{OptsBuilder, Value, prelude::Queryable as _},
};

use crate::{
    scene::{code, config, own, start},
    server::{MariaDb, MySql, Version},
    sink::{Scene, batch, insert, load, on_both},
};

on_both! {
    what_the_server_cuts_outside_its_strict_mode_is_refused cut_short;
    what_the_server_only_remarks_on_is_written remarked;
    a_list_of_warnings_that_is_cut_short_is_not_trusted unlisted;
    prepared_statements_that_others_have_used_up_pass used_up;
}

type Small = (i64, Option<String>);

fn small(id: i64, what: &str) -> Small {
    (id, Some(what.to_owned()))
}

const SMALL: &str = "CREATE TABLE small(id TINYINT, what VARCHAR(4) NOT NULL, need INT NOT NULL)";

fn into_small() -> Insert {
    Insert::into("small", ["id", "what"])
}

async fn lenient<V: Version>(scene: &Scene<V>) -> Checkout<Mysql> {
    let mut connection = scene.db.get().await.unwrap();
    connection.query_drop("SET sql_mode = ''").await.unwrap();
    connection
}

async fn cut_short<V: Version>() {
    let server = start::<V>().await;
    let mut config = config(&server);
    config.driver = OptsBuilder::from_opts(config.driver).setup(vec!["SET sql_mode = ''"]).into();
    let scene = Scene::of(server, Mysql::new(config)).await;
    scene.run(SMALL).await;
    let mut connection = lenient(&scene).await;
    let bad: [Batch<Small>; 4] = [
        (126..130).map(|id| small(id, "ok")).collect::<Vec<_>>().into(),
        vec![small(1, "xxxxyy")].into(),
        vec![small(1, "ok"), (2, None)].into(),
        // The first of several statements.
        (0..1200).map(|id| small(id % 100 + 200 * i64::from(id == 7), "ok")).collect::<Vec<_>>().into(),
    ];
    for (index, bad) in bad.into_iter().enumerate() {
        let result = into_small().write(&mut connection, &bad).await;
        assert!(matches!(result, Err(WriteError::Rejected(_))), "{index}: {result:?}");
        println!("{}", result.unwrap_err());
        let result = LoadData::into("small", ["id", "what"]).write(&mut connection, &bad).await;
        assert!(matches!(result, Err(WriteError::Rejected(_))), "{index}: {result:?}");
    }
    drop(connection);
    assert_eq!(scene.rows::<i64>("SELECT COUNT(*) FROM small").await, [0]);
    // What is refused is found, and the others are written.
    let rejected = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&rejected);
    let writer = BatchWriter::new(&scene.db, into_small())
        .max_age(Duration::MAX)
        .on_rejected(move |(id, _): &Small, _| told.lock().unwrap().push(*id));
    let buffer = scene.lifecycle.guard(writer);
    for id in 100..140 {
        buffer.push(small(id, "ok")).await.unwrap();
    }
    let report = scene.lifecycle.drain().await;
    let records = report.resources.iter().find_map(|row| row.records).unwrap();
    assert_eq!((records.accepted, records.written, records.lost), (40, 28, 12), "{report}");
    let mut rejected = rejected.lock().unwrap().clone();
    rejected.sort_unstable();
    assert_eq!(rejected, (128..140).collect::<Vec<_>>());
    assert_eq!(scene.rows::<i64>("SELECT id FROM small ORDER BY id").await, (100..128).collect::<Vec<_>>());
    let Scene { server, db, .. } = scene;
    drop(db);
    winddown_testkit::Harness::end(server).await.unwrap();
}

async fn remarked<V: Version>() {
    let scene = Scene::<V>::new().await;
    scene.run(SMALL).await;
    scene.run("CREATE TABLE days(day DATE, n DECIMAL(4, 1))").await;
    scene.run("CREATE TABLE loud(id INT PRIMARY KEY, what TEXT)").await;
    let warn = "SIGNAL SQLSTATE '01000' SET message_text = 'just so you know'";
    scene.run(&format!("CREATE TRIGGER loud BEFORE INSERT ON loud FOR EACH ROW {warn}")).await;
    let mut connection = lenient(&scene).await;
    // Blanks at the end, and a column that is not written to and has no default.
    into_small().write(&mut connection, &vec![small(1, "abc    ")].into()).await.unwrap();
    let days: Batch<(Value, Value)> = vec![(Value::Date(2026, 1, 2, 3, 4, 5, 0), "1.25".into())].into();
    Insert::into("days", ["day", "n"]).write(&mut connection, &days).await.unwrap();
    // A trigger warns, and MySQL warns of `VALUES`.
    let loud = Insert::into("loud", ["id", "what"]).on_duplicate_key_update("what = CONCAT('again ', VALUES(what))");
    for _ in 0..2 {
        loud.write(&mut connection, &batch(1..4)).await.unwrap();
    }
    LoadData::into("loud", ["id", "what"]).write(&mut connection, &batch(4..6)).await.unwrap();
    // It was asked for.
    into_small().ignore().write(&mut connection, &vec![small(1000, "xxxxyy")].into()).await.unwrap();
    drop(connection);
    assert_eq!(scene.rows::<i64>("SELECT id FROM small ORDER BY id").await, [1, 127]);
    assert_eq!(scene.rows::<i64>("SELECT COUNT(*) FROM days").await, [1]);
    assert_eq!(scene.rows::<String>("SELECT what FROM loud WHERE id = 1").await, ["again did 1"]);
    assert_eq!(scene.rows::<i64>("SELECT COUNT(*) FROM loud").await, [5]);
    scene.end().await;
}

async fn unlisted<V: Version>() {
    let scene = Scene::<V>::new().await;
    scene.run("CREATE TABLE wide(a VARCHAR(3), b VARCHAR(3), c VARCHAR(3))").await;
    let wide = Insert::into("wide", ["a", "b", "c"]);
    let rows = |count: usize| -> Batch<(&'static str, &'static str, &'static str)> {
        vec![("abc   ", "abc   ", "abc   "); count].into()
    };
    // Three notes for each row are more than either server lists.
    let error = scene.write(&wide, &rows(500)).await.unwrap_err();
    println!("{error}");
    assert!(matches!(error, WriteError::TooLarge(_)), "{error:?}");
    scene.write(&wide, &rows(20)).await.unwrap();
    assert_eq!(scene.rows::<i64>("SELECT COUNT(*) FROM wide").await, [20]);
    // Of one alone nothing is known, and it is not called written.
    let mut connection = scene.db.get().await.unwrap();
    if connection.query_drop("SET max_error_count = 0").await.is_ok() {
        let error = wide.write(&mut connection, &rows(1)).await.unwrap_err();
        assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
    }
    drop(connection);
    scene.end().await;
}

pub(crate) async fn a_limit_that_a_smaller_batch_would_keep_is_told_from_an_outage() {
    let scene = Scene::<MariaDb>::new().await;
    scene.run("CREATE TRIGGER slow BEFORE INSERT ON audit FOR EACH ROW DO SLEEP(0.25)").await;
    let mut connection = scene.db.get().await.unwrap();
    connection.query_drop("SET max_statement_time = 2").await.unwrap();
    let error = insert().write(&mut connection, &batch(0..20)).await.unwrap_err();
    assert!(matches!(error, WriteError::TooLarge(_)), "{error:?}");
    assert_eq!(code(error.error()), Some(1969), "{error}");
    let error = load().write(&mut connection, &batch(0..20)).await.unwrap_err();
    assert!(matches!(error, WriteError::TooLarge(_)), "{error:?}");
    insert().write(&mut connection, &batch(0..1)).await.unwrap();
    // It is no matter of size that another has the key.
    let waits = batch([5]);
    let mut other = scene.db.get().await.unwrap();
    let key = winddown_buffer::uuid::Uuid::from(waits.key()).simple().to_string();
    other.query_drop(format!("BEGIN; INSERT INTO winddown_batch(`key`) VALUES (x'{key}')")).await.unwrap();
    let error = insert().write(&mut connection, &waits).await.unwrap_err();
    assert!(matches!(error, WriteError::Retry(_)), "{error:?}");
    drop((connection, other));
    scene.run("DROP TRIGGER slow").await;
    scene.end().await;
    large::<MySql>().await;
    large::<MariaDb>().await;
}

/// Packets are small, as the driver knows from the server.
async fn large<V: Version>() {
    let server = start::<V>().await;
    let mut config = config(&server);
    config.driver = OptsBuilder::from_opts(config.driver).max_allowed_packet(Some(16 * 1024)).into();
    let scene = Scene::of(server, Mysql::new(config)).await;
    let texts = |count: i64, length: usize| -> Batch<(i64, String)> {
        (0..count).map(|id| (id, "x".repeat(length))).collect::<Vec<_>>().into()
    };
    // The sink keeps to that, and what cannot be kept to is a record's fault.
    scene.write(&insert(), &texts(10, 4000)).await.unwrap();
    let error = scene.write(&insert(), &texts(1, 20_000)).await.unwrap_err();
    assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
    assert!(error.to_string().contains("max_allowed_packet of 16384"), "{error}");
    assert_eq!(scene.ids().await, (0..10).collect::<Vec<_>>());
    // One that is as large as the driver just refuses.
    let error = scene.write(&insert(), &texts(1, 16_370)).await.unwrap_err();
    assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
    let Scene { server, lifecycle, db } = scene;
    // Which ends that session without a word.
    lifecycle.drain().await;
    drop(db);
    winddown_testkit::Harness::end(server).await.unwrap();
}

async fn used_up<V: Version>() {
    let server = own::<V>().await;
    let mysql = Mysql::new(config(&server));
    let scene = Scene::of(server, mysql).await;
    scene.server.execute("SET GLOBAL max_prepared_stmt_count = 0").await.unwrap();
    let error = scene.write(&insert(), &batch([1])).await.unwrap_err();
    assert!(matches!(error, WriteError::Retry(_)), "{error:?}");
    assert_eq!(code(error.error()), Some(1461), "{error}");
    let checked = Sink::<(i64, String)>::check(&insert(), &mut scene.db.get().await.unwrap()).await;
    assert!(checked.as_ref().unwrap_err().is_retryable(), "{checked:?}");
    // Which needs none.
    scene.write(&load(), &batch([2])).await.unwrap();
    scene.server.execute("SET GLOBAL max_prepared_stmt_count = 16382").await.unwrap();
    scene.write(&insert(), &batch([1])).await.unwrap();
    assert_eq!(scene.ids().await, [1, 2]);
    scene.end().await;
}
