//! Connections that came back and wait for being reset: they are in the book, so that a drain gets them at once.

use std::sync::Arc;

use deadpool::managed::Object;

use super::{Key, Phase, Sessions};
use crate::{connect::Connection, wrapped::LentConn};

/// A connection that has yet to be reset.
pub(crate) enum Untidy {
    /// Of our own pool.
    Own(Connection),
    /// Of a pool of the driver's, lent by the guard.
    Lent(LentConn),
}

impl Untidy {
    /// It is not reset any more: its session is to end.
    pub(super) fn let_go(self) {
        match self {
            Self::Own(connection) => drop(Object::take(connection)),
            Self::Lent(lent) => drop(lent),
        }
    }
}

/// The place of such a connection in the book. It goes with the task that should reset it: to its pool, if nobody has begun.
pub(crate) struct NeedsReset {
    sessions: Arc<Sessions>,
    key: Key,
}

impl Sessions {
    /// Keeps a connection until somebody resets it. Where a drain has begun it is let go.
    pub(crate) fn until_reset(self: &Arc<Self>, key: Key, untidy: Untidy) -> Option<NeedsReset> {
        {
            let mut state = self.state();
            if state.phase == Phase::Open {
                state.needs_reset.insert(key, untidy);
                return Some(NeedsReset { sessions: Arc::clone(self), key });
            }
        }
        untidy.let_go();
        None
    }
}

impl NeedsReset {
    /// The connection, for whoever begins to reset it; none where a drain has taken it.
    pub(crate) fn take(&self) -> Option<Untidy> {
        self.sessions.state().needs_reset.remove(&self.key)
    }
}

impl Drop for NeedsReset {
    fn drop(&mut self) {
        drop(self.take());
    }
}
