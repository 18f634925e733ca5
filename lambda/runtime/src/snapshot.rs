//! SnapStart: a function without sessions is what the snapshot is taken of, and each that is restored from it opens its own.

use std::sync::Arc;

use lambda_runtime::{BoxFuture, SnapStartResource};
use tokio::sync::watch;
use winddown_core::{BoxError, Error, Lifecycle};

use crate::{
    limit::{self, Phase},
    warn,
};

/// Drains before the snapshot, and begins another life after the restore.
#[derive(Debug)]
pub(crate) struct Snapshot {
    lifecycle: Lifecycle,
    restored: watch::Sender<bool>,
}

impl Snapshot {
    pub(crate) fn of(lifecycle: &Lifecycle) -> Arc<Self> {
        Arc::new(Self { lifecycle: lifecycle.clone(), restored: watch::Sender::new(false) })
    }

    /// Ready when the life that takes invocations has begun, or none will.
    pub(crate) async fn restored(&self) {
        // The sender is in `self`, so it cannot be closed.
        let _ = self.restored.subscribe().wait_for(|restored| *restored).await;
    }

    async fn drain(&self) {
        let report = self.lifecycle.drain().await;
        if !report.is_clean() {
            // No reason not to start: what is left of it is of a life that is over.
            warn("not everything was drained before the snapshot", &"see the report");
        }
    }

    async fn live_again(&self) -> Result<(), Error> {
        let began = match self.lifecycle.restart() {
            Ok(()) => limit::init(&self.lifecycle, Phase::Restore).await,
            Err(error) => Err(error),
        };
        match began {
            // Told to stop, and that is heeded.
            Err(error) if self.lifecycle.wait_if_stopped(&error).await => {}
            began => began?,
        }
        self.restored.send_replace(true);
        Ok(())
    }
}

impl SnapStartResource for Snapshot {
    fn before_snapshot(&self) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async {
            self.drain().await;
            Ok(())
        })
    }

    fn after_restore(&self) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async { self.live_again().await.map_err(BoxError::from) })
    }
}
