//! Drains that find no room for a session of their own.

use tokio::sync::oneshot;
use winddown_core::{Checkout, Outcome};
use winddown_mysql::{
    Mysql,
    mysql_async::{Conn, Opts, OptsBuilder, PoolOpts},
};
use winddown_testkit::{Directed, Harness as _};

use crate::{
    scene::{ENDLESS, Scene, Speaks, abandon_statement, config, start, until_running},
    server::{MariaDb, MySql, Tenancy, Version, run},
};

/// The tenant's user may have so many sessions.
async fn limit<V: Version>(server: &Tenancy<V>, sessions: usize) {
    let name = &server.tenant.name;
    server.execute(&format!("ALTER USER {name}@'%' WITH MAX_USER_CONNECTIONS {sessions}")).await.unwrap();
}

fn of_size<V: Version>(server: &Tenancy<V>, size: usize) -> Scene {
    let mut config = config(server);
    // The servers do not count a session any more that was reset.
    let pool = PoolOpts::new().with_reset_connection(false);
    config.driver = OptsBuilder::from_opts(config.driver).pool_opts(pool).into();
    config.pool.max_size = size;
    Scene::patient(Mysql::new(config))
}

/// Runs a statement that does not end.
fn runs(mut connection: Checkout<Directed<Mysql>>) -> tokio::task::JoinHandle<Result<(), String>> {
    tokio::spawn(async move { run(&mut connection, ENDLESS).await.map_err(|error| error.to_string()) })
}

/// Takes the first place that is free, and keeps it until the sender is dropped.
fn greedy(opts: Opts) -> (oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let (keep, kept) = oneshot::channel();
    let task = tokio::spawn(async move {
        let conn = loop {
            if let Ok(conn) = Conn::new(opts.clone()).await {
                break conn;
            }
        };
        let _ = kept.await;
        conn.disconnect().await.unwrap();
    });
    (keep, task)
}

pub(crate) async fn a_limit_that_is_reached_by_statements_is_named_in_the_report() {
    named::<MySql>().await;
    named::<MariaDb>().await;
}

async fn named<V: Version>() {
    let server = start::<V>().await;
    limit(&server, 2).await;
    let scene = of_size(&server, 2);
    let running: Vec<_> = scene.out(2).await.into_iter().map(runs).collect();
    until_running(&server, 2).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    let (row, report) = (drained.row(), drained.report.to_string());
    assert_eq!((row.outcome, row.sessions.cancelled, drained.ended()), (Outcome::Incomplete, 0, (0, 2)), "{report}");
    let address = server.server.address.to_string();
    for part in ["1226", "max_user_connections", &address] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert_eq!(server.running().await.unwrap(), 2, "{report}");
    server.end_all().await.unwrap();
    for running in running {
        running.await.unwrap().unwrap_err();
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_session_that_is_idle_cancels_where_there_is_no_room_for_another() {
    idle_cancels::<MySql>().await;
    idle_cancels::<MariaDb>().await;
}

async fn idle_cancels<V: Version>() {
    let server = start::<V>().await;
    limit(&server, 2).await;
    let scene = of_size(&server, 3);
    let mut out = scene.out(2).await;
    // The application has met the limit.
    scene.db.get().await.unwrap_err();
    let straggler = runs(out.pop().unwrap());
    until_running(&server, 1).await;
    drop(out);
    // Somebody else of this user waits for a place.
    let (keep, greedy) = greedy(config(&server).driver);
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (2, 0)), "{}: {}", V::NAME, drained.report);
    assert_eq!(drained.row().outcome, Outcome::Drained, "{}: {}", V::NAME, drained.report);
    assert!(straggler.await.unwrap().is_err());
    assert_eq!(server.running().await.unwrap(), 0);
    drop(keep);
    greedy.await.unwrap();
    server.end().await.unwrap();
}

pub(crate) async fn an_abandoned_statement_is_cancelled_though_the_limit_is_reached() {
    abandoned::<MySql>().await;
    abandoned::<MariaDb>().await;
}

async fn abandoned<V: Version>() {
    let server = start::<V>().await;
    limit(&server, 2).await;
    let scene = of_size(&server, 2);
    drop(scene.out(2).await);
    abandon_statement(&server, &scene.db).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (2, 0)), "{}: {}", V::NAME, drained.report);
    assert_eq!(
        (server.sessions().await.unwrap(), server.running().await.unwrap()),
        (0, 0),
        "{}: {}",
        V::NAME,
        drained.report
    );
    server.end().await.unwrap();
}
