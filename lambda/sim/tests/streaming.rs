//! Streamed responses, and how they fail.

mod common;

use serde_json::json;
use winddown_sim::{ErrorKind, Invocation, Sim};

use common::misbehave;

async fn streamed(mode: &str) -> (Invocation, Sim) {
    let sim = Sim::start(misbehave(mode)).await.expect("init");
    let invocation = sim.invoke(json!({})).await.expect("a live environment");
    (invocation, sim)
}

#[tokio::test]
async fn a_streamed_response_is_put_together_and_timed() {
    let (invocation, sim) = streamed("stream").await;
    assert!(invocation.ok);
    assert_eq!(invocation.payload, "Hello, Ada!");
    let first = invocation.first_byte_ms.expect("it was streamed");
    assert!(first + 1_000.0 < invocation.ms, "the first byte after {first} ms, the last after {} ms", invocation.ms);
    let next = sim.invoke(json!({})).await.expect("a live environment");
    assert_eq!(next.first_byte_ms, None, "this one was not streamed");
}

#[tokio::test]
async fn an_error_behind_a_stream_fails_the_invocation_and_keeps_what_was_sent() {
    let (invocation, sim) = streamed("stream-error").await;
    assert!(!invocation.ok);
    assert_eq!(invocation.payload, "row 1");
    let error = invocation.error.expect("an error");
    assert_eq!((error.error_type.as_str(), error.message.as_str()), ("Row.Lost", "row 2"));
    assert!(sim.wait_for_line(|line| line.line == "answer: 202").await.is_some(), "it is accepted all the same");
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_truncated() {
    let (invocation, sim) = streamed("stream-truncated").await;
    assert_eq!(invocation.error.expect("an error").error_type, "Runtime.TruncatedResponse");
    assert!(sim.invoke(json!({})).await.expect("the environment lives on").ok);
}

#[tokio::test]
async fn a_response_mode_that_is_none_fails_the_invocation() {
    let (invocation, sim) = streamed("wrong-mode").await;
    assert_eq!(invocation.error.expect("an error").error_type, "Runtime.InvalidResponseModeHeader");
    assert!(sim.wait_for_line(|line| line.line == "answer: 400").await.is_some());
}

#[tokio::test]
async fn an_event_above_6_mib_does_not_reach_the_function() {
    let sim = Sim::start(misbehave("stream")).await.expect("init");
    let error = sim.invoke_raw(vec![b'x'; 6 * 1024 * 1024 + 101]).await.expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("413"), "{error}");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
}
