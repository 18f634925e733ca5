//! What the suite does not ask: pools that are used without the guard too, and what a checkout leaves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bb8::Pool;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection as _, pooled_connection::AsyncDieselConnectionManager};
use futures_util::FutureExt as _;
use redis::cmd;
use tokio_postgres::Client;
use winddown_bb8::{Bb8, Closures, Establish};
use winddown_core::{Outcome, Resource as _};
use winddown_testkit::{
    Harness as _, ServerUse, Setup, same_end,
    scene::{Drained, Scene, until},
};

use crate::{
    built::url,
    diesel,
    diesel_async::ping as ping_diesel,
    postgres::{self, Manager},
    redis::Bb8Redis,
    server::{PostgreSql, Seventeen},
};

async fn server() -> PostgreSql<Seventeen> {
    PostgreSql::start(ServerUse::Shared).await.unwrap()
}

fn pool(server: &PostgreSql<Seventeen>) -> Pool<Manager> {
    postgres::pool(server, &Setup::default())
}

/// A pool of one connection, which the next caller gets.
fn of_one() -> Setup {
    let mut setup = Setup::default();
    setup.size = 1;
    setup
}

async fn ping(client: &Client) {
    client.batch_execute("SELECT 1").await.unwrap();
}

/// So many idle ones, which nobody has had from the guard.
async fn idle(pool: &Pool<Manager>, count: usize) {
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = pool.get_owned().await.unwrap();
        ping(&client).await;
        clients.push(client);
    }
}

#[track_caller]
fn assert_unconfirmed(drained: &Drained, sessions: u64) {
    let (report, row) = (&drained.report, drained.row());
    assert_eq!((row.outcome, row.sessions.unconfirmed), (Outcome::Drained, sessions), "{report}");
    assert_eq!(drained.ended(), (0, 0), "{report}");
}

pub(crate) async fn a_pool_is_drained_though_it_was_never_used_through_the_guard() {
    let server = server().await;
    let pool = pool(&server);
    let scene = Scene::new(Bb8::wrap(pool.clone()));
    idle(&pool, 3).await;
    scene.drain().await.assert_clean(3);
    assert_eq!(server.sessions().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn sessions_are_told_from_connections_to_others_that_have_the_same_end_here() {
    let server = server().await;
    let pool = pool(&server);
    let end = "SELECT host(inet_client_addr()) || ':' || inet_client_port()";
    let end: String = pool.get().await.unwrap().query_one(end, &[]).await.unwrap().get(0);
    let other = same_end::connect(end.parse().unwrap()).await.unwrap();
    let drained = Scene::new(Bb8::wrap(pool)).drain().await;
    drained.assert_clean(1);
    assert_eq!((server.sessions().await.unwrap(), drained.row().sessions.unconfirmed), (0, 0), "{}", drained.report);
    drop(other);
    server.end().await.unwrap();
}

pub(crate) async fn what_comes_back_to_the_pool_directly_says_goodbye() {
    let server = server().await;
    // All that the pool may have are out, or there is room for more.
    for out in [4, 2] {
        let pool = pool(&server);
        let scene = Scene::new(Bb8::wrap(pool.clone()));
        let by_guard = scene.get().await;
        let mut clients = Vec::new();
        for _ in 1..out {
            clients.push(pool.get_owned().await.unwrap());
        }
        // In a transaction that has failed, for one.
        clients[0].batch_execute("BEGIN; SELECT 1/0").await.unwrap_err();
        let (drained, ()) = tokio::join!(scene.drain(), async {
            scene.lifecycle.draining().await;
            ping(&by_guard).await;
            drop(by_guard);
            for client in clients {
                drop(client);
                tokio::task::yield_now().await;
            }
        });
        drained.assert_clean(out);
        assert_eq!(server.sessions().await.unwrap(), 0);
    }
    assert!(server.complaints().await.unwrap().is_empty());
    server.end().await.unwrap();
}

pub(crate) async fn a_pool_with_sessions_in_reserve_leaves_none() {
    let server = server().await;
    let config = server.tenant.config(server.address(), &Setup::default()).driver;
    let manager = bb8_postgres::PostgresConnectionManager::new(config, tokio_postgres::NoTls);
    let pool = Pool::builder().max_size(4).min_idle(2).build(manager).await.unwrap();
    let scene = Scene::new(Bb8::wrap(pool.clone()));
    let drained = scene.drain().await;
    assert_eq!((drained.row().outcome, drained.row().sessions.cut), (Outcome::Drained, 0), "{}", drained.report);
    assert!(drained.row().sessions.closed >= 2, "{}", drained.report);
    assert_eq!(server.sessions().await.unwrap(), 0, "{}", drained.report);
    drop((scene, pool));
    server.end().await.unwrap();
}

pub(crate) async fn what_the_pool_is_opening_for_nobody_is_waited_for() {
    let server = PostgreSql::<Seventeen>::start(ServerUse::Own).await.unwrap();
    server.slow(Duration::from_millis(50)).await.unwrap();
    for out in [0, 2] {
        let pool = pool(&server);
        let scene = Scene::new(Bb8::wrap(pool.clone()));
        let held = [scene.get().await, scene.get().await];
        let mut callers: Vec<_> = (0..2).map(|_| Box::pin(pool.get_owned())).collect();
        for caller in &mut callers {
            assert!(caller.now_or_never().is_none());
        }
        drop(callers);
        let (drained, ()) = tokio::join!(scene.drain(), async {
            if out == 2 {
                scene.lifecycle.draining().await;
            }
            drop(held);
        });
        drained.assert_clean(4);
        assert_eq!(server.sessions().await.unwrap(), 0);
    }
    assert!(server.complaints().await.unwrap().is_empty());
    server.end().await.unwrap();
}

pub(crate) async fn what_the_pool_can_not_open_is_not_called_clean() {
    // There is nobody.
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(1).user("nobody");
    let manager = bb8_postgres::PostgresConnectionManager::new(config, tokio_postgres::NoTls);
    let pool = Pool::builder().max_size(4).min_idle(2).build_unchecked(manager);
    let drained = Scene::new(Bb8::wrap(pool)).drain().await;
    let (report, row) = (&drained.report, drained.row());
    assert_eq!((row.outcome, row.sessions.cut), (Outcome::Incomplete, 2), "{report}");
    assert!(report.to_string().contains("what the pool was opening has neither opened nor failed"), "{report}");
}

pub(crate) async fn s8_a_transaction_does_not_reach_the_next_caller() {
    let server = server().await;
    let scene = Scene::new(Bb8::wrap(postgres::pool(&server, &of_one())));
    let mut first = scene.get().await;
    ping(&first).await;
    first.batch_execute("BEGIN; INSERT INTO rows VALUES (now())").await.unwrap();
    assert!(!first.is_closed());
    drop(first);
    first = scene.get().await;
    // It would be refused inside of one.
    first.batch_execute("VACUUM rows").await.unwrap();
    drop(first);
    assert_eq!(server.rows().await.unwrap(), 0);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn s8_nor_does_one_of_diesel_s() {
    let server = server().await;
    let establish = Establish::new();
    let pool = diesel::pool(establish.manager(url(&server, &Setup::default())), 1);
    let scene = Scene::new(Bb8::wrap(pool).session_with(establish));
    let mut first = scene.get().await;
    first.batch_execute("BEGIN; INSERT INTO rows VALUES (now())").await.unwrap();
    drop(first);
    scene.get().await.batch_execute("VACUUM rows").await.unwrap();
    assert_eq!(server.rows().await.unwrap(), 0);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn what_diesel_has_opened_itself_is_unconfirmed() {
    let server = server().await;
    let url = url(&server, &Setup::default());
    // With what would have opened them, and without.
    for promised in [false, true] {
        let pool = diesel::pool(AsyncDieselConnectionManager::<AsyncPgConnection>::new(&url), 2);
        let wrapped = Bb8::wrap(pool.clone());
        let mut out = Vec::new();
        for _ in 0..2 {
            let mut connection = pool.get_owned().await.unwrap();
            ping_diesel(&mut connection).await.unwrap();
            out.push(connection);
        }
        drop(out);
        let drained = if promised {
            Scene::new(wrapped.session_with(Establish::new())).drain().await
        } else {
            let can = wrapped.capabilities();
            assert!(can.cancel && !can.goodbye && !can.confirmed_end && !can.all_sessions);
            Scene::new(wrapped).drain().await
        };
        assert_unconfirmed(&drained, 2);
        until("they have ended", async || server.sessions().await.unwrap() == 0).await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn by_closures_a_session_says_goodbye_and_is_unconfirmed() {
    let redis = Bb8Redis::start(ServerUse::Shared).await.unwrap();
    let said = Arc::new(AtomicUsize::new(0));
    let says = Arc::clone(&said);
    let session = Closures::new().goodbye(move |connection: &mut redis::aio::MultiplexedConnection| {
        says.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move { cmd("QUIT").exec_async(connection).await.unwrap() })
    });
    let wrapped = Bb8::wrap(crate::redis::pool(&redis.0, &Setup::default())).session_with(session);
    let can = wrapped.capabilities();
    assert!(can.goodbye && !can.cancel && !can.confirmed_end && !can.all_sessions);
    let scene = Scene::new(wrapped);
    drop((scene.get().await, scene.get().await));
    let drained = scene.drain().await;
    assert_unconfirmed(&drained, 2);
    assert_eq!(said.load(Ordering::SeqCst), 2);
    until("they have ended", async || redis.sessions().await.unwrap() == 0).await;
    redis.end().await.unwrap();
}

pub(crate) async fn s8_what_a_caller_of_redis_leaves_does_not_reach_the_next_one() {
    let redis = Bb8Redis::start(ServerUse::Shared).await.unwrap();
    let pool = crate::redis::pool(&redis.0, &of_one());
    let scene = Scene::new(Bb8::wrap(pool));
    let mut first = scene.get().await;
    cmd("MULTI").exec_async(&mut ***first).await.unwrap();
    drop(first);
    let mut second = scene.get().await;
    let pong: String = cmd("PING").query_async(&mut ***second).await.unwrap();
    assert_eq!(pong, "PONG", "not queued");
    drop(second);
    scene.drain().await.assert_clean(1);
    redis.end().await.unwrap();
}
