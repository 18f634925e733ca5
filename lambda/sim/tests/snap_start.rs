//! SnapStart: init ends with a snapshot, and a restored function begins with what it does after that.

mod common;

use std::time::Duration;

use serde_json::json;
use winddown_sim::{ErrorKind, Reason, Sim};

use common::{assert_group_gone, at_ms, events, function, misbehave};

#[tokio::test]
async fn a_snapshot_is_frozen_until_it_is_restored() {
    let sim = Sim::start(misbehave("snap").snap_start()).await.expect("init");
    sim.snapshot().await.expect("a snapshot");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!sim.output().iter().any(|line| line.line.starts_with("restored")), "{:?}", sim.output());
    sim.restore().await.expect("restored");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    let record = sim.shutdown(Reason::Spindown).await;
    assert!(record.ended_by_itself(), "{record}");
    let order = ["function ready for its snapshot", "snapshot", "thaw", "restore", "function ready", "restored"];
    assert!(order.windows(2).all(|pair| at_ms(&record, pair[0]) <= at_ms(&record, pair[1])), "{record}");
    let lines: Vec<_> = record.output.iter().map(|line| line.line.as_str()).collect();
    assert_eq!(lines[..3], ["initialised as snap-start", "early restore error: 403", "restored: 200"]);
    assert!(lines[3].starts_with("again: 403 ") && lines[3].contains("InvalidStateTransition"), "{}", lines[3]);
}

#[tokio::test]
async fn an_invocation_restores_first_and_a_restored_function_is_not_restored_again() {
    let sim = Sim::start(misbehave("snap").snap_start()).await.expect("init");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    sim.restore().await.expect("nothing to do");
    assert_eq!(sim.snapshot().await.expect_err("too late").kind(), ErrorKind::Unsupported);
    sim.freeze().await.expect("between invocations it is frozen as any other");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!(events(&record).iter().filter(|event| **event == "restored").count(), 1);
}

#[tokio::test]
async fn a_function_that_does_not_ask_has_nothing_to_restore() {
    // lambda_runtime does; an echo that asks for its first event at once does not
    let sim = Sim::start(misbehave("default-sigterm").snap_start()).await.expect("init");
    sim.snapshot().await.expect("a snapshot");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
}

#[tokio::test]
async fn lambda_runtime_is_taken_through_its_snapshot() {
    let sim = Sim::start(function("sim_echo").snap_start()).await.expect("init");
    sim.snapshot().await.expect("a snapshot");
    assert_eq!(sim.invoke(json!({"n": 1})).await.expect("a live environment").payload, json!({"n": 1}));
    at_ms(&sim.shutdown(Reason::Spindown).await, "function ready for its snapshot");
}

#[tokio::test]
async fn a_restore_error_ends_the_environment_with_its_type_and_message() {
    let sim = Sim::start(misbehave("snap-error").snap_start()).await.expect("init");
    let error = sim.restore().await.expect_err("it fails");
    assert_eq!(error.kind(), ErrorKind::Restore);
    assert!(error.to_string().contains("Pool.NotRestored: no route to the database"), "{error}");
    let record = error.record().expect("a record");
    assert_eq!(record.shutdown.reason, Reason::Failure);
    // It is ended as soon as it has said so, perhaps before it can tell what it was answered.
    let told = record.output.iter().map(|line| &line.line).find(|line| line.starts_with("restore error"));
    assert!(told.is_none_or(|line| line == "restore error: 202"), "{:?}", record.output);
    assert_eq!(sim.invoke(json!({})).await.expect_err("it has ended").kind(), ErrorKind::Ended);
}

#[tokio::test]
async fn an_exit_after_the_restoration_is_told() {
    let sim = Sim::start(misbehave("snap-exit").snap_start()).await.expect("init");
    let error = sim.invoke(json!({})).await.expect_err("it fails");
    assert_eq!(error.kind(), ErrorKind::Restore);
    assert!(error.to_string().contains("Runtime.ExitError: it exited with 4"), "{error}");
}

#[tokio::test]
async fn a_restoration_of_more_than_10_seconds_fails() {
    let sim = Sim::start(misbehave("snap-hang").snap_start()).await.expect("init");
    let begun = std::time::Instant::now();
    let error = sim.restore().await.expect_err("it hangs");
    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(error.kind(), ErrorKind::Restore);
    assert!(error.to_string().contains("Runtime.RestoreHookUserTimeout"), "{error}");
    assert_group_gone(error.record().and_then(|record| record.function.pid).expect("a started function"));
}

#[tokio::test]
async fn shutdown_reaches_a_function_in_its_snapshot() {
    let sim = Sim::start(misbehave("snap").snap_start()).await.expect("init");
    sim.snapshot().await.expect("a snapshot");
    assert!(sim.shutdown(Reason::Spindown).await.ended_by_itself());
}

#[tokio::test]
async fn without_snap_start_there_is_no_snapshot() {
    let sim = Sim::start(function("sim_echo")).await.expect("init");
    assert_eq!(sim.snapshot().await.expect_err("none").kind(), ErrorKind::Unsupported);
    assert_eq!(sim.restore().await.expect_err("none").kind(), ErrorKind::Unsupported);
    let status = misbehave("snap");
    let sim = Sim::start(status).await.expect("its init ends without a snapshot");
    let line = sim.wait_for_line(|line| line.line.starts_with("restored")).await.expect("it says so").line;
    assert_eq!(line, "restored: 404", "the paths are not there");
}
