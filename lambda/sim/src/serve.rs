//! The front door: HTTP in, invocations of the environments behind it, and back.

mod events;
mod fleet;
mod invoke;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http_body_util::channel::{Channel, Sender};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use winddown_sim::{ErrorKind, Invocation, Part};

use crate::cli::Serve;
use crate::{Failure, Interrupts, listen_for, progress};
use fleet::{Fleet, Refused};

/// Serves until it is told to stop, and ends every environment then.
pub(crate) async fn serve(options: &Serve) -> Result<(), Failure> {
    let cannot_listen = |error: io::Error| {
        Failure::usage(format!("cannot listen on {}: {error}: choose another one with --listen", options.listen))
    };
    let config = options.config().map_err(Failure::usage)?;
    // before the first process, so that no signal can leave one behind
    let mut interrupts = Interrupts::without_hangup()?;
    let mut hangup = listen_for(SignalKind::hangup())?;
    let listener = TcpListener::bind(&options.listen).await.map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    let fleet = Arc::new(Fleet::new(config, options));
    // a program that cannot be started is known before anybody asks for it
    tokio::select! {
        warm = fleet.warm_up() => warm.map_err(|error| Failure::usage(error.to_string()))?,
        // what has been started is killed when this is dropped
        () = interrupts.next() => return Err(Failure::interrupted()),
    }
    progress(&format!("listening on http://{address}, and as the endpoint of the Lambda API"));

    let served = axum::serve(listener, router(&fleet).into_make_service_with_connect_info::<SocketAddr>());
    let served = served.with_graceful_shutdown({
        let fleet = Arc::clone(&fleet);
        async move { fleet.closed().await }
    });
    let mut serving = tokio::spawn(async move { served.await });
    loop {
        tokio::select! {
            () = interrupts.next() => break,
            _ = hangup.recv() => {
                progress("SIGHUP: every environment is replaced");
                fleet.recycle();
            }
            // it ends by itself only when it cannot accept
            ended = &mut serving => {
                let why = ended.map_or_else(|error| error.to_string(), |ended| format!("{ended:?}"));
                return Err(Failure::usage(format!("the listener has ended: {why}")));
            }
        }
    }
    progress("shutting down (once more to kill)");
    let ended = tokio::select! {
        ended = fleet.shut_down() => ended,
        // what is left is killed when the tasks that wait for it are dropped, at the end of the runtime
        () = interrupts.next() => return Err(Failure::interrupted()),
    };
    // no invocation is under way any more; what is still to be sent of the answers is a matter of a moment
    let _ = timeout(ANSWERS, serving).await;
    progress(&format!("{} of {} environments ended by themselves", ended.well, ended.all));
    if ended.well == ended.all {
        return Ok(());
    }
    Err(Failure::function("an environment did not end by itself: see above".to_owned()))
}

fn router(fleet: &Arc<Fleet>) -> Router {
    // the paths of the Lambda API, as the SDKs have them
    Router::new()
        .route("/2015-03-31/functions/{name}/invocations", post(invoke::invoke))
        .route("/2021-11-15/functions/{name}/response-streaming-invocations", post(invoke::invoke_streaming))
        .fallback(function_url)
        // its own limit is Lambda's, which the simulator knows
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(fleet))
}

/// Any other request: what a Function URL, or an HTTP API of API Gateway, makes of it.
async fn function_url(
    State(fleet): State<Arc<Fleet>>,
    from: axum::extract::ConnectInfo<SocketAddr>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let event = events::of_request(&method, &uri, &headers, &body, from.0.ip());
    let mut call = Call::begin(&fleet, event.to_string().into_bytes());
    let Some(content_type) = call.streamed().await else {
        return match call.whole().await {
            Ok((invocation, bytes)) if invocation.ok => events::response(&bytes),
            Ok(_) => message(StatusCode::BAD_GATEWAY, "Internal Server Error"),
            Err(error) => refused(&error),
        };
    };
    if content_type.as_deref() == Some(events::WITH_PRELUDE) {
        return match call.prelude().await {
            Some((head, first)) => events::streamed(&head, call.body(first)),
            None => message(StatusCode::BAD_GATEWAY, "Internal Server Error"),
        };
    }
    let content_type = content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
    ([("content-type", content_type)], call.body(Vec::new())).into_response()
}

/// How long a caller may take to read the rest of its answer when everything else is over.
const ANSWERS: Duration = Duration::from_secs(2);

/// One invocation, and what of its answer has come.
pub(crate) struct Call {
    parts: mpsc::UnboundedReceiver<Piece>,
    /// What has come already, and belongs to the answer.
    first: Option<Vec<u8>>,
    outcome: JoinHandle<Result<Invocation, Refused>>,
}

#[derive(Debug)]
enum Piece {
    Head { streamed: bool, content_type: Option<String> },
    Data(Vec<u8>),
}

impl Call {
    /// Hands the event to an environment, in a task of its own: a caller that hangs up takes nothing back.
    pub(crate) fn begin(fleet: &Arc<Fleet>, event: Vec<u8>) -> Self {
        let (sender, parts) = mpsc::unbounded_channel();
        let fleet = Arc::clone(fleet);
        let outcome = tokio::spawn(async move {
            let on_part = move |part: Part<'_>| {
                let piece = match part {
                    Part::Head { streamed, content_type, .. } => {
                        Piece::Head { streamed, content_type: content_type.map(str::to_owned) }
                    }
                    Part::Data(data) => Piece::Data(data.to_owned()),
                    _ => return,
                };
                // a caller that has hung up needs no more
                let _ = sender.send(piece);
            };
            fleet.invoke(event, on_part).await
        });
        Self { parts, first: None, outcome }
    }

    /// Waits for the beginning of the answer. What a streamed one is called; nothing where it comes as a whole, or not at all.
    pub(crate) async fn streamed(&mut self) -> Option<Option<String>> {
        match self.parts.recv().await {
            Some(Piece::Head { streamed: true, content_type }) => Some(content_type),
            // the document of an error has no head
            Some(Piece::Data(data)) => {
                self.first = Some(data);
                None
            }
            _ => None,
        }
    }

    /// Some bytes of it, or nothing at its end.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            if let Piece::Data(data) = self.parts.recv().await? {
                return Some(data);
            }
        }
    }

    /// How it has ended.
    pub(crate) async fn outcome(self) -> Result<Invocation, Refused> {
        // it is not aborted, and a panic is this command's own
        self.outcome.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// The whole answer.
    pub(crate) async fn whole(mut self) -> Result<(Invocation, Vec<u8>), Refused> {
        let mut bytes = Vec::new();
        while let Some(data) = self.next().await {
            bytes.extend(data);
        }
        Ok((self.outcome().await?, bytes))
    }

    /// What comes before eight zeros, and what has come after them.
    async fn prelude(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut bytes = Vec::new();
        loop {
            if let Some(at) = bytes.windows(events::SEPARATOR.len()).position(|window| window == events::SEPARATOR) {
                let rest = bytes.split_off(at);
                return Some((bytes, rest[events::SEPARATOR.len()..].to_vec()));
            }
            bytes.extend(self.next().await?);
        }
    }

    /// What comes, as it comes, after `first`. An error of the function breaks it off.
    fn body(mut self, first: Vec<u8>) -> Body {
        let (mut sender, body): (Sender<Bytes, io::Error>, _) = Channel::new(1);
        tokio::spawn(async move {
            let mut next = Some(first);
            while let Some(data) = next {
                if !data.is_empty() && sender.send_data(data.into()).await.is_err() {
                    return;
                }
                next = self.next().await;
            }
            if !self.outcome().await.is_ok_and(|invocation| invocation.ok) {
                sender.abort(io::Error::other("the function failed"));
            }
        });
        Body::new(body)
    }
}

/// An answer of the front door itself.
fn message(status: StatusCode, message: &str) -> Response {
    (status, axum::Json(json!({"message": message}))).into_response()
}

/// Why there is no invocation.
fn refused(error: &Refused) -> Response {
    let status = match error {
        Refused::Sim(error) if error.kind() == ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    message(status, &error.to_string())
}
