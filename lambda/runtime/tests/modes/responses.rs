//! What a handler may answer with: a stream, HTTP.

use serde_json::{Value, json};

use crate::{
    api::{Api, begun, terminate},
    cases,
};

cases![
    a_streamed_response_that_is_under_way_at_sigterm_is_streamed_to_its_end,
    a_stream_that_checks_out_is_handed_out_to_until_its_end_after_sigterm,
    a_function_of_lambda_http_is_run,
    a_function_of_lambda_http_is_run_with_several_invocations_at_once,
];

async fn a_streamed_response_that_is_under_way_at_sigterm_is_streamed_to_its_end() {
    let api = Api::start().await;
    let function = api.function("streaming", &[]);
    api.invoke(0, json!({}));
    let ended = terminate(begun(function, 1).await).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let posted = api.posted("0/response").await;
    assert!(posted.is_streamed && posted.body.ends_with("one two three"), "{posted:?}");
    let report = ended.report();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.resource("db").unwrap().sessions.closed, 1, "{report}");
}

/// The stream belongs to its invocation, whichever task polls it (S2).
async fn a_stream_that_checks_out_is_handed_out_to_until_its_end_after_sigterm() {
    for variables in [&[][..], &[("AWS_LAMBDA_MAX_CONCURRENCY", "4")]] {
        let api = Api::start().await;
        let function = api.function("paging", variables);
        api.invoke(0, json!({}));
        let ended = terminate(begun(function, 1).await).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let posted = api.posted("0/response").await;
        assert!(posted.body.ends_with("page 0 page 1 page 2 page 3 "), "{posted:?}");
        let report = ended.report();
        assert!(report.is_clean(), "{report}");
    }
}

async fn a_function_of_lambda_http_is_run() {
    http(&[]).await;
}

async fn a_function_of_lambda_http_is_run_with_several_invocations_at_once() {
    http(&[("AWS_LAMBDA_MAX_CONCURRENCY", "4")]).await;
}

async fn http(variables: &[(&str, &str)]) {
    let api = Api::start().await;
    let function = api.function("http", variables);
    for id in 0..4 {
        api.invoke(id, request(&format!("/orders/{id}")));
    }
    for id in 0..4 {
        let posted: Value = serde_json::from_str(&api.posted(&format!("{id}/response")).await.body).unwrap();
        assert_eq!((&posted["statusCode"], &posted["body"]), (&json!(200), &json!(format!("GET /orders/{id}"))));
    }
    let ended = terminate(function).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let report = ended.report();
    assert!(report.is_clean() && report.resource("db").unwrap().sessions.closed > 0, "{report}");
}

/// As an HTTP API of API Gateway sends it (payload format 2.0).
fn request(path: &str) -> Value {
    json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": { "host": "example.com" },
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api",
            "domainName": "example.com",
            "http": { "method": "GET", "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "a" },
            "requestId": "id",
            "routeKey": "$default",
            "stage": "$default",
            "time": "12/Mar/2020:19:03:58 +0000",
            "timeEpoch": 1_583_348_638_390_u64,
        },
        "isBase64Encoded": false,
    })
}
