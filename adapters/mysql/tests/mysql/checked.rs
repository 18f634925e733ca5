//! What `check` finds before the first record comes.

use winddown_buffer::{Delivery, Sink};
use winddown_core::{Checkout, Error, ErrorKind};
use winddown_mysql::{Insert, LoadData, Mysql, mysql_async::prelude::Queryable as _};

use crate::{
    server::{MariaDb, MySql, Version},
    sink::{Record, Scene, batch, insert, load, on_both},
};

on_both! {
    what_can_be_written_to_passes_the_check_and_nothing_is_changed good;
    a_target_that_cannot_be_written_to_says_what_to_do bad;
    a_table_of_keys_that_cannot_be_written_to_says_what_to_do keys;
    a_check_without_an_answer_is_worth_another_try unanswered;
}

async fn check(sink: &impl Sink<Record, Target = Mysql>, connection: &mut Checkout<Mysql>) -> Result<(), Error> {
    sink.check(connection).await
}

/// What the check says to do.
async fn advice(sink: &impl Sink<Record, Target = Mysql>, connection: &mut Checkout<Mysql>) -> String {
    let error = check(sink, connection).await.unwrap_err();
    println!("{error}");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(!error.is_retryable(), "{error}");
    error.to_string()
}

async fn good<V: Version>() {
    let scene = Scene::<V>::new().await;
    scene.run("CREATE VIEW seen AS SELECT id, what FROM audit").await;
    let columns = ["id", "what"];
    let schema = &scene.server.tenant.name;
    let before = tables(&scene).await;
    let mut connection = scene.db.get().await.unwrap();
    for sink in [insert(), insert().schema(schema), insert().ignore(), Insert::into("seen", columns)] {
        check(&sink, &mut connection).await.unwrap();
    }
    for sink in [load(), load().schema(schema), LoadData::into("seen", columns)] {
        check(&sink, &mut connection).await.unwrap();
    }
    assert_eq!(tables(&scene).await, before);
    // And with a table of keys.
    insert().write(&mut connection, &batch([1])).await.unwrap();
    check(&insert(), &mut connection).await.unwrap();
    drop(connection);
    assert_eq!(scene.ids().await, [1]);
    let named = insert().schema("shop");
    assert_eq!(Sink::<Record>::target(&named), Some("shop.audit"));
    assert_eq!(Sink::<Record>::target(&load()), Some("audit"));
    scene.end().await;
}

async fn tables<V: Version>(scene: &Scene<V>) -> Vec<String> {
    scene.rows("SHOW TABLES").await
}

async fn bad<V: Version>() {
    let scene = Scene::<V>::new().await;
    scene.run("CREATE TABLE plain(id INT, what TEXT) ENGINE = MyISAM").await;
    let mut connection = scene.db.get().await.unwrap();
    let columns = ["id", "what"];
    let none: [&str; 0] = [];
    let cases = [
        (Insert::into("missing", columns), "there is no table `missing`: create it"),
        (Insert::into("audit", ["id", "missing"]), "does not have the columns"),
        (Insert::into("plain", columns), "ALTER TABLE `plain` ENGINE = InnoDB"),
        (insert().on_duplicate_key_update("nonsense"), "cannot look at"),
        (Insert::into("audit", none), "no columns"),
    ];
    for (sink, says) in cases {
        let error = advice(&sink, &mut connection).await;
        assert!(error.contains(says), "{error}");
    }
    let cases = [
        (LoadData::into("missing", columns), "there is no table `missing`: create it"),
        (LoadData::into("audit", ["id", "missing"]), "does not have the columns"),
    ];
    for (sink, says) in cases {
        let error = advice(&sink, &mut connection).await;
        assert!(error.contains(says), "{error}");
    }
    let name = &scene.server.tenant.name;
    for grant in ["REVOKE ALL ON {}.* FROM {}@'%'", "GRANT SELECT ON {}.* TO {}@'%'"] {
        scene.server.execute(&grant.replace("{}", name)).await.unwrap();
    }
    connection.query_drop(format!("USE {name}")).await.unwrap();
    let once = Delivery::AtLeastOnce;
    for error in
        [advice(&insert().delivery(once), &mut connection).await, advice(&load().delivery(once), &mut connection).await]
    {
        assert!(error.contains("GRANT INSERT"), "{error}");
    }
    drop(connection);
    scene.end().await;
}

async fn keys<V: Version>() {
    let scene = Scene::<V>::new().await;
    scene.run("CREATE TABLE narrow(`key` BINARY(4) PRIMARY KEY)").await;
    scene.run("CREATE TABLE twice(`key` BINARY(16))").await;
    scene.run("CREATE TABLE wide(`key` BINARY(16), b INT, PRIMARY KEY(`key`, b))").await;
    scene.run("CREATE TABLE other(id INT)").await;
    let mut connection = scene.db.get().await.unwrap();
    for table in ["narrow", "twice", "wide", "other"] {
        let error = advice(&insert().key_table(table), &mut connection).await;
        assert!(error.contains("PRIMARY KEY"), "{error}");
        let error = advice(&load().key_table(table), &mut connection).await;
        assert!(error.contains("PRIMARY KEY"), "{error}");
        // Nobody needs it.
        check(&insert().key_table(table).delivery(Delivery::AtMostOnce), &mut connection).await.unwrap();
    }
    let name = &scene.server.tenant.name;
    for grant in ["REVOKE ALL ON {}.* FROM {}@'%'", "GRANT INSERT, SELECT ON {}.* TO {}@'%'"] {
        scene.server.execute(&grant.replace("{}", name)).await.unwrap();
    }
    connection.query_drop(format!("USE {name}")).await.unwrap();
    let error = advice(&insert(), &mut connection).await;
    let (_, statement) = error.split_once("run: ").unwrap();
    let (statement, _) = statement.split_once(": ").unwrap();
    let mut superuser = scene.server.server.superuser().await.unwrap();
    superuser.query_drop(format!("USE {name}")).await.unwrap();
    superuser.query_drop(statement).await.unwrap();
    check(&insert(), &mut connection).await.unwrap();
    // It is there, and may not be written to.
    for grant in ["REVOKE ALL ON {}.* FROM {}@'%'", "GRANT INSERT, SELECT ON {}.audit TO {}@'%'"] {
        scene.server.execute(&grant.replace("{}", name)).await.unwrap();
    }
    connection.query_drop(format!("USE {name}")).await.unwrap();
    let error = advice(&insert(), &mut connection).await;
    assert!(error.contains("GRANT INSERT ON `winddown_batch`"), "{error}");
    drop(connection);
    scene.end().await;
}

async fn unanswered<V: Version>() {
    let scene = Scene::<V>::new().await;
    let mut connection = scene.db.get().await.unwrap();
    scene.server.execute(&format!("KILL {}", connection.id())).await.unwrap();
    let error = check(&insert(), &mut connection).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    drop(connection);
    scene.end().await;
}
