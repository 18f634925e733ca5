//! Invocations, freeze and thaw.

mod common;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use winddown_sim::{ErrorKind, Reason, Sim};

use common::{LATE_MS, assert_group_gone, at_ms, events, example, function, misbehave};

#[tokio::test]
async fn a_lambda_runtime_function_answers_with_its_event() {
    let sim = Sim::start(function("sim_echo")).await.expect("init");
    let first = sim.invoke(json!({"name": "Ada"})).await.expect("a live environment");
    let second = sim.invoke(json!([1, 2])).await.expect("a live environment");
    assert!(first.ok && second.ok);
    assert_eq!(first.payload, json!({"name": "Ada"}));
    assert_eq!(second.payload, json!([1, 2]));
    assert_ne!(first.request_id, second.request_id);
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!(record.invocations.len(), 2);
    assert_eq!(record.invocations[0].request_id, first.request_id);
    assert!(events(&record).contains(&"response 2 ok"), "{record}");
}

#[tokio::test]
async fn a_failing_handler_fails_its_invocation_and_nothing_else() {
    let sim = Sim::start(function("sim_graceful")).await.expect("init");
    let failed = sim.invoke(json!({"fail": "no such table"})).await.expect("a live environment");
    assert!(!failed.ok);
    assert_eq!(failed.error.expect("an error").message, "no such table");
    assert_eq!(failed.payload["errorMessage"], "no such table");
    let next = sim.invoke(json!({})).await.expect("the environment lives on");
    assert!(next.ok);
    assert!(sim.shutdown(Reason::Spindown).await.ended_by_itself());
}

#[tokio::test]
async fn a_timeout_fails_the_invocation_and_resets_the_environment() {
    let sim = Sim::start(function("sim_graceful").timeout(Duration::from_millis(200))).await.expect("init");
    let late = sim.invoke(json!({"sleep_ms": 50_000})).await.expect("a live environment");
    assert!(!late.ok);
    assert!((200.0..200.0 + LATE_MS).contains(&late.ms), "{} ms", late.ms);
    let error = late.error.expect("an error");
    assert_eq!(error.error_type, "Sandbox.Timedout");
    assert!(error.message.ends_with("Task timed out after 0.20 seconds"), "{}", error.message);
    assert!(sim.has_ended());
    assert_eq!(sim.invoke(json!({})).await.expect_err("it was reset").kind(), ErrorKind::Ended);
    // the reason is the timeout's, whatever is asked for now
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!(record.shutdown.reason, Reason::Timeout);
    assert!(record.shutdown.sigterm_sent, "Lambda's reset is a shutdown");
}

#[tokio::test]
async fn a_crash_fails_the_invocation_and_tells_the_external_extension() {
    let external = example("sim_external_extension");
    let sim = Sim::start(function("sim_graceful").external_extension(external, [] as [&str; 0])).await.expect("init");
    let crashed = sim.invoke(json!({"exit": 4})).await.expect("a live environment");
    assert!(!crashed.ok);
    assert_eq!(crashed.payload, Value::Null);
    assert_eq!(crashed.error.expect("an error").error_type, "Runtime.ExitError");
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!(record.shutdown.reason, Reason::Failure);
    assert!(!record.shutdown.sigterm_sent, "there was nobody to signal");
    assert_eq!(record.function.exit_code, Some(4));
    assert!(!record.ended_by_itself());
    let lines: Vec<_> = record.output.iter().map(|line| line.line.to_lowercase()).collect();
    assert!(lines.iter().any(|line| line.starts_with("shutdown failure")), "{lines:?}");
}

#[tokio::test]
async fn a_crash_of_an_extension_resets_the_environment() {
    let external = example("sim_external_extension");
    let sim = Sim::start(function("sim_graceful").external_extension(external, ["crash"])).await.expect("init");
    let crashed = sim.invoke(json!({"sleep_ms": 50_000})).await.expect("a live environment");
    let error = crashed.error.expect("an error");
    assert_eq!(error.error_type, "Extension.Crash");
    assert!(error.message.ends_with("extension sim_external_extension exited with 5"), "{}", error.message);
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!(record.shutdown.reason, Reason::Failure);
    assert!(record.shutdown.sigterm_sent, "the function is shut down: {record}");
}

#[tokio::test]
async fn an_extension_that_reports_its_exit_is_told_apart_from_a_crash() {
    let external = example("sim_misbehave");
    let sim =
        Sim::start(function("sim_graceful").external_extension(external, ["extension-exit"])).await.expect("init");
    let failed = sim.invoke(json!({"sleep_ms": 50_000})).await.expect("a live environment");
    let error = failed.error.expect("an error");
    assert_eq!(error.error_type, "Extension.ExitError");
    assert!(error.message.contains("exited with 6 after it had reported Agent.NoDisk"), "{}", error.message);
    let record = sim.shutdown(Reason::Spindown).await;
    let lines: Vec<_> =
        record.output.into_iter().map(|line| line.line).filter(|line| line.starts_with("exit")).collect();
    assert!(lines[0].starts_with("exit error: 403 ") && lines[0].contains("Extension.MissingHeader"), "{lines:?}");
    assert!(lines[1].starts_with("exit error: 202 "), "{lines:?}");
}

#[tokio::test]
async fn an_extension_that_asked_for_invoke_is_handed_every_invocation() {
    let external = example("sim_external_extension");
    let sim = Sim::start(function("sim_echo").external_extension(external, [] as [&str; 0])).await.expect("init");
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(sim.invoke(json!(n)).await.expect("a live environment").request_id);
    }
    let record = sim.shutdown(Reason::Spindown).await;
    let told: Vec<_> = record.output.iter().filter_map(|line| line.line.strip_prefix("INVOKE ")).collect();
    assert_eq!(told, ids);
    assert_eq!(record.extensions[0].delivered, 4, "three invocations and the shutdown");
}

#[tokio::test]
async fn an_invocation_is_over_when_the_extensions_are_done_with_it_too() {
    let external = example("sim_external_extension");
    let sim = Sim::start(function("sim_echo").external_extension(external, ["slow"])).await.expect("init");
    let begun = Instant::now();
    let invocation = sim.invoke(json!({})).await.expect("a live environment");
    let over = begun.elapsed();
    assert!(invocation.ms < 5_000.0, "the function's answer does not wait: {} ms", invocation.ms);
    assert!(over >= Duration::from_secs(6), "over after {over:?}");
    // the line was printed before the extension asked for its next event
    assert!(sim.wait_for_line(|line| line.line == format!("INVOKE {}", invocation.request_id)).await.is_some());
    sim.freeze().await.expect("a live environment");
}

#[tokio::test]
async fn an_extension_that_takes_longer_than_the_timeout_resets_the_environment() {
    let external = example("sim_external_extension");
    let config = function("sim_echo").external_extension(external, ["slow"]).timeout(Duration::from_secs(5));
    let sim = Sim::start(config).await.expect("init");
    let invocation = sim.invoke(json!({})).await.expect("a live environment");
    assert!(invocation.ok, "it was answered in time");
    assert!(sim.has_ended());
    assert_eq!(sim.shutdown(Reason::Spindown).await.shutdown.reason, Reason::Timeout);
}

#[tokio::test]
async fn freezing_stops_the_process_and_thawing_lets_it_go_on() {
    let sim = Sim::start(misbehave("tick")).await.expect("init");
    sim.wait_for_line(|line| line.line == "tick").await.expect("it ticks");
    sim.freeze().await.expect("a live environment");
    // what was in the pipe when it stopped is read meanwhile
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = sim.output().len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(sim.output().len(), before, "a frozen process prints nothing");
    sim.thaw();
    let thawed_at = sim.timeline().last().expect("the thaw").at_ms;
    let tick = sim.wait_for_line(|line| line.at_ms > thawed_at).await.expect("it ticks again");
    assert_eq!(tick.line, "tick");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    assert_group_gone(sim.shutdown(Reason::Spindown).await.function.pid.expect("a started function"));
}

#[tokio::test]
async fn an_invocation_thaws_a_frozen_environment() {
    let sim = Sim::start(function("sim_graceful")).await.expect("init");
    sim.freeze().await.expect("a live environment");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    let record = sim.shutdown(Reason::Spindown).await;
    assert!(at_ms(&record, "freeze") < at_ms(&record, "thaw"), "{record}");
}

#[tokio::test]
async fn a_frozen_environment_is_thawed_before_sigterm() {
    let sim = Sim::start(function("sim_graceful")).await.expect("init");
    sim.freeze().await.expect("a live environment");
    let record = sim.shutdown(Reason::Spindown).await;
    assert!(at_ms(&record, "thaw") <= at_ms(&record, "SIGTERM"), "{record}");
    assert!(record.ended_by_itself(), "{record}");
}

#[tokio::test]
async fn a_frozen_environment_can_be_dropped() {
    let sim = Sim::start(misbehave("tick")).await.expect("init");
    sim.freeze().await.expect("a live environment");
    let pid = sim.function_pid().expect("a started function");
    drop(sim);
    assert_group_gone(pid);
}

#[tokio::test]
async fn a_dropped_invocation_does_not_disturb_the_next() {
    let sim = Sim::start(function("sim_graceful")).await.expect("init");
    let given_up = tokio::time::timeout(Duration::from_millis(50), sim.invoke(json!({"sleep_ms": 3_000}))).await;
    assert!(given_up.is_err(), "it takes longer");
    let next = sim.invoke(json!({"n": 2})).await.expect("a live environment");
    assert_eq!(next.payload, json!({"n": 2}));
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!(record.invocations.len(), 1);
    assert!(record.ended_by_itself(), "{record}");
}

#[tokio::test]
async fn concurrent_callers_are_served_one_after_the_other() {
    let sim = Sim::start(function("sim_graceful")).await.expect("init");
    let (a, b) = tokio::join!(sim.invoke(json!({"sleep_ms": 50, "n": 1})), sim.invoke(json!({"sleep_ms": 50, "n": 2})));
    assert_eq!(a.expect("a live environment").payload["n"], 1);
    assert_eq!(b.expect("a live environment").payload["n"], 2);
    let record = sim.shutdown(Reason::Spindown).await;
    let order: Vec<_> = events(&record)
        .into_iter()
        .filter_map(|event| event.split_once(' '))
        .filter(|(word, _)| *word == "invoke" || *word == "response")
        .map(|(word, _)| word)
        .collect();
    assert_eq!(order, ["invoke", "response", "invoke", "response"]);
}
