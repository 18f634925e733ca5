//! A primary that sentinels know: another one takes its place, and a sentinel does not answer.

use std::time::Duration;

use redis::cmd;
use winddown_core::ErrorKind;
use winddown_redis::{Config, Redis, redis};
use winddown_testkit::{Harness, ServerUse, Setup};

use crate::{
    scene::{Drained, QUICK, Scene, Speaks as _, in_full, until},
    sentinel::{PATIENT, PRIMARY, RedisSentinel},
    server::Listed,
};

/// Where one that does not answer is to be replaced.
const IMPATIENT: Duration = Duration::from_secs(1);

fn scene(harness: &RedisSentinel) -> Scene {
    // A caller does not get a session that has ended meanwhile.
    let mut setup = Setup::default();
    setup.check_after_idle = Some(Duration::ZERO);
    Scene::new(harness.resource(&setup))
}

/// How many sessions this server lists, asked on a new session: in a failover sentinels end all that there are.
async fn listed_by(harness: &RedisSentinel, server: usize) -> usize {
    let server = &harness.watched.servers.servers[server];
    loop {
        let mut superuser = server.superuser().await.unwrap();
        if let Ok(listed) = Listed::of(&harness.watch.tenant, &mut superuser).await {
            return listed.len();
        }
    }
}

/// How many sessions the first and the second server list.
async fn listed(harness: &RedisSentinel) -> [usize; 2] {
    [listed_by(harness, 0).await, listed_by(harness, 1).await]
}

/// Nothing is left with the second server and the sentinels; the first is gone.
async fn assert_nothing_left(harness: &RedisSentinel, drained: &Drained) {
    let left = (listed_by(harness, 1).await, harness.with_sentinels().await.unwrap());
    assert_eq!(left, (0, 0), "{}", drained.report);
}

/// Until all sentinels name the second server.
async fn replaced(harness: &RedisSentinel) {
    for sentinel in &harness.watched.sentinels.servers {
        let container = sentinel.container.lock().await;
        container.wait_for(["+switch-master"], Duration::from_secs(30)).await.unwrap();
    }
}

/// Until a checkout works again.
async fn works(scene: &Scene) {
    until("a checkout works", || async {
        match scene.db.get().await {
            Ok(mut connection) => cmd("PING").exec_async(&mut *connection).await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
}

pub(crate) async fn a_failover_is_followed_and_no_session_is_left_on_either_server() {
    let harness = RedisSentinel::open(PATIENT).await.unwrap();
    let scene = scene(&harness);
    drop(scene.out(2).await);
    assert_eq!(listed(&harness).await, [2, 0]);
    let failover = cmd("SENTINEL").arg("FAILOVER").arg(PRIMARY).take();
    let mut sentinel = harness.watched.sentinels.servers[0].superuser().await.unwrap();
    failover.exec_async(&mut sentinel).await.unwrap();
    replaced(&harness).await;
    // Only then, some ten seconds later, the sentinels make a replica of the old one, and end its clients.
    let old = harness.watched.servers.servers[0].container.lock().await;
    old.wait_for(["enabled (user request"], Duration::from_secs(40)).await.unwrap();
    drop(old);
    until("the old primary lists none", || async { listed_by(&harness, 0).await == 0 }).await;
    works(&scene).await;
    let now = listed(&harness).await;
    assert!(now[0] == 0 && now[1] >= 1, "{now:?}");
    let drained = scene.drain().await;
    drained.assert_clean(now[1] as u64);
    assert_eq!(listed(&harness).await, [0, 0], "{}", drained.report);
    assert_nothing_left(&harness, &drained).await;
    harness.end().await.unwrap();
}

pub(crate) async fn a_primary_that_was_killed_is_replaced_and_its_successor_is_drained() {
    let harness = RedisSentinel::open(IMPATIENT).await.unwrap();
    let scene = scene(&harness);
    drop(scene.out(2).await);
    harness.watched.servers.servers[0].container.lock().await.kill().await.unwrap();
    replaced(&harness).await;
    works(&scene).await;
    let drained = scene.drain().await;
    assert!(drained.took < QUICK && drained.row().sessions.closed >= 1, "{:?}: {}", drained.took, drained.report);
    assert_nothing_left(&harness, &drained).await;
    harness.end().await.unwrap();
}

pub(crate) async fn a_drain_in_the_middle_of_a_failover_is_not_held_up() {
    let harness = RedisSentinel::open(IMPATIENT).await.unwrap();
    let scene = scene(&harness);
    drop(scene.out(2).await);
    harness.watched.servers.servers[0].container.lock().await.kill().await.unwrap();
    let drained = scene.drain().await;
    assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
    assert_nothing_left(&harness, &drained).await;
    harness.end().await.unwrap();
}

pub(crate) async fn a_sentinel_that_does_not_answer_is_passed_over() {
    let harness = RedisSentinel::start(ServerUse::Own).await.unwrap();
    let first = &harness.watched.sentinels.servers[0].container;
    first.lock().await.pause().await.unwrap();
    let scene = scene(&harness);
    scene.ping().await;
    assert_eq!(listed(&harness).await, [1, 0]);
    scene.drain().await.assert_clean(1);
    first.lock().await.resume().await.unwrap();
    until("nothing is left with the sentinels", || async { harness.sessions().await.unwrap() == 0 }).await;
    harness.end().await.unwrap();
}

pub(crate) async fn what_the_sentinels_cannot_tell_says_what_to_do() {
    let harness = RedisSentinel::start(ServerUse::Shared).await.unwrap();
    let sentinels: Vec<String> =
        harness.watched.sentinels.servers.iter().map(|sentinel| format!("redis://{}", sentinel.address)).collect();
    let scene = Scene::new(Redis::sentinel(&sentinels, "nobody").unwrap());
    let error = scene.db.get().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{}", in_full(&error));
    assert!(in_full(&error).contains("knows no primary called nobody: see the name"), "{}", in_full(&error));

    // A server that is no sentinel.
    let server = format!("redis://{}", harness.watched.servers.servers[0].address);
    let scene = Scene::new(Redis::sentinel([server], PRIMARY).unwrap());
    let error = scene.db.get().await.unwrap_err();
    assert!(in_full(&error).contains("is it one?"), "{}", in_full(&error));

    let error = Config::sentinel([""; 0], PRIMARY).unwrap_err();
    assert_eq!(error.to_string(), "there is no sentinel: give the URL of one or more");
    let error = Config::sentinel(["s3cret"], PRIMARY).unwrap_err();
    assert!(error.kind() == ErrorKind::Config && !error.to_string().contains("s3cret"), "{error}");
    harness.end().await.unwrap();
}
