//! The Runtime API: what the function polls and answers.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;

use super::{Shared, accepted, failure};
use crate::record::InvocationError;
use crate::state::{Answer, Job};

/// `GET /runtime/invocation/next`: waits for an event. The first call closes registration.
pub(super) async fn next(State(shared): State<Arc<Shared>>) -> Response {
    shared.world.update(|state| {
        if !state.runtime.polled {
            state.runtime.polled = true;
            state.note("function ready");
        }
        state.runtime.answered.clear();
        state.runtime.ready = state.runtime.queue.is_empty() && state.runtime.in_flight.is_empty();
    });
    let job = shared.world.take(|state| state.runtime.queue.pop_front()).await;
    let Job { request_id, payload, deadline_ms, arn, trace_id } = job;
    let headers = [
        ("Lambda-Runtime-Aws-Request-Id", request_id),
        ("Lambda-Runtime-Deadline-Ms", deadline_ms.to_string()),
        ("Lambda-Runtime-Invoked-Function-Arn", arn),
        ("Lambda-Runtime-Trace-Id", trace_id),
    ];
    let mut response = payload.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in headers {
        match HeaderValue::try_from(value) {
            Ok(value) => response.headers_mut().insert(name, value),
            // only the ARN is made from a setting
            Err(_) => return failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", "function name"),
        };
    }
    response
}

/// `POST /runtime/invocation/{id}/response`: the answer, whole or streamed.
pub(super) async fn response(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let streamed = headers.get(RESPONSE_MODE).is_some_and(|mode| mode == "streaming");
    let limit = if streamed { MAX_STREAMED } else { MAX_RESPONSE };
    let Ok(body) = Limited::new(body, limit).collect().await else {
        let message = format!("Exceeded maximum allowed payload size ({limit} bytes).");
        let error = InvocationError { error_type: TOO_LARGE.to_owned(), message: message.clone() };
        if let Err(refusal) = answer(&shared, &id, Value::Null, Some(error)) {
            return refusal;
        }
        return failure(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", &message);
    };
    // a streamed answer that fails on its way says so after its body (AWS: "Using the Lambda runtime API", streaming)
    let failed = body.trailers().and_then(|trailers| trailers.get(ERROR_TYPE)).map(|error_type| InvocationError {
        error_type: String::from_utf8_lossy(error_type.as_bytes()).into_owned(),
        message: "the response stream ended with an error".to_owned(),
    });
    match answer(&shared, &id, json_or_text(&body.to_bytes()), failed) {
        Ok(()) => accepted(),
        Err(refusal) => refusal,
    }
}

/// `POST /runtime/invocation/{id}/error`: the handler failed.
pub(super) async fn error(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let error = error_of(&headers, &body);
    match answer(&shared, &id, json_or_text(&body), Some(error)) {
        Ok(()) => accepted(),
        Err(refusal) => refusal,
    }
}

/// `POST /runtime/init/error`: the function cannot start. Ends init.
pub(super) async fn init_error(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let error = error_of(&headers, &body);
    shared.world.update(|state| {
        if state.runtime.polled {
            return failure(
                StatusCode::FORBIDDEN,
                INVALID_TRANSITION,
                "init is over: report an invocation error instead",
            );
        }
        state.note(format!("init error {}", error.error_type));
        state.runtime.init_error = Some(error);
        accepted()
    })
}

/// Hands the answer to who waits for it, or says why nobody does.
#[expect(clippy::result_large_err, reason = "the error is the response itself, made once")]
fn answer(shared: &Shared, id: &str, payload: Value, error: Option<InvocationError>) -> Result<(), Response> {
    let at = Instant::now();
    shared.world.update(|state| {
        if let Some(waiting) = state.runtime.in_flight.remove(id) {
            state.runtime.answered.insert(id.to_owned());
            // a caller that gave up does not make the function's answer wrong
            let _ = waiting.send(Answer { at, payload, error });
            return Ok(());
        }
        if state.runtime.answered.contains(id) {
            return Err(failure(StatusCode::FORBIDDEN, INVALID_TRANSITION, "this invocation is answered already"));
        }
        Err(failure(StatusCode::BAD_REQUEST, "InvalidRequestID", "Invalid request ID"))
    })
}

/// The error document, with the header as what is left when the body is not one.
fn error_of(headers: &HeaderMap, body: &[u8]) -> InvocationError {
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| document.get(key).and_then(Value::as_str).map(str::to_owned);
    let header = || headers.get(ERROR_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    InvocationError {
        error_type: text("errorType").or_else(header).unwrap_or_else(|| "Runtime.Unknown".to_owned()),
        message: text("errorMessage").unwrap_or_default(),
    }
}

fn json_or_text(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned().into())
}

const ERROR_TYPE: &str = "Lambda-Runtime-Function-Error-Type";
const RESPONSE_MODE: &str = "Lambda-Runtime-Function-Response-Mode";
const INVALID_TRANSITION: &str = "InvalidStateTransition";
const TOO_LARGE: &str = "Function.ResponseSizeTooLarge";

/// 6 MiB and the slack of AWS's own emulator (`interop.MaxPayloadSize`).
const MAX_RESPONSE: usize = 6 * 1024 * 1024 + 100;
/// AWS: "Lambda quotas", streamed responses.
const MAX_STREAMED: usize = 200 * 1024 * 1024;
