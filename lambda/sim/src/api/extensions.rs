//! The Extensions API: registration, and what extensions poll.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ApiState, accepted, failure};
use crate::config::{ACCOUNT_ID, Config, FUNCTION_VERSION, HANDLER, MAX_EXTENSIONS};
use crate::record::{EventType, ExtensionKind, Reason};
use crate::state::{self, Extension, Job};

/// `POST /extension/register`. Which check comes first, and the words, are as AWS's own emulator answers.
pub(super) async fn register(State(shared): State<Arc<ApiState>>, headers: HeaderMap, body: Bytes) -> Response {
    let name = text(&headers, "Lambda-Extension-Name");
    if name.is_empty() {
        return forbidden("Extension.InvalidExtensionName", "Empty extension name");
    }
    let request: Registration = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return forbidden("InvalidRequestFormat", &error.to_string()),
    };
    if !request.configuration_keys.is_empty() {
        let message = "configurationKeys are deprecated; use environment variables instead";
        return forbidden("InvalidRequestFormat", message);
    }
    let id = match shared.world.update(|state| add(state, &shared.config, &name, &request.events)) {
        Ok(id) => id,
        Err((error_type, message)) => return forbidden(error_type, &message),
    };
    let mut reply = json!({
        "functionName": shared.config.function_name,
        "functionVersion": FUNCTION_VERSION,
        "handler": HANDLER,
    });
    if text(&headers, "Lambda-Extension-Accept-Feature").split(',').any(|feature| feature.trim() == "accountId") {
        reply["accountId"] = ACCOUNT_ID.into();
    }
    ([(IDENTIFIER, id)], axum::Json(reply)).into_response()
}

/// `GET /extension/event/next`: waits for an event. Ends the extension's own init, and its share of an invocation.
pub(super) async fn next(State(shared): State<Arc<ApiState>>, headers: HeaderMap) -> Response {
    let id = match identify(&shared, &headers) {
        Ok(id) => id,
        Err(refusal) => return *refusal,
    };
    shared.world.update(|state| {
        let Some(extension) = find(state, &id) else { return };
        extension.ready = extension.queue.is_empty();
        if !extension.polled {
            extension.polled = true;
            let event = format!("extension ready {}", extension.name);
            state.note(event);
        }
    });
    let event = shared
        .world
        .take(|state| {
            let extension = find(state, &id)?;
            let event = extension.queue.pop_front()?;
            extension.delivered += 1;
            Some(event)
        })
        .await;
    ([("Lambda-Extension-Event-Identifier", Uuid::new_v4().to_string())], axum::Json(event)).into_response()
}

/// `POST /extension/init/error`: the extension cannot start. Ends init.
pub(super) async fn init_error(State(shared): State<Arc<ApiState>>, headers: HeaderMap) -> Response {
    report(&shared, &headers, "init error", |extension, error| extension.init_error = Some(error))
}

/// `POST /extension/exit/error`: the extension is about to exit. What follows from that follows from its exit.
pub(super) async fn exit_error(State(shared): State<Arc<ApiState>>, headers: HeaderMap) -> Response {
    report(&shared, &headers, "exit error", |extension, error| extension.exit_error = Some(error))
}

#[derive(Deserialize)]
struct Registration {
    #[serde(default)]
    events: Vec<String>,
    #[serde(default, rename = "configurationKeys")]
    configuration_keys: Vec<String>,
}

/// Adds an extension to the state, or says which rule that would break.
fn add(
    state: &mut state::SimState,
    config: &Config,
    name: &str,
    events: &[String],
) -> Result<String, (&'static str, String)> {
    let external = state.externals.iter().any(|it| it.name == name);
    let kind = if external { ExtensionKind::External } else { ExtensionKind::Internal };
    if config.is_managed() && kind == ExtensionKind::Internal && !events.is_empty() {
        return Err(("Extension.InvalidEventType", "No events allowed for internal extensions".to_owned()));
    }
    let events = events
        .iter()
        .map(|event| match (event.as_str(), kind) {
            ("INVOKE", ExtensionKind::Internal) if !config.invoke_for_internal => {
                Err(("Extension.InvalidEventType", format!("{event}: InvokeEventNotSupportedForInternalExtension")))
            }
            ("INVOKE", _) if !config.is_managed() => Ok(EventType::Invoke),
            ("SHUTDOWN", ExtensionKind::External) => Ok(EventType::Shutdown),
            ("SHUTDOWN", ExtensionKind::Internal) => {
                Err(("Extension.InvalidEventType", format!("{event}: ShutdownEventNotSupportedForInternalExtension")))
            }
            _ => Err(("Extension.InvalidEventType", format!("{event}: ErrorInvalidEventType"))),
        })
        .collect::<Result<Vec<_>, _>>()?;

    if kind == ExtensionKind::Internal && state.runtime.is_initialised() {
        return Err(("Extension.RegistrationClosed", "Extension registration closed already".to_owned()));
    }
    if kind == ExtensionKind::Internal && state.extensions.len() >= MAX_EXTENSIONS {
        return Err(("Extension.TooManyExtensions", format!("Extension limit ({MAX_EXTENSIONS}) reached")));
    }
    if state.extensions.iter().any(|it| it.name == name) {
        return Err(("Extension.InvalidExtensionState", "Extension with this name already registered".to_owned()));
    }
    let id = Uuid::new_v4().to_string();
    state.note(format!("extension registered {name} ({kind})"));
    state.extensions.push(Extension {
        id: id.clone(),
        name: name.to_owned(),
        kind,
        events,
        polled: false,
        ready: false,
        queue: VecDeque::new(),
        delivered: 0,
        init_error: None,
        exit_error: None,
    });
    Ok(id)
}

/// The extension that sent this request.
pub(super) fn identify(shared: &ApiState, headers: &HeaderMap) -> Result<String, Box<Response>> {
    let id = text(headers, IDENTIFIER);
    let refusal = if id.is_empty() {
        forbidden("Extension.MissingExtensionIdentifier", "Missing Lambda-Extension-Identifier header")
    } else if Uuid::parse_str(&id).is_err() {
        forbidden("Extension.InvalidExtensionIdentifier", "Invalid Lambda-Extension-Identifier")
    } else if shared.world.read(|state| state.extensions.iter().all(|it| it.id != id)) {
        forbidden("Extension.UnknownExtensionIdentifier", &format!("Unknown extension {id}"))
    } else {
        return Ok(id);
    };
    Err(Box::new(refusal))
}

fn report(shared: &ApiState, headers: &HeaderMap, what: &str, store: impl FnOnce(&mut Extension, String)) -> Response {
    let id = match identify(shared, headers) {
        Ok(id) => id,
        Err(refusal) => return *refusal,
    };
    let error = text(headers, "Lambda-Extension-Function-Error-Type");
    if error.is_empty() {
        return forbidden("Extension.MissingHeader", "Missing Lambda-Extension-Function-Error-Type header");
    }
    shared.world.update(|state| {
        let Some(extension) = find(state, &id) else { return };
        let event = format!("extension {what} {}: {error}", extension.name);
        store(extension, error);
        state.note(event);
    });
    accepted()
}

pub(super) fn find<'a>(state: &'a mut state::SimState, id: &str) -> Option<&'a mut Extension> {
    state.extensions.iter_mut().find(|it| it.id == id)
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

pub(super) fn forbidden(error_type: &str, message: &str) -> Response {
    failure(StatusCode::FORBIDDEN, error_type, message)
}

/// The INVOKE event that goes with `job`.
pub(crate) fn invoke_event(job: &Job) -> Value {
    json!({
        "eventType": "INVOKE",
        "deadlineMs": job.deadline_ms,
        "requestId": job.request_id,
        "invokedFunctionArn": job.arn,
        "tracing": {"type": "X-Amzn-Trace-Id", "value": job.trace_id},
    })
}

/// The SHUTDOWN event, for external extensions.
pub(crate) fn shutdown_event(reason: Reason, deadline_ms: u64) -> Value {
    json!({"eventType": "SHUTDOWN", "shutdownReason": reason.as_str(), "deadlineMs": deadline_ms})
}

const IDENTIFIER: &str = "Lambda-Extension-Identifier";
