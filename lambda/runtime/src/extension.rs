//! The internal extension without which Lambda sends no SIGTERM.
//!
//! A function that has no extension is killed without a word (AWS Lambda Developer Guide, "Lambda execution environment
//! lifecycle", shutdown phase: 0 ms without extensions, 500 ms with an internal one). An internal extension that
//! subscribes to no events is enough, and the only kind that Managed Instances accept.
//!
//! One that subscribes to INVOKE also holds the freeze back: an invocation is over when the function and every such
//! extension have asked for their next event (the same, invoke phase). That is the time for a flush after the response.

use std::{
    convert::Infallible,
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use lambda_extension::{Extension, ExtensionError, LambdaEvent, NextEvent};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tower::service_fn;
use winddown_core::{BoxError, Error, ErrorKind};

use crate::{flush::Flusher, others, warn};

/// Unique in the function: registering a name twice is refused.
const NAME: &str = "_winddown";

/// An Extensions API that does not answer must not use up init's 10 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(10);

/// What the function has of its extension.
#[derive(Debug)]
pub(crate) enum Registered {
    /// The signal, at best.
    Signal,
    /// The signal, and a task that flushes after each response.
    Invocations(JoinHandle<Result<(), BoxError>>),
}

impl Registered {
    /// Ready when Lambda can no longer be told that a flush is over: each invocation would last until its timeout.
    pub(crate) async fn failed(&mut self) -> Error {
        let error: BoxError = match self {
            Self::Signal => pending().await,
            Self::Invocations(task) => match task.await {
                Ok(Err(error)) => error,
                Ok(Ok(())) => "its poll ended".into(),
                Err(error) => error.into(),
            },
        };
        Error::new(ErrorKind::Work, "the Extensions API failed").with_source(error)
    }
}

/// The request whose response was posted last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Responded(Arc<watch::Sender<String>>);

impl Responded {
    pub(crate) fn to(&self, request_id: String) {
        self.0.send_replace(request_id);
    }

    async fn wait_for(&self, request_id: &str) {
        // The sender is in `self`, so it cannot be closed.
        let _ = self.0.subscribe().wait_for(|last| last == request_id).await;
    }
}

/// Registers the extension and polls it from then on; if asked to, it flushes after each response. Must be over before
/// the runtime asks for its first invocation, which closes registration.
///
/// Where that fails the function works as before, and is told of its end as little as before: that is said once.
pub(crate) async fn register(after_response: Option<(Flusher, Responded)>) -> Registered {
    let consequence =
        "no extension could be registered, so Lambda will end this function without SIGTERM and nothing is drained";
    // Before there is a connection of winddown's own.
    let another = others::poll_the_api().await;
    let registered = async {
        if let Some((flusher, responded)) = after_response {
            match listened_to(|| for_invocations(flusher.clone(), responded.clone())).await {
                Ok(registered) => return Ok(registered),
                Err(error) => tracing::debug!(%error, "the extension is not told of invocations"),
            }
        }
        listened_to(for_the_signal).await
    };
    match timeout(PATIENCE, registered).await {
        Ok(Ok(registered)) => {
            if another {
                others::look().await;
            }
            registered
        }
        Ok(Err(error)) => {
            warn(consequence, &error);
            Registered::Signal
        }
        Err(_) => {
            warn(consequence, &format_args!("the Extensions API did not answer within {PATIENCE:?}"));
            Registered::Signal
        }
    }
}

/// Asks again while nobody listens: AWS's own emulator starts the function before its API.
async fn listened_to<F>(register: impl Fn() -> F + Send) -> Result<Registered, BoxError>
where
    F: Future<Output = Result<Registered, BoxError>> + Send,
{
    loop {
        match register().await {
            Err(error) if !error.is::<ExtensionError>() => {
                tracing::debug!(%error, "the Extensions API cannot be reached");
                sleep(PAUSE).await;
            }
            answered => return answered,
        }
    }
}

async fn for_invocations(flusher: Flusher, responded: Responded) -> Result<Registered, BoxError> {
    let flush = service_fn(move |event: LambdaEvent| {
        let (flusher, responded) = (flusher.clone(), responded.clone());
        async move {
            // The only event it has asked for.
            if let NextEvent::Invoke(invocation) = event.next {
                // The event may come before the function has its own. A handler that never ends is ended by its timeout.
                responded.wait_for(&invocation.request_id).await;
                flusher.flush(invocation.deadline_ms).await;
            }
            Ok::<_, Infallible>(())
        }
    });
    let extension = Extension::new().with_extension_name(NAME).with_events(&["INVOKE"]).with_events_processor(flush);
    let registered = extension.register().await?;
    // In a task of its own: a runtime with several threads flushes while the function asks for its next event.
    Ok(Registered::Invocations(tokio::spawn(registered.run())))
}

async fn for_the_signal() -> Result<Registered, BoxError> {
    without_events(NAME).await?;
    Ok(Registered::Signal)
}

/// Registers an extension that is told of nothing.
pub(crate) async fn without_events(name: &str) -> Result<(), BoxError> {
    let registered = Extension::new().with_extension_name(name).with_events(&[]).register().await?;
    // Init ends only when every registered extension polls. The poll is never answered, as there are no events: it waits
    // in the socket and costs nothing.
    tokio::spawn(async move {
        if let Err(error) = registered.run().await {
            tracing::debug!(%error, "the extension's poll ended");
        }
    });
    Ok(())
}
