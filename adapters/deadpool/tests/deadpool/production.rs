//! Servers as they are in production: a pooler in front of one, and one that another has taken over from.

use tokio_postgres::{Client, Error};
use winddown_core::Outcome;
use winddown_deadpool::{Deadpool, deadpool::managed::Pool};
use winddown_testkit::{
    Harness as _, ServerUse, Setup,
    proxy::Proxy,
    scene::{ENDLESS, Scene, until},
};

use crate::{
    bouncer::PgBouncer,
    server::{Eighteen, PostgreSql, Seventeen},
    wrapped::Clients,
};

fn pool(config: tokio_postgres::Config) -> Pool<Clients> {
    Pool::builder(Clients(config)).max_size(4).build().unwrap()
}

async fn sleeps(client: &Client) -> Result<(), Error> {
    client.batch_execute(&format!("SELECT pg_sleep({})", ENDLESS.as_secs())).await
}

/// PostgreSQL's sessions are PgBouncer's, and somebody else's in the next moment: so nothing is asked about them, and whoever is to be
/// stopped is named by the secret that PgBouncer gave.
pub(crate) async fn behind_a_pooler_a_statement_is_stopped_and_nobody_elses() {
    let bouncer = PgBouncer::start(ServerUse::Shared).await.unwrap();
    let scene = Scene::patient(Deadpool::wrap(pool(bouncer.config().driver)));
    let stranger = bouncer.stranger().await.unwrap();
    let out = [scene.get().await, scene.get().await, scene.get().await];
    for client in &out {
        client.batch_execute("SELECT 1").await.unwrap();
    }
    let [straggler, first, second] = out;
    drop((first, second));
    let statement = tokio::spawn(async move { sleeps(&straggler).await });
    until("it runs", async || bouncer.running().await.unwrap() == 1).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    let (row, report) = (drained.row(), &drained.report);
    assert_eq!((row.outcome, row.sessions.cut, row.sessions.cancelled), (Outcome::Drained, 0, 1), "{report}");
    // Who is at PgBouncer's other end is what its server would tell.
    assert_eq!(row.sessions.closed + row.sessions.unconfirmed, 3, "{report}");
    let error = statement.await.unwrap().unwrap_err();
    assert!(error.as_db_error().is_some_and(|error| error.message().contains("user request")), "{error}");
    stranger.untouched().await.unwrap();
    assert_eq!(bouncer.complaints().await.unwrap(), Vec::<String>::new());
    bouncer.end().await.unwrap();
}

/// An address leads to the successor by now: those with the one before say goodbye too, and what runs there is not called stopped by
/// whoever has never heard of it.
pub(crate) async fn through_a_failover_sessions_with_both_servers_are_accounted_for() {
    let first = PostgreSql::<Seventeen>::start(ServerUse::Own).await.unwrap();
    let second = PostgreSql::<Eighteen>::start_with(&first.tenant).await.unwrap();
    let proxy = Proxy::start(first.server.address).await.unwrap();
    let config = first.tenant.config(proxy.address(), &Setup::default()).driver;
    let scene = Scene::patient(Deadpool::wrap(pool(config)));
    let (straggler, idle) = (scene.get().await, scene.get().await);
    let statement = tokio::spawn(async move { sleeps(&straggler).await });
    until("it runs", async || first.running().await.unwrap() == 1).await;

    first.server.read_only(true).await.unwrap();
    proxy.set_upstream(second.server.address);
    let insert = "INSERT INTO rows VALUES (now())";
    until("it takes no writes", async || idle.batch_execute(insert).await.is_err()).await;
    let successors = [scene.get().await, scene.get().await];
    for client in &successors {
        client.batch_execute(insert).await.unwrap();
    }
    let stranger = second.stranger().await.unwrap();
    drop((idle, successors));

    let drained = scene.drain().await;
    drained.assert_in_time();
    let (row, report) = (drained.row(), &drained.report);
    assert_eq!((drained.ended(), row.sessions.cancelled), ((3, 1), 0), "{report}");
    assert_eq!(row.outcome, Outcome::Incomplete, "{report}");
    assert_eq!(second.sessions().await.unwrap(), 0);
    stranger.untouched().await.unwrap();
    assert!(!statement.is_finished(), "nobody has stopped it");
    statement.abort();
    first.server.read_only(false).await.unwrap();
    first.end().await.unwrap();
    second.end().await.unwrap();
}
