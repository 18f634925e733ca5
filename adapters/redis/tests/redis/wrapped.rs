//! Connection managers that the application has built.

use redis::{Client, aio::ConnectionManager, cmd};
use winddown_core::Outcome;
use winddown_redis::{Redis, redis};
use winddown_testkit::Harness as _;

use crate::scene::{Scene, Server, config, number, own, redis_8, until};

async fn manager(server: &Server) -> ConnectionManager {
    Client::open(config(server).driver).unwrap().get_connection_manager().await.unwrap()
}

pub(crate) async fn what_was_sent_through_a_manager_is_executed_before_the_drain_ends() {
    let server = redis_8().await;
    let manager = manager(&server).await;
    let scene = Scene::new(Redis::wrap(manager));
    let key = server.tenant.key("counter");
    let mut increment = cmd("INCR");
    increment.arg(&key).set_no_response(true);
    let mut connection = scene.get().await;
    for _ in 0..10_000 {
        increment.exec_async(&mut *connection).await.unwrap();
    }
    drop(connection);
    let drained = scene.drain().await;
    assert_eq!(number(&mut server.superuser().await, &key).await, 10_000);
    let row = drained.row();
    assert_eq!(
        (row.outcome, drained.ended(), row.sessions.unconfirmed),
        (Outcome::Drained, (0, 0), 1),
        "{}",
        drained.report
    );
    assert_eq!(row.cannot, ["say goodbye", "see the server's end", "cancel statements", "see every session"]);
    assert!(row.records.is_none() && row.error.is_none(), "{}", drained.report);
    drop(scene);
    until("it is gone", || async { server.sessions().await.unwrap() == 0 }).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_manager_whose_server_does_not_answer_does_not_hold_up_the_drain() {
    let server = own().await;
    let manager = manager(&server).await;
    let scene = Scene::patient(Redis::wrap(manager));
    server.pause().await.unwrap();
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.ended(), (0, 1), "{}", drained.report);
    let error = drained.row().error.as_deref().unwrap_or_default();
    assert!(error.starts_with("whether everything that was sent was executed is not known"), "{}", drained.report);
    server.resume().await.unwrap();
    server.end().await.unwrap();
}
