//! Pools that the application has built, and uses also without the guard.

use std::{process::ExitCode, time::Duration};

use tokio::{runtime::Builder, task::JoinHandle};
use winddown_core::Outcome;
use winddown_mysql::{
    Config, Mysql, Wrapped,
    mysql_async::{Conn, Opts, Pool, prelude::Queryable as _},
};
use winddown_net::own_sockets::{Open, OwnSockets};
use winddown_testkit::{
    Harness as _, InProcess as _,
    child::{self, Child},
    proxy::Proxy,
    scene::{self, until_events_are_seen},
};

use crate::{
    cancelled::{ROWS, stopped_late},
    scene::{
        ENDLESS, QUICK, abandon_statement, assert_nothing_left, config, config_at, drain_under_a_statement, in_full,
        mysql, ping, until, until_running,
    },
    server::{MySql, Tenancy, run},
    wrapped_pool,
};

type Scene = scene::Scene<Wrapped>;

fn pool(server: &Tenancy<MySql>) -> (Pool, Opts) {
    let mut config = config(server);
    config.pool.max_size = 4;
    wrapped_pool::pool(config)
}

fn wrap(server: &Tenancy<MySql>) -> Wrapped {
    let (pool, opts) = pool(server);
    Mysql::wrap(pool, opts)
}

/// So many idle ones, which nobody has had from the guard.
async fn idle(pool: &Pool, count: usize) {
    drop(out(pool, count).await);
}

/// So many that others than the guard have.
async fn out(pool: &Pool, count: usize) -> Vec<Conn> {
    let mut out = Vec::new();
    for _ in 0..count {
        let mut conn = pool.get_conn().await.unwrap();
        ping(&mut conn).await;
        out.push(conn);
    }
    out
}

/// A statement that does not end, on a connection that the pool gave to somebody else than the guard; what became of it.
async fn run_behind(server: &Tenancy<MySql>, mut conn: Conn) -> JoinHandle<Result<(), String>> {
    let statement = tokio::spawn(async move { run(&mut conn, ENDLESS).await.map_err(|error| in_full(error.as_ref())) });
    until_running(server, 1).await;
    statement
}

fn assert_cancelled(result: Result<(), String>) {
    let error = result.unwrap_err();
    assert!(error.contains("Query execution was interrupted"), "{error}");
}

pub(crate) async fn a_pool_is_drained_though_it_was_never_used_through_the_guard() {
    let server = mysql().await;
    for count in [1, 4] {
        let (pool, opts) = pool(&server);
        idle(&pool, count).await;
        assert_eq!(server.sessions().await.unwrap(), count);
        let drained = Scene::new(Mysql::wrap(pool.clone(), opts)).drain().await;
        drained.assert_clean(count as u64);
        assert_nothing_left(&server).await;
        let sessions = drained.row().sessions;
        assert_eq!((sessions.unconfirmed, sessions.left_behind), (0, 0), "{}", drained.report);
        assert_eq!(drained.row().cannot, ["see every session"]);
        assert!(drained.took < QUICK, "{:?}", drained.took);
        assert!(pool.get_conn().await.is_err());
    }
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
    assert_cancelled(result);
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

pub(crate) async fn a_result_that_was_given_back_half_read_is_stopped() {
    let server = mysql().await;
    // While draining, and so long before that its connection is being reset.
    for before in [None, Some(Duration::from_millis(100))] {
        let scene = Scene::patient(wrap(&server));
        let mut connection = scene.get().await;
        drop(scene.get().await);
        let mut rows = connection.query_iter(ROWS).await.unwrap();
        rows.next().await.unwrap().expect("there are many");
        drop(rows);
        let drained = if let Some(before) = before {
            drop(connection);
            tokio::time::sleep(before).await;
            scene.drain().await
        } else {
            let given_back = async {
                until("what is idle has ended", || async { server.sessions().await.unwrap() == 1 }).await;
                drop(connection);
            };
            tokio::join!(scene.drain(), given_back).0
        };
        drained.assert_in_time();
        let row = drained.row();
        let ended = (row.outcome, row.sessions.cancelled, drained.ended());
        assert_eq!(ended, (Outcome::Drained, 1, (2, 0)), "{before:?}: {}", drained.report);
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_result_that_a_slow_server_stops_late_ends_with_a_goodbye() {
    let server = mysql().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address());
    config.pool.max_size = 1;
    let (pool, opts) = wrapped_pool::pool(config);
    stopped_late(&server, &proxy, Mysql::wrap(pool, opts)).await;
    server.end().await.unwrap();
}

pub(crate) async fn what_was_taken_from_the_pool_directly_is_cancelled_and_says_goodbye() {
    let server = mysql().await;
    // Whether the guard had handed the connection out before, and how many more are idle.
    for (is_known, others) in [(true, 1), (false, 0), (false, 2), (false, 3)] {
        let (pool, opts) = pool(&server);
        let scene = Scene::patient(Mysql::wrap(pool.clone(), opts));
        if is_known {
            for _ in 0..3 {
                let mut lent = scene.get().await;
                ping(&mut lent).await;
            }
        }
        let mut behind = out(&pool, 1 + others).await;
        let listed = server.sessions().await.unwrap() as u64;
        let statement = run_behind(&server, behind.pop().unwrap()).await;
        drop(behind);
        let drained = scene.drain().await;
        drained.assert_in_time();
        assert_nothing_left(&server).await;
        assert_cancelled(statement.await.unwrap());
        let sessions = drained.row().sessions;
        let ended = (drained.row().outcome, drained.ended(), sessions.cancelled, sessions.left_behind);
        assert_eq!(ended, (Outcome::Drained, (listed, 0), 1, 0), "{is_known} {others} {}", drained.report);
        assert_eq!(sessions.unconfirmed, 0, "{}", drained.report);
    }
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

/// Whether the drain looks what is idle, asks the server who has the rest, or leaves it to the driver by then; also where the driver
/// takes longer to reset it than any answer took before.
pub(crate) async fn whenever_it_comes_back_to_the_pool_directly_it_is_in_the_report() {
    let server = mysql().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    for (slow, steps, each) in [(0, 20, 750), (15, 20, 15_000)] {
        for step in 0..steps {
            let mut config = config_at(&server, proxy.address());
            config.pool.max_size = 4;
            let (pool, opts) = wrapped_pool::pool(config);
            let scene = Scene::new(Mysql::wrap(pool.clone(), opts));
            let conns = out(&pool, 2).await;
            let by_guard = scene.get().await;
            let (drained, ()) = tokio::join!(scene.drain(), async {
                scene.lifecycle.draining().await;
                proxy.set_delay(Duration::from_millis(slow));
                tokio::time::sleep(Duration::from_micros(each * step)).await;
                drop(conns);
                drop(by_guard);
            });
            proxy.set_delay(Duration::ZERO);
            let (sessions, report) = (drained.row().sessions, &drained.report);
            assert_eq!((sessions.closed + sessions.unconfirmed, sessions.cut), (3, 0), "{slow}, {step}: {report}");
            assert_eq!(drained.row().outcome, Outcome::Drained, "{slow}, {step}: {report}");
            until("all are gone", || async { server.sessions().await.unwrap() == 0 }).await;
        }
    }
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn what_comes_back_to_the_pool_directly_says_goodbye() {
    let server = mysql().await;
    // All that the pool may have are out, or there is room for more.
    for count in [4, 2] {
        let (pool, opts) = pool(&server);
        let scene = Scene::new(Mysql::wrap(pool.clone(), opts));
        let mut conns = out(&pool, count - 1).await;
        let mut by_guard = scene.get().await;
        assert_eq!(server.sessions().await.unwrap(), count);
        let (drained, ()) = tokio::join!(scene.drain(), async {
            scene.lifecycle.draining().await;
            ping(&mut by_guard).await;
            drop(by_guard);
            // Of use to their holders all the same.
            for conn in &mut conns {
                ping(conn).await;
            }
            drop(conns);
        });
        drained.assert_clean(count as u64);
        until("all are gone", || async { server.sessions().await.unwrap() == 0 }).await;
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn what_others_keep_without_a_statement_is_cut_and_stays_theirs() {
    let server = mysql().await;
    let (pool, opts) = pool(&server);
    let scene = Scene::patient(Mysql::wrap(pool.clone(), opts));
    let mut conns = out(&pool, 3).await;
    let mut kept = conns.pop().unwrap();
    drop(conns);
    let drained = scene.drain().await;
    drained.assert_in_time();
    let (row, report) = (drained.row(), &drained.report);
    assert_eq!((row.outcome, drained.ended(), row.sessions.cancelled), (Outcome::Incomplete, (2, 1), 0), "{report}");
    assert_eq!((row.sessions.unconfirmed, row.sessions.left_behind), (0, 0), "{report}");
    ping(&mut kept).await;
    drop(kept);
    until("it says goodbye when it comes back", || async { server.sessions().await.unwrap() == 0 }).await;
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn what_is_not_proven_to_be_the_pools_is_left_alone() {
    let server = mysql().await;
    let (pool, opts) = pool(&server);
    let scene = Scene::patient(Mysql::wrap(pool.clone(), opts));
    // In this process, with the same user; and in another database.
    let stranger = server.stranger().await.unwrap();
    let statement = run_behind(&server, pool.get_conn().await.unwrap()).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    stranger.untouched().await.unwrap();
    let row = drained.row();
    assert_eq!((row.outcome, row.sessions.cancelled, drained.ended()), (Outcome::Incomplete, 0, (0, 1)));
    let reasons = row.reasons.join("; ");
    assert!(reasons.contains("left alone"), "{}", drained.report);
    assert_eq!((server.running().await.unwrap(), row.sessions.left_behind), (1, 0), "{}", drained.report);
    server.end_all().await.unwrap();
    assert!(statement.await.unwrap().is_err());
    server.end().await.unwrap();
}

/// Another process, with this user and this database.
const STRANGER: &str = "stranger_of_wrapped";

pub(crate) fn program() -> Option<ExitCode> {
    child::role().filter(|role| role == STRANGER)?;
    Some(child::run(&mut Builder::new_current_thread(), async {
        let (pool, _) = wrapped_pool::from_env(Config::from_env()?);
        let mut conn = pool.get_conn().await?;
        child::ready();
        run(&mut conn, ENDLESS).await
    }))
}

pub(crate) async fn another_process_with_the_same_user_is_left_alone() {
    let server = wrapped_pool::WrappedPool(mysql().await);
    let stranger = Child::start_with(STRANGER, &server.environment()).ready();
    let server = server.0;
    until_running(&server, 1).await;
    let (pool, opts) = pool(&server);
    let scene = Scene::patient(Mysql::wrap(pool.clone(), opts));
    let mut conns = out(&pool, 3).await;
    let mut behind = conns.pop().unwrap();
    let statement =
        tokio::spawn(async move { run(&mut behind, ENDLESS).await.map_err(|error| in_full(error.as_ref())) });
    until_running(&server, 2).await;
    drop(conns);
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_cancelled(statement.await.unwrap());
    let sessions = drained.row().sessions;
    assert_eq!((drained.ended(), sessions.cancelled, sessions.unconfirmed), ((3, 0), 1, 0), "{}", drained.report);
    // The stranger's is all that is there.
    assert_eq!((server.sessions().await.unwrap(), server.running().await.unwrap()), (1, 1), "{}", drained.report);
    server.end_all().await.unwrap();
    drop(stranger);
    server.end().await.unwrap();
}

pub(crate) async fn what_the_server_has_ended_while_it_was_idle_is_in_no_count() {
    let server = mysql().await;
    for by_guard in [false, true] {
        let proxy = Proxy::start(server.address()).await.unwrap();
        let (pool, opts) = wrapped_pool::pool(config_at(&server, proxy.address()));
        let scene = Scene::new(Mysql::wrap(pool.clone(), opts));
        if by_guard {
            let mut out = (scene.get().await, scene.get().await);
            ping(&mut out.0).await;
        } else {
            idle(&pool, 2).await;
        }
        // Those that are being reset are not idle yet.
        until("the server has ended every session", || async {
            server.end_all().await.unwrap();
            server.sessions().await.unwrap() == 0
        })
        .await;
        // The driver takes one for open until it has heard of its end.
        until("the kernel knows", || async {
            let open = Open::now();
            OwnSockets::now().iter().all(|own| own.remote != proxy.address() || !open.contains(own))
        })
        .await;
        until_events_are_seen().await;
        // The driver opens one to have one, which is none of the pool's then.
        let drained = scene.drain().await;
        drained.assert_clean(0);
        assert_eq!(drained.row().sessions.left_behind, 0, "{}", drained.report);
        assert_eq!(server.sessions().await.unwrap(), 0, "{}", drained.report);
    }
    server.end().await.unwrap();
}
