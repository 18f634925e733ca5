//! S2: what a caller gets when draining begins around it.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::task::JoinSet;
use winddown_core::{Checkouts as _, Outcome, Resource as _};

use super::{
    init::is_pending,
    scene::{BUDGET, QUICK, Scene, assert_no_complaints, ok, sessions, until},
};
use crate::{Harness, Setup};

/// S2: neither checkouts nor the pool, and nothing is opened by asking.
pub async fn s2_after_the_drain_began_nothing_is_handed_out<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    let held = scene.out(harness, 1).await;
    let listed = sessions(harness).await;
    assert!(scene.lifecycle.begin_drain());
    assert!(scene.db.get().await.expect_err("draining has begun").is_shutting_down());
    assert!(scene.db.pool().await.err().expect("draining has begun").is_shutting_down());
    drop(held);
    scene.drain(harness).await.assert_clean(listed);
    assert!(scene.db.get().await.expect_err("it is drained").is_shutting_down());
    assert_eq!(sessions(harness).await, 0);
    assert_no_complaints(harness).await;
}

/// S2: who waits for a slot waits no longer, although the slot is still taken.
pub async fn s2_a_waiter_is_woken_by_the_refusal<H: Harness>(harness: &H) {
    let scene = Scene::with(harness, BUDGET, &Setup { size: 1, ..Setup::default() });
    let held = scene.out(harness, 1).await;
    let mut waiter = Box::pin(scene.db.get());
    assert!(is_pending(waiter.as_mut()).await, "the only slot is taken");
    let listed = sessions(harness).await;
    let (drained, ()) = tokio::join!(scene.drain(harness), async {
        let refused = waiter.await.expect_err("draining has begun");
        assert!(refused.is_shutting_down(), "{refused}");
        drop(held);
    });
    drained.assert_clean(listed);
    assert_no_complaints(harness).await;
}

/// S2: a caller whose driver was asked in time. It is refused, or was handed its checkout before draining began; what the
/// driver opens for it is gone.
pub async fn s2_a_checkout_that_was_connecting_is_not_handed_out_and_its_session_is_gone<H: Harness>(harness: &H) {
    for round in 0..10 {
        let scene = Scene::new(harness);
        let held = scene.out(harness, 1).await;
        scene.director.checkout().hold();
        let connecting = tokio::spawn({
            let db = scene.db.clone();
            async move { db.get().await.map(drop) }
        });
        scene.director.checkout().reached_by(2).await;
        let surely_late = round % 2 == 0;
        let (drained, ()) = tokio::join!(scene.drain(harness), async {
            if surely_late {
                scene.lifecycle.draining().await;
            }
            scene.director.checkout().release();
            scene.director.goodbye().reached_by(1).await;
            drop(held);
        });
        match connecting.await.expect("it does not panic") {
            Err(error) => assert!(error.is_shutting_down(), "{error}"),
            Ok(()) => assert!(!surely_late, "handed out after draining began"),
        }
        let report = &drained.report;
        assert_eq!(drained.listed, 0, "round {round}: {report}");
        assert_eq!(
            (drained.row().outcome, drained.row().sessions.cut),
            (Outcome::Drained, 0),
            "round {round}: {report}"
        );
    }
}

/// S6: a caller of the bare pool, whom no guard counts: its `get` succeeds although draining began while it was connecting.
/// Where the adapter says that it sees every session, this one is gone too.
pub async fn s6_a_bare_checkout_that_was_connecting_is_seen<H: Harness>(harness: &H) {
    for round in 1..12 {
        let scene = Scene::new(harness);
        let held = scene.out(harness, 1).await;
        let resource = scene.db.resource();
        let pool = ok(scene.db.pool().await);
        let mut connecting = Box::pin(resource.checkout(pool));
        let mut got = None;
        for _ in 0..round {
            got = poll_fn(|context| {
                Poll::Ready(match connecting.as_mut().poll(context) {
                    Poll::Ready(got) => Some(got),
                    Poll::Pending => None,
                })
            })
            .await;
            if got.is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let (drained, ()) = tokio::join!(scene.drain(harness), async {
            scene.director.goodbye().reached_by(1).await;
            let got = match got {
                Some(got) => got,
                None => connecting.await,
            };
            if let Ok(checkout) = got {
                resource.give_back(pool, checkout);
            }
            drop(held);
        });
        let report = &drained.report;
        if resource.capabilities().all_sessions {
            assert_eq!(drained.listed, 0, "round {round}: {report}");
            assert_eq!(
                (drained.row().outcome, drained.row().sessions.cut),
                (Outcome::Drained, 0),
                "round {round}: {report}"
            );
        }
        assert!(drained.listed as u64 <= drained.row().sessions.cut, "round {round}: {report}");
    }
}

/// S2: a caller that gives up inside of the driver, at another place each time, just before the drain.
pub async fn s2_a_checkout_that_the_driver_was_connecting_leaves_no_session<H: Harness>(harness: &H) {
    for round in 0..12 {
        let scene = Scene::new(harness);
        // The idle one is taken, so the driver has to connect.
        let held = scene.out(harness, 1).await;
        let mut connecting = Box::pin(scene.db.get());
        for _ in 0..round {
            if !is_pending(connecting.as_mut()).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(held);
        // A ready future is not polled again, and a checkout inside it is back with it.
        drop(connecting);
        let drained = scene.drain(harness).await;
        let report = &drained.report;
        assert_eq!(drained.listed, 0, "round {round}: {report}");
        assert_eq!(
            (drained.row().outcome, drained.row().sessions.cut),
            (Outcome::Drained, 0),
            "round {round}: {report}"
        );
    }
}

/// S2: a caller that is refused in the middle of the handshake.
pub async fn s2_a_checkout_that_was_connecting_to_a_slow_server_leaves_no_session<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    let held = scene.out(harness, 1).await;
    ok(harness.slow(Duration::from_millis(150)).await);
    let mut connecting = Box::pin(scene.db.get());
    // A backend may connect without a round trip; then it was in time.
    let in_time = !is_pending(connecting.as_mut()).await;
    let (drained, ()) = tokio::join!(scene.drain(harness), async {
        if in_time {
            drop(connecting);
        } else {
            assert!(connecting.await.expect_err("draining has begun").is_shutting_down());
        }
        drop(held);
    });
    assert_eq!(drained.listed, 0, "{}", drained.report);
    assert_eq!(drained.row().sessions.cut, 0, "{}", drained.report);
    ok(harness.slow(Duration::ZERO).await);
    assert_no_complaints(harness).await;
}

/// S2: callers at every step of their way when draining begins. Each is served and waited for, or refused.
pub async fn s2_callers_that_race_the_drain_are_served_or_refused<H: Harness>(harness: &H) {
    for served_first in [0, 1, 10, 50] {
        let scene = Scene::new(harness);
        let mut callers = JoinSet::new();
        for _ in 0..8 {
            let db = scene.db.clone();
            callers.spawn(async move {
                loop {
                    if let Err(error) = db.get().await {
                        return error;
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        for _ in 0..served_first {
            drop(scene.out(harness, 1).await);
        }
        let drained = scene.drain(harness).await;
        assert_eq!(drained.listed, 0, "{}", drained.report);
        assert!(drained.report.is_clean(), "{}", drained.report);
        while let Some(refused) = callers.join_next().await {
            let error = refused.expect("it does not panic");
            assert!(error.is_shutting_down(), "{error}");
        }
    }
    assert_no_complaints(harness).await;
}

/// Callers that give up, each at another place, leave no slot taken and no session that nobody knows.
pub async fn a_cancelled_checkout_leaks_nothing<H: Harness>(harness: &H) {
    let setup = Setup { size: 2, ..Setup::default() };
    let scene = Scene::with(harness, BUDGET, &setup);
    drop(scene.out(harness, 1).await);
    for round in 0..30 {
        let _held = if round % 2 == 0 { scene.out(harness, 1).await } else { Vec::new() };
        let mut caller = pin!(scene.db.get());
        for _ in 0..round {
            if !is_pending(caller.as_mut()).await {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let all = tokio::time::timeout(QUICK, scene.out(harness, setup.size)).await;
    drop(all.expect("a slot of a caller that gave up is not there any more"));
    assert_eq!(scene.db.out(), 0);
    let drained = scene.drain(harness).await;
    assert_eq!((drained.listed, drained.row().outcome), (0, Outcome::Drained), "{}", drained.report);
}

/// Callers that give up at each stage of the log-in: what the proxy has seen by then. They leave no session and keep no slot.
pub async fn a_checkout_that_was_dropped_while_connecting_leaves_no_session<H: Harness>(harness: &H) {
    let proxy = harness.proxy().expect("a harness that does not lack it has one");
    let setup = Setup { size: 3, ..Setup::default() };
    let scene = Scene::with(harness, BUDGET, &setup);
    let first = scene.out(harness, 1).await;
    let before = proxy.accepted();

    ok(harness.slow(Duration::from_millis(50)).await);
    let mut begun = 0;
    loop {
        let (accepted, sent, answered) = (proxy.accepted(), proxy.bytes_up(), proxy.round_trips());
        let has_come_that_far = async || {
            proxy.accepted() > accepted
                && match begun {
                    0 => true,
                    1 => proxy.bytes_up() > sent,
                    round_trips => proxy.round_trips() > answered + round_trips - 2,
                }
        };
        let is_over = tokio::select! {
            biased;
            checkout = scene.get() => {
                // It is not to be had again by the next one.
                drop(checkout);
                true
            }
            () = until("the log-in has come that far", has_come_that_far) => false,
        };
        if is_over {
            break;
        }
        begun += 1;
    }
    ok(harness.slow(Duration::ZERO).await);
    assert!(begun >= 2, "it logs in, at the least with one question: {begun}");
    // The last caller may have got what was opened for one who gave up.
    assert!(proxy.accepted() >= before + begun, "each of the {begun} had begun");
    drop(first);
    let others = tokio::time::timeout(QUICK, scene.out(harness, setup.size)).await;
    let others = others.expect("a slot of a caller that gave up is not there any more");
    until("those that gave up are gone", || async { sessions(harness).await == setup.size }).await;
    proxy.wait_for_connections(setup.size).await;
    drop(others);
    let drained = scene.drain(harness).await;
    // The server has ended those of the callers that gave up; that this side has seen it too is not to be seen from outside.
    let size = setup.size as u64;
    assert!((size..=size + begun).contains(&drained.closed()), "{}", drained.report);
    let left = (drained.listed, drained.running, drained.row().sessions.cut);
    assert_eq!((drained.row().outcome, left), (Outcome::Drained, (0, 0, 0)), "{}", drained.report);
}
