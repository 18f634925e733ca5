//! Servers that the cases of one process share.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;
use winddown_core::BoxError;

/// How long a server may take to see that a client is gone.
const MOMENT: Duration = Duration::from_secs(5);

/// A server that is started by the first case that wants it, and used by all; for a `static` of a harness.
#[derive(Debug)]
pub struct Shared<S>(Mutex<Option<Arc<S>>>);

impl<S: Send + Sync> Shared<S> {
    /// Not started yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::const_new(None))
    }

    /// The server, which `start` starts if nobody has.
    ///
    /// # Errors
    /// When it does not start; the next caller tries again.
    pub async fn get<F>(&self, start: impl FnOnce() -> F + Send) -> Result<Arc<S>, BoxError>
    where
        F: Future<Output = Result<S, BoxError>> + Send,
    {
        // Held while it starts: whoever comes meanwhile wants the same.
        let mut server = self.0.lock().await;
        if let Some(server) = server.as_ref() {
            return Ok(Arc::clone(server));
        }
        let started = Arc::new(start().await?);
        *server = Some(Arc::clone(&started));
        Ok(started)
    }

    /// Takes it out, to be ended; `None` if nobody has started it, or a case that failed still holds it.
    pub async fn take(&self) -> Option<S> {
        self.0.lock().await.take().and_then(Arc::into_inner)
    }
}

impl<S: Send + Sync> Default for Shared<S> {
    fn default() -> Self {
        Self::new()
    }
}

/// How many sessions are left when those that were cut have had a moment to end.
///
/// # Errors
/// The one of `sessions`.
pub async fn gone<F: Future<Output = Result<usize, BoxError>>>(sessions: impl Fn() -> F) -> Result<usize, BoxError> {
    gone_within(MOMENT, sessions).await
}

/// How many are left when there are none, or after this time: the server has no event for that.
pub(crate) async fn gone_within<F: Future<Output = Result<usize, BoxError>>>(
    limit: Duration,
    sessions: impl Fn() -> F,
) -> Result<usize, BoxError> {
    let began = Instant::now();
    loop {
        let left = sessions().await?;
        if left == 0 || began.elapsed() > limit {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
