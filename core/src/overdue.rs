//! Says of a checkout that it has been out for a long time.

use std::{panic::Location, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use crate::ticket::Gated;

/// The warning that is due when a checkout has been out for so long; dropped before, it is never said.
///
/// A task of its own with one timer, which goes with the checkout: while nothing is out there is none (C2).
#[derive(Debug)]
pub(crate) struct Overdue(AbortHandle);

impl Overdue {
    /// Begins to wait on the runtime of whoever checks out; none where there is no runtime, or the moment never comes.
    pub(crate) fn after<G: Gated + 'static>(
        limit: Duration,
        holder: &Arc<G>,
        site: &'static Location<'static>,
    ) -> Option<Self> {
        let runtime = Handle::try_current().ok()?;
        // None where it never comes.
        let due = Instant::now().checked_add(limit)?;
        let holder = Arc::clone(holder);
        let waiting = runtime.spawn(async move {
            sleep_until(due).await;
            tracing::warn!(resource = holder.name(), %site, ?limit, "a checkout has been out for longer than it should");
        });
        Some(Self(waiting.abort_handle()))
    }
}

impl Drop for Overdue {
    fn drop(&mut self) {
        self.0.abort();
    }
}
