//! A process that adopts orphans runs one environment at a time. A test binary of its own, for that reason.
#![cfg(target_os = "linux")]

mod common;

use serde_json::json;
use winddown_sim::{ErrorKind, Reason, Sim};

use common::{AMPLE, Clock, assert_process_gone, function, misbehave};

#[tokio::test]
async fn all_orphans_are_of_the_one_environment_and_no_other_is_started_beside_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Clock::new(directory.path(), "clock");
    let sim = Sim::start(misbehave("leave-clock").arg(clock.file()).adopt_orphans()).await.expect("init");
    for beside in [function("sim_echo"), function("sim_echo").adopt_orphans()] {
        let error = Sim::launch(beside).await.expect_err("its processes would be taken for orphans");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    sim.freeze().await.expect("a live environment");
    clock.assert_stands();
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    clock.assert_goes();

    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!(record.shutdown.strays, 1, "{record}");
    assert_process_gone(clock.pid());
    drop(sim);
    let begun = std::time::Instant::now();
    // what has shut it down ends a moment later
    while Sim::launch(function("sim_echo")).await.is_err() {
        assert!(begun.elapsed() < AMPLE, "no environment is started any more");
        tokio::task::yield_now().await;
    }
}
