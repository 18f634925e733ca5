//! Pools that the application has built.

use winddown_core::Outcome;
use winddown_mysql::{
    Mysql, Wrapped,
    mysql_async::{Opts, OptsBuilder, Pool, PoolConstraints, PoolOpts},
};
use winddown_testkit::{Harness as _, scene};

use crate::{
    scene::{
        ENDLESS, QUICK, abandon_statement, assert_nothing_left, config, drain_under_a_statement, mysql, ping, until,
        until_running,
    },
    server::{MySql, Tenancy, run},
};

type Scene = scene::Scene<Wrapped>;

fn pool(server: &Tenancy<MySql>) -> (Pool, Opts) {
    let constraints = PoolConstraints::new(4, 4).unwrap();
    let builder = OptsBuilder::from_opts(config(server).driver).prefer_socket(false);
    let opts: Opts = builder.pool_opts(PoolOpts::new().with_constraints(constraints)).into();
    (Pool::new(opts.clone()), opts)
}

fn wrap(server: &Tenancy<MySql>) -> Wrapped {
    let (pool, opts) = pool(server);
    Mysql::wrap(pool, opts)
}

pub(crate) async fn a_pool_is_drained_though_it_was_never_used_through_the_guard() {
    let server = mysql().await;
    let (pool, opts) = pool(&server);
    let mut out = (pool.get_conn().await.unwrap(), pool.get_conn().await.unwrap());
    ping(&mut out.0).await;
    drop(out);
    assert_eq!(server.sessions().await.unwrap(), 2);

    let scene = Scene::new(Mysql::wrap(pool.clone(), opts));
    let drained = scene.drain().await;
    let row = drained.row();
    // They said goodbye, and nobody knows them who could see it.
    assert_eq!((row.outcome, drained.ended()), (Outcome::Drained, (0, 0)), "{}", drained.report);
    assert_eq!(row.cannot, ["see every session"]);
    assert!(drained.took < QUICK, "{:?}", drained.took);
    assert!(pool.get_conn().await.is_err());
    until("all are gone", || async { server.sessions().await.unwrap() == 0 }).await;
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn sessions_that_were_handed_out_are_seen_to_end() {
    let server = mysql().await;
    for round in 0..5 {
        let scene = Scene::new(wrap(&server));
        let mut out = Vec::new();
        for _ in 0..4 {
            let mut conn = scene.get().await;
            ping(&mut conn).await;
            out.push(conn);
        }
        let returned = out.pop();
        drop(out);
        let (drained, ()) = tokio::join!(scene.drain(), async {
            scene.lifecycle.draining().await;
            drop(returned);
        });
        drained.assert_clean(4);
        assert_eq!(server.sessions().await.unwrap(), 0, "round {round}: {}", drained.report);
    }
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_of_a_checkout_is_cancelled() {
    let server = mysql().await;
    let scene = Scene::patient(wrap(&server));
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    let error = result.unwrap_err();
    assert!(error.contains("Query execution was interrupted"), "{error}");
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (1, 0)), "{}", drained.report);
    assert_nothing_left(&server).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_that_nobody_waits_for_is_cancelled() {
    let server = mysql().await;
    let scene = Scene::patient(wrap(&server));
    abandon_statement(&server, &scene.db).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (1, 0)), "{}", drained.report);
    assert_eq!(server.sessions().await.unwrap(), 0, "{}", drained.report);
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn a_connection_that_was_taken_from_the_pool_directly_does_not_hold_up_the_drain() {
    let server = mysql().await;
    let scene = Scene::patient(wrap(&server));
    let known = scene.get().await;
    let mut other = scene.db.pool().await.unwrap().get_conn().await.unwrap();
    ping(&mut other).await;
    let statement = tokio::spawn(async move { run(&mut other, ENDLESS).await.map_err(|error| error.to_string()) });
    until_running(&server, 1).await;
    drop(known);
    let drained = scene.drain().await;
    drained.assert_in_time();
    // Nobody knows of it but its owner.
    assert_eq!(server.running().await.unwrap(), 1);
    server.end_all().await.unwrap();
    assert!(statement.await.unwrap().is_err());
    server.end().await.unwrap();
}
