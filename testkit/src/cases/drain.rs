//! The drain of a server that answers: what is idle, what is out, what runs.

use std::{sync::Arc, time::Duration};

use winddown_core::{Outcome, Resource as _};

use super::scene::{
    BUDGET, ENDLESS, Scene, abandon_statement, assert_no_complaints, ok, sessions, until, while_running,
};
use crate::{Harness, Need, Setup};

/// S6, L3: none was ever checked out, or one, or all; all are idle. They are gone at the moment drain returns, and nothing
/// was waited for.
pub async fn s6_l3_idle_sessions_are_gone_when_drain_returns<H: Harness>(harness: &H) {
    for used in [0, 1, Setup::default().size] {
        let scene = Scene::new(harness);
        ok(scene.lifecycle.init().await);
        drop(scene.out(harness, used).await);
        let listed = sessions(harness).await;
        let opens = !H::LACKS.iter().any(|(need, _)| *need == Need::Init);
        assert!(listed >= usize::from(opens), "init opens the first");
        let drained = scene.drain(harness).await;
        drained.assert_clean(listed);
        assert!(drained.row().stragglers.is_empty() && drained.row().sessions.cancelled == 0, "{}", drained.report);
    }
    assert_no_complaints(harness).await;
}

/// S6: some or all are out when draining begins, and come back.
pub async fn s6_sessions_that_are_out_are_gone_when_drain_returns<H: Harness>(harness: &H) {
    let size = Setup::default().size;
    for held in [1, size / 2, size] {
        let scene = Scene::new(harness);
        let mut out = scene.out(harness, size).await;
        out.truncate(held);
        let listed = sessions(harness).await;
        let (drained, ()) = tokio::join!(scene.drain(harness), async {
            scene.director.goodbye().reached_by(1).await;
            for mut checkout in out {
                // Of use to its holder all the same.
                ok(harness.ping(&mut checkout).await);
            }
        });
        drained.assert_clean(listed);
        assert!(drained.row().stragglers.is_empty(), "{}", drained.report);
    }
    assert_no_complaints(harness).await;
}

/// Step 2 of the protocol: the idle say goodbye at once, and each that comes back when it does.
pub async fn idle_sessions_do_not_wait_for_those_that_are_out<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    let mut out = scene.out(harness, 3).await;
    out.truncate(2);
    let listed = sessions(harness).await;
    assert_eq!(listed, 3);
    let (drained, ()) = tokio::join!(scene.drain(harness), async {
        while let Some(mut checkout) = out.pop() {
            let left = out.len() + 1;
            until("only what is out is listed", || async { sessions(harness).await == left }).await;
            ok(harness.ping(&mut checkout).await);
        }
    });
    drained.assert_clean(listed);
    assert_no_complaints(harness).await;
}

/// A checkout that never comes back costs its own session, and the report says where it was made.
pub async fn a_checkout_held_past_settling_is_ended_and_its_site_named<H: Harness>(harness: &H) {
    let scene = Scene::patient(harness);
    let mut out = scene.out(harness, 2).await;
    out.truncate(1);
    let listed = sessions(harness).await;
    let drained = scene.drain(harness).await;
    drained.assert_in_time();
    let (report, row) = (&drained.report, drained.row());
    assert_eq!((row.outcome, row.left_out), (Outcome::Incomplete, 1), "{report}");
    assert_eq!((drained.closed() + row.sessions.cut, row.sessions.cancelled), (listed as u64, 0), "{report}");
    // An adapter that can says goodbye over the holder's head; but only what it calls cut may be listed.
    assert!(row.sessions.cut <= 1 && drained.listed <= row.sessions.cut as usize, "{} are: {report}", drained.listed);
    let sites: Vec<_> = row.stragglers.iter().map(|straggler| (straggler.site.as_str(), straggler.count)).collect();
    assert!(matches!(sites[..], [(site, 1)] if site.contains("scene.rs")), "{report}");
    drop(out);
    until("the last session ends with its checkout", || async { sessions(harness).await == 0 }).await;
}

/// Whoever works when draining begins is waited for, and is not disturbed.
pub async fn a_statement_that_ends_in_time_is_let_end<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    let held = scene.out(harness, 1).await.remove(0);
    let listed = sessions(harness).await;
    // A moment beside the budget, and long enough for the drain to begin meanwhile.
    let takes = Duration::from_secs(2);
    let (result, drained) = while_running(harness, held, takes, scene.drain(harness)).await;
    assert_eq!(result, Some(Ok(())), "{}", drained.report);
    drained.assert_clean(listed);
    // Where every core is busy, the drain may ask for it after it has ended and before anybody here was told: that stops nothing.
    assert!(drained.row().sessions.cancelled <= 1, "{}", drained.report);
    assert_eq!(ok(harness.rows().await), 1, "the server has what it was told to write");
    assert_no_complaints(harness).await;
}

/// Step 4 of the protocol: nothing runs on at the server after we are gone.
pub async fn a_straggler_s_statement_is_stopped_on_the_server<H: Harness>(harness: &H) {
    let scene = Scene::patient(harness);
    let can = scene.db.resource().capabilities();
    let mut out = scene.out(harness, 2).await;
    let held = out.remove(0);
    drop(out);
    let listed = sessions(harness).await;
    let (result, drained) = while_running(harness, held, ENDLESS, scene.drain(harness)).await;
    drained.assert_in_time();
    let (report, row) = (&drained.report, drained.row());
    assert_eq!(row.stragglers.len(), 1, "{report}");
    if can.cancel {
        assert_eq!((drained.listed, drained.running), (0, 0), "{report}");
        assert!(matches!(result, Some(Err(_))), "its holder is told: {result:?}");
        assert_eq!((row.outcome, row.sessions.cancelled), (Outcome::Drained, 1), "{report}");
        assert_eq!((drained.closed(), row.sessions.cut), (listed as u64, 0), "{report}");
    } else {
        assert_eq!((row.outcome, row.sessions.cut), (Outcome::Incomplete, 1), "{report}");
    }
    assert_eq!(ok(harness.rows().await), 0, "it did not run to its end");
}

/// Step 4 of the protocol, where no checkout is out: its future was dropped, and its statement runs on.
pub async fn a_statement_whose_future_was_dropped_is_stopped_on_the_server<H: Harness>(harness: &H) {
    let scene = Scene::patient(harness);
    let can = scene.db.resource().capabilities();
    let checkout = scene.get().await;
    abandon_statement(harness, checkout, ENDLESS).await;
    assert_eq!((scene.db.out(), ok(harness.running().await)), (0, 1), "nobody has it, and it runs");
    let listed = sessions(harness).await;
    let drained = scene.drain(harness).await;
    drained.assert_in_time();
    let (report, row) = (&drained.report, drained.row());
    assert!(row.stragglers.is_empty() && row.left_out == 0, "{report}");
    if can.cancel {
        assert_eq!((drained.listed, drained.running), (0, 0), "{report}");
        assert_eq!((row.outcome, row.sessions.cancelled), (Outcome::Drained, 1), "{report}");
        assert_eq!((drained.closed(), row.sessions.cut), (listed as u64, 0), "{report}");
    } else {
        assert_eq!((row.outcome, row.sessions.cut), (Outcome::Incomplete, 1), "{report}");
    }
    assert_eq!(ok(harness.rows().await), 0, "it did not run to its end");
}

/// L6: nobody waits for it, so it holds up nothing, however much time there is.
pub async fn l6_a_statement_whose_future_was_dropped_is_stopped_when_draining_begins<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    let can = scene.db.resource().capabilities();
    let checkout = scene.get().await;
    abandon_statement(harness, checkout, ENDLESS).await;
    let listed = sessions(harness).await;
    let drained = scene.drain(harness).await;
    drained.assert_clean(listed);
    assert!(can.cancel, "what cannot be cancelled is no case of this");
    assert_eq!(drained.row().sessions.cancelled, 1, "{}", drained.report);
    assert_eq!(ok(harness.rows().await), 0, "it did not run to its end");
}

/// L6: a checkout that is out is waited for, and what nobody waits for is stopped meanwhile: also what comes back in the middle
/// of a statement.
pub async fn l6_it_is_stopped_while_others_are_waited_for<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    let mut out = scene.out(harness, 3).await;
    let (mut held, before, during) = (out.remove(0), out.remove(0), out.remove(0));
    abandon_statement(harness, before, ENDLESS).await;
    let listed = sessions(harness).await;
    let (drained, ()) = tokio::join!(scene.drain(harness), async {
        scene.director.goodbye().reached_by(1).await;
        until("the first is stopped", || async { ok(harness.running().await) == 0 }).await;
        abandon_statement(harness, during, ENDLESS).await;
        until("the second is stopped", || async { ok(harness.running().await) == 0 }).await;
        // Of use to its holder all the same.
        ok(harness.ping(&mut held).await);
        drop(held);
    });
    drained.assert_clean(listed);
    assert_eq!(drained.row().sessions.cancelled, 2, "{}", drained.report);
    assert_eq!(ok(harness.rows().await), 0, "neither ran to its end");
}

/// S6: one of each kind at once: idle, returned in time, a straggler, a dropped future. The report has the server's own
/// numbers.
pub async fn s6_the_numbers_of_the_report_are_the_server_s<H: Harness>(harness: &H) {
    let scene = Scene::patient(harness);
    let can = scene.db.resource().capabilities();
    let mut out = scene.out(harness, 4).await;
    let (returned, straggler, dropped) = (out.remove(0), out.remove(0), out.remove(0));
    drop(out);
    abandon_statement(harness, dropped, ENDLESS).await;
    let both_run = async {
        until("the server lists both statements", || async { ok(harness.running().await) == 2 }).await;
        let listed = sessions(harness).await;
        let (drained, ()) = tokio::join!(scene.drain(harness), async {
            scene.director.goodbye().reached_by(1).await;
            drop(returned);
        });
        (listed, drained)
    };
    let (_, (listed, drained)) = while_running(harness, straggler, ENDLESS, both_run).await;
    drained.assert_in_time();
    let (report, row) = (&drained.report, drained.row());
    assert_eq!(drained.closed() + row.sessions.cut, listed as u64, "the server listed {listed}: {report}");
    assert!(
        drained.listed as u64 <= row.sessions.cut + row.sessions.left_behind,
        "the server still lists {}: {report}",
        drained.listed
    );
    if can.cancel {
        assert_eq!((row.sessions.cancelled, drained.running), (2, 0), "{report}");
        assert_eq!((row.outcome, row.sessions.cut), (Outcome::Drained, 0), "{report}");
    }
    assert_eq!(ok(harness.rows().await), 0, "neither ran to its end");
}

/// S3: all who ask get the report of one drain.
pub async fn s3_it_is_drained_once_however_often_that_is_asked_for<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    drop(scene.out(harness, 2).await);
    let listed = sessions(harness).await;
    let (drained, second) = tokio::join!(scene.drain(harness), scene.lifecycle.drain());
    drained.assert_clean(listed);
    let third = scene.lifecycle.drain().await;
    assert!(Arc::ptr_eq(&drained.report, &second) && Arc::ptr_eq(&second, &third));
    assert_eq!(scene.director.goodbye().reached(), 1);
    assert_no_complaints(harness).await;
}

/// S3, S6: each life of the lifecycle opens sessions of its own and ends them; between two lives the server lists none.
pub async fn s3_s6_each_life_opens_its_own_sessions_and_ends_them<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    for life in 1..=3 {
        drop(scene.out(harness, 2).await);
        let listed = sessions(harness).await;
        assert!(listed >= 1, "in life {life}");
        scene.drain(harness).await.assert_clean(listed);
        assert_eq!(scene.director.goodbye().reached(), life);
        ok(scene.lifecycle.restart());
        assert_eq!(sessions(harness).await, 0, "nothing is opened before it is asked for");
        if !scene.db.resource().is_restartable() {
            assert!(scene.db.get().await.is_err_and(|error| error.is_shutting_down()));
            return;
        }
    }
    assert_no_complaints(harness).await;
}

/// S3: dropping is no drain. What was dropped ends as it would without winddown, hangs nothing, and leaves the server to
/// the next one.
pub async fn s3_dropped_without_a_drain_it_is_not_drained<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    drop(scene.out(harness, 2).await);
    let Scene { lifecycle, director, db } = scene;
    drop((db, lifecycle));
    assert_eq!(director.goodbye().reached(), 0);
    until("the server has seen that nobody is there", || async { sessions(harness).await == 0 }).await;

    let next = Scene::new(harness);
    drop(next.out(harness, 1).await);
    let listed = sessions(harness).await;
    next.drain(harness).await.assert_clean(listed);
}

/// C3: eight goodbyes to a slow server take about as long as one. By seconds that the server adds to each answer, beside
/// which those of a busy machine are few.
pub async fn c3_goodbyes_run_concurrently<H: Harness>(harness: &H) {
    let mut took = Vec::new();
    for count in [1, 8] {
        let scene = Scene::with(harness, BUDGET, &Setup { size: 8, ..Setup::default() });
        drop(scene.out(harness, count).await);
        let listed = sessions(harness).await;
        assert_eq!(listed, count);
        ok(harness.slow(Duration::from_secs(1)).await);
        let drained = scene.drain(harness).await;
        ok(harness.slow(Duration::ZERO).await);
        drained.assert_clean(listed);
        took.push(drained.row().took);
    }
    // One after the other they would take eight times as long.
    assert!(took[1] < took[0] * 3, "one takes {:?}, eight take {:?}", took[0], took[1]);
}

/// L2, S6: an application whose runtime does not run is no excuse for a report that is not true. What is called closed is
/// gone; what could not be closed is called cut; all of it by the deadline.
pub async fn s6_l2_a_frozen_application_does_not_make_the_report_untrue<H: Harness>(harness: &H) {
    let application = Application::new();
    let scene = Scene::patient(harness);
    application.run(async { drop(scene.out(harness, 3).await) });
    let listed = sessions(harness).await;
    let drained = scene.drain(harness).await;
    drained.assert_in_time();
    let (report, row) = (&drained.report, drained.row());
    assert!(
        drained.listed as u64 <= row.sessions.cut + row.sessions.left_behind,
        "the server still lists {}: {report}",
        drained.listed
    );
    assert_eq!(drained.closed() + row.sessions.cut, listed as u64, "{report}");
    application.run(async { drop(scene) });
}

/// An application with a runtime of its own, which is frozen while it is not told to run: nothing of it is polled, its
/// sockets are open.
pub(super) struct Application {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Application {
    pub(super) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self { runtime: Some(runtime.expect("a runtime can be built")) }
    }

    /// Runs until this is ready, then freezes.
    pub(super) fn run<F: Future>(&self, future: F) -> F::Output {
        let runtime = self.runtime.as_ref().expect("it is there until it is dropped");
        tokio::task::block_in_place(|| runtime.block_on(future))
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
