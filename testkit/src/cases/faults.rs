//! The drain of a server that does not answer, is gone, or cannot be reached. Each lasts by the deadline at most, and the
//! report claims nothing that is not so.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use winddown_core::Outcome;

use super::{
    drain::Application,
    scene::{BUDGET, ENDLESS, QUICK, SHORT, Scene, abandon_statement, ok, sessions, until, while_running},
};
use crate::{Harness, Need, Setup, Stranger};

/// Sessions are idle, and their server does not hear the goodbye.
pub async fn l1_a_server_paused_before_the_drain_is_left_by_the_deadline<H: Harness>(harness: &H) {
    let scene = Scene::unanswered(harness);
    drop(scene.out(harness, 3).await);
    let listed = sessions(harness).await;
    ok(harness.pause().await);
    let drained = scene.drain_blindly().await;
    ok(harness.resume().await);
    drained.assert_left(listed);
    until("what was cut ends when the server is back", || async { sessions(harness).await == 0 }).await;
}

/// The idle said goodbye; then the server stops, and what comes back afterwards cannot.
pub async fn l1_a_server_paused_while_settling_is_left_by_the_deadline<H: Harness>(harness: &H) {
    let scene = Scene::unanswered(harness);
    let mut out = scene.out(harness, 3).await;
    let listed = sessions(harness).await;
    let held = out.split_off(1);
    drop(out);
    let (drained, ()) = tokio::join!(scene.drain_blindly(), async {
        scene.lifecycle.draining().await;
        // Where sessions are shared, none ends before all are back.
        let shared = H::lacks(Need::Slots);
        let left = held.len();
        until("the idle one said goodbye", || async { shared || sessions(harness).await <= left }).await;
        ok(harness.pause().await);
        drop(held);
    });
    ok(harness.resume().await);
    drained.assert_in_time();
    let (report, row) = (&drained.report, drained.row());
    assert_eq!(row.outcome, Outcome::Incomplete, "{report}");
    assert_eq!(drained.closed() + row.sessions.cut, listed as u64, "{report}");
    assert!(row.sessions.cut >= 1, "nobody answered the last goodbyes: {report}");
    until("what was cut ends when the server is back", || async { sessions(harness).await == 0 }).await;
}

/// Everything is refused, and the server stops just before the first goodbye.
pub async fn l1_a_server_paused_at_the_goodbye_is_left_by_the_deadline<H: Harness>(harness: &H) {
    let scene = Scene::unanswered(harness);
    drop(scene.out(harness, 2).await);
    let listed = sessions(harness).await;
    scene.director.goodbye().hold();
    let (drained, ()) = tokio::join!(scene.drain_blindly(), async {
        scene.director.goodbye().reached_by(1).await;
        ok(harness.pause().await);
        scene.director.goodbye().release();
    });
    ok(harness.resume().await);
    drained.assert_left(listed);
    until("what was cut ends when the server is back", || async { sessions(harness).await == 0 }).await;
}

/// Neither the cancelling nor the goodbye is heard.
pub async fn l1_a_statement_on_a_paused_server_is_left_by_the_deadline<H: Harness>(harness: &H) {
    let scene = Scene::unanswered(harness);
    let held = scene.out(harness, 1).await.remove(0);
    let listed = sessions(harness).await;
    let (_, drained) = while_running(harness, held, Duration::from_secs(6), async {
        ok(harness.pause().await);
        scene.drain_blindly().await
    })
    .await;
    ok(harness.resume().await);
    drained.assert_left(listed);
    until("what was cut ends when the server is back", || async { sessions(harness).await == 0 }).await;
}

/// Nobody is there to say goodbye to: the drain does not wait for the deadline to see that.
pub async fn a_server_that_was_killed_is_not_waited_for<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    drop(scene.out(harness, 3).await);
    ok(harness.kill().await);
    let drained = scene.drain_blindly().await;
    assert_gone(&drained);
    ok(harness.start_again().await);
    until("nothing is left of it", || async { sessions(harness).await == 0 }).await;
}

/// The same with a checkout whose holder is told by the driver.
pub async fn a_server_killed_under_a_statement_is_not_waited_for<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    let held = scene.out(harness, 2).await.remove(0);
    let (result, drained) = while_running(harness, held, ENDLESS, async {
        let (drained, ()) = tokio::join!(scene.drain_blindly(), async {
            scene.lifecycle.draining().await;
            ok(harness.kill().await);
        });
        drained
    })
    .await;
    assert!(matches!(result, Some(Err(_))), "its holder is told: {result:?}");
    assert_gone(&drained);
    ok(harness.start_again().await);
}

fn assert_gone(drained: &super::scene::Drained) {
    let (report, row) = (&drained.report, drained.row());
    assert!(drained.elapsed < QUICK, "it waited for a server that is not there: {:?}: {report}", drained.elapsed);
    assert!(!matches!(row.outcome, Outcome::Hung | Outcome::Panicked), "{report}");
    assert_eq!(row.left_out, 0, "{report}");
}

/// A server that comes back is used as if nothing had been, and drained as well.
pub async fn a_server_that_was_started_again_is_used_and_drained<H: Harness>(harness: &H) {
    let scene = Scene::with(harness, BUDGET, &Setup { check_after_idle: Some(Duration::ZERO), ..Setup::default() });
    drop(scene.out(harness, 3).await);
    let strangers = restart(harness).await;
    drop(scene.out(harness, 2).await);
    let drained = scene.drain(harness).await;
    assert_eq!((drained.listed, drained.row().outcome), (0, Outcome::Drained), "{}", drained.report);
    assert_untouched(strangers).await;
}

/// Enough to have every number that a session of ours had before.
pub(crate) const STRANGERS: usize = 12;

/// Kills the server and starts it again. Its numbers begin anew, and others come first.
async fn restart<H: Harness>(harness: &H) -> Vec<Stranger> {
    ok(harness.kill().await);
    ok(harness.start_again().await);
    let mut strangers = Vec::new();
    let count = if H::lacks(Need::Strangers) { 0 } else { STRANGERS };
    for _ in 0..count {
        strangers.push(ok(harness.stranger().await));
    }
    strangers
}

async fn assert_untouched(strangers: Vec<Stranger>) {
    for stranger in strangers {
        if let Err(error) = stranger.untouched().await {
            panic!("somebody else was disturbed: {error}");
        }
    }
}

/// A frozen process whose server was restarted, which it has not seen: its sessions have numbers that are others' by now.
pub(crate) struct FrozenClient<H: Harness> {
    application: Application,
    scene: Scene<H>,
}

impl<H: Harness> FrozenClient<H> {
    /// Opens sessions, and restarts the server.
    pub(crate) async fn new(harness: &H) -> Self {
        let application = Application::new();
        let scene = Scene::patient(harness);
        application.run(async { drop(scene.out(harness, 4).await) });
        ok(harness.kill().await);
        ok(harness.start_again().await);
        Self { application, scene }
    }

    /// It wakes up to be drained.
    pub(crate) async fn drain(self) {
        let Self { application, scene } = self;
        // What the case has left may be listed for a while.
        assert_cancels_nothing(&scene.drain_blindly().await);
        application.run(async { drop(scene) });
    }
}

/// A frozen process has not seen that its server was restarted: it wakes up with sessions, and a statement that nobody waits for,
/// which others have the numbers of by now.
pub async fn s7_strangers_with_our_numbers_after_a_restart_are_left_alone<H: Harness>(harness: &H) {
    let application = Application::new();
    let scene = Scene::patient(harness);
    application.run(async {
        let mut out = scene.out(harness, 4).await;
        abandon_statement(harness, out.remove(0), ENDLESS).await;
    });
    let strangers = restart(harness).await;
    let drained = scene.drain(harness).await;
    assert_cancels_nothing(&drained);
    assert_untouched(strangers).await;
    application.run(async { drop(scene) });
}

/// The same with a statement that somebody waits for, in a process that sees it.
pub async fn s7_strangers_are_left_alone_though_our_statement_was_on_a_server_that_restarted<H: Harness>(harness: &H) {
    let scene = Scene::patient(harness);
    let mut out = scene.out(harness, 4).await;
    let (_, (drained, strangers)) = while_running(harness, out.remove(0), ENDLESS, async {
        let strangers = restart(harness).await;
        (scene.drain(harness).await, strangers)
    })
    .await;
    assert_cancels_nothing(&drained);
    assert_untouched(strangers).await;
    drop(out);
}

/// There is nothing of ours on the server that could be. What a pooler that was killed had passed on may run behind it.
#[track_caller]
fn assert_cancels_nothing(drained: &super::scene::Drained) {
    drained.assert_in_time();
    let report = &drained.report;
    assert_eq!((drained.row().sessions.cancelled, drained.listed), (0, 0), "{report}");
}

/// Nothing comes back, not even the end of a connection.
pub async fn l1_a_server_behind_a_cut_network_is_left_by_the_deadline<H: Harness>(harness: &H) {
    let scene = Scene::unanswered(harness);
    drop(scene.out(harness, 3).await);
    let listed = sessions(harness).await;
    ok(harness.partition().await);
    let drained = scene.drain_blindly().await;
    ok(harness.heal().await);
    drained.assert_left(listed);
}

/// The same with a statement that cannot be cancelled.
pub async fn l1_a_statement_behind_a_cut_network_is_left_by_the_deadline<H: Harness>(harness: &H) {
    let scene = Scene::unanswered(harness);
    let held = scene.out(harness, 1).await.remove(0);
    let listed = sessions(harness).await;
    let (_, drained) = while_running(harness, held, SHORT * 2, async {
        ok(harness.partition().await);
        scene.drain_blindly().await
    })
    .await;
    ok(harness.heal().await);
    drained.assert_left(listed);
}

/// An idle timeout of the server is nothing that a caller sees.
pub async fn sessions_the_server_closed_are_replaced_on_the_next_use<H: Harness>(harness: &H) {
    let setup = Setup { check_after_idle: Some(Duration::ZERO), ..Setup::default() };
    let scene = Scene::with(harness, BUDGET, &setup);
    drop(scene.out(harness, setup.size).await);
    ok(harness.close_idle().await);
    drop(scene.out(harness, setup.size).await);
    let listed = sessions(harness).await;
    scene.drain(harness).await.assert_clean(listed);
}

/// A frozen process sees nothing of it: its sockets have the server's end in them, and nobody has read it when the first
/// caller comes.
pub async fn after_a_thaw_the_first_use_gets_a_session_that_works<H: Harness>(harness: &H) {
    let application = Application::new();
    let setup = Setup { check_after_idle: Some(Duration::ZERO), ..Setup::default() };
    let scene = Scene::with(harness, BUDGET, &setup);
    application.run(async { drop(scene.out(harness, 3).await) });
    ok(harness.close_idle().await);
    // The very first thing that runs is the caller.
    application.run(async { drop(scene.out(harness, 3).await) });
    let listed = sessions(harness).await;
    // Thawed, and it goes on running: on Lambda the drain comes after a thaw.
    let drained = application.run(scene.drain(harness));
    drained.assert_clean(listed);
    application.run(async { drop(scene) });
}

/// The same with a check only after a rest, one session and twenty, and what was given back at once or a moment before.
pub async fn sessions_that_were_ended_while_the_process_stood_still_are_replaced<H: Harness>(harness: &H) {
    const AFTER: Duration = Duration::from_millis(100);
    for (idle, has_settled) in [(1, true), (20, false)] {
        let application = Application::new();
        let setup = Setup { size: idle, check_after_idle: Some(AFTER), ..Setup::default() };
        let scene = Scene::with(harness, BUDGET, &setup);
        application.run(async {
            drop(scene.out(harness, idle).await);
            if has_settled {
                sleep(AFTER).await;
            }
        });
        let rests = Instant::now();
        let listed = sessions(harness).await;
        assert!(listed >= 1 && (listed == idle || H::lacks(Need::Slots)), "{listed} sessions");
        ok(harness.close_idle().await);
        sleep(AFTER.saturating_sub(rests.elapsed())).await;
        // The first thing that runs, and then as many at once as there were.
        application.run(async {
            drop(scene.out(harness, 1).await);
            drop(scene.out(harness, idle).await);
        });
        let listed = sessions(harness).await;
        assert!(listed >= 1 && (listed == idle || H::lacks(Need::Slots)), "{listed} were replaced");
        // And frozen again, where the drain needs nothing of it.
        let drain = scene.drain(harness);
        let drained = if H::lacks(Need::DrivesItself) { application.run(drain) } else { drain.await };
        drained.assert_clean(listed);
        application.run(async { drop(scene) });
    }
}

/// They are gone already, and the report claims no more than that.
pub async fn sessions_the_server_closed_are_no_failure_of_the_drain<H: Harness>(harness: &H) {
    let scene = Scene::new(harness);
    drop(scene.out(harness, 3).await);
    // Those that are being reset are not idle yet.
    until("the server has ended every session", || async {
        ok(harness.close_idle().await);
        sessions(harness).await == 0
    })
    .await;
    let drained = scene.drain(harness).await;
    let report = &drained.report;
    assert_eq!((drained.row().outcome, drained.row().sessions.cut), (Outcome::Drained, 0), "{report}");
    assert!(drained.elapsed < QUICK, "{:?}: {report}", drained.elapsed);
}
