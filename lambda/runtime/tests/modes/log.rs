//! What a function writes into its log.

use serde_json::{Value, json};

use crate::{
    api::{Api, terminate},
    cases,
};

cases![the_report_is_metrics_where_that_is_asked_for, where_lambda_wants_json_every_line_is_json];

async fn the_report_is_metrics_where_that_is_asked_for() {
    let api = Api::start().await;
    let function = api.function("metrics", &[]);
    api.invoke(0, json!({}));
    api.posted("0/response").await;
    let ended = terminate(function).await;
    assert!(ended.report().is_clean(), "a report as ever: {}", ended.report());
    let [beginning, line] = lines(&ended.stderr).try_into().unwrap();
    assert_eq!(beginning["type"], json!("winddown.draining"));
    assert_eq!((&line["type"], &line["level"]), (&json!("winddown.report"), &json!("INFO")));
    let directive = &line["_aws"]["CloudWatchMetrics"][0];
    assert_eq!((&directive["Namespace"], &directive["Dimensions"]), (&json!("winddown"), &json!([["FunctionName"]])));
    assert_eq!((&line["FunctionName"], &line["SessionsClosed"]), (&json!("function"), &json!(1)));
    let share = line["BudgetShare"].as_f64().unwrap();
    assert!(share > 0.0 && share <= 100.0, "{share}");
}

async fn where_lambda_wants_json_every_line_is_json() {
    let api = Api::start().await;
    // An extension that cannot be registered is warned of.
    api.refuse_extensions();
    let function = api.function("metrics", &[("AWS_LAMBDA_LOG_FORMAT", "JSON")]);
    api.invoke(0, json!({}));
    api.posted("0/response").await;
    let ended = terminate(function).await;
    let [warning, beginning, report] = lines(&ended.stderr).try_into().unwrap();
    assert_eq!(warning["level"], json!("WARN"));
    assert!(warning["message"].as_str().unwrap().contains("without SIGTERM"), "{warning}");
    assert_eq!((&beginning["level"], &beginning["type"]), (&json!("INFO"), &json!("winddown.draining")));
    assert!([&warning, &beginning, &report].iter().all(|line| line["timestamp"].is_string()));
    assert_eq!(report["type"], json!("winddown.report"));
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
}
