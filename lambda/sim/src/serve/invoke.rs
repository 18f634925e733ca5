//! The calls of the Lambda API that invoke a function, so that the SDKs and the command line of AWS work.
//!
//! Paths, headers and status codes: AWS, "Lambda API reference", `Invoke` and `InvokeWithResponseStream`. Any function name is the
//! one function that there is.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::channel::{Channel, Sender};
use serde_json::{Value, json};
use winddown_sim::{ErrorKind, Invocation};

use super::Call;
use super::fleet::{Fleet, Refused};
use crate::progress;

/// `Invoke`: sync, async, or only to see whether it would be allowed.
pub(super) async fn invoke(State(fleet): State<Arc<Fleet>>, headers: HeaderMap, event: Bytes) -> Response {
    let kind = headers.get("x-amz-invocation-type").map_or(&b"RequestResponse"[..], |kind| kind.as_bytes());
    match kind {
        b"RequestResponse" => match Call::begin(&fleet, event.to_vec()).whole().await {
            Ok((invocation, answer)) => {
                let answer = if answer.is_empty() { document(&invocation) } else { answer };
                let mut response = (VERSION, answer).into_response();
                let headers = response.headers_mut();
                if !invocation.ok {
                    headers.insert("x-amz-function-error", UNHANDLED);
                }
                if let Ok(id) = invocation.request_id.parse() {
                    headers.insert("x-amzn-requestid", id);
                }
                response
            }
            Err(error) => refused(&error),
        },
        b"Event" => {
            let call = Call::begin(&fleet, event.to_vec());
            tokio::spawn(async move {
                if let Some(why) = failure(call.whole().await.map(|(invocation, _)| invocation)) {
                    progress(&format!("an asynchronous invocation failed: {why}"));
                }
            });
            StatusCode::ACCEPTED.into_response()
        }
        b"DryRun" => StatusCode::NO_CONTENT.into_response(),
        other => {
            let kind = String::from_utf8_lossy(other);
            let message = format!("no invocation type {kind}: RequestResponse, Event or DryRun");
            exception(StatusCode::BAD_REQUEST, "InvalidParameterValueException", &message)
        }
    }
}

/// `InvokeWithResponseStream`: the answer as it comes, in the messages of an event stream.
pub(super) async fn invoke_streaming(State(fleet): State<Arc<Fleet>>, event: Bytes) -> Response {
    let mut call = Call::begin(&fleet, event.to_vec());
    call.streamed().await;
    let (mut sender, body): (Sender<Bytes, io::Error>, _) = Channel::new(1);
    tokio::spawn(async move {
        while let Some(data) = call.next().await {
            if sender.send_data(chunk("PayloadChunk", "application/octet-stream", &data)).await.is_err() {
                return;
            }
        }
        let complete = match call.outcome().await {
            Ok(invocation) => match invocation.error {
                None => json!({}),
                Some(error) => json!({"ErrorCode": error.error_type, "ErrorDetails": error.message}),
            },
            Err(error) => json!({"ErrorCode": "ServiceException", "ErrorDetails": error.to_string()}),
        };
        // a caller that has hung up needs no end
        let _ = sender.send_data(chunk("InvokeComplete", "application/json", complete.to_string().as_bytes())).await;
    });
    let stream = [("content-type", "application/vnd.amazon.eventstream")];
    (VERSION, stream, Body::new(body)).into_response()
}

/// One message of an event stream: its length, that of its headers, and their checksum; the headers; the payload; the checksum of all
/// (AWS: "Amazon Transcribe", event stream encoding). The crate that has it brings versions of others that are of the past.
fn chunk(event: &str, content_type: &str, payload: &[u8]) -> Bytes {
    let mut headers = Vec::new();
    for (name, value) in [(":message-type", "event"), (":event-type", event), (":content-type", content_type)] {
        headers.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        headers.extend(name.as_bytes());
        // a string, with its length
        headers.push(7);
        headers.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        headers.extend(value.as_bytes());
    }
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    let mut message = Vec::with_capacity(headers.len() + payload.len() + 16);
    message.extend(length(headers.len() + payload.len() + 16));
    message.extend(length(headers.len()));
    message.extend(crc32fast::hash(&message).to_be_bytes());
    message.extend(headers);
    message.extend(payload);
    message.extend(crc32fast::hash(&message).to_be_bytes());
    message.into()
}

/// What is known of a failure where the function has said nothing.
fn document(invocation: &Invocation) -> Vec<u8> {
    let document = invocation
        .error
        .as_ref()
        .map_or(Value::Null, |error| json!({"errorType": error.error_type, "errorMessage": error.message}));
    document.to_string().into_bytes()
}

fn failure(outcome: Result<Invocation, Refused>) -> Option<String> {
    match outcome {
        Ok(invocation) => invocation.error.map(|error| format!("{}: {}", error.error_type, error.message)),
        Err(error) => Some(error.to_string()),
    }
}

fn refused(error: &Refused) -> Response {
    match error {
        Refused::Sim(cause) if cause.kind() == ErrorKind::TooLarge => {
            exception(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLargeException", &error.to_string())
        }
        _ => exception(StatusCode::SERVICE_UNAVAILABLE, "ServiceException", &error.to_string()),
    }
}

/// An error of the API itself, as the SDKs read it.
fn exception(status: StatusCode, name: &'static str, message: &str) -> Response {
    (status, [("x-amzn-errortype", name)], axum::Json(json!({"Type": "User", "Message": message}))).into_response()
}

const VERSION: [(&str, &str); 1] = [("x-amz-executed-version", "$LATEST")];
/// Lambda calls every error of a function so that is not one of its own runtime for Java.
const UNHANDLED: axum::http::HeaderValue = axum::http::HeaderValue::from_static("Unhandled");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_lengths_and_checksums() {
        let message = chunk("PayloadChunk", "application/octet-stream", b"hello");
        let number = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(number(0) as usize, message.len());
        assert_eq!(number(4) as usize, message.len() - 16 - b"hello".len());
        assert_eq!(number(8), crc32fast::hash(&message[..8]));
        assert_eq!(number(message.len() - 4), crc32fast::hash(&message[..message.len() - 4]));
        assert_eq!(&message[12..26], b"\x0d:message-type");
        assert!(message[..message.len() - 4].ends_with(b"hello"));
    }
}
