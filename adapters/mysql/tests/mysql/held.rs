//! Checkouts that do not come back, and what callers leave on those that do.

use tokio::task::JoinSet;
use winddown_mysql::{
    Mysql,
    mysql_async::{TxOpts, prelude::Queryable as _},
};
use winddown_testkit::Harness as _;

use crate::{
    scene::{ENDLESS, Scene, Speaks, assert_nothing_left, config, mariadb, mysql, until, until_running},
    server::run,
};

pub(crate) async fn a_checkout_without_a_statement_is_ended_and_called_cut() {
    let server = mysql().await;
    let scene = Scene::patient(Mysql::new(config(&server)));
    let mut held = scene.out(2).await.remove(0);
    let drained = scene.drain().await;
    drained.assert_in_time();
    // Its connection is somebody else's: no goodbye can be said on it, and the server has ended it when told so.
    assert_eq!(drained.ended(), (1, 1), "{}", drained.report);
    assert_eq!(drained.row().sessions.cancelled, 0, "{}", drained.report);
    assert_eq!(drained.row().stragglers.len(), 1, "{}", drained.report);
    assert_eq!(server.sessions().await.unwrap(), 0, "{}", drained.report);
    assert!(held.query_drop("SELECT 1").await.is_err());
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_that_begins_after_the_cancelling_is_cancelled_too() {
    let server = mariadb().await;
    let scene = Scene::patient(Mysql::new(config(&server)));
    let mut connection = scene.get().await;
    let handler = async move {
        let first = run(&mut connection, ENDLESS).await.is_err();
        let second = run(&mut connection, ENDLESS).await.is_err();
        // Only then does it come back.
        drop(connection);
        (first, second)
    };
    let (failed, drained) = tokio::join!(handler, async {
        until_running(&server, 1).await;
        scene.drain().await
    });
    assert_eq!(failed, (true, true));
    drained.assert_in_time();
    assert_eq!(drained.ended(), (1, 0), "{}", drained.report);
    assert_nothing_left(&server).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn a_transaction_that_is_open_at_the_goodbye_is_rolled_back() {
    let server = mysql().await;
    let scene = Scene::patient(Mysql::new(config(&server)));
    let mut connection = scene.get().await;
    let mut transaction = connection.start_transaction(TxOpts::default()).await.unwrap();
    transaction.query_drop("INSERT INTO rows_left VALUES (1)").await.unwrap();
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.ended(), (0, 1), "{}", drained.report);
    assert_eq!(server.sessions().await.unwrap(), 0, "{}", drained.report);
    assert!(transaction.commit().await.is_err());
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn a_transaction_that_was_given_back_open_is_rolled_back() {
    let server = mysql().await;
    for in_sql in [false, true] {
        let scene = Scene::new(Mysql::new(config(&server)));
        let mut connection = scene.get().await;
        let ((), drained) = tokio::join!(
            async {
                scene.lifecycle.draining().await;
                // Given back while draining: there is no reset any more.
                if in_sql {
                    connection.query_drop("START TRANSACTION").await.unwrap();
                    connection.query_drop("INSERT INTO rows_left VALUES (1)").await.unwrap();
                } else {
                    let mut transaction = connection.start_transaction(TxOpts::default()).await.unwrap();
                    transaction.query_drop("INSERT INTO rows_left VALUES (1)").await.unwrap();
                }
                drop(connection);
            },
            scene.drain()
        );
        drained.assert_clean(1);
        assert_eq!(server.rows().await.unwrap(), 0);
    }
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_result_that_was_read_by_half_does_not_hold_up_the_drain() {
    let server = mysql().await;
    for is_draining in [false, true] {
        let scene = Scene::patient(Mysql::new(config(&server)));
        let mut connection = scene.out(2).await.remove(0);
        let (drained, ()) = tokio::join!(
            async {
                if !is_draining {
                    until_running(&server, 1).await;
                }
                scene.drain().await
            },
            async {
                if is_draining {
                    scene.lifecycle.draining().await;
                }
                // The first result is there, and the second takes longer than anybody waits.
                drop(
                    connection
                        .query_iter(
                            "SELECT 1; DO (SELECT SLEEP(300) FROM rows_left RIGHT JOIN (SELECT 1) AS one ON TRUE)",
                        )
                        .await
                        .unwrap(),
                );
                drop(connection);
            }
        );
        drained.assert_in_time();
        let (closed, cut) = drained.ended();
        assert_eq!(closed + cut, 2, "{}", drained.report);
        assert!(closed >= 1, "the one that was idle: {}", drained.report);
        assert!(server.sessions().await.unwrap() as u64 <= cut, "{}", drained.report);
        until("it is gone", || async { server.sessions().await.unwrap() == 0 }).await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn twenty_statements_are_cancelled_at_once() {
    let server = mysql().await;
    let mut config = config(&server);
    config.pool.max_size = 20;
    let scene = Scene::patient(Mysql::new(config));
    let mut running = JoinSet::new();
    for mut connection in scene.out(20).await {
        running.spawn(async move { run(&mut connection, ENDLESS).await.is_err() });
    }
    until_running(&server, 20).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (20, (20, 0)), "{}", drained.report);
    assert_nothing_left(&server).await;
    assert!(running.join_all().await.into_iter().all(|failed| failed));
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}
