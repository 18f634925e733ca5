//! What is said at the start: before the first invocation, and whether anybody listens.

use std::time::Duration;

use serde_json::{Value, json};
use winddown_core::Outcome;

use crate::{
    api::{Api, Posted, end, terminate},
    cases,
};

cases![
    an_init_that_waits_for_a_mute_server_fails_before_lambdas_limit_and_says_for_whom,
    the_same_after_a_restore,
    a_lifecycle_without_signals_is_refused_with_what_to_do,
    a_closed_standard_error_fails_no_invocation,
];

/// Of the whole limit a quarter is kept, and 250 ms for the post.
const LIMIT_MS: &str = "2000";

/// What was posted names the resource, where it is, and how long it was waited for.
fn names_the_mute(posted: &Posted, address: &str) {
    let body: Value = serde_json::from_str(&posted.body).unwrap();
    let message = body["errorMessage"].as_str().unwrap();
    assert!(message.contains("orders") && message.contains(address), "{message}");
    assert!(message.contains("not initialised after") && !message.contains("db"), "{message}");
    assert_eq!(body["errorType"], "Winddown.Timeout");
}

async fn an_init_that_waits_for_a_mute_server_fails_before_lambdas_limit_and_says_for_whom() {
    let api = Api::start().await;
    let mut function = api.function("mute", &[("WINDDOWN_INIT_LIMIT_MS", LIMIT_MS)]);
    let address = function.line();
    let posted = api.posted("init/error").await;
    names_the_mute(&posted, address.trim());
    let ended = end(function).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains(address.trim()), "{}", ended.stderr);
    let report = ended.report();
    // A machine that is slow may use up the second that is left for the drain, before that begins.
    if report.budget > Duration::from_millis(500) {
        let row = report.resource("orders").unwrap();
        assert_eq!(row.outcome, Outcome::NotInitialised, "{report}");
        assert!(row.error.as_ref().is_some_and(|error| error.contains(address.trim())), "{report}");
        assert_eq!(report.resource("db").unwrap().sessions.closed, 1, "{report}");
    }
}

async fn the_same_after_a_restore() {
    let api = Api::start().await;
    let variables = [
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start"),
        ("WINDDOWN_INIT_LIMIT_MS", LIMIT_MS),
        ("AFTER_RESTORE", "1"),
    ];
    let mut function = api.function("mute", &variables);
    let address = function.line();
    api.at_snapshot().await;
    api.restore();
    let posted = api.posted("restore/error").await;
    assert!(posted.body.contains("orders") && posted.body.contains(address.trim()), "{posted:?}");
    let ended = end(function).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
}

async fn a_lifecycle_without_signals_is_refused_with_what_to_do() {
    let api = Api::start().await;
    api.invoke(0, json!({}));
    let ended = end(api.function("no_signals", &[])).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("build it without `signals(false)`"), "{}", ended.stderr);
    assert_eq!((api.all(), api.left()), (vec!["init/error".to_owned()], 1), "and Lambda is told");
}

async fn a_closed_standard_error_fails_no_invocation() {
    let api = Api::start().await;
    let (function, stderr) = api.function("cannot_flush", &[]).deaf();
    drop(stderr);
    for id in 0..3 {
        api.invoke(id, json!({ "id": id }));
        api.wait("an answer", |world| world.posted.get(id).map(|_| ())).await;
    }
    assert_eq!(api.all(), ["0/response", "1/response", "2/response"]);
    let ended = terminate(function).await;
    assert_eq!(ended.code, Some(0));
}
