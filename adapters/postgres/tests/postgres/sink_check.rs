//! What a sink finds out about its table before it writes anything.

use winddown_buffer::{Delivery, Sink};
use winddown_core::{Error, ErrorKind};
use winddown_postgres::{Insert, Parameters};
use winddown_testkit::Harness as _;

use crate::sink::{Either, Record, Scene, audit, batch, both, record};

async fn check<T: Parameters>(scene: &Scene, sink: &Either) -> Result<(), Error> {
    Sink::<T>::check(sink, &mut scene.db.get().await.unwrap()).await
}

/// It is wrong, does not pass, and the error has these words.
#[track_caller]
fn assert_wrong(result: Result<(), Error>, words: &[&str]) {
    let error = result.expect_err("it cannot be written to");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Config, false), "{error}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} in: {text}");
}

pub(crate) async fn what_can_be_written_to_is_found_right_and_nothing_is_changed() {
    for sink in audit() {
        let scene = Scene::new().await;
        let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
        let before = scene.number(tables).await;
        check::<Record>(&scene, &sink).await.unwrap();
        assert_eq!(scene.number(tables).await, before, "the table of keys is made when it is needed");
        scene.write(&sink, &batch([1])).await.unwrap();
        check::<Record>(&scene, &sink).await.unwrap();
        check::<Record>(&scene, &sink.clone().schema("public")).await.unwrap();
        check::<(Option<i64>, &'static str)>(&scene, &sink).await.unwrap();
        assert_eq!(scene.audit().await, [record(1)], "{sink:?}");
        scene.write(&sink, &batch([2])).await.unwrap();
        assert_eq!(scene.number("SELECT max(at) FROM audit").await, 2, "no number of the sequence is used up");
        scene.end().await;
    }
}

pub(crate) async fn what_is_wrong_with_the_table_is_said_before_a_record_is_lost() {
    for sink in audit() {
        let scene = Scene::new().await;
        let other = |table: &str, columns: [&str; 2]| {
            let [insert, copy] = both(table, columns);
            if sink.is_copy() { copy } else { insert }
        };
        let missing = other("nowhere", ["id", "what"]);
        assert_wrong(check::<Record>(&scene, &missing).await, &["nowhere", "does not exist", "create it"]);
        let missing = sink.clone().schema("nowhere");
        assert_wrong(check::<Record>(&scene, &missing).await, &["nowhere.audit", "does not exist"]);
        let misnamed = other("audit", ["id", "wrong"]);
        assert_wrong(check::<Record>(&scene, &misnamed).await, &["\"wrong\"", "audit", "add the column"]);
        assert_wrong(check::<(i64, i64)>(&scene, &sink).await, &["column what of audit", "type text"]);
        assert_wrong(check::<(i32, String)>(&scene, &sink).await, &["column id of audit", "type int8"]);
        assert_wrong(check::<(i64,)>(&scene, &sink).await, &["1 values", "2 columns"]);

        let tenant = &scene.server.tenant.name;
        scene.as_superuser(&format!("ALTER TABLE audit OWNER TO postgres; GRANT SELECT ON audit TO {tenant}")).await;
        assert_wrong(
            check::<Record>(&scene, &sink).await,
            &["permission denied", "audit", "GRANT INSERT ON \"audit\""],
        );
        scene.as_superuser(&format!("GRANT INSERT (id) ON audit TO {tenant}")).await;
        assert_wrong(check::<Record>(&scene, &sink).await, &["permission denied"]);
        scene.as_superuser(&format!("GRANT INSERT (what) ON audit TO {tenant}")).await;
        check::<Record>(&scene, &sink).await.unwrap();
        assert!(scene.lifecycle.drain().await.is_clean());
        scene.server.end().await.unwrap();
    }
}

pub(crate) async fn what_is_wrong_with_the_table_of_keys_is_said_before_a_record_is_lost() {
    for sink in audit() {
        let scene = Scene::new().await;
        let tenant = &scene.server.tenant.name;
        for (create, words) in [
            ("key text PRIMARY KEY", "no uuid"),
            ("key uuid", "twice"),
            ("key uuid, at int, UNIQUE (key, at)", "twice"),
        ] {
            scene.execute(&format!("CREATE TABLE winddown_batch({create})")).await;
            assert_wrong(check::<Record>(&scene, &sink).await, &["winddown_batch", words, "`CREATE TABLE"]);
            scene.execute("DROP TABLE winddown_batch").await;
        }
        scene.as_superuser("ALTER SCHEMA public OWNER TO postgres").await;
        assert_wrong(check::<Record>(&scene, &sink).await, &["no table for the keys", "`CREATE TABLE"]);
        // Without keys there need be none.
        check::<Record>(&scene, &sink.clone().delivery(Delivery::AtLeastOnce)).await.unwrap();
        scene
            .as_superuser("CREATE TABLE winddown_batch(key uuid PRIMARY KEY, written_at timestamptz DEFAULT now())")
            .await;
        assert_wrong(check::<Record>(&scene, &sink).await, &["permission denied", "winddown_batch"]);
        // As little as the documentation says.
        scene.as_superuser(&format!("GRANT INSERT ON winddown_batch TO {tenant}")).await;
        check::<Record>(&scene, &sink).await.unwrap();
        assert!(scene.lifecycle.drain().await.is_clean());
        scene.server.end().await.unwrap();
    }
}

pub(crate) async fn what_a_way_of_writing_cannot_do_is_said_before_a_record_is_lost() {
    let scene = Scene::new().await;
    let [insert, copy] = audit();
    // Nothing that a conflict could be found by.
    let update = Insert::into("audit", ["id", "what"]).on_conflict_do_update(["what"]);
    assert_wrong(check::<Record>(&scene, &Either::Insert(update)).await, &["audit", "unique index"]);

    scene.execute("CREATE VIEW seen AS SELECT id, what FROM audit").await;
    let [insert_view, copy_view] = both("seen", ["id", "what"]);
    check::<Record>(&scene, &insert_view).await.unwrap();
    assert_wrong(check::<Record>(&scene, &copy_view).await, &["seen", "view", "`Insert`"]);
    scene.execute("CREATE VIEW counted AS SELECT id, max(what) AS what FROM audit GROUP BY id").await;
    for sink in both("counted", ["id", "what"]) {
        assert_wrong(check::<Record>(&scene, &sink).await, &["counted"]);
    }

    let policy = "ALTER TABLE audit ENABLE ROW LEVEL SECURITY; ALTER TABLE audit FORCE ROW LEVEL SECURITY;
                  CREATE POLICY small ON audit WITH CHECK (id < 10)";
    scene.execute(policy).await;
    check::<Record>(&scene, &insert).await.unwrap();
    assert_wrong(check::<Record>(&scene, &copy).await, &["audit", "policies", "`Insert`"]);

    // This passes.
    let tenant = &scene.server.tenant.name;
    scene.as_superuser(&format!("ALTER ROLE {tenant} SET default_transaction_read_only = on")).await;
    scene.server.end_all().await.unwrap();
    let error = check::<Record>(&scene, &insert).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("read-only"), "{error}");
    assert!(scene.lifecycle.drain().await.is_clean());
    scene.server.end().await.unwrap();
}

pub(crate) async fn no_error_of_a_sink_shows_a_password_or_a_record() {
    let scene = Scene::new().await;
    let sql = "CREATE TABLE strict(id int8 PRIMARY KEY, what varchar(3) CHECK (what <> 'bad'))";
    scene.execute(sql).await;
    let secret = "4111-1111-1111-1111";
    for sink in both("strict", ["id", "what"]) {
        let mut errors = Vec::new();
        for (id, what) in [(1, secret.to_owned()), (2, format!("{secret}\0"))] {
            let records = vec![(id, what)];
            errors.push(Error::from(scene.write(&sink, &records.into()).await.unwrap_err()));
        }
        errors.push(Error::from(scene.write(&sink, &vec![(secret.to_owned(), 1_i64)].into()).await.unwrap_err()));
        errors.push(check::<(String, i64)>(&scene, &sink).await.unwrap_err());
        for table in both("nowhere", ["id", "what"]) {
            errors.push(check::<Record>(&scene, &table).await.unwrap_err());
            errors.push(Error::from(scene.write(&table, &vec![(1_i64, secret.to_owned())].into()).await.unwrap_err()));
        }
        for error in errors {
            let text = error.to_string();
            let password = &scene.server.tenant.password;
            assert!(!text.contains(secret) && !text.contains(password.as_str()), "{text}");
            let debug = format!("{error:?}");
            assert!(!debug.contains(password.as_str()), "{debug}");
        }
        let debug = format!("{sink:?}");
        assert!(!debug.contains(secret), "{debug}");
    }
    scene.end().await;
}
