//! Several invocations at once: Managed Instances.

use std::time::Duration;

use serde_json::json;
use winddown_core::EXIT_AT_DEADLINE;

use crate::{
    api::{Api, LATE, begun, end, said, terminate},
    cases,
};

cases![
    invocations_in_flight_at_sigterm_are_answered_and_then_everything_is_drained,
    a_handler_that_panics_costs_only_its_own_invocation,
    no_invocation_is_asked_for_once_draining_has_begun,
    an_invocation_that_comes_too_late_is_refused_with_an_error,
    without_a_concurrency_they_come_one_by_one,
    what_does_not_end_within_the_budget_is_left,
    within_lambdas_own_budget_the_process_is_gone_whatever_runs,
    a_handler_that_runs_into_its_timeout_leaves_the_pool_to_the_others,
];

const EIGHT: &[(&str, &str)] =
    &[("AWS_LAMBDA_MAX_CONCURRENCY", "8"), ("AWS_LAMBDA_INITIALIZATION_TYPE", "lambda-managed-instances")];

async fn invocations_in_flight_at_sigterm_are_answered_and_then_everything_is_drained() {
    let api = Api::start().await;
    let function = api.function("concurrent", EIGHT);
    for id in 0..8 {
        api.invoke(id, json!({ "when_draining": true, "run_ms": 150, "id": id }));
    }
    let function = begun(function, 8).await;
    let ended = terminate(function).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for id in 0..8 {
        let answer = json!({ "when_draining": true, "run_ms": 150, "id": id }).to_string();
        assert_eq!(api.posted(&format!("{id}/response")).await.body, answer);
    }
    let report = ended.report();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.platform, "lambda managed instances");
    let sessions = report.resource("db").unwrap().sessions;
    assert!((1..=8).contains(&sessions.closed) && sessions.cut == 0, "{report}");
    assert!(report.took >= Duration::from_millis(150), "they were waited for: {report}");
}

async fn a_handler_that_panics_costs_only_its_own_invocation() {
    let api = Api::start().await;
    let function = api.function("concurrent", EIGHT);
    for id in 0..16 {
        api.invoke(id, if id % 2 == 0 { json!({ "run_ms": 20 }) } else { json!({ "panic": true }) });
    }
    for id in 0..16 {
        let outcome = if id % 2 == 0 { "response" } else { "error" };
        api.posted(&format!("{id}/{outcome}")).await;
    }
    let ended = terminate(function).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.report().is_clean(), "{}", ended.report());
}

async fn no_invocation_is_asked_for_once_draining_has_begun() {
    let api = Api::start().await;
    let function = api.function("concurrent", &[("AWS_LAMBDA_MAX_CONCURRENCY", "2")]);
    // Both places are taken; the first is free again while the second is still waited for.
    api.invoke(0, json!({ "when_draining": true }));
    api.invoke(1, json!({ "when_draining": true, "run_ms": 2000 }));
    let function = begun(function, 2).await;
    let function = function.terminate();
    api.posted("0/response").await;
    api.invoke(2, json!({}));
    let ended = end(function).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let mut answers = api.all();
    answers.sort();
    assert_eq!(answers, ["0/response", "1/response"]);
    assert_eq!(api.left(), 1);
}

async fn an_invocation_that_comes_too_late_is_refused_with_an_error() {
    let api = Api::start().await;
    let function = api.function("concurrent", &[("AWS_LAMBDA_MAX_CONCURRENCY", "2")]);
    api.invoke(0, json!({ "when_draining": true, "run_ms": 3000 }));
    let function = begun(function, 1).await;
    // Draining has begun then; the second place's question for an invocation is open since before it.
    let function = said(function.terminate(), "draining\n", 1).await;
    api.invoke(1, json!({}));
    assert!(api.posted("1/error").await.body.contains("shutting down"));
    let ended = end(function).await;
    assert_eq!((ended.code, api.all()), (Some(0), vec!["1/error".into(), "0/response".into()]), "{}", ended.stderr);
}

async fn without_a_concurrency_they_come_one_by_one() {
    let api = Api::start().await;
    let function = api.function("concurrent", &[]);
    api.invoke(0, json!({ "when_draining": true }));
    api.invoke(1, json!({}));
    let function = begun(function, 1).await;
    let ended = terminate(function).await;
    assert_eq!((ended.code, api.all()), (Some(0), vec!["0/response".into()]), "{}", ended.stderr);
}

async fn what_does_not_end_within_the_budget_is_left() {
    let api = Api::start().await;
    let function = api.function("concurrent", &[EIGHT, &[("WINDDOWN_BUDGET_MS", "5000")]].concat());
    api.invoke(0, json!({ "run_ms": 100 }));
    api.invoke(1, json!({ "run_ms": 300_000 }));
    let function = begun(function, 2).await;
    let ended = terminate(function).await;
    assert!(ended.took < Duration::from_secs(5) + LATE, "{ended:?}");
    api.posted("0/response").await;
    let report = ended.report();
    assert!(!report.is_clean(), "{report}");
    assert_eq!(report.resource("tracked work").unwrap().left_out, 1, "{report}");
}

/// On a machine that keeps up the report is out as well.
async fn within_lambdas_own_budget_the_process_is_gone_whatever_runs() {
    let api = Api::start().await;
    let function = api.function_within_lambdas_budget("concurrent", EIGHT);
    api.invoke(0, json!({ "run_ms": 300_000 }));
    let ended = terminate(begun(function, 1).await).await;
    assert!(ended.took < Duration::from_millis(500) + LATE, "{ended:?}");
    assert!(matches!((ended.code, ended.signal), (Some(1 | EXIT_AT_DEADLINE), None)), "{ended:?}");
    if let Some(report) = &ended.report {
        assert_eq!((report.platform.as_str(), report.budget.as_millis()), ("lambda managed instances", 500));
        assert_eq!(report.resource("tracked work").unwrap().left_out, 1, "{report}");
    }
}

/// On Managed Instances a handler runs on after its timeout.
async fn a_handler_that_runs_into_its_timeout_leaves_the_pool_to_the_others() {
    let api = Api::start().await;
    // The drain waits for the first half of the budget, and has the other one for its statement.
    let variables = [("WINDDOWN_BUDGET_MS", "10000"), ("RESERVE_MS", "5000")];
    let function = api.function("concurrent", &[EIGHT, &variables].concat());
    api.invoke(0, json!({ "run_ms": 300_000 }));
    let function = begun(function, 1).await;
    for id in 1..=40 {
        api.invoke(id, json!({ "run_ms": 1 }));
    }
    for id in 1..=40 {
        api.posted(&format!("{id}/response")).await;
    }
    let ended = terminate(function).await;
    let report = ended.report();
    let db = report.resource("db").unwrap();
    assert_eq!(db.sessions.cancelled, 1, "its statement does not run on: {report}");
    assert!(ended.took < Duration::from_secs(10) + LATE, "{:?}", ended.took);
}
