//! Pools of `deadpool-redis` that the application has built.

use std::time::Duration;

use redis::{RedisResult, Value, cmd};
use tokio::{task::JoinHandle, time::Instant};
use winddown_core::Outcome;
use winddown_redis::deadpool_redis::{Connection, Pool};
use winddown_redis::{Existing, Redis, redis};
use winddown_testkit::Harness as _;

use crate::{
    scene::{
        Scene, Server, Speaks as _, abandon_command, assert_nothing_left, config, drain_under_a_command, number, own,
        ping, redis_8, until, until_waiting,
    },
    wraps_pool,
};

/// As many as the pool may have.
const SIZE: usize = 4;

fn pool(server: &Server) -> Pool {
    wraps_pool::pool(&config(server), SIZE)
}

async fn taken(pool: &Pool, count: usize) -> Vec<Connection> {
    let mut taken = Vec::new();
    for _ in 0..count {
        let mut connection = pool.get().await.unwrap();
        cmd("PING").exec_async(&mut connection).await.unwrap();
        taken.push(connection);
    }
    taken
}

/// Has so many idle connections in the pool, that no guard has seen.
async fn idle(pool: &Pool, count: usize) {
    drop(taken(pool, count).await);
}

/// Waits in a pop that has no end, over what was taken from the pool.
async fn pop_behind(server: &Server, mut connection: Connection) -> JoinHandle<RedisResult<Value>> {
    let key = server.tenant.key("never");
    let popping = tokio::spawn(async move { cmd("BLPOP").arg(key).arg(0).query_async(&mut connection).await });
    until_waiting(server, 1).await;
    popping
}

fn assert_unblocked(told: RedisResult<Value>) {
    let told = format!("{told:?}");
    assert!(told.contains("UNBLOCKED"), "{told}");
}

pub(crate) async fn a_pool_is_drained_though_it_was_never_used_through_the_guard() {
    let server = redis_8().await;
    for count in [1, SIZE] {
        let pool = pool(&server);
        idle(&pool, count).await;
        assert_eq!(server.sessions().await.unwrap(), count);
        let drained = Scene::new(Redis::wrap(pool.clone())).drain().await;
        drained.assert_clean(count as u64);
        assert_nothing_left(&server).await;
        let sessions = drained.row().sessions;
        assert_eq!((sessions.unconfirmed, sessions.left_behind), (0, 0), "{}", drained.report);
        assert_eq!(drained.row().cannot, ["see every session"]);
        assert!(pool.is_closed());
    }
    server.end().await.unwrap();
}

pub(crate) async fn its_own_pool_is_to_be_had_from_the_guard() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::wrap_with(pool(&server), config(&server)));
    scene.ping().await;
    let Some(Existing::Pool(pool)) = scene.db.pool().await.unwrap().existing() else { panic!("it is a pool") };
    assert_eq!(pool.status().size, 1);
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_pop_of_a_checkout_is_ended() {
    let server = redis_8().await;
    let scene = Scene::patient(Redis::wrap(pool(&server)));
    drop(scene.out(3).await);
    let (result, drained) = drain_under_a_command(&server, &scene).await;
    assert!(result.unwrap_err().contains("UNBLOCKED"));
    drained.assert_in_time();
    assert_nothing_left(&server).await;
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (3, 0)), "{}", drained.report);
    server.end().await.unwrap();
}

pub(crate) async fn a_pop_that_nobody_waits_for_is_ended_and_handed_to_nobody() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::wrap(wraps_pool::pool(&config(&server), 1)));
    abandon_command(&server, &scene.db).await;
    // Behind it the next one would wait too.
    scene.ping().await;
    let drained = scene.drain().await;
    drained.assert_clean(2);
    assert_nothing_left(&server).await;
    assert_eq!(drained.row().sessions.cancelled, 1, "{}", drained.report);
    server.end().await.unwrap();
}

pub(crate) async fn what_was_taken_from_the_pool_directly_is_ended_and_says_goodbye() {
    let server = redis_8().await;
    // Whether the guard had handed the connection out before, and how many more are idle.
    for (is_known, others) in [(true, 1), (false, 0), (false, 2), (false, 3)] {
        let pool = pool(&server);
        let scene = Scene::patient(Redis::wrap(pool.clone()));
        if is_known {
            drop(scene.out(1 + others).await);
        } else {
            idle(&pool, 1 + others).await;
        }
        let popping = pop_behind(&server, pool.get().await.unwrap()).await;
        let drained = scene.drain().await;
        drained.assert_in_time();
        assert_nothing_left(&server).await;
        assert_unblocked(popping.await.unwrap());
        let sessions = drained.row().sessions;
        let ended = (drained.row().outcome, drained.ended(), sessions.cancelled, sessions.left_behind);
        assert_eq!(ended, (Outcome::Drained, (1 + others as u64, 0), 1, 0), "{is_known} {others} {}", drained.report);
        assert!(pool.is_closed());
    }
    server.end().await.unwrap();
}

pub(crate) async fn what_comes_back_to_the_pool_directly_says_goodbye() {
    let server = redis_8().await;
    // All that the pool may have are out, or there is room for more.
    for out in [SIZE, 2] {
        let pool = pool(&server);
        let scene = Scene::new(Redis::wrap(pool.clone()));
        let mut by_guard = scene.get().await;
        ping(&mut by_guard).await;
        let mut taken = taken(&pool, out - 1).await;
        // In a transaction, for one.
        cmd("MULTI").exec_async(&mut taken[0]).await.unwrap();
        let (drained, ()) = tokio::join!(scene.drain(), async {
            scene.lifecycle.draining().await;
            ping(&mut by_guard).await;
            drop(by_guard);
            for connection in taken {
                drop(connection);
                tokio::task::yield_now().await;
            }
        });
        drained.assert_clean(out as u64);
        assert_nothing_left(&server).await;
        assert_eq!(drained.row().sessions.unconfirmed, 0, "{}", drained.report);
    }
    server.end().await.unwrap();
}

/// Others on the same sockets of this process, which the pool knows nothing of.
pub(crate) async fn what_is_not_proven_to_be_the_pools_is_left_alone() {
    let server = redis_8().await;
    let pool = pool(&server);
    let scene = Scene::patient(Redis::wrap(pool.clone()));
    idle(&pool, 1).await;
    let popping = pop_behind(&server, pool.get().await.unwrap()).await;
    let other = self::pool(&server);
    let held = taken(&other, 1).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((0, 1), 0), "{}", drained.report);
    let text = drained.report.to_string();
    assert!(text.contains("1 taken from the pool directly, and the server lists"), "{text}");
    popping.abort();
    let _ = popping.await;
    drop((held, other));
    until("all are gone", || async { server.sessions().await.unwrap() == 0 }).await;
    server.end().await.unwrap();
}

pub(crate) async fn s8_what_a_caller_has_left_the_next_one_does_not_find() {
    let server = redis_8().await;
    let pool = wraps_pool::pool(&config(&server), 1);
    let scene = Scene::new(Redis::wrap(pool));
    let key = server.tenant.key("counter");
    let mut sessions = Vec::new();
    for left in [&["MULTI"][..], &["WATCH", &key], &["SELECT", "3"], &["CLIENT", "SETNAME", "mine"]] {
        let mut leaving = cmd(left[0]);
        leaving.arg(&left[1..]).exec_async(&mut *scene.get().await).await.unwrap();
        let mut next = scene.get().await;
        cmd("INCR").arg(&key).exec_async(&mut *next).await.unwrap();
        let name: Option<String> = cmd("CLIENT").arg("GETNAME").query_async(&mut *next).await.unwrap();
        assert_eq!(name.filter(|name| !name.is_empty()), None, "{left:?}");
        sessions.push(cmd("CLIENT").arg("ID").query_async::<u64>(&mut *next).await.unwrap());
        let executed = number(&mut server.superuser().await, &key).await;
        assert_eq!(executed, sessions.len() as u64, "it is executed, in the first database, after {left:?}");
    }
    assert!(sessions[..3].iter().all(|session| *session == sessions[0]), "what can be undone costs no session");
    assert_ne!(sessions[2], sessions[3], "what cannot be undone ends with its session");
    until("that session is gone", || async { server.sessions().await.unwrap() == 1 }).await;
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn what_was_sent_is_executed_before_the_drain_ends() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::wrap(pool(&server)));
    let key = server.tenant.key("counter");
    let mut increment = cmd("INCR");
    increment.arg(&key).set_no_response(true);
    let mut connection = scene.get().await;
    for _ in 0..10_000 {
        increment.exec_async(&mut *connection).await.unwrap();
    }
    drop(connection);
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    assert_eq!(number(&mut server.superuser().await, &key).await, 10_000);
    server.end().await.unwrap();
}

pub(crate) async fn one_whose_server_does_not_answer_does_not_hold_up_the_drain() {
    let server = own().await;
    let scene = Scene::patient(Redis::wrap(pool(&server)));
    drop(scene.out(3).await);
    server.pause().await.unwrap();
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.ended(), (0, 3), "{}", drained.report);
    let error = drained.row().error.as_deref().unwrap_or_default();
    assert!(error.contains("no answer in time"), "{}", drained.report);
    server.resume().await.unwrap();
    server.end().await.unwrap();
}

pub(crate) async fn a_user_who_may_not_ask_about_clients_is_drained_and_the_connection_shows_its_end() {
    let server = redis_8().await;
    for rules in [&["-client"][..], &["-client", "-info"], &["-client|list"], &["-@all", "+ping", "+quit", "+unwatch"]]
    {
        let mut set = cmd("ACL");
        set.arg("SETUSER").arg(&server.tenant.name).arg("+@all").arg(rules);
        set.exec_async(&mut server.superuser().await).await.unwrap();
        let scene = Scene::new(Redis::wrap(pool(&server)));
        drop(scene.out(2).await);
        let drained = scene.drain().await;
        let sessions = drained.row().sessions;
        let ended = (drained.row().outcome, drained.ended(), sessions.unconfirmed);
        assert_eq!(ended, (Outcome::Drained, (2, 0), 0), "{rules:?}: {}", drained.report);
        until("it is gone", || async { server.sessions().await.unwrap() == 0 }).await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_session_that_is_being_opened_when_the_drain_begins_says_goodbye() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::wrap(pool(&server)));
    scene.ping().await;
    let held = scene.out(1).await;
    for round in 0..20 {
        let mut getting = Box::pin(scene.db.get());
        let until_then = Instant::now() + Duration::from_micros(100 * round);
        let got = tokio::time::timeout_at(until_then, &mut getting).await;
        drop(getting);
        drop(got);
    }
    drop(held);
    let drained = scene.drain().await;
    assert_nothing_left(&server).await;
    let sessions = drained.row().sessions;
    assert_eq!((sessions.cut, sessions.unconfirmed), (0, 0), "{}", drained.report);
    server.end().await.unwrap();
}
