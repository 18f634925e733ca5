//! What is done around each invocation, whether they come one by one or several at once.

use std::{
    future::{Future, pending},
    panic::resume_unwind,
    sync::Arc,
};

use lambda_runtime::{FunctionResponse, IntoFunctionResponse, LambdaEvent, LambdaInvocation, StreamResponse};
use tokio::sync::watch;
use tower::Service;
use winddown_core::{Lifecycle, State, Tracked, TrackedBody, adapter::with_dependent_access};

use crate::{
    extension::Responded,
    flush::{Flush, Flusher, catch},
    snapshot::Snapshot,
};

tokio::task_local! {
    /// The invocation that is handled here: its streamed response belongs to it too.
    static INVOCATION: Option<Arc<Tracked>>;
}

/// What all invocations of a function have in common.
#[derive(Debug, Clone)]
pub(crate) struct Invocations {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) flush: Flush,
    pub(crate) flusher: Flusher,
    pub(crate) responded: Responded,
    /// The extension flushes after the response.
    pub(crate) extension_flushes: bool,
    pub(crate) in_flight: InFlight,
    /// There where one is taken: invocations are then of the life that begins after it.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
}

impl Invocations {
    /// The handler: what it has buffered is flushed before its response is sent, if that is the policy. A streamed response
    /// belongs to the invocation until its end, although `lambda_runtime` polls it in a task of its own.
    pub(crate) fn handle<A, H, R, B, S>(
        &self,
        handler: &mut H,
        event: LambdaEvent<A>,
    ) -> impl Future<Output = Result<Answer<B, S>, H::Error>> + use<A, H, R, B, S>
    where
        H: Service<LambdaEvent<A>, Response = R>,
        R: IntoFunctionResponse<B, S>,
    {
        let flusher = (self.flush == Flush::BeforeResponse).then(|| self.flusher.clone());
        let deadline = event.context.deadline;
        let handling = handler.call(event);
        async move {
            let handled = catch(handling).await;
            if let Some(flusher) = flusher {
                flusher.flush(deadline).await;
            }
            // `lambda_runtime` makes a response of a panic too.
            let response = handled.unwrap_or_else(|panic| resume_unwind(panic))?;
            Ok(match response.into_response() {
                FunctionResponse::BufferedResponse(response) => FunctionResponse::BufferedResponse(response),
                FunctionResponse::StreamingResponse(StreamResponse { metadata_prelude, stream }) => {
                    // None where the invocation came when draining had begun.
                    let tracked = INVOCATION.try_with(Clone::clone).ok().flatten();
                    let stream = TrackedBody::new(stream, tracked);
                    FunctionResponse::StreamingResponse(StreamResponse { metadata_prelude, stream })
                }
            })
        }
    }

    /// The whole invocation, from the event to the end of the post of its response: tracked, counted, and the last one if
    /// draining has begun.
    pub(crate) fn answer<S: Service<LambdaInvocation>>(
        &self,
        service: &mut S,
        invocation: LambdaInvocation,
    ) -> impl Future<Output = Result<S::Response, S::Error>> + use<S> {
        let Self { lifecycle, flush, flusher, responded, extension_flushes, in_flight, snapshot: _ } = self.clone();
        let counted = in_flight.count();
        let (deadline, request_id) = (invocation.context.deadline, invocation.context.request_id.clone());
        // An invocation that arrives when draining has begun runs untracked: guards refuse it, and its error is posted.
        let tracked = lifecycle.track_as(request_id.as_str()).ok().map(Arc::new);
        let answering = INVOCATION.scope(tracked.clone(), service.call(invocation));
        async move {
            let result = match tracked {
                Some(tracked) => {
                    let result = with_dependent_access(answering).await;
                    // Its stream may hold it on.
                    drop(tracked);
                    result
                }
                None => answering.await,
            };
            drop(counted);
            match flush {
                Flush::AfterResponse if extension_flushes => responded.to(request_id),
                Flush::AfterResponse => flusher.flush(deadline).await,
                _ => {}
            }
            if lifecycle.state() >= State::Draining {
                // `lambda_runtime` would ask for the next invocation now.
                pending::<()>().await;
            }
            result
        }
    }

    /// Ready when no invocation will be taken or answered any more: draining has begun, and none is in flight, or it is
    /// too late for those that are.
    pub(crate) async fn stopped(&self) {
        if let Some(snapshot) = &self.snapshot {
            snapshot.restored().await;
        }
        self.lifecycle.draining().await;
        tokio::select! {
            () = self.in_flight.none() => {}
            _ = self.lifecycle.drained() => {}
        }
    }
}

/// A response whose stream, if it is one, belongs to its invocation.
pub(crate) type Answer<B, S> = FunctionResponse<B, TrackedBody<S>>;

/// How many invocations are between their event and the end of the post of their response.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<watch::Sender<usize>>);

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
