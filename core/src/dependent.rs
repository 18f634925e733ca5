//! On whose behalf code runs: a drain waits for a dependent, so guards still hand out to it.

use std::future::Future;

use crate::gate::Caller;

tokio::task_local! {
    static DEPENDENT: ();
}

/// Runs a future as a dependent: while the lifecycle drains, guards still hand out to it, until their own drain begins.
///
/// Core does this for what it drains before a resource: buffers, hooks, and work in [`Tracked::scope`](crate::Tracked::scope). An adapter
/// needs it for tasks that it spawns itself and that use a guard it [depends on](crate::Resource::depends_on), such as a
/// flush. The order of the drains is not changed by it: a resource waits for its dependents, not for this future.
///
/// # Cancel safety
/// That of the future.
pub async fn with_dependent_access<F: Future>(future: F) -> F::Output {
    DEPENDENT.scope((), future).await
}

/// Whether a drain waits for what runs here, as far as that can be told: see [`with_dependent_access`].
pub(crate) fn is_dependent() -> bool {
    DEPENDENT.try_with(|()| ()).is_ok()
}

/// Calls this as a dependent: one poll of what [`with_dependent_access`] is for.
pub(crate) fn in_dependent<T>(call: impl FnOnce() -> T) -> T {
    DEPENDENT.sync_scope((), call)
}

pub(crate) fn caller() -> Caller {
    if is_dependent() { Caller::Dependent } else { Caller::Application }
}
