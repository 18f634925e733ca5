//! Pools that the application has built, and uses also without the guard.

use winddown_core::Outcome;
use winddown_sqlx::{
    Sqlx,
    sqlx::{self, Connection as _},
};
use winddown_testkit::{Harness as _, same_end};

use crate::scene::{
    Scene, abandon_statement, assert_nothing_left, idle, number, pool, sleep_over, start, until, until_running,
};

pub(crate) async fn a_pool_is_drained_though_it_was_never_used_through_the_guard() {
    let server = start().await;
    for count in [1, 3] {
        let pool = pool(&server);
        idle(&pool, count).await;
        assert_eq!(server.sessions().await.unwrap(), count);
        let drained = Scene::new(Sqlx::wrap(pool.clone())).drain().await;
        drained.assert_clean(count as u64);
        assert_nothing_left(&server).await;
        assert_eq!(drained.row().sessions.unconfirmed, 0, "{}", drained.report);
        assert!(pool.is_closed());
    }
    server.end().await.unwrap();
}

pub(crate) async fn sessions_are_told_from_connections_to_others_that_have_the_same_end_here() {
    let server = start().await;
    let pool = pool(&server);
    let end = "SELECT host(inet_client_addr()) || ':' || inet_client_port()";
    let end: String = sqlx::query_scalar(end).fetch_one(&pool).await.unwrap();
    let other = same_end::connect(end.parse().unwrap()).await.unwrap();
    let statement = tokio::spawn(sleep_over(pool.clone()));
    until_running(&server, 1).await;
    let drained = Scene::patient(Sqlx::wrap(pool)).drain().await;
    drained.assert_in_time();
    let sessions = drained.row().sessions;
    assert_eq!((drained.ended(), sessions.cancelled, sessions.left_behind), ((1, 0), 1, 0), "{}", drained.report);
    statement.await.unwrap().unwrap_err();
    assert_nothing_left(&server).await;
    drop(other);
    server.end().await.unwrap();
}

pub(crate) async fn the_pool_of_the_guard_is_the_drivers() {
    let server = start().await;
    let scene = Scene::new(Sqlx::wrap(pool(&server)));
    let pool = scene.db.pool().await.unwrap();
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(pool).await.unwrap();
    assert_eq!(one, 1);
    until("it is idle", || async { scene.db.status().idle == Some(1) }).await;
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn what_was_taken_from_the_pool_itself_is_cancelled_and_seen_to_end() {
    let server = start().await;
    let pool = pool(&server);
    idle(&pool, 2).await;
    let statement = tokio::spawn(sleep_over(pool.clone()));
    until_running(&server, 1).await;
    let scene = Scene::patient(Sqlx::wrap(pool));
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((2, 0), 1), "{}", drained.report);
    assert!(statement.await.unwrap().unwrap_err().to_string().contains("due to user request"));
    assert_eq!(
        (drained.row().outcome, drained.row().sessions.unconfirmed),
        (Outcome::Drained, 0),
        "{}",
        drained.report
    );
    assert_nothing_left(&server).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

/// The other one has the same user, in the same process: nobody can tell whose session is whose.
pub(crate) async fn what_may_be_another_pools_is_left_alone() {
    let server = start().await;
    let (ours, other) = (pool(&server), pool(&server));
    let (one, another) = (tokio::spawn(sleep_over(ours.clone())), tokio::spawn(sleep_over(other.clone())));
    until_running(&server, 2).await;
    let drained = Scene::patient(Sqlx::wrap(ours)).drain().await;
    drained.assert_in_time();
    let report = &drained.report;
    assert_eq!((drained.row().sessions.cancelled, drained.row().sessions.closed), (0, 0), "{report}");
    assert!(
        report.to_string().contains("1 sessions were taken from the pool itself, and 2 could be these"),
        "{report}"
    );
    // Both run on.
    assert_eq!(server.running().await.unwrap(), 2);
    assert!(!one.is_finished() && !another.is_finished());
    one.abort();
    another.abort();
    server.0.end_all().await.unwrap();
    server.end().await.unwrap();
}

/// What the guard has handed out is known, whoever else is there.
pub(crate) async fn what_the_guard_has_handed_out_is_cancelled_beside_another_pool() {
    let server = start().await;
    let other = pool(&server);
    let another = tokio::spawn(sleep_over(other.clone()));
    until_running(&server, 1).await;
    let pool = pool(&server);
    let scene = Scene::new(Sqlx::wrap(pool.clone()));
    let mut connection = scene.get().await;
    number(&mut connection, "SELECT 1::int8").await;
    drop(connection);
    until("it is idle", || async { pool.num_idle() == 1 }).await;
    let mut connection = scene.get().await;
    let (ended, drained) = tokio::join!(
        async move {
            let ended = sqlx::query("SELECT pg_sleep(300)").execute(connection.as_mut()).await;
            drop(connection);
            ended
        },
        async {
            until_running(&server, 2).await;
            scene.drain().await
        }
    );
    assert!(ended.unwrap_err().to_string().contains("due to user request"));
    assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((1, 0), 1), "{}", drained.report);
    assert_eq!((server.sessions().await.unwrap(), server.running().await.unwrap()), (1, 1));
    assert!(!another.is_finished());
    another.abort();
    server.0.end_all().await.unwrap();
    server.end().await.unwrap();
}

/// Nobody waits for it, so it holds nothing up.
pub(crate) async fn a_statement_that_nobody_waits_for_is_cancelled_without_a_cache_of_statements_too() {
    let server = start().await;
    for capacity in [100, 0] {
        let (options, connect) = server.options(&winddown_testkit::Setup::default());
        let pool = options.connect_lazy_with(connect.statement_cache_capacity(capacity));
        let scene = Scene::new(Sqlx::wrap(pool));
        abandon_statement(&server, &scene.db).await;
        let drained = scene.drain().await;
        drained.assert_clean(1);
        assert_eq!(drained.row().sessions.cancelled, 1, "{capacity}: {}", drained.report);
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn one_that_is_to_be_closed_when_it_is_given_back_is_closed() {
    let server = start().await;
    let scene = Scene::new(Sqlx::wrap(pool(&server)));
    let mut connection = scene.get().await;
    connection.close_on_drop();
    drop(connection);
    until("it is closed", || async { server.sessions().await.unwrap() == 0 }).await;
    let mut connection = scene.get().await;
    connection.ping().await.unwrap();
    drop(connection);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

/// The first checkout of a connection asks which session it is; each further one costs what the driver's own does, one ping.
pub(crate) async fn a_session_is_asked_once_who_it_is() {
    let server = start().await;
    let proxy = winddown_testkit::proxy::Proxy::start(server.0.server.address).await.unwrap();
    let connect = crate::postgres::connect_options(&server.0.tenant, proxy.address());
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect_lazy_with(connect);
    let scene = Scene::new(Sqlx::wrap(pool.clone()));
    let is_idle = || async { pool.num_idle() == 1 };
    drop(scene.get().await);
    until("it is idle", is_idle).await;
    let before = proxy.bytes_up();
    let driver = pool.acquire().await.unwrap();
    let of_the_driver = proxy.bytes_up() - before;
    drop(driver);
    until("it is idle", is_idle).await;
    let before = proxy.bytes_up();
    let connection = scene.get().await;
    assert_eq!(proxy.bytes_up() - before, of_the_driver);
    drop(connection);
    until("it is idle", is_idle).await;
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}
