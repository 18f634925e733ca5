//! When what is buffered is flushed, and how long an invocation is kept waiting for that.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::{Duration, SystemTime},
};

use tokio::time::sleep;
use winddown_core::Lifecycle;

use crate::warn;

/// When a function flushes what its resources hold: buffered records, spans that wait for their export.
///
/// A Lambda environment is frozen when an invocation is over, for minutes or for good, and a frozen process writes
/// nothing. So this decides when a record that a handler has pushed is durable:
///
/// | | durable | the caller waits for it | if the environment is lost without SIGTERM |
/// | --- | --- | --- | --- |
/// | [`BeforeResponse`](Self::BeforeResponse) | before the response is sent | yes | nothing that was answered for is lost |
/// | [`AfterResponse`](Self::AfterResponse) | after the response, before the environment is frozen | no; the next invocation of this environment does, and it is billed | what the last invocation pushed, if it happens during the flush |
/// | [`OnDrain`](Self::OnDrain) | when a buffer writes by itself, for its size or for its age while an invocation runs; at SIGTERM at the latest | no | what was pushed since: of any number of invocations |
///
/// Lambda loses an environment without SIGTERM when the function runs into its timeout and uses up its budget, is out of
/// memory, or crashes. On Managed Instances nothing is ever frozen, so that buffers keep their own age under each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Flush {
    /// At the end of each invocation, before its response is sent: who gets the response knows that the records are
    /// where they belong. Also where the handler fails or panics. A streamed response begins after the flush, and what is
    /// pushed while it streams waits for the next one.
    #[default]
    BeforeResponse,
    /// At the end of each invocation, after its response is sent. The extension that [`run`](crate::run) registers then
    /// asks for invocations as well, and Lambda freezes the environment only when it asks for the next one. Where Lambda
    /// does not let it, as on Managed Instances, the function flushes before it asks for its next event, which comes to
    /// the same.
    AfterResponse,
    /// Not at the end of an invocation: what is buffered is carried over to the next one, and to the drain.
    OnDrain,
}

/// Flushes for at most so long.
#[derive(Debug, Clone)]
pub(crate) struct Flusher {
    lifecycle: Lifecycle,
    within: Duration,
}

impl Flusher {
    pub(crate) fn new(lifecycle: Lifecycle, within: Duration) -> Self {
        Self { lifecycle, within }
    }

    /// Flushes at the end of an invocation, whose deadline is in milliseconds since 1970. Where that takes too long, or
    /// fails, it is said and the function goes on.
    pub(crate) async fn flush(&self, deadline_ms: u64) {
        // Half of what is left: the response has to be sent too.
        let within = self.within.min(until(deadline_ms) / 2);
        // The drain flushes by itself, and needs the time.
        let share = self.lifecycle.budget().usable() / 4;
        let late = async {
            tokio::select! {
                () = sleep(within) => within,
                () = async { self.lifecycle.draining().await; sleep(share).await } => share,
            }
        };
        tokio::select! {
            biased;
            // Where nothing has to be flushed this is ready at once, and no timer begins.
            flushed = self.lifecycle.flush() => if let Err(error) = flushed {
                warn("not everything could be flushed at the end of an invocation", &error);
            },
            waited = late => warn(
                "what is buffered could not be flushed at the end of an invocation, and waits for the next one or the drain",
                &format!("not over after {waited:?}"),
            ),
        }
    }
}

fn until(deadline_ms: u64) -> Duration {
    let deadline = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(deadline_ms));
    // None left where it is over, or no clock can say it.
    deadline.and_then(|deadline| deadline.duration_since(SystemTime::now()).ok()).unwrap_or_default()
}

/// The future's output, or its panic. It is dropped, not polled again, after it has panicked.
pub(crate) async fn catch<O>(future: impl Future<Output = O>) -> Result<O, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}
