//! The server of both APIs: routes, and the connection loop on loopback.
//!
//! Paths, status codes and error bodies are those of AWS: "Using the Lambda runtime API", "Lambda Extensions API", and of
//! `internal/lambda/rapi` in aws/aws-lambda-runtime-interface-emulator where the documentation is silent.

mod extensions;
mod runtime;
mod telemetry;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::config::Config;
use crate::state::World;

pub(crate) use extensions::{invoke_event, shutdown_event};

/// What the handlers need.
#[derive(Debug)]
pub(crate) struct ApiState {
    pub(crate) world: World,
    pub(crate) config: Config,
}

/// Serves both APIs until dropped. Dropping it closes every connection.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<ApiState>) {
    let service = TowerToHyperService::new(router(shared));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // finished connections are let go of as they end, not at the end of the run
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            // no file descriptor left, most likely: try again when something may have been closed
            sleep(ACCEPT_RETRY).await;
            continue;
        };
        let service = service.clone();
        connections.spawn(async move {
            // as the Go server of the real API writes them: clients that compare header names by case exist
            let mut server = http1::Builder::new();
            server.title_case_headers(true);
            // an error is a client that went away, which its process's exit will tell
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn router(shared: Arc<ApiState>) -> Router {
    Router::new()
        .route("/2018-06-01/ping", get(|| async { "pong" }))
        .route("/2018-06-01/runtime/invocation/next", get(runtime::next))
        .route("/2018-06-01/runtime/invocation/{id}/response", post(runtime::response))
        .route("/2018-06-01/runtime/invocation/{id}/error", post(runtime::error))
        .route("/2018-06-01/runtime/init/error", post(runtime::init_error))
        .route("/2018-06-01/runtime/restore/next", get(runtime::restore_next))
        .route("/2018-06-01/runtime/restore/error", post(runtime::restore_error))
        .route("/2020-01-01/extension/register", post(extensions::register))
        .route("/2020-01-01/extension/event/next", get(extensions::next))
        .route("/2020-01-01/extension/init/error", post(extensions::init_error))
        .route("/2020-01-01/extension/exit/error", post(extensions::exit_error))
        // accepted and not done, so that extensions which subscribe during init go on, as in AWS's own emulator
        .route("/2020-08-15/logs", put(logs))
        .route("/2022-07-01/telemetry", put(telemetry::subscribe))
        // the response's size is limited where it is read, with Lambda's own error
        .layer(DefaultBodyLimit::disable())
        .with_state(shared)
}

async fn logs() -> Response {
    failure(StatusCode::ACCEPTED, "Logs.NotSupported", "Logs API is not supported")
}

/// 202 with the body both APIs use.
fn accepted() -> Response {
    (StatusCode::ACCEPTED, axum::Json(json!({"status": "OK"}))).into_response()
}

/// An error body as both APIs use it.
fn failure(status: StatusCode, error_type: &str, message: &str) -> Response {
    (status, axum::Json(json!({"errorMessage": message, "errorType": error_type}))).into_response()
}

const ACCEPT_RETRY: Duration = Duration::from_millis(10);
