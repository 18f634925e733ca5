//! Work that a drain waits for, and that is handed out to meanwhile.

use std::{fmt, future::Future};

use crate::{dependent::with_dependent_access, node::Slot, ticket::Ticket, work::TrackedWork};

/// Work that drain waits for: a request, a job, an invocation. Made by [`Lifecycle::track`](crate::Lifecycle::track).
///
/// Tracked work depends on every resource, so it is drained first: no resource says goodbye while it runs, or before
/// [its share of the budget](crate::Builder::work_share) is used up. Dropping this ends it.
#[must_use = "the work counts as done when this is dropped"]
pub struct Tracked {
    ticket: Ticket<Slot<TrackedWork>>,
}

impl Tracked {
    pub(crate) fn new(ticket: Ticket<Slot<TrackedWork>>) -> Self {
        Self { ticket }
    }

    /// Runs a future as the tracked work: guards hand out to it also while the lifecycle drains, until it ends or its
    /// share of the budget does.
    ///
    /// # Cancel safety
    /// That of the future; the work is counted as done when this is dropped.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        let output = with_dependent_access(future).await;
        drop(self);
        output
    }
}

impl fmt::Debug for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").field("key", &self.ticket).finish()
    }
}
