//! The function's main loop.

use std::{
    fmt,
    future::{Future, pending},
    panic::resume_unwind,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use lambda_runtime::{Context, Diagnostic, IntoFunctionResponse, LambdaEvent, Runtime, layers::TracingLayer};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_stream::Stream;
use tower::{Service, layer::layer_fn};
use winddown_core::{BoxError, Error, ErrorKind, Lifecycle, State};

use crate::{
    around::Around,
    environment,
    extension::{self, Registered, Responded},
    flush::{Flush, Flusher, catch},
    init_error,
};

/// Runs a Lambda function whose resources are initialised once and drained on SIGTERM: the last line of `main`.
///
/// 1. Registers an internal extension without events, so that Lambda sends SIGTERM at all. Where the Extensions API is
///    missing or refuses, it says so once and goes on.
/// 2. Beside that, initialises every resource of the lifecycle; an error is posted to `/runtime/init/error` and returned.
/// 3. Runs the real `lambda_runtime` with the handler. Each invocation is [tracked](Lifecycle::track) until its response
///    is posted, and may check out of guards until then. When the handler is done and before its response is sent, what
///    is buffered is [flushed](Lifecycle::flush), for 1 s at most; [`Function`] sets that otherwise.
/// 4. On SIGTERM takes no further invocation, lets the one that is in flight end as far as the budget goes, drains, and
///    returns. The lifecycle writes the report: one JSON line in the function's log.
///
/// ```no_run
/// use winddown_core::{Error, Lifecycle, memory::Memory};
/// use winddown_lambda::{LambdaEvent, lambda_runtime, run, service_fn};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Error> {
///     let lifecycle = Lifecycle::detect()?;
///     let db = lifecycle.guard(Memory::new("db"));
///     let handler = service_fn(async |_event: LambdaEvent<serde_json::Value>| {
///         let _session = db.get().await?;
///         Ok::<_, lambda_runtime::Error>("done")
///     });
///     run(lifecycle, handler).await
/// }
/// ```
///
/// # Errors
/// - [`ErrorKind::Config`] outside Lambda, with what to do;
/// - what [`Lifecycle::init`] returns;
/// - [`ErrorKind::Work`] when the Runtime API fails, or the Extensions API where it is needed after each response;
/// - [`ErrorKind::Incomplete`] when not everything was drained.
pub async fn run<A, F, R, B, S, D, E>(lifecycle: Lifecycle, handler: F) -> Result<(), Error>
where
    F: Service<LambdaEvent<A>, Response = R>,
    F::Future: Future<Output = Result<R, F::Error>>,
    F::Error: Into<Diagnostic> + fmt::Debug,
    A: for<'de> Deserialize<'de>,
    R: IntoFunctionResponse<B, S>,
    B: Serialize,
    S: Stream<Item = Result<D, E>> + Unpin + Send + 'static,
    D: Into<Bytes> + Send,
    E: Into<BoxError> + Send + fmt::Debug,
{
    Function::new(lifecycle).run(handler).await
}

/// A flush over a network takes some milliseconds; a server that has not answered by then is away.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// A Lambda function, to set what [`run`] decides by itself.
///
/// ```no_run
/// use std::time::Duration;
///
/// use winddown_core::{Error, Lifecycle};
/// use winddown_lambda::{Flush, Function, LambdaEvent, lambda_runtime, service_fn};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Error> {
///     let lifecycle = Lifecycle::detect()?;
///     let handler =
///         service_fn(async |_event: LambdaEvent<serde_json::Value>| Ok::<_, lambda_runtime::Error>("done"));
///     Function::new(lifecycle)
///         .flush(Flush::AfterResponse)
///         .flush_within(Duration::from_millis(200))
///         .run(handler)
///         .await
/// }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `run`"]
pub struct Function {
    lifecycle: Lifecycle,
    flush: Flush,
    flush_within: Duration,
}

impl Function {
    /// A function with these resources.
    pub fn new(lifecycle: Lifecycle) -> Self {
        Self { lifecycle, flush: Flush::default(), flush_within: FLUSH_WITHIN }
    }

    /// When what is buffered is flushed.
    ///
    /// Defaults to [`Flush::BeforeResponse`].
    pub fn flush(mut self, flush: Flush) -> Self {
        self.flush = flush;
        self
    }

    /// How long an invocation waits for its flush, where the server is away or slow. Then a warning is logged and the
    /// function goes on; what is buffered stays in the buffer. Less where it would be more than half of the time that the
    /// invocation has left, or when draining has begun.
    ///
    /// Defaults to 1 s.
    pub fn flush_within(mut self, time: Duration) -> Self {
        self.flush_within = time;
        self
    }

    /// Runs it, see [`run`].
    ///
    /// # Errors
    /// Those of [`run`].
    pub async fn run<A, F, R, B, S, D, E>(self, handler: F) -> Result<(), Error>
    where
        F: Service<LambdaEvent<A>, Response = R>,
        F::Future: Future<Output = Result<R, F::Error>>,
        F::Error: Into<Diagnostic> + fmt::Debug,
        A: for<'de> Deserialize<'de>,
        R: IntoFunctionResponse<B, S>,
        B: Serialize,
        S: Stream<Item = Result<D, E>> + Unpin + Send + 'static,
        D: Into<Bytes> + Send,
        E: Into<BoxError> + Send + fmt::Debug,
    {
        environment::check()?;
        let Self { lifecycle, flush, flush_within } = self;
        let flusher = Flusher::new(lifecycle.clone(), flush_within);
        let responded = Responded::default();

        // Beside each other, but a failed init is not kept waiting by an Extensions API that does not answer.
        let after_response = (flush == Flush::AfterResponse).then(|| (flusher.clone(), responded.clone()));
        let mut register = pin!(extension::register(after_response));
        let mut init = pin!(lifecycle.init());
        let (initialised, registered) = tokio::select! {
            initialised = &mut init => (initialised, None),
            registered = &mut register => (init.await, Some(registered)),
        };
        let mut extension = match initialised {
            Ok(()) => match registered {
                Some(registered) => registered,
                None => tokio::select! {
                    registered = register => registered,
                    // Too late to be told of anything.
                    () = lifecycle.draining() => Registered::Signal,
                },
            },
            // The stop came during init, and was heeded.
            Err(error) if lifecycle.was_stopped(&error).await => return lifecycle.ended(Ok(())).await.map(drop),
            Err(error) => {
                init_error::post(&error).await;
                return Err(error);
            }
        };
        let told = matches!(extension, Registered::Invocations(_));

        let handler = Around::new(handler, |context: &Context| {
            let (flusher, deadline) = (flusher.clone(), context.deadline);
            move |handling| async move {
                let handled = catch(handling).await;
                if flush == Flush::BeforeResponse {
                    flusher.flush(deadline).await;
                }
                // `lambda_runtime` makes a response of a panic too.
                handled.unwrap_or_else(|panic| resume_unwind(panic))
            }
        });
        let in_flight = InFlight::default();
        let track = layer_fn(|service| {
            Around::new(service, |context: &Context| {
                let (lifecycle, counted) = (lifecycle.clone(), in_flight.count());
                let (flusher, deadline) = (flusher.clone(), context.deadline);
                let (responded, request_id) = (responded.clone(), context.request_id.clone());
                // An invocation that arrives when draining has begun runs untracked: guards refuse it, and its error is
                // posted.
                let tracked = lifecycle.track();
                async move |invocation| {
                    let result = match tracked {
                        Ok(tracked) => tracked.scope(invocation).await,
                        Err(_) => invocation.await,
                    };
                    drop(counted);
                    match flush {
                        Flush::AfterResponse if told => responded.to(request_id),
                        Flush::AfterResponse => flusher.flush(deadline).await,
                        _ => {}
                    }
                    if lifecycle.state() >= State::Draining {
                        // `lambda_runtime` would ask for the next invocation now.
                        pending::<()>().await;
                    }
                    result
                }
            })
        });
        // Boxed: with the handler's own inside, the future of a `main` would be nested deeper than the compiler follows.
        let runtime = Box::pin(Runtime::new(handler).layer(TracingLayer::new()).layer(track).run());
        let result = tokio::select! {
            biased;
            () = stopped(&lifecycle, &in_flight) => Ok(()),
            result = runtime => result.map_err(|error| Error::new(ErrorKind::Work, "the Runtime API failed").with_source(error)),
            error = extension.failed() => Err(error),
        };
        // Where an API failed nobody has begun it.
        lifecycle.begin_drain();
        lifecycle.ended(result).await.map(drop)
    }
}

/// Ready when no invocation will be taken or answered any more: draining has begun, and none is in flight, or it is too
/// late for the one that is.
async fn stopped(lifecycle: &Lifecycle, in_flight: &InFlight) {
    lifecycle.draining().await;
    tokio::select! {
        () = in_flight.none() => {}
        _ = lifecycle.drained() => {}
    }
}

/// How many invocations are between their event and the end of the post of their response.
#[derive(Debug, Clone, Default)]
struct InFlight(Arc<watch::Sender<usize>>);

impl InFlight {
    fn count(&self) -> Counted {
        self.0.send_modify(|count| *count += 1);
        Counted(self.clone())
    }

    async fn none(&self) {
        // The sender is in `self`, so it cannot be closed.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

#[derive(Debug)]
struct Counted(InFlight);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
