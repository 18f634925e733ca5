//! Somebody else on the same server, whom no drain may touch (S7).

use std::{fmt, future::Future, pin::Pin};

use tokio::task::JoinHandle;
use winddown_core::BoxError;

/// Another client of the server under test, with the user of the resource: one session is inside of a statement, and waits there
/// for what another one has. Whoever ends the statement, or one of the sessions, is found out.
///
/// It lives on the runtime that it was made on.
#[must_use = "ask whether it is untouched"]
pub struct Stranger {
    waits: JoinHandle<Result<(), BoxError>>,
    lets_go: Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>,
}

impl Stranger {
    /// `waits` is the statement, which begins now and succeeds only when `lets_go` was run: on a session that has been idle
    /// since, and whose state it proves to be what it was. Both close their sessions.
    pub fn new<W, L>(waits: W, lets_go: L) -> Self
    where
        W: Future<Output = Result<(), BoxError>> + Send + 'static,
        L: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Self { waits: tokio::spawn(waits), lets_go: Box::pin(lets_go) }
    }

    /// Ends it.
    ///
    /// # Errors
    /// When somebody has done something to one of its sessions, and what that one was told.
    pub async fn untouched(self) -> Result<(), BoxError> {
        let Self { waits, lets_go } = self;
        if waits.is_finished() {
            let why = waits.await?.err().map_or_else(|| "it succeeded".into(), |error| error.to_string());
            return Err(format!("a stranger's statement has ended: {why}").into());
        }
        lets_go.await.map_err(|error| format!("a stranger's idle session: {error}"))?;
        waits.await?.map_err(|error| format!("a stranger's statement: {error}").into())
    }
}

impl fmt::Debug for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stranger").field("waits", &self.waits).finish_non_exhaustive()
    }
}
