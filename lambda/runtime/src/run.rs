//! The function's main loop.

use std::{
    fmt,
    future::{Future, pending},
    pin::pin,
    sync::Arc,
};

use bytes::Bytes;
use lambda_runtime::{Diagnostic, IntoFunctionResponse, LambdaEvent, Runtime, layers::TracingLayer};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_stream::Stream;
use tower::{Service, util::MapFutureLayer};
use winddown_core::{BoxError, Error, ErrorKind, Lifecycle, State};

use crate::{environment, extension, init_error};

/// Runs a Lambda function whose resources are initialised once and drained on SIGTERM: the last line of `main`.
///
/// 1. Registers an internal extension without events, so that Lambda sends SIGTERM at all. Where the Extensions API is
///    missing or refuses, it says so once and goes on.
/// 2. Beside that, initialises every resource of the lifecycle; an error is posted to `/runtime/init/error` and returned.
/// 3. Runs the real `lambda_runtime` with the handler. Each invocation is [tracked](Lifecycle::track) until its response
///    is posted, and may check out of guards until then.
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
/// - [`ErrorKind::Work`] when the Runtime API fails;
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
    environment::check()?;
    // Beside each other, but a failed init is not kept waiting by an Extensions API that does not answer.
    let mut register = pin!(extension::register());
    let mut init = pin!(lifecycle.init());
    let (initialised, registered) = tokio::select! {
        initialised = &mut init => (initialised, false),
        () = &mut register => (init.await, true),
    };
    match initialised {
        Ok(()) if registered => {}
        Ok(()) => tokio::select! {
            () = register => {}
            // Too late to be told of anything.
            () = lifecycle.draining() => {}
        },
        // The stop came during init, and was heeded.
        Err(error) if lifecycle.was_stopped(&error).await => return lifecycle.ended(Ok(())).await.map(drop),
        Err(error) => {
            init_error::post(&error).await;
            return Err(error);
        }
    }

    let in_flight = InFlight::default();
    let track = {
        let (lifecycle, in_flight) = (lifecycle.clone(), in_flight.clone());
        MapFutureLayer::new(move |invocation| {
            let (lifecycle, counted) = (lifecycle.clone(), in_flight.count());
            // An invocation that arrives when draining has begun runs untracked: guards refuse it, and its error is
            // posted.
            let tracked = lifecycle.track();
            async move {
                let result = match tracked {
                    Ok(tracked) => tracked.scope(invocation).await,
                    Err(_) => invocation.await,
                };
                drop(counted);
                if lifecycle.state() >= State::Draining {
                    // `lambda_runtime` would ask for the next invocation now.
                    pending::<()>().await;
                }
                result
            }
        })
    };
    let runtime = Runtime::new(handler).layer(TracingLayer::new()).layer(track);
    let result = tokio::select! {
        biased;
        () = stopped(&lifecycle, &in_flight) => Ok(()),
        result = runtime.run() => result.map_err(|error| Error::new(ErrorKind::Work, "the Runtime API failed").with_source(error)),
    };
    // Where the Runtime API failed nobody has begun it.
    lifecycle.begin_drain();
    lifecycle.ended(result).await.map(drop)
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
