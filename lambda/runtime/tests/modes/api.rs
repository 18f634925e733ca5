//! A Runtime API and an Extensions API of the tests' own: they hand out what a case wants, and keep what the function says.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use winddown_testkit::child::{Child, Ended};

/// What does not come by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// So late may a busy machine end a process that has to be gone at an instant.
pub(crate) const LATE: Duration = Duration::from_secs(5);

/// A budget that no machine uses up.
const AMPLE_MS: &str = "60000";

#[derive(Debug)]
pub(crate) struct Api {
    address: SocketAddr,
    world: Arc<watch::Sender<World>>,
    server: JoinHandle<()>,
}

#[derive(Debug, Default)]
pub(crate) struct World {
    events: Vec<(usize, Value)>,
    refuses_extensions: bool,
    /// The function waits for its restore.
    at_snapshot: bool,
    restored: bool,
    /// What was posted, in the order in which it came.
    pub(crate) posted: Vec<Posted>,
}

#[derive(Debug, Clone)]
pub(crate) struct Posted {
    /// `5/response`, `5/error`, `init/error`, `restore/error`.
    pub(crate) what: String,
    pub(crate) body: String,
    pub(crate) is_streamed: bool,
}

type Shared = State<Arc<watch::Sender<World>>>;

impl Api {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let world = Arc::new(watch::Sender::new(World::default()));
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/{outcome}", post(outcome))
            .route("/2018-06-01/runtime/init/error", post(failed))
            .route("/2018-06-01/runtime/restore/error", post(failed))
            .route("/2018-06-01/runtime/restore/next", get(restore))
            .route("/2020-01-01/extension/register", post(register))
            .route("/2020-01-01/extension/event/next", get(std::future::pending::<StatusCode>))
            .with_state(Arc::clone(&world));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, world, server }
    }

    /// Starts the program of this name as the function, with time for everything unless the variables say otherwise: what it
    /// does by itself, it does on any machine.
    pub(crate) fn function(&self, program: &str, variables: &[(&str, &str)]) -> Child {
        let ample = [("WINDDOWN_BUDGET_MS", AMPLE_MS), ("WINDDOWN_INIT_LIMIT_MS", AMPLE_MS)];
        self.function_within_lambdas_budget(program, &[&ample, variables].concat())
    }

    /// The same with the budget that is Lambda's, for what holds of it always: the process is gone.
    pub(crate) fn function_within_lambdas_budget(&self, program: &str, variables: &[(&str, &str)]) -> Child {
        let address = self.address.to_string();
        let mut all = vec![
            ("AWS_LAMBDA_RUNTIME_API", address.as_str()),
            ("AWS_LAMBDA_FUNCTION_NAME", "function"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
            // Nobody reads standard error before the end, so it must fit into the pipe.
            ("RUST_BACKTRACE", "0"),
        ];
        all.extend(variables);
        Child::start_with(program, &all)
    }

    /// Hands out an invocation, whose id is its number.
    pub(crate) fn invoke(&self, id: usize, event: Value) {
        self.world.send_modify(|world| world.events.push((id, event)));
    }

    /// Ready when the function is ready for its snapshot.
    pub(crate) async fn at_snapshot(&self) {
        self.wait("the snapshot", |world| world.at_snapshot.then_some(())).await;
    }

    /// Answers the function that waits for its restore.
    pub(crate) fn restore(&self) {
        self.world.send_modify(|world| world.restored = true);
    }

    /// Lets no extension register.
    pub(crate) fn refuse_extensions(&self) {
        self.world.send_modify(|world| world.refuses_extensions = true);
    }

    pub(crate) async fn wait<T>(&self, what: &str, mut found: impl FnMut(&World) -> Option<T>) -> T {
        let mut world = self.world.subscribe();
        let waited = timeout(PATIENCE, async {
            loop {
                if let Some(found) = found(&world.borrow_and_update()) {
                    return found;
                }
                world.changed().await.unwrap();
            }
        });
        match waited.await {
            Ok(found) => found,
            Err(_) => panic!("{what} did not come: {:?}", self.world.borrow()),
        }
    }

    /// What was posted as this.
    pub(crate) async fn posted(&self, what: &str) -> Posted {
        self.wait(what, |world| world.posted.iter().find(|posted| posted.what == what).cloned()).await
    }

    /// How many invocations nobody has asked for.
    pub(crate) fn left(&self) -> usize {
        self.world.borrow().events.len()
    }

    /// All that was posted.
    pub(crate) fn all(&self) -> Vec<String> {
        self.world.borrow().posted.iter().map(|posted| posted.what.clone()).collect()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Waits until so many handlers have said that they have begun.
pub(crate) async fn begun(function: Child, count: usize) -> Child {
    said(function, "begun\n", count).await
}

/// Waits until the function has said this so many times, and nothing else.
pub(crate) async fn said(mut function: Child, line: &'static str, count: usize) -> Child {
    let waiting = tokio::task::spawn_blocking(move || {
        for _ in 0..count {
            assert_eq!(function.line(), line);
        }
        function
    });
    waiting.await.unwrap()
}

/// Ends it with SIGTERM.
pub(crate) async fn terminate(function: Child) -> Ended {
    end(function.terminate()).await
}

pub(crate) async fn end(function: Child) -> Ended {
    tokio::task::spawn_blocking(|| function.end()).await.unwrap()
}

async fn next(State(world): Shared) -> Response {
    let mut changes = world.subscribe();
    loop {
        let mut event = None;
        world.send_if_modified(|world| {
            if !world.events.is_empty() {
                event = Some(world.events.remove(0));
            }
            event.is_some()
        });
        if let Some((id, event)) = event {
            let headers = [
                ("lambda-runtime-aws-request-id", id.to_string()),
                // In the year 2100.
                ("lambda-runtime-deadline-ms", "4102444800000".to_owned()),
                (
                    "lambda-runtime-invoked-function-arn",
                    "arn:aws:lambda:us-east-1:123456789012:function:function".to_owned(),
                ),
            ];
            return (headers, event.to_string()).into_response();
        }
        changes.wait_for(|world| !world.events.is_empty()).await.unwrap();
    }
}

async fn outcome(
    State(world): Shared,
    Path((id, outcome)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    keep(&world, format!("{id}/{outcome}"), &headers, &body)
}

async fn failed(State(world): Shared, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    keep(&world, uri.path().trim_start_matches("/2018-06-01/runtime/").to_owned(), &headers, &body)
}

async fn restore(State(world): Shared) -> StatusCode {
    world.send_modify(|world| world.at_snapshot = true);
    world.subscribe().wait_for(|world| world.restored).await.unwrap();
    StatusCode::OK
}

fn keep(world: &watch::Sender<World>, what: String, headers: &HeaderMap, body: &[u8]) -> StatusCode {
    let is_streamed = headers.get("lambda-runtime-function-response-mode").is_some_and(|mode| mode == "streaming");
    let body = String::from_utf8(body.to_vec()).unwrap();
    world.send_modify(|world| world.posted.push(Posted { what, body, is_streamed }));
    StatusCode::ACCEPTED
}

async fn register(State(world): Shared) -> Response {
    if world.borrow().refuses_extensions {
        return StatusCode::FORBIDDEN.into_response();
    }
    let headers = [("lambda-extension-identifier", "e0000000-0000-0000-0000-000000000000")];
    let body = r#"{"functionName":"function","functionVersion":"$LATEST","handler":"bootstrap"}"#;
    (headers, body).into_response()
}
