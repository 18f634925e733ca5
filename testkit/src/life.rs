//! How long sessions live, and how long they may be idle, in an adapter's own pool: the server says which there are.

use std::{future::Future, time::Duration};

use libtest_mimic::Trial;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use winddown_core::{Checkout, Checkouts};

use crate::{
    CheckoutOf, Directed, Harness, ServerUse,
    scene::{self, until},
    trials,
};

/// Long enough for a machine that is busy to use a session twice.
pub const LIMIT: Duration = Duration::from_secs(2);

/// What the sessions of a pool are allowed; by default everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// How long one is used.
    pub max_lifetime: Option<Duration>,
    /// How long nobody may have it.
    pub idle_timeout: Option<Duration>,
    /// The same when a flush begins.
    pub idle_at_flush: Option<Duration>,
}

/// A backend whose sessions can be limited in their life. For a server that others may be on too.
pub trait Lives: Harness {
    /// Whether the server lists what has said goodbye in a flush no more when the flush returns.
    const FLUSH_SEES_THE_END: bool;

    /// A resource with such a pool, of so many sessions at most.
    fn limited(&self, size: usize, limits: Limits) -> Self::Resource;

    /// Which session this is, as the server has it: one round trip.
    fn session(checkout: &mut CheckoutOf<Self>) -> impl Future<Output = i64> + Send;
}

/// The tests of it, called `life::` and what they show.
#[must_use]
pub fn trials<H: Lives>() -> Vec<Trial> {
    macro_rules! each {
        ($($test:ident)+) => {
            vec![$(trials::trial(concat!("life::", stringify!($test)), $test::<H>)),+]
        };
    }
    each! {
        a_session_past_its_life_says_goodbye_and_is_replaced
        a_session_that_comes_back_after_its_life_says_goodbye
        what_was_idle_for_too_long_is_let_go_when_the_pool_is_used_again
        without_limits_a_session_is_kept
        what_nobody_has_says_goodbye_before_the_process_is_frozen
        whoever_comes_while_sessions_end_gets_one_that_works
    }
}

/// How many a pool has here at most, if not one.
const SIZE: usize = 4;

type Scene<H> = scene::Scene<<H as Harness>::Resource>;

async fn start<H: Harness>() -> H {
    H::start(ServerUse::Shared).await.expect("the server is there")
}

async fn a_session_past_its_life_says_goodbye_and_is_replaced<H: Lives>() {
    let server = start::<H>().await;
    let limits = Limits { max_lifetime: Some(LIMIT), ..Limits::default() };
    // A caller who comes too early waits for it.
    let scene = Scene::<H>::new(server.limited(1, limits));
    let opened = Instant::now();
    let first = id::<H>(&scene).await;
    let again = id::<H>(&scene).await;
    assert!(again == first || opened.elapsed() >= LIMIT.mul_f64(0.9), "it is used again while it lives");
    sleep(LIMIT).await;
    assert_eq!(listed(&server).await, 1, "nothing ends it while nobody comes");
    let second = id::<H>(&scene).await;
    assert_ne!(second, first, "the caller has another one, which works");
    until("the server lists the new one alone", || async { listed(&server).await == 1 }).await;
    assert_drains_clean(&scene).await;
    end(server).await;
}

async fn a_session_that_comes_back_after_its_life_says_goodbye<H: Lives>() {
    let server = start::<H>().await;
    let limits = Limits { max_lifetime: Some(LIMIT), ..Limits::default() };
    let scene = Scene::<H>::new(server.limited(SIZE, limits));
    let mut out = out::<H>(&scene, 3).await;
    sleep(LIMIT).await;
    assert_eq!(listed(&server).await, 3, "whoever has one keeps it");
    for checkout in &mut out {
        H::session(checkout).await;
    }
    drop(out);
    until("the server lists none", || async { listed(&server).await == 0 }).await;
    id::<H>(&scene).await;
    assert_drains_clean(&scene).await;
    end(server).await;
}

async fn what_was_idle_for_too_long_is_let_go_when_the_pool_is_used_again<H: Lives>() {
    let server = start::<H>().await;
    let limits = Limits { idle_timeout: Some(LIMIT), ..Limits::default() };
    let scene = Scene::<H>::new(server.limited(SIZE, limits));
    drop(out::<H>(&scene, SIZE).await);
    sleep(LIMIT).await;
    assert_eq!(listed(&server).await, SIZE, "there is no timer");
    id::<H>(&scene).await;
    until("the server lists the one that is used", || async { listed(&server).await == 1 }).await;
    assert_drains_clean(&scene).await;
    end(server).await;
}

async fn without_limits_a_session_is_kept<H: Lives>() {
    let server = start::<H>().await;
    let scene = Scene::<H>::new(server.limited(SIZE, Limits::default()));
    let first = id::<H>(&scene).await;
    sleep(LIMIT).await;
    assert_eq!(id::<H>(&scene).await, first);
    scene.drain().await.assert_clean(1);
    end(server).await;
}

async fn what_nobody_has_says_goodbye_before_the_process_is_frozen<H: Lives>() {
    let server = start::<H>().await;
    let limits = Limits { idle_at_flush: Some(Duration::ZERO), ..Limits::default() };
    let scene = Scene::<H>::new(server.limited(SIZE, limits));
    let mut out = out::<H>(&scene, 3).await;
    let mut kept = out.pop().expect("there are three");
    drop(out);
    flush::<H>(&server, &scene, 1).await;
    H::session(&mut kept).await;
    drop(kept);
    flush::<H>(&server, &scene, 0).await;
    flush::<H>(&server, &scene, 0).await;
    id::<H>(&scene).await;
    if H::FLUSH_SEES_THE_END {
        scene.drain().await.assert_clean(1);
    } else {
        assert_drains_clean(&scene).await;
    }
    end(server).await;
}

/// Sessions end all the time, each at its own moment, and nobody notices.
async fn whoever_comes_while_sessions_end_gets_one_that_works<H: Lives>() {
    const SHORT: Duration = Duration::from_millis(20);
    let server = start::<H>().await;
    let limits = Limits { max_lifetime: Some(SHORT), idle_timeout: Some(SHORT / 2), ..Limits::default() };
    let scene = Scene::<H>::new(server.limited(SIZE, limits));
    let mut callers = JoinSet::new();
    for caller in 0..8u64 {
        let db = scene.db.clone();
        callers.spawn(async move {
            let mut seen = Vec::new();
            for round in 0..25 {
                let mut one = db.get().await.unwrap_or_else(|error| panic!("no checkout: {error}"));
                seen.push(H::session(&mut one).await);
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
    assert!(seen.len() > SIZE, "{} sessions", seen.len());
    // On a busy machine the last one has been idle for too long before the drain begins.
    let drained = scene.drain().await;
    assert!(drained.report.is_clean(), "{}", drained.report);
    end(server).await;
}

/// So many checkouts at once, each of which has spoken to the server.
async fn out<H: Lives>(scene: &Scene<H>, count: usize) -> Vec<Checkout<Directed<H::Resource>>> {
    let mut out = Vec::new();
    for _ in 0..count {
        let mut checkout = scene.get().await;
        H::session(&mut checkout).await;
        out.push(checkout);
    }
    out
}

/// Which session the next checkout has.
async fn id<H: Lives>(scene: &Scene<H>) -> i64 {
    let mut one = scene.get().await;
    H::session(&mut one).await
}

async fn listed<H: Harness>(server: &H) -> usize {
    server.sessions().await.expect("the server answers")
}

/// After it the server lists so many.
async fn flush<H: Lives>(server: &H, scene: &Scene<H>, left: usize) {
    scene.lifecycle.flush().await.unwrap_or_else(|error| panic!("no flush: {error}"));
    if H::FLUSH_SEES_THE_END {
        assert_eq!(listed(server).await, left, "what is not kept was seen to end");
    } else {
        until("what is not kept ends", || async { listed(server).await == left }).await;
    }
}

/// Drains with a session that is open. The server may list another one no more before its end is seen here: then the drain counts it
/// too.
///
/// # Panics
/// When the drain is not clean, or has closed none.
pub async fn assert_drains_clean<R: Checkouts>(scene: &scene::Scene<R>) {
    let drained = scene.drain().await;
    assert!(drained.report.is_clean(), "{}", drained.report);
    assert!(drained.row().sessions.closed >= 1, "{}", drained.report);
}

/// Nothing is left on the server, right now, and it complains of nobody.
async fn end<H: Harness>(server: H) {
    let running = server.running().await.expect("the server answers");
    assert_eq!((listed(&server).await, running), (0, 0), "sessions and statements that the server lists");
    let complaints = server.complaints().await.expect("there is a log");
    assert!(complaints.is_empty(), "the server complains: {complaints:#?}");
    server.end().await.expect("it ends");
}
