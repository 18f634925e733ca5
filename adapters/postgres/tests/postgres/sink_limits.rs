//! What a sink makes of limits that a smaller batch would keep, and of the server's more unusual words.

use std::time::Instant;

use winddown_buffer::{Batch, BatchWriter, Delivery, Push as _, Sink, WriteError};
use winddown_postgres::{Postgres, tokio_postgres::error::SqlState};
use winddown_testkit::wire::Wire;

use crate::{
    scene::{config_at, driver_error},
    sink::{Either, Record, Scene, assert_failed, assert_rejected, audit, batch, both, record},
};

/// Each row takes 20 ms.
const SLOW_ROWS: &str = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                             $$ BEGIN PERFORM pg_sleep(0.02); RETURN new; END $$;
                         CREATE TRIGGER slow BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION slow()";

/// From now on, for each session.
async fn set(scene: &Scene, setting: &str) {
    scene.as_superuser(&format!("ALTER ROLE {} SET {setting}", scene.server.tenant.name)).await;
    scene.server.end_all().await.unwrap();
}

/// What becomes of a batch that was not written and is to come again. A machine that is slower than the limit of a transaction
/// may have its session ended between two statements, where the batch is not the reason.
async fn again(
    scene: &Scene,
    sink: &Either,
    records: &Batch<Record>,
    mut result: Result<(), WriteError>,
) -> Result<(), WriteError> {
    for _ in 0..10 {
        let Err(WriteError::Retry(_)) = result else { break };
        result = scene.write(sink, records).await;
    }
    result
}

#[track_caller]
fn assert_too_large(result: Result<(), WriteError>, code: &str) {
    match result {
        Err(WriteError::TooLarge(error)) => {
            let found = driver_error(&error).and_then(|error| error.code()).map(SqlState::code);
            assert_eq!(found, Some(code), "{error}");
        }
        other => panic!("not too large: {other:?}"),
    }
}

/// As a server does that is slower than its own `statement_timeout`. What is executed by itself then is not rolled back with the rest.
pub(crate) async fn nothing_is_written_behind_a_beginning_that_the_server_has_refused() {
    for sink in audit() {
        for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce, Delivery::AtMostOnce] {
            let scene = Scene::new().await;
            let sink = sink.clone().delivery(delivery);
            let wire = Wire::to(scene.server.server.address).await.unwrap();
            let db = scene.lifecycle.guard_as("wired", Postgres::new(config_at(&scene.server, wire.address())));
            let write = async |batch: &Batch<Record>| sink.write(&mut db.get().await.unwrap(), batch).await;
            write(&batch([0])).await.unwrap();

            let records = batch(1..=3);
            wire.misspell("BEGIN", 0);
            assert_failed(write(&records).await, &SqlState::SYNTAX_ERROR);
            assert_eq!(scene.audit().await, [record(0)], "{sink:?}");
            write(&records).await.unwrap();
            assert_eq!(scene.audit().await, (0..=3).map(record).collect::<Vec<_>>(), "{sink:?}");

            if delivery == Delivery::ExactlyOnce {
                // Whether it is written already is asked, and that leaves no key of what is not.
                let refused = batch([4, 0]);
                wire.misspell("BEGIN", 1);
                assert_failed(write(&refused).await, &SqlState::SYNTAX_ERROR);
                assert!(wire.has_misspelt());
                scene.execute("DELETE FROM audit WHERE id = 0").await;
                write(&refused).await.unwrap();
                assert_eq!(scene.audit().await, [1, 2, 3, 4, 0].map(record), "{sink:?}");
            }
            scene.end().await;
        }
    }
}

pub(crate) async fn a_limit_of_time_that_a_smaller_batch_keeps_is_told_from_an_outage() {
    for sink in audit() {
        for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce, Delivery::AtMostOnce] {
            for (setting, code) in [("statement_timeout = '1s'", "57014"), ("transaction_timeout = '1s'", "25P04")] {
                let scene = Scene::new().await;
                let sink = sink.clone().delivery(delivery);
                scene.write(&sink, &batch([0])).await.unwrap();
                scene.execute(SLOW_ROWS).await;
                set(&scene, setting).await;
                let large = batch(1..=200);
                let mut result = scene.write(&sink, &large).await;
                if code == "25P04" {
                    if delivery == Delivery::ExactlyOnce {
                        // The session is gone, so whether the batch is written already is asked when it comes again.
                        assert!(matches!(result, Err(WriteError::Retry(_))), "{sink:?}: {result:?}");
                    }
                    result = again(&scene, &sink, &large, result).await;
                }
                assert_too_large(result, code);
                scene.write(&sink, &batch(1..=3)).await.unwrap();
                assert_eq!(scene.audit().await, (0..=3).map(record).collect::<Vec<_>>(), "{sink:?}");
                scene.end().await;
            }
        }
    }
}

pub(crate) async fn a_buffer_learns_a_limit_of_time_and_every_row_is_written() {
    const ROWS: i64 = 2_000;
    for sink in audit() {
        let scene = Scene::new().await;
        // A batch of the default size takes more than three times as long as it may.
        scene.execute(&SLOW_ROWS.replace("0.02", "0.002")).await;
        set(&scene, "statement_timeout = '300ms'").await;
        let buffer = scene.lifecycle.guard(BatchWriter::new(&scene.db, sink.clone()).name("audit"));
        let began = Instant::now();
        for id in 0..ROWS {
            buffer.push(record(id)).await.unwrap();
        }
        buffer.flush().await.unwrap();
        println!("{sink:?}: {ROWS} rows in {:?}", began.elapsed());
        assert_eq!(scene.audit().await, (0..ROWS).map(record).collect::<Vec<_>>(), "{sink:?}");
        drop(buffer);
        scene.end().await;
    }
}

pub(crate) async fn a_batch_that_is_written_already_is_not_divided() {
    for sink in audit() {
        for setting in ["statement_timeout = '1s'", "transaction_timeout = '1s'"] {
            let scene = Scene::new().await;
            scene.execute("ALTER TABLE audit DROP CONSTRAINT audit_id_key").await;
            let large = batch(1..=200);
            // Its answer was lost, say: it comes again.
            scene.write(&sink, &large).await.unwrap();
            scene.execute(SLOW_ROWS).await;
            set(&scene, setting).await;
            let result = scene.write(&sink, &large).await;
            let result = again(&scene, &sink, &large, result).await;
            assert!(result.is_ok(), "{sink:?}: its halves would have been written twice: {result:?}");
            assert_eq!(scene.audit().await.len(), 200);
            scene.end().await;
        }
    }
}

pub(crate) async fn a_code_that_a_trigger_makes_up_is_the_records() {
    for code in ["45000", "U0001", "insufficient_privilege"] {
        for sink in audit() {
            let scene = Scene::new().await;
            let refuse = format!(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN IF new.id = 2 THEN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END IF; RETURN new; END $$;
                 CREATE TRIGGER refuse BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION refuse()"
            );
            scene.execute(&refuse).await;
            let code = if code.len() == 5 { SqlState::from_code(code) } else { SqlState::INSUFFICIENT_PRIVILEGE };
            assert_rejected(scene.write(&sink, &batch([1, 2, 3])).await, &code);
            scene.write(&sink, &batch([1])).await.unwrap();
            scene.end().await;
        }
    }
    // A sequence that is at its end is no record's fault.
    for sink in audit() {
        let scene = Scene::new().await;
        scene.execute("ALTER SEQUENCE audit_at_seq MAXVALUE 2").await;
        assert_failed(scene.write(&sink, &batch([1, 2, 3])).await, &SqlState::SEQUENCE_GENERATOR_LIMIT_EXCEEDED);
        scene.end().await;
    }
}

pub(crate) async fn a_statement_that_the_server_has_forgotten_is_prepared_again() {
    for sink in audit() {
        let scene = Scene::new().await;
        scene.write(&sink, &batch([1])).await.unwrap();
        scene.execute("DEALLOCATE ALL").await;
        let result = scene.write(&sink, &batch([2])).await;
        assert!(matches!(result, Err(WriteError::Retry(_))), "{sink:?}: {result:?}");
        scene.write(&sink, &batch([2])).await.unwrap();
        assert_eq!(scene.audit().await, [1, 2].map(record), "{sink:?}");
        // The session whose COPY did not begin is closed as it is, and the server may complain of that.
        scene.end_of_sessions().await;
    }
}

pub(crate) async fn the_sinks_say_where_records_go() {
    let target = |sink: &Either| Sink::<Record>::target(sink).map(ToOwned::to_owned);
    for sink in both("audit", ["id"]) {
        assert_eq!(target(&sink).as_deref(), Some("audit"));
        assert_eq!(target(&sink.schema("app")).as_deref(), Some("app.audit"));
    }
}
