//! Tells Lambda why the function could not start.

use std::time::Duration;

use lambda_runtime_api_client::{BoxError, PooledClient, body::Body, build_request};
use serde::Serialize;
use tokio::time::timeout;
use winddown_core::Error;

use crate::warn;

const PATH: &str = "/2018-06-01/runtime/init/error";
const PATIENCE: Duration = Duration::from_secs(1);

/// The body of `/runtime/init/error` (AWS Lambda Developer Guide, "Runtime API", initialization error).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InitError<'a> {
    error_message: &'a str,
    error_type: String,
    stack_trace: [&'a str; 0],
}

/// Posts the error; where that fails it is at least in the log.
pub(crate) async fn post(error: &Error) {
    match timeout(PATIENCE, send(error)).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => warn("the init error could not be reported to Lambda", &failure),
        Err(_) => warn("the init error could not be reported to Lambda", &"the Runtime API did not answer"),
    }
}

async fn send(error: &Error) -> Result<(), BoxError> {
    let error_type = format!("Winddown.{:?}", error.kind());
    let message = error.to_string();
    let body = InitError { error_message: &message, error_type: error_type.clone(), stack_trace: [] };
    let request = build_request()
        .method("POST")
        .uri(PATH)
        .header("lambda-runtime-function-error-type", error_type)
        .body(Body::from(serde_json::to_string(&body)?))?;
    let response = PooledClient::builder().build().call(request).await?;
    if response.status().is_success() { Ok(()) } else { Err(format!("status {}", response.status()).into()) }
}
