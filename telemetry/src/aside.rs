//! Calls that block, and may never return, on a thread that nobody has to wait for.

use std::{future::Future, pin::pin, sync::Arc, thread};

use tokio::sync::{Mutex, oneshot};
use winddown_core::{Drain, Error, ErrorKind};

/// Runs one call at a time, each on a thread of its own: not on tokio's blocking threads, for which a runtime waits when
/// it ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Aside {
    /// Held by the call, and not by who waits for it: where one hangs, those that come after it wait in their futures,
    /// and no threads pile up.
    turn: Arc<Mutex<()>>,
}

impl Aside {
    /// # Cancel safety
    /// Cancel safe: a call that has begun goes on, one that has not is not made.
    ///
    /// # Errors
    /// Those of the call; [`ErrorKind::Panicked`] where it panicked, [`ErrorKind::Config`] where no thread can be started.
    pub(crate) async fn run(&self, call: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let (sender, answer) = oneshot::channel();
        let call = move || {
            let result = call();
            drop(turn);
            // Whoever waited may have gone.
            let _ = sender.send(result);
        };
        let no_thread = |error| Error::new(ErrorKind::Config, "cannot start a thread to flush on").with_source(error);
        thread::Builder::new().name("winddown-flush".into()).spawn(call).map_err(no_thread)?;
        answer.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Panicked, "the flush panicked")))
    }
}

/// Waits for the flush of a drain until the resource is left. When its time is nearly up the report is told why.
pub(crate) async fn watched(
    drain: &Drain,
    slow: &'static str,
    flush: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    let mut flush = pin!(flush);
    tokio::select! {
        biased;
        flushed = &mut flush => flushed,
        () = drain.cut() => {
            drain.note(&Error::new(ErrorKind::Timeout, slow));
            flush.await
        }
    }
}
