//! What the two APIs answer to functions that use them wrongly.

mod common;

use serde_json::json;
use winddown_sim::{Reason, Sim};

use common::misbehave;

async fn lines(mode: &str, invocations: usize) -> Vec<String> {
    let sim = Sim::start(misbehave(mode)).await.expect("init");
    for _ in 0..invocations {
        sim.invoke(json!({})).await.expect("a live environment");
    }
    let record = sim.shutdown(Reason::Spindown).await;
    record.output.into_iter().map(|line| line.line).collect()
}

#[tokio::test]
async fn registration_is_closed_after_the_first_next() {
    let sim = Sim::start(misbehave("register-late")).await.expect("init");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    let line = sim.wait_for_line(|line| line.line.starts_with("late registration")).await.expect("it says so").line;
    assert!(line.starts_with("late registration: 403 "), "{line}");
    assert!(line.contains(r#""errorType":"Extension.RegistrationClosed""#), "{line}");
    let record = sim.shutdown(Reason::Spindown).await;
    assert!(record.extensions.is_empty());
    assert!(!record.shutdown.sigterm_sent, "too late is not registered: {record}");
}

#[tokio::test]
async fn every_wrong_registration_has_its_own_error() {
    let expected = [
        ("no name", "Extension.InvalidExtensionName"),
        ("no JSON", "InvalidRequestFormat"),
        ("shutdown", "Extension.InvalidEventType"),
        ("unknown event", "Extension.InvalidEventType"),
        ("same name", "Extension.InvalidExtensionState"),
        ("eleventh", "Extension.TooManyExtensions"),
        ("no identifier", "Extension.MissingExtensionIdentifier"),
        ("unknown identifier", "Extension.UnknownExtensionIdentifier"),
    ];
    let lines = lines("probe", 1).await;
    assert_eq!(lines.len(), expected.len(), "{lines:?}");
    for (line, (what, error_type)) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("{what}: 403 ")), "{line}");
        assert!(line.contains(&format!(r#""errorType":"{error_type}""#)), "{line}");
    }
}

#[tokio::test]
async fn answers_to_unknown_and_answered_invocations_are_refused() {
    let lines = lines("answer-wrongly", 1).await;
    let [unknown, first, second] = lines.as_slice() else { panic!("three answers: {lines:?}") };
    assert!(unknown.starts_with("answer: 400 ") && unknown.contains("InvalidRequestID"), "{unknown}");
    assert!(first.starts_with("answer: 202 "), "{first}");
    assert!(second.starts_with("answer: 403 ") && second.contains("InvalidStateTransition"), "{second}");
}

#[tokio::test]
async fn an_answer_that_is_not_json_is_text() {
    let sim = Sim::start(misbehave("answer-wrongly")).await.expect("init");
    let invocation = sim.invoke(json!({})).await.expect("a live environment");
    assert!(invocation.ok);
    assert_eq!(invocation.payload, "not JSON");
}

#[tokio::test]
async fn an_answer_over_6_mib_fails_the_invocation() {
    let sim = Sim::start(misbehave("answer-too-much")).await.expect("init");
    let invocation = sim.invoke(json!({})).await.expect("a live environment");
    assert!(!invocation.ok);
    assert_eq!(invocation.error.expect("an error").error_type, "Function.ResponseSizeTooLarge");
}
