//! Web Functions: a server that is waited for, and the requests that it gets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout, timeout_at};
use uuid::Uuid;

use super::{Sim, TIMED_OUT, ended, lost};
use crate::api::ApiState;
use crate::error::{Error, ErrorKind};
use crate::record::{INVOKE, Invocation, InvocationError, RESPONSE, Reason};
use crate::state::{SimState, World, millis};

/// Sends the requests, over connections that are kept open, as a load balancer does.
pub(crate) type Requests = Client<HttpConnector, Body>;

pub(crate) fn requests() -> Requests {
    Client::builder(TokioExecutor::new()).build_http()
}

/// A free address for the function. It could be taken by another until the function listens there; on Linux it has a host of its
/// own, too, so that nobody else's port is in its way.
pub(super) fn endpoint() -> io::Result<SocketAddr> {
    let [_, a, b, c, ..] = *Uuid::new_v4().as_bytes();
    let own = Ipv4Addr::new(127, a, b, c);
    let free = |host| TcpListener::bind((host, 0)).and_then(|listener| listener.local_addr());
    if cfg!(target_os = "linux") { free(own).or_else(|_| free(Ipv4Addr::LOCALHOST)) } else { free(Ipv4Addr::LOCALHOST) }
}

/// Init is over when the function accepts connections.
pub(crate) async fn until_it_listens(shared: Arc<ApiState>, endpoint: SocketAddr) {
    while TcpStream::connect(endpoint).await.is_err() {
        if shared.world.read(SimState::has_ended) {
            return;
        }
        // nobody is told when another process begins to listen
        sleep(LOOK_AGAIN).await;
    }
    shared.world.update(|state| {
        state.runtime.listens = true;
        state.note("function listens");
    });
}

impl Sim {
    /// Sends a request to a Web Function, and returns when its response is there as a whole.
    ///
    /// `method` is one of HTTP's, and `target` a path, with a query where there is one. The invocation's payload has the
    /// response, in the words of API Gateway: `statusCode`, `headers`, and `body` as text. It is `ok` when the response came and its
    /// status is below 500. More requests than [`Config::web_function`](crate::Config::web_function) allows wait for their turn.
    ///
    /// A request that takes longer than the function's timeout fails, and so does one whose connection breaks; the environment
    /// lives on, unless the function has ended. Once shutdown has begun no more are sent. SIGTERM follows when those in flight are
    /// answered, at the latest after 1 s; whoever is in flight then may still be answered.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] without [`Config::web_function`](crate::Config::web_function); [`ErrorKind::Start`] for a method or target that is none;
    /// [`ErrorKind::Ended`] when the environment has ended or is ending; init errors when init was not over yet.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection of the request. It is missing from the record then.
    pub async fn request(
        &self,
        method: &str,
        target: &str,
        body: impl Into<Vec<u8>> + Send,
    ) -> Result<Invocation, Error> {
        let Some(endpoint) = self.environment.endpoint else {
            let message = "only a Web Function has requests: use Config::web_function (--web)";
            return Err(Error::new(ErrorKind::Unsupported, message));
        };
        let no_request = |cause: String| {
            let message = format!("'{method} {target}' is no request: {cause}: write a method and a path, like GET /");
            Error::new(ErrorKind::Start, message)
        };
        let method: Method = method.parse().map_err(|error| no_request(format!("{error}")))?;
        if !target.starts_with('/') {
            return Err(no_request("the path does not begin with /".to_owned()));
        }
        let body = Body::from(Bytes::from(body.into()));
        let request = Request::builder().method(&method).uri(format!("http://{endpoint}{target}")).body(body);
        let request = request.map_err(|error| no_request(error.to_string()))?;
        self.ready().await?;
        let _turn = self.turn().await;
        if self.world().read(SimState::has_ended_by_itself) {
            // between requests: nobody has noticed yet
            self.environment.reset(Reason::Failure);
        }
        let begun = Instant::now();
        let request_id = Uuid::new_v4().to_string();
        let number = self.world().update(|state| {
            if state.has_ended() {
                return Err(ended());
            }
            state.invocations_begun += 1;
            // without the query: that may be a secret
            let path = target.split('?').next().unwrap_or_default();
            state.note(format!("{INVOKE}{} {method} {path}", state.invocations_begun));
            state.runtime.requests += 1;
            Ok(state.invocations_begun)
        })?;
        let _in_flight = InFlight(self.world());
        let limit = self.config().timeout;
        let answer = timeout_at((begun + limit).into(), whole(self.environment.requests.request(request)));
        let result = match answer.await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(cause)) => Err(self.why_unanswered(&cause).await),
            Err(_elapsed) => Err(error(TIMED_OUT, format!("Task timed out after {:.2} seconds", limit.as_secs_f64()))),
        };
        let (outcome, payload, error) = match result {
            Ok(response) if response.status < 500 => (response.status.to_string(), response.value, None),
            Ok(response) => {
                let status = response.status.to_string();
                let failed = error(FAILED, format!("the function answered with status {status}"));
                (status, response.value, Some(failed))
            }
            Err(error) => (error.error_type.clone(), Value::Null, Some(error)),
        };
        let invocation = Invocation {
            request_id,
            ok: error.is_none(),
            ms: millis(begun.elapsed()),
            first_byte_ms: None,
            payload,
            error,
        };
        let ended_by_itself = self.world().update(|state| {
            state.note(format!("{RESPONSE}{number} {outcome}"));
            state.invocations.push(invocation.clone());
            state.has_ended_by_itself()
        });
        if ended_by_itself {
            self.environment.reset(Reason::Failure);
        }
        Ok(invocation)
    }

    /// The function has closed the connection: because it has ended, or for a reason of its own.
    async fn why_unanswered(&self, cause: &str) -> InvocationError {
        // the end of a process is seen after that of its connections
        match timeout(EXIT_SEEN, self.world().wait(lost)).await {
            Ok((error_type, message)) => error(error_type, message),
            Err(_elapsed) => error(NO_RESPONSE, format!("the function did not answer: {cause}")),
        }
    }
}

/// A request that counts as under way until this is dropped.
struct InFlight<'a>(&'a World);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.update(|state| state.runtime.requests -= 1);
    }
}

struct Whole {
    status: u16,
    value: Value,
}

async fn whole(
    response: impl Future<Output = Result<Response<hyper::body::Incoming>, hyper_util::client::legacy::Error>>,
) -> Result<Whole, String> {
    let (head, body) = response.await.map_err(|error| chain(&error))?.into_parts();
    let body = body.collect().await.map_err(|error| chain(&error))?.to_bytes();
    let headers: Map<String, Value> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let status = head.status.as_u16();
    Ok(Whole {
        status,
        value: json!({"statusCode": status, "headers": headers, "body": String::from_utf8_lossy(&body)}),
    })
}

/// The error and its causes: what a connection died of is in the last one.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn error(error_type: &str, message: String) -> InvocationError {
    InvocationError { error_type: error_type.to_owned(), message }
}

/// Ours: what Lambda calls these is not documented.
const FAILED: &str = "Function.ServerError";
const NO_RESPONSE: &str = "Function.NoResponse";
const EXIT_SEEN: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
