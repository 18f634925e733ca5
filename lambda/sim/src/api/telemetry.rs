//! The Telemetry API: subscription. What is delivered, and how, is in `crate::telemetry`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::extensions::{find, forbidden, identify};
use super::{ApiState, failure};
use crate::state::Init;
use crate::telemetry::{Category, Listener, deliver};

/// `PUT /telemetry`, during init only.
pub(super) async fn subscribe(State(shared): State<Arc<ApiState>>, headers: HeaderMap, body: Bytes) -> Response {
    let id = match identify(&shared, &headers) {
        Ok(id) => id,
        Err(refusal) => return *refusal,
    };
    let request = serde_json::from_slice::<Subscription>(&body).map_err(|error| error.to_string());
    let (types, listener) = match request.and_then(|it| it.check(shared.config.is_managed())) {
        Ok(checked) => checked,
        Err(message) => return failure(StatusCode::BAD_REQUEST, "ValidationError", &message),
    };
    let messages = shared.world.update(|state| {
        if state.init_done || state.init() == Some(Init::Done) {
            return None;
        }
        let name = find(state, &id)?.name.clone();
        state.note(format!("telemetry subscription {name}"));
        Some(state.telemetry.subscribe(&name, &types))
    });
    let Some(messages) = messages else {
        return forbidden("Telemetry.SubscriptionClosed", "Telemetry API subscription is closed");
    };
    tokio::spawn(deliver(Arc::clone(&shared), messages, listener));
    (StatusCode::OK, "\"OK\"").into_response()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Subscription {
    schema_version: String,
    types: Vec<Category>,
    destination: Destination,
    #[serde(default)]
    buffering: RequestedBuffering,
}

#[derive(Deserialize)]
struct Destination {
    protocol: String,
    #[serde(rename = "URI", default)]
    uri: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestedBuffering {
    max_items: Option<u64>,
    max_bytes: Option<u64>,
    timeout_ms: Option<u64>,
}

impl Subscription {
    fn check(self, managed: bool) -> Result<(Vec<Category>, Listener), String> {
        let versions = if managed { &SCHEMA_VERSIONS[2..] } else { &SCHEMA_VERSIONS };
        if !versions.contains(&self.schema_version.as_str()) {
            return Err(format!("schemaVersion: must be one of {versions:?}"));
        }
        if self.types.is_empty() {
            return Err("types: at least one of platform, function, extension".to_owned());
        }
        let within = |name: &str, value: Option<u64>, default: u64, low: u64, high: u64| match value {
            Some(value) if !(low..=high).contains(&value) => Err(format!("buffering.{name}: must be {low} to {high}")),
            value => Ok(value.unwrap_or(default)),
        };
        let RequestedBuffering { max_items, max_bytes, timeout_ms } = self.buffering;
        let max_items = within("maxItems", max_items, 10_000, 1_000, 10_000)?;
        let max_bytes = within("maxBytes", max_bytes, 262_144, 262_144, 1_048_576)?;
        let timeout = Duration::from_millis(within("timeoutMs", timeout_ms, 1_000, 25, 30_000)?);
        let (port, path) = self.destination.check()?;
        Ok((self.types, Listener { port, path, max_items, max_bytes, timeout }))
    }
}

impl Destination {
    /// Port and path.
    fn check(self) -> Result<(u16, String), String> {
        if self.protocol != "HTTP" {
            return Err("destination.protocol: must be HTTP".to_owned());
        }
        let uri: Uri = self.uri.parse().map_err(|error| format!("destination.URI: {error}"))?;
        if !uri.host().is_some_and(|host| HOSTS.contains(&host)) {
            return Err(format!("destination.URI: the host must be {}", HOSTS[0]));
        }
        let port = uri.port_u16().unwrap_or(80);
        if port == RESERVED_PORT {
            return Err(format!("destination.URI: port {RESERVED_PORT} is reserved"));
        }
        Ok((port, uri.path().to_owned()))
    }
}

/// AWS: "Lambda Telemetry API"; Managed Instances take the last only (AWS's own emulator, `telemetry-subscription-schema.json`).
const SCHEMA_VERSIONS: [&str; 3] = ["2022-07-01", "2022-12-13", "2025-01-29"];
const HOSTS: [&str; 2] = ["sandbox.localdomain", "sandbox"];
/// AWS: "Lambda Telemetry API": the Runtime API's own.
const RESERVED_PORT: u16 = 9001;
