//! Checkouts that do not come back.

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt as _;
use winddown_postgres::Postgres;
use winddown_testkit::Harness as _;

use crate::{
    scene::{ENDLESS, Scene, Speaks, assert_nothing_left, config, seventeen, until, until_running},
    server::run,
};

pub(crate) async fn a_checkout_without_a_statement_is_ended_with_a_goodbye() {
    let server = seventeen().await;
    let scene = Scene::patient(Postgres::new(config(&server)));
    let held = scene.out(2).await.remove(0);
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.ended(), (2, 0), "{}", drained.report);
    assert_eq!(drained.row().sessions.cancelled, 0, "{}", drained.report);
    assert_eq!(drained.row().stragglers.len(), 1, "{}", drained.report);
    assert_nothing_left(&server).await;
    assert!(held.is_closed());
    let error = held.query_one("SELECT 1", &[]).await.unwrap_err();
    assert!(error.is_closed(), "{error:?}");
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_that_begins_after_the_cancelling_is_cancelled_too() {
    let server = seventeen().await;
    let scene = Scene::patient(Postgres::new(config(&server)));
    let client = scene.get().await;
    let handler = async move {
        let first = run(&client, ENDLESS).await.is_err();
        let second = run(&client, ENDLESS).await.is_err();
        // Only then does it come back.
        drop(client);
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
    let server = seventeen().await;
    let scene = Scene::patient(Postgres::new(config(&server)));
    let mut client = scene.get().await;
    let transaction = client.transaction().await.unwrap();
    transaction.execute("INSERT INTO rows VALUES (now())", &[]).await.unwrap();
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.ended(), (1, 0), "{}", drained.report);
    assert!(transaction.commit().await.is_err());
    assert_nothing_left(&server).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn a_copy_that_is_never_ended_leaves_no_row_and_does_not_hold_up_the_drain() {
    let server = seventeen().await;
    let scene = Scene::patient(Postgres::new(config(&server)));
    drop(scene.out(2).await);
    let client = scene.get().await;
    let mut copy = pin!(client.copy_in("COPY rows FROM STDIN").await.unwrap());
    copy.send(Bytes::from_static(b"2001-02-03 04:05:06\n")).await.unwrap();
    copy.flush().await.unwrap();
    let drained = scene.drain().await;
    drained.assert_in_time();
    let (closed, cut) = drained.ended();
    assert_eq!(closed + cut, 2, "{}", drained.report);
    assert!(closed >= 1, "the one that was idle: {}", drained.report);
    if cut == 0 {
        // What the report calls closed the server has closed.
        assert_nothing_left(&server).await;
    }
    assert!(copy.as_mut().finish().await.is_err());
    until("it is gone", || async { server.sessions().await.unwrap() == 0 }).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}
