//! Who gets which signal, and when.

mod common;

use std::time::Duration;

use serde_json::json;
use winddown_sim::{Config, ErrorKind, EventType, ExtensionKind, Reason, Record, Sim, Stream};

use common::{
    AMPLE, LATE_MS, assert_group_gone, assert_process_gone, at_ms, events, example, function, misbehave,
    misbehave_within_lambdas_limits, within_lambdas_limits,
};

async fn shut_down(config: Config) -> Record {
    let sim = Sim::start(config).await.expect("init");
    let pid = sim.function_pid().expect("a started function");
    let record = sim.shutdown(Reason::Spindown).await;
    assert_group_gone(pid);
    record
}

/// The function was killed when so much was over, and not before.
fn assert_killed_after(record: &Record, budget_ms: u32) {
    assert!(record.shutdown.sigterm_sent && record.shutdown.overran, "{record}");
    assert_eq!(record.shutdown.budget_ms, u64::from(budget_ms));
    assert_eq!((record.function.killed, record.function.signal), (true, Some(9)), "{record}");
    let (took, budget) = (record.shutdown.took_ms, f64::from(budget_ms));
    assert!((budget..budget + LATE_MS).contains(&took), "killed after {took} ms");
    assert!(at_ms(record, "SIGTERM") < at_ms(record, "SIGKILL"), "{record}");
    assert!(!record.ended_by_itself());
}

#[tokio::test]
async fn without_an_extension_the_function_is_killed_at_once() {
    let record = shut_down(function("sim_echo")).await;
    assert!(!record.shutdown.sigterm_sent);
    assert_eq!(record.shutdown.budget_ms, 0);
    assert!(!record.shutdown.overran);
    assert_eq!(record.function.exit_code, None);
    assert_eq!(record.function.signal, Some(9));
    assert!(record.function.killed);
    let events = events(&record);
    let shutdown = events.iter().position(|event| *event == "shutdown spindown").expect("it was shut down");
    assert_eq!(events[shutdown + 1], "SIGKILL", "nothing comes between the two: {record}");
    assert!(!events.contains(&"SIGTERM"), "{record}");
    assert!(!record.ended_by_itself());
}

#[tokio::test]
async fn with_an_internal_extension_the_function_gets_sigterm_and_may_exit_by_itself() {
    let record = shut_down(function("sim_graceful")).await;
    assert!(record.shutdown.sigterm_sent);
    assert_eq!(u128::from(record.shutdown.budget_ms), AMPLE.as_millis());
    assert!(record.shutdown.took_ms > 0.0, "{record}");
    assert!(!record.shutdown.overran);
    assert_eq!(record.function.exit_code, Some(0));
    assert_eq!(record.function.signal, None);
    assert!(!record.function.killed);
    assert!(record.ended_by_itself());

    let [extension] = record.extensions.as_slice() else { panic!("one extension: {:?}", record.extensions) };
    assert_eq!(extension.name, "graceful");
    assert_eq!(extension.kind, ExtensionKind::Internal);
    assert_eq!(extension.events, []);
    assert_eq!(extension.delivered, 0, "internal extensions are not told about shutdown");
    let [goodbye] = record.output.as_slice() else { panic!("one line: {:?}", record.output) };
    assert_eq!((goodbye.line.as_str(), goodbye.stream, goodbye.from.as_str()), ("goodbye", Stream::Stdout, "function"));
    assert!(goodbye.at_ms >= at_ms(&record, "SIGTERM"), "{record}");
}

#[tokio::test]
async fn a_function_that_ignores_sigterm_is_killed_after_500_ms() {
    assert_killed_after(&shut_down(misbehave_within_lambdas_limits("ignore-sigterm")).await, 500);
}

#[tokio::test]
async fn the_budget_can_be_set() {
    assert_killed_after(&shut_down(misbehave("ignore-sigterm").budget(Duration::from_millis(120))).await, 120);
}

#[tokio::test]
async fn sigterm_without_a_handler_is_not_ending_by_itself() {
    let record = shut_down(misbehave("default-sigterm")).await;
    assert!(record.shutdown.sigterm_sent && !record.shutdown.overran);
    assert_eq!(record.function.signal, Some(15));
    assert!(!record.function.killed, "the simulator did not need SIGKILL");
    assert!(!record.ended_by_itself());
}

#[tokio::test]
async fn a_failing_exit_code_is_not_ending_by_itself() {
    let record = shut_down(misbehave("exit-code")).await;
    assert_eq!(record.function.exit_code, Some(3));
    assert!(!record.shutdown.overran);
    assert!(!record.ended_by_itself());
}

#[tokio::test]
async fn an_external_extension_leaves_the_function_300_ms_and_is_told_after_it() {
    let external = example("sim_external_extension");
    let config = misbehave_within_lambdas_limits("ignore-sigterm");
    let record = shut_down(config.external_extension(external, [] as [&str; 0])).await;
    assert_killed_after(&record, 300);
    assert!(at_ms(&record, "SHUTDOWN event sim_external_extension") >= at_ms(&record, "exit signal 9"), "{record}");

    let extension = record.extensions.iter().find(|it| it.kind == ExtensionKind::External).expect("it registered");
    assert_eq!(extension.events, [EventType::Invoke, EventType::Shutdown]);
    assert_eq!(extension.delivered, 1);
}

#[tokio::test]
async fn an_external_extension_is_told_why_and_may_exit_by_itself() {
    let external = example("sim_external_extension");
    let record = shut_down(function("sim_graceful").external_extension(external, [] as [&str; 0])).await;
    assert!(at_ms(&record, "SHUTDOWN event sim_external_extension") >= at_ms(&record, "exit 0"), "{record}");
    assert_eq!(events(&record).last(), Some(&"extension exit sim_external_extension 0"));
    let extension = record.extensions.iter().find(|it| it.kind == ExtensionKind::External).expect("it registered");
    assert_eq!(extension.exit_code, Some(0));
    let told = record.output.iter().find(|line| line.from == "sim_external_extension").expect("it prints its event");
    assert!(told.line.to_lowercase().starts_with("shutdown spindown "), "{}", told.line);
}

#[tokio::test]
async fn an_external_extension_alone_is_enough_for_sigterm() {
    let external = example("sim_external_extension");
    let record = shut_down(within_lambdas_limits("sim_echo").external_extension(external, [] as [&str; 0])).await;
    assert!(record.shutdown.sigterm_sent);
    assert_eq!(record.shutdown.budget_ms, 300);
}

#[tokio::test]
async fn an_external_extension_that_stays_is_killed_2_seconds_after_the_beginning() {
    let external = example("sim_external_extension");
    let record = shut_down(within_lambdas_limits("sim_graceful").external_extension(external, ["stay"])).await;
    assert_stayed_until(&record, 2_000.0);
}

#[tokio::test]
async fn a_longer_budget_of_the_function_is_not_taken_from_its_extensions() {
    let external = example("sim_external_extension");
    let config = function("sim_graceful").budget(Duration::from_secs(5)).external_extension(external, ["stay"]);
    let record = shut_down(config).await;
    // 4,700 ms more than Lambda gives a function beside an external extension.
    assert_stayed_until(&record, 6_700.0);
    assert!(record.ended_by_itself(), "the function did: {record}");
}

/// The extension was killed so long after the beginning, and not before.
fn assert_stayed_until(record: &Record, limit_ms: f64) {
    let waited = at_ms(record, "SIGKILL sim_external_extension") - at_ms(record, "shutdown spindown");
    assert!((limit_ms..limit_ms + LATE_MS).contains(&waited), "killed after {waited} ms");
    let extension = record.extensions.iter().find(|it| it.name == "sim_external_extension").expect("it registered");
    assert_eq!(extension.signal, Some(9));
}

#[tokio::test]
async fn an_external_extension_that_did_not_ask_for_shutdown_is_killed_without_being_told() {
    let record =
        shut_down(function("sim_graceful").external_extension(example("sim_external_extension"), ["invoke"])).await;
    let extension = record.extensions.iter().find(|it| it.name == "sim_external_extension").expect("it registered");
    assert_eq!(extension.delivered, 0);
    assert_eq!(extension.signal, Some(9));
    assert!(at_ms(&record, "SIGKILL sim_external_extension") >= at_ms(&record, "exit 0"), "{record}");
    // And at once: the others would have until the budget is over.
    assert!(at_ms(&record, "SIGKILL sim_external_extension") - at_ms(&record, "exit 0") < LATE_MS, "{record}");
}

#[tokio::test]
async fn shutdown_in_the_middle_of_an_invocation_signals_the_function_at_once() {
    let sim = Sim::start(function("sim_graceful")).await.expect("init");
    let (invocation, record) =
        tokio::join!(biased; sim.invoke(json!({"sleep_ms": 50_000})), sim.shutdown(Reason::Spindown));
    let invocation = invocation.expect("handed over before shutdown");
    assert!(!invocation.ok);
    assert_eq!(invocation.error.expect("an error").error_type, "Runtime.ExitError");
    assert!(invocation.ms < 25_000.0, "did not wait for the handler: {} ms", invocation.ms);
    assert_eq!(record.shutdown.reason, Reason::Spindown);
    assert!(record.ended_by_itself());
}

#[tokio::test]
async fn shutting_down_twice_is_one_shutdown() {
    let sim = Sim::start(function("sim_graceful")).await.expect("init");
    let (first, second) = tokio::join!(biased; sim.shutdown(Reason::Timeout), sim.shutdown(Reason::Failure));
    let third = sim.shutdown(Reason::Spindown).await;
    for record in [&first, &second, &third] {
        assert_eq!(record.shutdown.reason, Reason::Timeout);
        assert_eq!(record.timeline.len(), first.timeline.len());
        at_ms(record, "SIGTERM");
    }
    let error = sim.invoke(json!({})).await.expect_err("there is nothing to invoke");
    assert_eq!(error.kind(), ErrorKind::Ended);
}

#[tokio::test]
async fn kill_needs_no_grace() {
    let sim = Sim::start(misbehave("ignore-sigterm")).await.expect("init");
    sim.kill();
    let record = sim.shutdown(Reason::Spindown).await;
    assert!(!record.shutdown.sigterm_sent && !record.shutdown.overran);
    assert!(record.function.killed);
    assert!(record.shutdown.took_ms < LATE_MS, "{record}");
}

#[tokio::test]
async fn what_the_function_leaves_behind_in_its_group_is_killed() {
    let sim = Sim::start(misbehave("leave-child")).await.expect("init");
    let line = sim.wait_for_line(|line| line.line.starts_with("child ")).await.expect("it says so");
    let child: u32 = line.line["child ".len()..].parse().expect("a process id");
    assert!(std::path::Path::new(&format!("/proc/{child}")).exists(), "the child runs before shutdown");
    let record = sim.shutdown(Reason::Spindown).await;
    assert!(record.ended_by_itself(), "only the child ignores SIGTERM: {record}");
    assert_process_gone(child);
    assert_eq!(record.output.len(), 1, "its pipe was closed, not waited for");
}

#[tokio::test]
async fn dropping_the_simulator_leaves_nothing_running() {
    let external = example("sim_external_extension");
    let sim = Sim::start(misbehave("ignore-sigterm").external_extension(external, ["stay"])).await.expect("init");
    let pid = sim.function_pid().expect("a started function");
    let address = sim.api_address();
    drop(sim);
    assert_group_gone(pid);
    tokio::task::yield_now().await;
    let refused = tokio::net::TcpStream::connect(address).await;
    assert!(refused.is_err(), "the APIs are closed");
}

#[tokio::test]
async fn dropping_the_start_leaves_nothing_running() {
    let sim = Sim::launch(misbehave("never-next")).await.expect("it starts");
    let pid = sim.function_pid().expect("a started function");
    let waited = tokio::time::timeout(Duration::from_millis(100), sim.ready()).await;
    assert!(waited.is_err(), "init goes on");
    drop(sim);
    assert_group_gone(pid);
}
