//! Managed Instances: several invocations at once, no freeze, and their own rules of registration and shutdown.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use winddown_sim::{ErrorKind, Reason, Sim};

use common::{LATE_MS, at_ms, example, misbehave, misbehave_within_lambdas_limits};

/// Ready when so many invocations have begun, in this life of the function.
async fn begun(sim: &Sim, count: usize) {
    let seen = AtomicUsize::new(0);
    // each line is looked at once, until the one that is wanted
    let line = sim.wait_for_line(|line| line.line == "begun" && seen.fetch_add(1, Ordering::Relaxed) + 1 == count);
    line.await.expect("they begin");
}

#[tokio::test]
async fn as_many_invocations_run_at_once_as_were_asked_for() {
    let sim = Sim::start(misbehave("concurrent").managed_instances(4)).await.expect("init");
    // none of them is answered before all have begun
    let call = |n: u32| sim.invoke(json!({"together": 4, "n": n}));
    let (a, b, c, d) = tokio::join!(call(1), call(2), call(3), call(4));
    for (n, invocation) in (1..).zip([a, b, c, d]) {
        assert_eq!(invocation.expect("a live environment").payload["n"], n, "each has its own answer");
    }
    assert!(sim.shutdown(Reason::Spindown).await.ended_by_itself());
}

#[tokio::test]
async fn more_invocations_wait_for_their_turn() {
    let sim = Sim::start(misbehave("concurrent").managed_instances(2)).await.expect("init");
    let call = || sim.invoke(json!({"sleep_ms": 150}));
    let (a, b, c) = tokio::join!(call(), call(), call());
    assert!([a, b, c].into_iter().all(|it| it.expect("a live environment").ok));
    let last = sim.timeline().into_iter().filter(|it| it.event.starts_with("invoke 3 ")).map(|it| it.at_ms).next();
    let first = sim.timeline().into_iter().filter(|it| it.event.starts_with("response ")).map(|it| it.at_ms).next();
    assert!(last > first, "the third after the first answer: {:?}", sim.timeline());
}

#[tokio::test]
async fn a_freeze_is_refused_with_a_reason() {
    let sim = Sim::start(misbehave("concurrent").managed_instances(1)).await.expect("init");
    let error = sim.freeze().await.expect_err("never frozen");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("Managed Instances are never frozen"), "{error}");
}

#[tokio::test]
async fn one_poll_too_many_is_an_internal_server_error() {
    let sim = Sim::start(misbehave("poll-too-often").managed_instances(2)).await.expect("init");
    let line = sim.wait_for_line(|line| line.line.starts_with("one too many")).await.expect("it says so").line;
    assert!(line.starts_with("one too many: 500 ") && line.contains("InternalServerError"), "{line}");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok, "the others are served");
}

#[tokio::test]
async fn a_timeout_fails_one_invocation_and_its_late_answer_is_gone() {
    // the one that follows has as much time
    let config = misbehave("concurrent").managed_instances(2).timeout(Duration::from_secs(5));
    let sim = Sim::start(config).await.expect("init");
    let late = sim.invoke(json!({"sleep_ms": 6_000})).await.expect("a live environment");
    assert_eq!(late.error.expect("an error").error_type, "Sandbox.Timedout");
    assert!(!sim.has_ended(), "the environment lives on");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    let line = sim.wait_for_line(|line| line.line.starts_with("answer: 4")).await.expect("the late answer").line;
    assert!(line.starts_with("answer: 410 ") && line.contains("InvokeTimeout"), "{line}");
}

#[tokio::test]
async fn internal_extensions_get_no_event_and_external_ones_no_invoke() {
    let sim = Sim::start(misbehave("register-for-invoke").managed_instances(1)).await.expect("init");
    let record = sim.shutdown(Reason::Spindown).await;
    let [refused, keys] = record.output.as_slice() else { panic!("two lines: {:?}", record.output) };
    assert!(refused.line.starts_with("registration: 403 "), "{}", refused.line);
    assert!(refused.line.contains("No events allowed for internal extensions"), "{}", refused.line);
    assert!(keys.line.contains("InvalidRequestFormat"), "{}", keys.line);

    let external = example("sim_external_extension");
    let config = misbehave("concurrent").managed_instances(1).external_extension(external, ["invoke"]);
    let error = Sim::start(config).await.expect_err("it cannot register for INVOKE");
    assert_eq!(error.kind(), ErrorKind::InitExit, "{error}");
}

#[tokio::test]
async fn what_is_in_flight_at_sigterm_is_answered() {
    let sim = Sim::start(misbehave("concurrent").managed_instances(8)).await.expect("init");
    let call = || sim.invoke(json!({"until_sigterm": true}));
    let shutdown = async {
        begun(&sim, 3).await;
        sim.shutdown(Reason::Spindown).await
    };
    let (a, b, c, record) = tokio::join!(call(), call(), call(), shutdown);
    assert!([a, b, c].into_iter().all(|it| it.expect("handed over before shutdown").ok), "{record}");
    assert!(record.ended_by_itself(), "{record}");
}

#[tokio::test]
async fn a_function_that_ignores_sigterm_is_killed_after_600_ms() {
    let sim = Sim::start(misbehave_within_lambdas_limits("ignore-sigterm").managed_instances(1)).await.expect("init");
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!((record.shutdown.budget_ms, record.function.killed), (600, true), "{record}");
    assert!((600.0..600.0 + LATE_MS).contains(&record.shutdown.took_ms), "killed after {} ms", record.shutdown.took_ms);
}

#[tokio::test]
async fn what_is_in_flight_can_be_failed_before_sigterm() {
    let sim = Sim::start(misbehave("concurrent").managed_instances(8).abort_in_flight()).await.expect("init");
    let call = || sim.invoke(json!({"until_sigterm": true}));
    let shutdown = async {
        begun(&sim, 2).await;
        sim.shutdown(Reason::Spindown).await
    };
    let (a, b, record) = tokio::join!(call(), call(), shutdown);
    for invocation in [a, b] {
        let error = invocation.expect("handed over before shutdown").error.expect("aborted");
        assert_eq!(error.error_type, "Client.ExecutionEnvironmentShutDown");
    }
    let refused = record.output.iter().filter(|line| line.line.starts_with("answer: 400 ")).count();
    assert_eq!(refused, 2, "the answers come too late: {:?}", record.output);
}

#[tokio::test]
async fn external_extensions_are_told_no_third_reason() {
    let external = example("sim_external_extension");
    let config = misbehave("concurrent").managed_instances(1).external_extension(external, ["shutdown"]);
    let sim = Sim::start(config).await.expect("init");
    let record = sim.shutdown(Reason::Timeout).await;
    assert_eq!(record.shutdown.reason, Reason::Failure);
    assert!(at_ms(&record, "SHUTDOWN event sim_external_extension") >= at_ms(&record, "exit 0"), "{record}");
}

#[tokio::test]
async fn no_invocation_at_once_is_refused() {
    let error = Sim::start(misbehave("concurrent").managed_instances(0)).await.expect_err("nothing to run");
    assert_eq!(error.kind(), ErrorKind::Start);
}
