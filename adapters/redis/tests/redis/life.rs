//! How long sessions live, and how long they may be idle: the server says which there are.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use winddown_redis::{Connection, Redis, redis::cmd};
use winddown_testkit::Harness as _;

use crate::scene::{Scene, Speaks, assert_nothing_left, config, config_at, ping, redis_8, until};

/// Long enough for a machine that is busy to use a session twice.
const LIMIT: Duration = Duration::from_secs(2);

pub(crate) async fn a_session_past_its_life_says_goodbye_and_is_replaced() {
    let server = redis_8().await;
    let mut config = config(&server);
    config.max_lifetime = Some(LIMIT);
    // A caller who comes too early waits for it.
    config = config.pooled(1);
    let scene = Scene::new(Redis::new(config));
    let opened = Instant::now();
    let first = id(&scene).await;
    let again = id(&scene).await;
    assert!(again == first || opened.elapsed() >= LIMIT.mul_f64(0.9), "it is used again while it lives");
    sleep(LIMIT).await;
    assert_eq!(server.sessions().await.unwrap(), 1, "nothing ends it while nobody comes");
    let second = id(&scene).await;
    assert_ne!(second, first, "the caller has another one, which works");
    until("the server lists the new one alone", || async { server.sessions().await.unwrap() == 1 }).await;
    assert_drains_clean(&scene).await;
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_session_that_comes_back_after_its_life_says_goodbye() {
    let server = redis_8().await;
    let mut config = config(&server);
    config.max_lifetime = Some(LIMIT);
    let scene = Scene::new(Redis::new(config));
    let mut out = scene.out(3).await;
    sleep(LIMIT).await;
    assert_eq!(server.sessions().await.unwrap(), 3, "whoever has one keeps it");
    for connection in &mut out {
        ping(connection).await;
    }
    drop(out);
    until("the server lists none", || async { server.sessions().await.unwrap() == 0 }).await;
    scene.ping().await;
    assert_drains_clean(&scene).await;
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn what_was_idle_for_too_long_is_let_go_when_the_pool_is_used_again() {
    let server = redis_8().await;
    let mut config = config(&server);
    config.idle_timeout = Some(LIMIT);
    let scene = Scene::new(Redis::new(config));
    drop(scene.out(4).await);
    sleep(LIMIT).await;
    assert_eq!(server.sessions().await.unwrap(), 4, "there is no timer");
    scene.ping().await;
    until("the server lists the one that is used", || async { server.sessions().await.unwrap() == 1 }).await;
    assert_drains_clean(&scene).await;
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn without_limits_a_session_is_kept() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::new(config(&server)));
    let first = id(&scene).await;
    sleep(LIMIT).await;
    assert_eq!(id(&scene).await, first);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn what_nobody_has_says_goodbye_before_the_process_is_frozen() {
    let server = redis_8().await;
    let mut config = config(&server);
    config.idle_at_flush = Some(Duration::ZERO);
    let scene = Scene::new(Redis::new(config));
    let mut out = scene.out(3).await;
    let mut kept = out.pop().unwrap();
    drop(out);
    scene.lifecycle.flush().await.unwrap();
    assert_eq!(server.sessions().await.unwrap(), 1, "whoever has one keeps it");
    ping(&mut kept).await;
    drop(kept);
    scene.lifecycle.flush().await.unwrap();
    assert_eq!(server.sessions().await.unwrap(), 0, "it was seen to end");
    scene.lifecycle.flush().await.unwrap();
    scene.ping().await;
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn the_connection_that_all_share_says_goodbye_before_the_process_is_frozen() {
    let server = redis_8().await;
    let mut config = config_at(&server, server.server.address);
    config.idle_at_flush = Some(Duration::ZERO);
    let scene = Scene::new(Redis::new(config));
    scene.ping().await;
    scene.lifecycle.flush().await.unwrap();
    assert_eq!(server.sessions().await.unwrap(), 0, "it was seen to end");
    scene.ping().await;
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

/// Sessions end all the time, each at its own moment, and nobody notices.
pub(crate) async fn whoever_comes_while_sessions_end_gets_one_that_works() {
    const SHORT: Duration = Duration::from_millis(20);
    let server = redis_8().await;
    let mut config = config(&server);
    (config.max_lifetime, config.idle_timeout) = (Some(SHORT), Some(SHORT / 2));
    let scene = Scene::new(Redis::new(config));
    let mut callers = JoinSet::new();
    for caller in 0..8u64 {
        let db = scene.db.clone();
        callers.spawn(async move {
            let mut seen = Vec::new();
            for round in 0..25 {
                let mut one = db.get().await.unwrap();
                seen.push(session(&mut one).await);
                drop(one);
                // Not all at the same moments.
                sleep(Duration::from_millis((caller + round) % 8)).await;
            }
            seen
        });
    }
    let mut seen: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
    assert_eq!(seen.len(), 200);
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() > 4, "{} sessions", seen.len());
    // On a busy machine the last one has been idle for too long before the drain begins.
    let drained = scene.drain().await;
    assert!(drained.report.is_clean(), "{}", drained.report);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

/// Whoever has a checkout meanwhile goes on with the new one.
pub(crate) async fn the_connection_that_all_share_is_replaced_too() {
    let server = redis_8().await;
    let mut config = config_at(&server, server.server.address);
    config.max_lifetime = Some(LIMIT);
    let scene = Scene::new(Redis::new(config));
    let mut holder = scene.get().await;
    let first = session(&mut holder).await;
    sleep(LIMIT).await;
    assert_eq!(session(&mut holder).await, first, "nobody has checked out since");
    let second = id(&scene).await;
    assert_ne!(second, first);
    assert_eq!(session(&mut holder).await, second);
    until("the server lists the new one alone", || async { server.sessions().await.unwrap() == 1 }).await;
    drop(holder);
    assert_drains_clean(&scene).await;
    server.end().await.unwrap();
}

/// The server may list a session no more before its end is seen here: then the drain counts it too.
async fn assert_drains_clean(scene: &Scene) {
    let drained = scene.drain().await;
    assert!(drained.report.is_clean(), "{}", drained.report);
    assert!(drained.row().sessions.closed >= 1, "{}", drained.report);
}

/// Which session the next checkout has.
async fn id(scene: &Scene) -> u64 {
    let mut one = scene.get().await;
    session(&mut one).await
}

/// Which session this is, as the server has it.
async fn session(connection: &mut Connection) -> u64 {
    cmd("CLIENT").arg("ID").query_async(connection).await.unwrap()
}
