//! Pools that the application has built.

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use winddown_core::Outcome;
use winddown_postgres::{Postgres, tokio_postgres::NoTls};
use winddown_testkit::Harness as _;

use crate::{
    scene::{
        ENDLESS, QUICK, Scene, Speaks, abandon_statement, config, drain_under_a_statement, ping, seventeen, until,
        until_running,
    },
    server::{PostgreSql, Seventeen, run},
};

pub(crate) fn pool(server: &PostgreSql<Seventeen>) -> Pool {
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(config(server).driver, NoTls, recycling);
    Pool::builder(manager).max_size(4).runtime(Runtime::Tokio1).build().unwrap()
}

/// What was cut needs a moment to end at the server, and is not in the report.
async fn until_gone(server: &PostgreSql<Seventeen>) {
    until("all are gone", || async { server.sessions().await.unwrap() == 0 }).await;
}

pub(crate) async fn a_pool_is_drained_though_it_was_never_used_through_the_guard() {
    let server = seventeen().await;
    let pool = pool(&server);
    let clients = (pool.get().await.unwrap(), pool.get().await.unwrap(), pool.get().await.unwrap());
    ping(&clients.0).await;
    drop(clients);
    assert_eq!(server.sessions().await.unwrap(), 3);

    let scene = Scene::new(Postgres::wrap(pool.clone()));
    let drained = scene.drain().await;
    let row = drained.row();
    assert_eq!(
        (row.outcome, drained.ended(), row.sessions.unconfirmed),
        (Outcome::Drained, (0, 0), 3),
        "{}",
        drained.report
    );
    assert_eq!(row.cannot, ["say goodbye", "see the server's end", "see every session"]);
    assert!(drained.report.to_string().contains("say goodbye"), "{}", drained.report);
    assert!(drained.took < QUICK, "{:?}", drained.took);
    assert!(pool.is_closed());
    until_gone(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_of_a_checkout_is_cancelled() {
    let server = seventeen().await;
    let scene = Scene::patient(Postgres::wrap(pool(&server)));
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    let error = result.unwrap_err();
    assert!(error.contains("due to user request"), "{error}");
    drained.assert_in_time();
    let sessions = drained.row().sessions;
    assert_eq!((sessions.cancelled, sessions.unconfirmed, drained.ended()), (1, 1, (0, 0)), "{}", drained.report);
    until_gone(&server).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_that_nobody_waits_for_is_cancelled() {
    let server = seventeen().await;
    let scene = Scene::patient(Postgres::wrap(pool(&server)));
    abandon_statement(&server, &scene.db).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    let sessions = drained.row().sessions;
    assert_eq!((sessions.cancelled, sessions.unconfirmed, drained.ended()), (1, 1, (0, 0)), "{}", drained.report);
    until_gone(&server).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn a_client_that_was_taken_from_the_pool_directly_does_not_hold_up_the_drain() {
    let server = seventeen().await;
    let scene = Scene::patient(Postgres::wrap(pool(&server)));
    drop(scene.out(2).await);
    let taken = scene.db.pool().await.unwrap().get().await.unwrap();
    let statement = tokio::spawn(async move { run(&taken, ENDLESS).await.map_err(|error| error.to_string()) });
    until_running(&server, 1).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    // The other one was ended, as far as its driver can tell.
    assert_eq!((drained.row().sessions.unconfirmed, drained.ended()), (1, (0, 1)), "{}", drained.report);
    assert_eq!(drained.row().outcome, Outcome::Incomplete, "{}", drained.report);
    // Nobody knows of it but its owner.
    assert_eq!(server.running().await.unwrap(), 1);
    server.end_all().await.unwrap();
    assert!(statement.await.unwrap().is_err());
    server.end().await.unwrap();
}
