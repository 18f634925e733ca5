//! The Runtime API: what the function polls and answers.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use http_body_util::BodyExt;
use serde_json::Value;

use super::{ApiState, accepted, failure};
use crate::config::Mode;
use crate::record::{InvocationError, Part};
use crate::state::{Answer, Job, Restore};

/// `GET /runtime/invocation/next`: waits for an event. The first call closes registration.
pub(super) async fn next(State(shared): State<Arc<ApiState>>) -> Response {
    if shared.config.is_web() {
        return forbidden("a Web Function has no events: listen on AWS_LAMBDA_HTTP_ENDPOINT instead");
    }
    let limit = if shared.config.is_managed() { shared.config.concurrency() } else { usize::MAX };
    let refusal = shared.world.update(|state| {
        let runtime = &mut state.runtime;
        if runtime.restore == Restore::Waiting {
            return Some(forbidden("the function waits to be restored: its first event comes after that"));
        }
        if runtime.polls >= limit {
            // `Runtime.TooManyIdleRuntimes` in AWS's own emulator, which does not tell
            return Some(failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", "Internal Server Error"));
        }
        runtime.polls += 1;
        runtime.answered.clear();
        runtime.ready = runtime.queue.is_empty() && runtime.in_flight.is_empty();
        if !std::mem::replace(&mut runtime.polled, true) {
            state.note("function ready");
            state.tell_init_runtime_done(None);
        }
        None
    });
    if let Some(refusal) = refusal {
        return refusal;
    }
    let poll = Poll(Arc::clone(&shared));
    let job = shared.world.take(|state| state.runtime.queue.pop_front()).await;
    drop(poll);
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
    State(shared): State<Arc<ApiState>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    // a task of its own: a function that hangs up half-way has still answered wrongly
    let task = tokio::spawn(async move { receive(&shared, &id, &headers, body).await });
    task.await
        .unwrap_or_else(|_| failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", "Internal Server Error"))
}

async fn receive(shared: &ApiState, id: &str, headers: &HeaderMap, mut body: Body) -> Response {
    let fail = |error_type: &str, message: &str, reply: Response| {
        let error = InvocationError { error_type: error_type.to_owned(), message: message.to_owned() };
        answer(shared, id, Answer::failed(error)).map_or_else(|refusal| refusal, |()| reply)
    };
    let streamed = match headers.get(RESPONSE_MODE).map(|mode| mode.as_bytes()) {
        None | Some(b"") => false,
        Some(b"streaming") => true,
        Some(_) => {
            skip_rest(&mut body).await;
            let message = "Invalid function response mode";
            let reply = failure(StatusCode::BAD_REQUEST, "InvalidFunctionResponseMode", message);
            return fail("Runtime.InvalidResponseModeHeader", message, reply);
        }
    };
    let limit = if streamed { MAX_STREAMED } else { MAX_RESPONSE };
    let listener = shared.world.read(|state| state.runtime.in_flight.get(id)?.listener.clone());
    let tell = |part: Part<'_>| listener.as_ref().map_or((), |listener| listener.tell(part));
    let content_type = header(headers, "content-type");
    tell(Part::Head { streamed, content_type: content_type.as_deref() });
    let (mut payload, mut first_byte, mut trailers) = (Vec::new(), None, HeaderMap::new());
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            let message = "HTTP request detected as truncated";
            let reply = failure(StatusCode::BAD_REQUEST, "TruncatedHTTPRequest", message);
            return fail("Runtime.TruncatedResponse", message, reply);
        };
        match frame.into_data() {
            Ok(data) if payload.len() + data.len() > limit => {
                let message = format!("Exceeded maximum allowed payload size ({limit} bytes).");
                skip_rest(&mut body).await;
                let reply = failure(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", &message);
                return fail("Function.ResponseSizeTooLarge", &message, reply);
            }
            Ok(data) => {
                first_byte.get_or_insert_with(Instant::now);
                payload.extend_from_slice(&data);
                tell(Part::Data(&data));
            }
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    let complete = Answer {
        at: Instant::now(),
        payload: json_or_text(&payload),
        error: trailers.contains_key(ERROR_TYPE).then(|| error_in(&trailers)),
        first_byte: first_byte.filter(|_| streamed),
        bytes: payload.len(),
    };
    answer(shared, id, complete).map_or_else(|refusal| refusal, |()| accepted())
}

/// Reads on as far as the Go server of the real API does: a client still sending would not see the reply otherwise.
async fn skip_rest(body: &mut Body) {
    let mut left = SKIPPED;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// `POST /runtime/invocation/{id}/error`: the handler failed.
pub(super) async fn error(
    State(shared): State<Arc<ApiState>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let error = error_of(&headers, &body);
    if let Some(listener) = shared.world.read(|state| state.runtime.in_flight.get(&id)?.listener.clone()) {
        listener.tell(Part::Data(&body));
    }
    let failed = Answer { payload: json_or_text(&body), bytes: body.len(), ..Answer::failed(error) };
    answer(&shared, &id, failed).map_or_else(|refusal| refusal, |()| accepted())
}

/// `POST /runtime/init/error`: the function cannot start. Ends init.
pub(super) async fn init_error(State(shared): State<Arc<ApiState>>, headers: HeaderMap, body: Bytes) -> Response {
    let error = error_of(&headers, &body);
    shared.world.update(|state| {
        if state.runtime.is_initialised() {
            return forbidden("init is over: report an invocation error instead");
        }
        state.note(format!("init error {}", error.error_type));
        state.tell_init_runtime_done(Some(&error.error_type));
        state.runtime.init_error = Some(error);
        accepted()
    })
}

/// `GET /runtime/restore/next`: the function is ready for its snapshot. Waits until that is restored.
pub(super) async fn restore_next(State(shared): State<Arc<ApiState>>) -> Response {
    if shared.config.mode != Mode::SnapStart {
        return StatusCode::NOT_FOUND.into_response();
    }
    let refusal = shared.world.update(|state| {
        if state.runtime.is_initialised() {
            return Some(forbidden("restore/next is asked once, before the first invocation/next"));
        }
        state.runtime.restore = Restore::Waiting;
        state.note("function ready for its snapshot");
        state.tell_init_runtime_done(None);
        None
    });
    if let Some(refusal) = refusal {
        return refusal;
    }
    shared.world.wait(|state| (state.runtime.restore != Restore::Waiting).then_some(())).await;
    StatusCode::OK.into_response()
}

/// `POST /runtime/restore/error`: the function could not do what it does after a restoration. Ends it.
pub(super) async fn restore_error(State(shared): State<Arc<ApiState>>, headers: HeaderMap, body: Bytes) -> Response {
    if shared.config.mode != Mode::SnapStart {
        return StatusCode::NOT_FOUND.into_response();
    }
    let error = error_of(&headers, &body);
    shared.world.update(|state| {
        if state.runtime.restore != Restore::Told || state.runtime.polled {
            return forbidden("nothing is being restored");
        }
        state.note(format!("restore error {}", error.error_type));
        state.runtime.restore = Restore::Failed(error);
        accepted()
    })
}

/// A request for an event that waits.
struct Poll(Arc<ApiState>);

impl Drop for Poll {
    fn drop(&mut self) {
        self.0.world.update(|state| state.runtime.polls -= 1);
    }
}

/// Hands the answer to who waits for it, or says why nobody does.
#[expect(clippy::result_large_err, reason = "the error is the response itself, made once")]
fn answer(shared: &ApiState, id: &str, answer: Answer) -> Result<(), Response> {
    shared.world.update(|state| {
        if let Some(waiting) = state.runtime.in_flight.remove(id) {
            if !shared.config.is_managed() {
                state.runtime.answered.insert(id.to_owned());
            }
            // a caller that gave up does not make the function's answer wrong
            let _ = waiting.answer.send(answer);
            return Ok(());
        }
        if state.runtime.timed_out.remove(id) {
            return Err(failure(StatusCode::GONE, "InvokeTimeout", "Invoke timeout"));
        }
        if state.runtime.answered.contains(id) {
            return Err(forbidden("this invocation is answered already"));
        }
        Err(failure(StatusCode::BAD_REQUEST, "InvalidRequestID", "Invalid request ID"))
    })
}

fn forbidden(message: &str) -> Response {
    failure(StatusCode::FORBIDDEN, "InvalidStateTransition", message)
}

/// The error behind a streamed response (AWS: "Using the Lambda runtime API", response streaming).
fn error_in(trailers: &HeaderMap) -> InvocationError {
    let document = trailers.get(ERROR_BODY).and_then(|body| BASE64.decode(body).ok()).unwrap_or_default();
    let mut error = error_of(trailers, &document);
    if let Some(error_type) = header(trailers, ERROR_TYPE) {
        error.error_type = error_type;
    }
    if error.message.is_empty() {
        "the response stream ended with an error".clone_into(&mut error.message);
    }
    error
}

/// The error document, with the header as what is left when the body is not one.
fn error_of(headers: &HeaderMap, body: &[u8]) -> InvocationError {
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| document.get(key).and_then(Value::as_str).map(str::to_owned);
    InvocationError {
        error_type: text("errorType")
            .or_else(|| header(headers, ERROR_TYPE))
            .unwrap_or_else(|| "Runtime.Unknown".to_owned()),
        message: text("errorMessage").unwrap_or_default(),
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn json_or_text(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned().into())
}

const ERROR_TYPE: &str = "Lambda-Runtime-Function-Error-Type";
/// Base64 of an error document.
const ERROR_BODY: &str = "Lambda-Runtime-Function-Error-Body";
const RESPONSE_MODE: &str = "Lambda-Runtime-Function-Response-Mode";

/// 6 MiB and the slack of AWS's own emulator (`interop.MaxPayloadSize`).
const MAX_RESPONSE: usize = 6 * 1024 * 1024 + 100;
/// AWS: "Lambda quotas", streamed responses.
const MAX_STREAMED: usize = 200 * 1024 * 1024;
/// `maxPostHandlerReadBytes` of Go's net/http.
const SKIPPED: usize = 256 * 1024;
