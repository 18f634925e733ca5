//! The Telemetry API: who can subscribe to what, and what is delivered when.

mod common;

use std::net::TcpListener;

use serde_json::{Value, json};
use winddown_sim::{Config, Reason, Record, Sim};

use common::{at_ms, example, function, misbehave};

/// Adds the extension that prints what it is told, on a port of its own.
fn told(config: Config, categories: &[&str]) -> Config {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
    let args = std::iter::once(port.to_string()).chain(categories.iter().map(|it| (*it).to_owned()));
    config.external_extension(example("sim_telemetry_extension"), args)
}

/// What the extension was told, as type and record.
fn events(record: &Record) -> Vec<(String, Value)> {
    let lines = record.output.iter().filter_map(|line| line.line.strip_prefix("told "));
    let parse = |line: &str| {
        let (kind, record) = line.split_once(' ').expect("a type and a record");
        (kind.to_owned(), serde_json::from_str(record).expect("JSON"))
    };
    lines.map(parse).collect()
}

fn one(events: &[(String, Value)], kind: &str) -> Value {
    let found: Vec<_> = events.iter().filter(|(it, _)| it == kind).collect();
    assert_eq!(found.len(), 1, "one {kind} in {events:?}");
    found[0].1.clone()
}

#[tokio::test]
async fn platform_events_tell_of_init_and_invocations() {
    let sim = Sim::start(told(function("sim_graceful"), &["platform"])).await.expect("init");
    let first = sim.invoke(json!({"n": 1})).await.expect("a live environment");
    sim.wait_for_line(|line| line.line.starts_with("told platform.report")).await.expect("it is told");
    let record = sim.shutdown(Reason::Spindown).await;
    let events = events(&record);
    assert_eq!(one(&events, "platform.initStart")["initializationType"], "on-demand");
    assert_eq!(one(&events, "platform.initRuntimeDone")["status"], "success");
    assert!(one(&events, "platform.initReport")["metrics"]["durationMs"].as_f64().is_some_and(|ms| ms > 0.0));
    assert_eq!(one(&events, "platform.telemetrySubscription")["types"], json!(["platform"]));
    let names: Vec<_> =
        events.iter().filter(|(kind, _)| kind == "platform.extension").map(|(_, it)| &it["name"]).collect();
    assert_eq!(names, ["sim_telemetry_extension", "graceful"]);
    assert_eq!(one(&events, "platform.start")["requestId"], first.request_id);
    let done = one(&events, "platform.runtimeDone");
    assert_eq!((&done["status"], &done["metrics"]["producedBytes"]), (&json!("success"), &json!(r#"{"n":1}"#.len())));
    let report = one(&events, "platform.report");
    assert_eq!(report["requestId"], first.request_id);
    assert!(report["metrics"]["initDurationMs"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
}

#[tokio::test]
async fn lines_of_the_function_are_delivered_to_the_last_before_shutdown_is_told() {
    let sim = Sim::start(told(function("sim_graceful"), &["function"])).await.expect("init");
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!(events(&record), [("function".to_owned(), json!("goodbye"))], "printed on SIGTERM");
    let told = record.output.iter().find(|line| line.line.starts_with("told")).expect("it was told").at_ms;
    let end = record.output.iter().find(|line| line.line == "end").expect("it ended").at_ms;
    assert!(told < end && at_ms(&record, "exit 0") < end, "{record}");
}

#[tokio::test]
async fn lines_of_extensions_are_a_category_of_their_own() {
    let other = example("sim_external_extension");
    let config = told(function("sim_graceful"), &["extension"]).external_extension(other, [] as [&str; 0]);
    let sim = Sim::start(config).await.expect("init");
    let invocation = sim.invoke(json!({})).await.expect("a live environment");
    sim.wait_for_line(|line| line.line.starts_with("told extension")).await.expect("it is told");
    let events = events(&sim.shutdown(Reason::Spindown).await);
    assert_eq!(one(&events, "extension"), format!("INVOKE {}", invocation.request_id));
}

#[tokio::test]
async fn a_frozen_extension_is_told_at_the_thaw() {
    let sim = Sim::start(told(function("sim_graceful"), &["platform"])).await.expect("init");
    let invocation = sim.invoke(json!({})).await.expect("a live environment");
    sim.freeze().await.expect("a live environment");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    sim.thaw();
    let thawed_at = sim.timeline().last().expect("the thaw").at_ms;
    let report = |line: &winddown_sim::OutputLine| {
        line.line.starts_with("told platform.report") && line.line.contains(&invocation.request_id)
    };
    let line = sim.wait_for_line(report).await.expect("it is told");
    assert!(line.at_ms > thawed_at, "told {} ms, thawed {thawed_at} ms", line.at_ms);
}

#[tokio::test]
async fn wrong_subscriptions_are_refused_with_their_reasons() {
    let expected = [
        ("not JSON", "400", "ValidationError"),
        ("no such version", "400", "schemaVersion"),
        ("no types", "400", "types"),
        ("unknown type", "400", "unknown variant"),
        ("TCP", "400", "destination.protocol"),
        ("another host", "400", "the host must be sandbox.localdomain"),
        ("reserved port", "400", "port 9001 is reserved"),
        ("few items", "400", "buffering.maxItems: must be 1000 to 10000"),
        ("few bytes", "400", "buffering.maxBytes"),
        ("short timeout", "400", "buffering.timeoutMs: must be 25 to 30000"),
        ("no identifier", "403", "Extension.MissingExtensionIdentifier"),
        ("unknown identifier", "403", "Extension.UnknownExtensionIdentifier"),
        ("right", "200", "OK"),
        ("after init", "403", "Telemetry.SubscriptionClosed"),
    ];
    let sim = Sim::start(misbehave("subscribe-wrongly")).await.expect("init");
    sim.invoke(json!({})).await.expect("a live environment");
    sim.wait_for_line(|line| line.line.starts_with("after init")).await.expect("it says so");
    let lines: Vec<_> = sim.output().into_iter().map(|line| line.line).collect();
    assert_eq!(lines.len(), expected.len(), "{lines:?}");
    for (line, (what, status, reason)) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("{what}: {status} ")) && line.contains(reason), "{line}");
    }
}

#[tokio::test]
async fn managed_instances_take_their_own_schema_version_only() {
    let sim = Sim::start(misbehave("subscribe-wrongly").managed_instances(1)).await.expect("init");
    let line = sim.wait_for_line(|line| line.line.starts_with("right: ")).await.expect("it says so").line;
    assert!(line.starts_with("right: 400 ") && line.contains("2025-01-29"), "{line}");
}
