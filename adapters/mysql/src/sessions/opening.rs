//! A session that is being opened, until it is in the book; and what its server is asked then of those that are there long.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use mysql_async::Opts;
use winddown_net::Address;

use super::{Asked, Entry, Key, Phase, Sessions};
use crate::origin::{Origin, Relation};

/// How many sessions that the driver has dropped may be in the book before somebody asks which of them are over.
const MANY: usize = 100;

/// A session that is being opened.
pub(crate) struct BeingOpened {
    began: Instant,
    sessions: Arc<Sessions>,
    has_entered: AtomicBool,
}

impl Sessions {
    /// A session is about to be opened; `None` when it is too late for that.
    pub(crate) fn begin_opening(self: &Arc<Self>) -> Option<BeingOpened> {
        if self.is_open() {
            self.spare.keep();
        }
        let mut state = self.state();
        if state.phase == Phase::Over {
            return None;
        }
        state.opening += 1;
        Some(BeingOpened { began: Instant::now(), sessions: Arc::clone(self), has_entered: AtomicBool::new(false) })
    }

    /// The sessions that the driver has dropped from this server, if they are so many that it should be asked which of
    /// them are over.
    pub(crate) fn many_left(&self, server: usize) -> Option<Vec<Asked>> {
        let mut left = self.on(server);
        left.retain(|asked| asked.has_left);
        (left.len() >= MANY).then_some(left)
    }

    /// These are over.
    pub(crate) fn forget(&self, keys: impl IntoIterator<Item = Key>) {
        let mut state = self.state();
        for key in keys {
            state.open.remove(&key);
        }
    }

    /// Nobody can tell whether these, which the driver has dropped, are over: those that were opened last stay in the book.
    pub(crate) fn forget_oldest(&self, mut keys: Vec<Key>) {
        keys.sort_unstable_by_key(|key| key.entered);
        let surplus = keys.len().saturating_sub(MANY / 2);
        self.forget(keys.into_iter().take(surplus));
    }
}

impl BeingOpened {
    /// Whether its session is in the book.
    pub(crate) fn has_entered(&self) -> bool {
        // Relaxed: only who enters it asks.
        self.has_entered.load(Ordering::Relaxed)
    }

    /// Enters the session in the book.
    pub(crate) fn enter(&self, address: &Address, opts: &Opts, id: u32) -> Key {
        let mut state = self.sessions.state();
        let server = state.server(address, opts);
        server.was_opened_with(opts);
        let key = state.enter(server.index, id, Entry::new());
        self.has_entered.store(true, Ordering::Relaxed);
        key
    }

    /// The session is open, and its server has said which one it is, if it does.
    pub(crate) fn is_open(&self, key: Key, origin: Option<Origin>) {
        self.sessions.latency.saw(self.began.elapsed());
        let mut state = self.sessions.state();
        state.is_full = false;
        let Some(origin) = origin.map(Arc::new) else { return };
        // Those from before the server was started again.
        state.open.retain(|other, entry| {
            let is_over = other.server == key.server && origin.relation(entry.origin.as_deref()) == Relation::Over;
            !(is_over && entry.has_left())
        });
        if let Some(entry) = state.open.get_mut(&key) {
            entry.origin = Some(origin);
        }
    }
}

impl Drop for BeingOpened {
    fn drop(&mut self) {
        self.sessions.state().opening -= 1;
        self.sessions.changed.notify_one();
    }
}
