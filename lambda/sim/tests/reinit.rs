//! What Lambda does after a reset: the next invocation starts the function again.

mod common;

use std::time::Duration;

use serde_json::json;
use winddown_sim::{ErrorKind, Reason, Sim};

use common::{LATE_MS, assert_group_gone, events, example, function, misbehave};

#[tokio::test]
async fn after_a_timeout_the_next_invocation_finds_a_fresh_function() {
    let external = example("sim_external_extension");
    let config = function("sim_graceful").external_extension(external, [] as [&str; 0]);
    // the next one, with its init, has as much time
    let sim = Sim::start(config.timeout(Duration::from_secs(5)).reinit()).await.expect("init");
    let first = sim.function_pid().expect("a started function");
    let late = sim.invoke(json!({"sleep_ms": 50_000})).await.expect("a live environment");
    assert_eq!(late.error.expect("an error").error_type, "Sandbox.Timedout");
    assert!(sim.invoke(json!({})).await.expect("it is started again").ok);
    assert_ne!(sim.function_pid().expect("a started function"), first);
    assert_group_gone(first);
    sim.freeze().await.expect("a live environment");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);

    let record = sim.shutdown(Reason::Spindown).await;
    assert!(record.ended_by_itself(), "{record}");
    assert_eq!(record.invocations.iter().map(|it| it.ok).collect::<Vec<_>>(), [false, true, true]);
    let [reset] = record.resets.as_slice() else { panic!("one reset: {:?}", record.resets) };
    assert_eq!((reset.shutdown.reason, reset.function.pid), (Reason::Timeout, Some(first)));
    assert_eq!(record.extensions.len(), 2, "those of the last life");
    let told: Vec<_> = record.output.iter().filter(|line| line.line.starts_with("SHUTDOWN ")).collect();
    assert_eq!(told.len(), 2, "each life's extension was told: {:?}", record.output);
}

#[tokio::test]
async fn a_crash_is_followed_by_a_fresh_function() {
    let sim = Sim::start(function("sim_graceful").reinit()).await.expect("init");
    for _ in 0..3 {
        let crashed = sim.invoke(json!({"exit": 4})).await.expect("a live environment");
        assert_eq!(crashed.error.expect("an error").error_type, "Runtime.ExitError");
    }
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!(record.resets.len(), 3);
    assert!(record.resets.iter().all(|it| it.function.exit_code == Some(4)), "{:?}", record.resets);
    assert_eq!(events(&record).iter().filter(|event| **event == "start again").count(), 3);
}

#[tokio::test]
async fn an_init_above_its_limit_is_done_again_in_the_first_invocation() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = misbehave("slow-init").env("SEEN", directory.path().join("seen"));
    let config = config.init_timeout(Duration::from_millis(600)).reinit();
    let sim = Sim::start(config).await.expect("no error: it is tried again");
    let first = sim.invoke(json!({})).await.expect("a live environment");
    assert!(first.ok, "{:?}", first.error);
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!(record.resets.len(), 1);
    let order =
        ["init failed", "start again", "init done"].map(|event| events(&record).iter().position(|it| *it == event));
    assert!(order.is_sorted() && order[0].is_some(), "{record}");
}

#[tokio::test]
async fn the_timeout_of_an_invocation_covers_the_init_that_is_done_again() {
    let config = misbehave("never-next").init_timeout(Duration::from_millis(200));
    let sim = Sim::start(config.timeout(Duration::from_millis(300)).reinit()).await.expect("it is tried again");
    let failed = sim.invoke(json!({})).await.expect("an invocation that fails");
    assert_eq!(failed.error.expect("an error").error_type, "Sandbox.Timedout");
    assert!((300.0..300.0 + LATE_MS).contains(&failed.ms), "{} ms", failed.ms);
}

#[tokio::test]
async fn an_init_that_fails_again_fails_the_invocation() {
    let sim = Sim::start(misbehave("init-error").reinit()).await.expect("it is tried again");
    let failed = sim.invoke(json!({})).await.expect("an invocation that fails");
    assert_eq!(failed.error.expect("an error").error_type, "Config.Missing");
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!((record.resets.len(), record.invocations.len()), (1, 1));
}

#[tokio::test]
async fn after_shutdown_nothing_is_started_again() {
    let sim = Sim::start(function("sim_graceful").reinit()).await.expect("init");
    sim.invoke(json!({"exit": 4})).await.expect("a live environment");
    sim.shutdown(Reason::Spindown).await;
    assert_eq!(sim.invoke(json!({})).await.expect_err("it has ended").kind(), ErrorKind::Ended);
}

#[tokio::test]
async fn a_function_that_exits_between_invocations_is_started_again() {
    let sim = Sim::start(misbehave("exit-when-idle").reinit()).await.expect("init");
    for _ in 0..2 {
        assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
        // it prints nothing more: the end of its output is the end of it
        assert!(sim.wait_for_line(|line| line.line == "never printed").await.is_none());
        while !sim.has_ended() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!(record.resets.len(), 1, "the second was not followed by an invocation");
    assert_eq!(record.resets[0].function.exit_code, Some(8));
}
