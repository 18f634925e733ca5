//! Connections that came back and are to be reset: a drain takes those at once that nobody has begun with, and the others are not
//! waited for any more.

use std::{mem, sync::Arc};

use deadpool::managed::Object;

use super::{Key, Phase, SessionTable, Sessions};
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

/// The place of such a connection in the book, until it was reset. It goes with the task that should do it: to its pool, if
/// nobody has begun.
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
                state.needs_reset.insert(key, Some(untidy));
                return Some(NeedsReset { sessions: Arc::clone(self), key });
            }
        }
        untidy.let_go();
        None
    }
}

impl SessionTable {
    /// A drain begins: nobody waits any more for those that are being reset. Those that nobody has begun with.
    pub(super) fn take_untidy(&mut self) -> Vec<Untidy> {
        let mut untidy = Vec::new();
        for (key, waits) in mem::take(&mut self.needs_reset) {
            match (waits, self.open.get_mut(&key)) {
                (Some(waits), _) => untidy.push(waits),
                (None, Some(entry)) => entry.is_not_waited_for(),
                (None, None) => {}
            }
        }
        untidy
    }
}

impl NeedsReset {
    /// The connection, for whoever begins to reset it, and keeps this meanwhile; none where a drain has taken it.
    pub(crate) fn take(&self) -> Option<Untidy> {
        self.sessions.state().needs_reset.get_mut(&self.key)?.take()
    }

    /// It was reset. Whether its pool is to have it again: not where a drain has begun.
    pub(crate) fn goes_back(self) -> bool {
        self.sessions.state().needs_reset.remove(&self.key).is_some()
    }
}

impl Drop for NeedsReset {
    fn drop(&mut self) {
        let untidy = self.sessions.state().needs_reset.remove(&self.key);
        drop(untidy);
    }
}
