//! The function's main loop.

use std::{fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use lambda_runtime::{Diagnostic, IntoFunctionResponse, LambdaEvent, Runtime, layers::TracingLayer};
use serde::{Deserialize, Serialize};
use tokio_stream::Stream;
use tower::{Service, layer::layer_fn};
use winddown_core::{BoxError, Error, ErrorKind, Lifecycle};

use crate::{
    around::Around,
    environment,
    extension::{self, Registered, Responded},
    flush::{Flush, Flusher},
    init_error,
    invocations::{InFlight, Invocations},
    limit::{self, Phase},
    snapshot::Snapshot,
};

/// Runs a Lambda function whose resources are initialised once and drained on SIGTERM: the last line of `main`.
///
/// 1. Registers an internal extension without events, so that Lambda sends SIGTERM at all. Where the Extensions API is
///    missing or refuses, it says so once and goes on.
/// 2. Beside that, initialises every resource of the lifecycle; an error is posted to `/runtime/init/error` and returned. A
///    second before Lambda would end a function that is not initialised, that is an error too, which names what it waits for.
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
/// - [`ErrorKind::Config`] outside Lambda, or for a lifecycle that receives no signals, with what to do;
/// - what [`Lifecycle::init_within`] returns, for the time that Lambda gives;
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

/// The same for several invocations at once, as Lambda Managed Instances have them: `AWS_LAMBDA_MAX_CONCURRENCY` says how
/// many. Where that is not set, or 1, they come one by one, so one program runs on both.
///
/// The handler is cloned for each place an invocation can have; guards and what else it shares are cheap to clone. On
/// SIGTERM no further invocation is asked for; all that are in flight may end, and their responses are posted, as far as the
/// budget goes; then the resources are drained. An invocation that the platform hands out all the same is refused by the
/// guards, and answered with that error.
///
/// ```no_run
/// use winddown_core::{Error, Lifecycle, memory::Memory};
/// use winddown_lambda::{LambdaEvent, lambda_runtime, run_concurrent, service_fn};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Error> {
///     let lifecycle = Lifecycle::detect()?;
///     let db = lifecycle.guard(Memory::new("db"));
///     let handler = service_fn(move |_event: LambdaEvent<serde_json::Value>| {
///         let db = db.clone();
///         async move {
///             let _session = db.get().await?;
///             Ok::<_, lambda_runtime::Error>("done")
///         }
///     });
///     run_concurrent(lifecycle, handler).await
/// }
/// ```
///
/// # Errors
/// Those of [`run`].
pub async fn run_concurrent<A, F, R, B, S, D, E>(lifecycle: Lifecycle, handler: F) -> Result<(), Error>
where
    F: Service<LambdaEvent<A>, Response = R> + Clone + Send + 'static,
    F::Future: Future<Output = Result<R, F::Error>> + Send + 'static,
    F::Error: Into<Diagnostic> + fmt::Debug + Send,
    A: for<'de> Deserialize<'de> + Send + 'static,
    R: IntoFunctionResponse<B, S> + Send + 'static,
    B: Serialize + Send + 'static,
    S: Stream<Item = Result<D, E>> + Unpin + Send + 'static,
    D: Into<Bytes> + Send + 'static,
    E: Into<BoxError> + Send + fmt::Debug + 'static,
{
    Function::new(lifecycle).run_concurrent(handler).await
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
        let Some(started) = self.start(false).await? else { return Ok(()) };
        let around = &started.invocations;
        let handler = Around::new(handler, around.clone(), Invocations::handle::<A, F, R, B, S>);
        let layer = layer_fn(|service| Around::new(service, around.clone(), Invocations::answer));
        let runtime = Runtime::new(handler).layer(TracingLayer::new()).layer(layer);
        // Boxed: with the handler's own inside, the future of a `main` would be nested deeper than the compiler follows.
        let runtime = Box::pin(started.with_snapshot(runtime).run());
        started.until_stopped(runtime).await
    }

    /// Runs it with several invocations at once where the platform wants that, see [`run_concurrent`].
    ///
    /// # Errors
    /// Those of [`run`].
    pub async fn run_concurrent<A, F, R, B, S, D, E>(self, handler: F) -> Result<(), Error>
    where
        F: Service<LambdaEvent<A>, Response = R> + Clone + Send + 'static,
        F::Future: Future<Output = Result<R, F::Error>> + Send + 'static,
        F::Error: Into<Diagnostic> + fmt::Debug + Send,
        A: for<'de> Deserialize<'de> + Send + 'static,
        R: IntoFunctionResponse<B, S> + Send + 'static,
        B: Serialize + Send + 'static,
        S: Stream<Item = Result<D, E>> + Unpin + Send + 'static,
        D: Into<Bytes> + Send + 'static,
        E: Into<BoxError> + Send + fmt::Debug + 'static,
    {
        let Some(started) = self.start(true).await? else { return Ok(()) };
        let around = &started.invocations;
        let handler = Around::new(handler, around.clone(), Invocations::handle::<A, F, R, B, S>);
        let layer = layer_fn(|service| Around::new(service, around.clone(), Invocations::answer));
        let runtime = Runtime::new(handler).layer(TracingLayer::new()).layer(layer);
        let runtime = Box::pin(started.with_snapshot(runtime).run_concurrent());
        started.until_stopped(runtime).await
    }

    /// Registers the extension and initialises the resources; nothing if the stop came meanwhile, and was heeded.
    async fn start(self, concurrent: bool) -> Result<Option<Started>, Error> {
        environment::check()?;
        let Self { lifecycle, flush, flush_within } = self;
        if let Err(error) = lifecycle.check_stoppable() {
            init_error::post(&error).await;
            return Err(error);
        }
        let flusher = Flusher::new(lifecycle.clone(), flush_within);
        let responded = Responded::default();

        // Where invocations overlap there is no freeze to hold back.
        let by_extension = flush == Flush::AfterResponse && !(concurrent && environment::is_concurrent());
        let after_response = by_extension.then(|| (flusher.clone(), responded.clone()));
        // Beside each other, but a failed init is not kept waiting by an Extensions API that does not answer.
        let mut register = pin!(extension::register(after_response));
        let mut init = pin!(limit::init(&lifecycle, Phase::Init));
        let (initialised, registered) = tokio::select! {
            initialised = &mut init => (initialised, None),
            registered = &mut register => (init.await, Some(registered)),
        };
        let extension = match initialised {
            Ok(()) => match registered {
                Some(registered) => registered,
                None => tokio::select! {
                    registered = register => registered,
                    // Too late to be told of anything.
                    () = lifecycle.draining() => Registered::Signal,
                },
            },
            // The stop came during init, and was heeded.
            Err(error) if lifecycle.wait_if_stopped(&error).await => {
                lifecycle.finish(Ok(())).await?;
                return Ok(None);
            }
            Err(error) => {
                init_error::post(&error).await;
                return Err(error);
            }
        };
        let extension_flushes = matches!(extension, Registered::Invocations(_));
        let in_flight = InFlight::default();
        let snapshot = environment::is_snapshot_taken().then(|| Snapshot::of(&lifecycle));
        let lifecycle = lifecycle.clone();
        let invocations = Invocations { lifecycle, flush, flusher, responded, extension_flushes, in_flight, snapshot };
        Ok(Some(Started { invocations, extension }))
    }
}

/// A function whose resources are initialised.
struct Started {
    invocations: Invocations,
    extension: Registered,
}

impl Started {
    /// Has the runtime take the lifecycle through the snapshot, where there is one.
    fn with_snapshot<S>(&self, runtime: Runtime<S>) -> Runtime<S> {
        match &self.invocations.snapshot {
            Some(snapshot) => runtime.register_snapstart_resource(Arc::clone(snapshot) as _),
            None => runtime,
        }
    }

    /// Lets the runtime take invocations until draining begins, and waits for the end of the drain.
    async fn until_stopped(self, runtime: impl Future<Output = Result<(), BoxError>> + Unpin) -> Result<(), Error> {
        let Self { invocations, mut extension } = self;
        let failed = |error: BoxError| match error.downcast() {
            // Of a life after a restore, and posted.
            Ok(error) => *error,
            Err(error) => Error::new(ErrorKind::Work, "the Runtime API failed").with_source(error),
        };
        let result = tokio::select! {
            biased;
            () = invocations.stopped() => Ok(()),
            result = runtime => result.map_err(failed),
            error = extension.failed() => Err(error),
        };
        // Where an API failed nobody has begun it.
        invocations.lifecycle.begin_drain();
        invocations.lifecycle.finish(result).await.map(drop)
    }
}
