//! S1: initialised once, whoever asks, fails, or gives up.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

use tokio::task::JoinSet;
use winddown_core::{Error, ErrorKind, Outcome};

use super::scene::{QUICK, SHORT, Scene, assert_no_complaints, ok, sessions, until};
use crate::{Harness, Setup};

/// S1: one initialisation for a hundred callers, who all get a checkout that works.
pub async fn s1_a_hundred_concurrent_first_uses_initialise_once<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    scene.director.init().hold();
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let db = scene.db.clone();
        callers.spawn(async move { db.get().await.map(drop) });
    }
    scene.director.init().reached_by(1).await;
    scene.director.init().release();
    while let Some(caller) = callers.join_next().await {
        caller.expect("it does not panic").unwrap_or_else(|error| panic!("a caller failed: {error}"));
    }
    assert_eq!(scene.director.init().reached(), 1);
    drop(scene.out(harness, 1).await);
    let listed = sessions(harness).await;
    assert!((1..=Setup::default().size).contains(&listed), "{listed} sessions");
    scene.drain(harness).await.assert_clean(listed);
}

/// S1: a failure reaches all who waited for it, nobody else tries, and the next caller may.
pub async fn s1_a_failed_init_reaches_all_who_waited_and_can_be_tried_again<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    scene.director.init().hold();
    scene.director.fail_inits([Error::new(ErrorKind::Init, "the disk is full")]);
    let mut waiting: Vec<_> = (0..10).map(|_| Box::pin(scene.db.get())).collect();
    for waiter in &mut waiting {
        assert!(is_pending(waiter.as_mut()).await, "nothing is initialised yet");
    }
    scene.director.init().release();
    for waiter in waiting {
        let error = waiter.await.expect_err("the initialisation failed");
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Init, "db: the disk is full"));
    }
    assert_eq!(scene.director.init().reached(), 1, "nobody tried again by themselves");
    drop(scene.out(harness, 1).await);
    assert_eq!(scene.director.init().reached(), 2);
    let listed = sessions(harness).await;
    scene.drain(harness).await.assert_clean(listed);
}

/// S1: a caller that gives up neither ends the initialisation of the others nor has it done twice.
pub async fn s1_a_cancelled_caller_neither_cancels_nor_repeats_an_init<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    scene.director.init().hold();
    let mut first = Box::pin(scene.db.get());
    let mut second = Box::pin(scene.db.get());
    assert!(is_pending(first.as_mut()).await && is_pending(second.as_mut()).await);
    scene.director.init().reached_by(1).await;
    drop(first);
    scene.director.init().release();
    let mut checkout = second.await.unwrap_or_else(|error| panic!("the other one was cancelled: {error}"));
    ok(harness.ping(&mut checkout).await);
    drop(checkout);
    assert_eq!(scene.director.init().reached(), 1);
    let listed = sessions(harness).await;
    scene.drain(harness).await.assert_clean(listed);
}

/// An error that is marked as passing is tried again without the caller's doing.
pub async fn an_init_that_fails_for_now_is_tried_again<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    let passing = || Error::new(ErrorKind::Init, "the server starts up").retryable();
    scene.director.fail_inits([passing(), passing()]);
    drop(scene.out(harness, 1).await);
    assert_eq!(scene.director.init().reached(), 3);
    let listed = sessions(harness).await;
    scene.drain(harness).await.assert_clean(listed);
}

/// What will not get better by waiting is asked for once, and said in a way that helps.
pub async fn a_wrong_password_is_an_error_at_once<H: Harness>(harness: &H) {
    let setup = Setup { wrong_password: true, ..Setup::default() };
    let scene = Scene::with(harness, super::scene::BUDGET, &setup);
    let error = scene.db.get().await.expect_err("the password is wrong");
    assert!(matches!(error.kind(), ErrorKind::Config | ErrorKind::Init), "{:?}: {error}", error.kind());
    assert!(!error.is_retryable(), "waiting does not help: {error}");
    assert_eq!(scene.director.init().reached(), 1, "waiting does not help: {error}");
    assert!(std::error::Error::source(&error).is_some(), "the driver's error is its source: {error}");
    assert!(!error.to_string().contains('\n'), "one line: {error}");
    let drained = scene.drain(harness).await;
    assert_eq!(drained.row().outcome, Outcome::NotInitialised, "{}", drained.report);
    assert_eq!(drained.listed, 0);
}

/// "Too many connections" passes.
pub async fn a_full_server_is_asked_again_until_it_has_room<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    ok(harness.full(true).await);
    let (checkout, ()) = tokio::join!(scene.get(), async {
        // The second attempt says that the first one failed, and that it was worth another.
        scene.director.init().reached_by(2).await;
        ok(harness.full(false).await);
    });
    drop(checkout);
    let listed = sessions(harness).await;
    scene.drain(harness).await.assert_clean(listed);
}

/// S3: nothing is opened before first use, and what was not opened is not drained.
pub async fn s3_one_that_was_never_used_opens_nothing_and_is_not_drained<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    assert_eq!(sessions(harness).await, 0);
    let drained = scene.drain(harness).await;
    assert_eq!(drained.row().outcome, Outcome::NotInitialised, "{}", drained.report);
    assert_eq!((scene.director.init().reached(), scene.director.goodbye().reached()), (0, 0));
    assert_eq!(drained.listed, 0);
}

/// S3: an initialisation that succeeds after draining began is drained, whoever wanted it.
pub async fn s3_an_init_under_way_when_draining_begins_is_drained_too<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    scene.director.init().hold();
    let mut caller = Box::pin(scene.db.get());
    assert!(is_pending(caller.as_mut()).await);
    scene.director.init().reached_by(1).await;
    let (drained, refused) = tokio::join!(scene.drain(harness), async {
        let refused = caller.await;
        scene.director.init().release();
        refused
    });
    assert!(refused.expect_err("draining has begun").is_shutting_down());
    // The second that core gives it is plenty, but nobody promises it on a machine that is busy.
    let row = drained.row();
    assert!(matches!(row.outcome, Outcome::Drained | Outcome::NotInitialised), "{}", drained.report);
    if row.outcome == Outcome::NotInitialised {
        until("what was being opened is gone", || async { sessions(harness).await == 0 }).await;
    } else {
        assert_eq!(drained.listed, 0, "{}", drained.report);
    }
    assert_eq!(row.sessions.cut, 0, "{}", drained.report);
    assert_eq!(scene.director.goodbye().reached(), usize::from(row.outcome == Outcome::Drained));
    assert_no_complaints(harness).await;
}

/// L1: a server that does not answer an initialisation does not hold up the drain, and has no session of it afterwards.
pub async fn an_init_that_hangs_is_given_up_and_leaves_no_session<H: Harness>(harness: &H) {
    let scene = Scene::patient(harness);
    ok(harness.pause().await);
    let mut caller = Box::pin(scene.db.get());
    // A backend may open without a round trip.
    let hangs = is_pending(caller.as_mut()).await;
    scene.director.init().reached_by(1).await;
    let (drained, result) = tokio::join!(scene.drain_blindly(), caller);
    ok(harness.resume().await);
    if hangs {
        assert!(result.is_err_and(|error| error.is_shutting_down()));
    }
    assert!(drained.elapsed < SHORT.min(QUICK), "{:?}: {}", drained.elapsed, drained.report);
    until("the server has seen that nobody is there", || async { sessions(harness).await == 0 }).await;
}

/// Polls once.
pub(super) async fn is_pending<F: Future>(mut future: Pin<&mut F>) -> bool {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
}
