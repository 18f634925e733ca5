//! The book of sessions: which the server may list, who has their connections, and how each one ended.
//!
//! A session is in the book from when it is open until the server does not list it any more. The driver tells nobody of
//! the end of a connection, and where the future of a statement is dropped it forgets the session while the statement
//! runs on; so what stands here is settled by asking the server.

mod drain;
mod ending;
mod entry;
mod holders;
mod needs_reset;
mod opening;
mod server;
mod wanted;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use mysql_async::Conn;
use tokio::sync::{Notify, watch};
use winddown_core::{
    Error,
    adapter::{End, Ends, Latency, SpareDescriptors},
};

pub(crate) use crate::sessions::{
    drain::{News, Whereabouts},
    ending::{LEAVE_PATIENCE, read_out, say_goodbye},
    entry::{Asked, Key},
    needs_reset::Untidy,
    opening::BeingOpened,
    server::Server,
    wanted::{NoAnswer, Wanted},
};
use crate::{
    gauges::Gauges,
    sessions::{
        entry::{Entry, Standing},
        holders::{Holder, Unknown},
    },
};

/// All sessions of one pool.
pub(crate) struct Sessions {
    state: Mutex<SessionTable>,
    /// There is news for the drain.
    pub(crate) changed: Notify,
    /// A server was asked, or it was given up.
    pub(crate) answered: Notify,
    /// What the drain wants of those who watch the servers.
    wanted: watch::Sender<Wanted>,
    /// How long the servers take to answer.
    pub(crate) latency: Arc<Latency>,
    /// For the session that asks about the others, where the process has no descriptor left: the driver opens its socket by itself.
    pub(crate) spare: SpareDescriptors,
    /// Where the connections are in a pool of the driver's: it is that which says goodbye to what it has.
    driver: Option<Gauges>,
}

/// What that opens: two sockets for each half of its way, the one that it is reached at, and a file with certificates.
const ASKING: usize = 6;

/// What stands in the book.
#[derive(Default)]
struct SessionTable {
    phase: Phase,
    /// How many are being opened.
    opening: usize,
    /// Counts the sessions that were entered.
    entered: u64,
    servers: Vec<Arc<Server>>,
    open: HashMap<Key, Entry>,
    /// Given back, and not yet reset. None where somebody has begun.
    needs_reset: HashMap<Key, Option<Untidy>>,
    /// While draining: those that came back, to be said goodbye to.
    returned: Vec<(Key, Conn)>,
    /// While draining: one for each server that had no room, to ask it.
    spare: HashMap<usize, (Key, Conn)>,
    /// The last session that was to be opened found no room.
    is_full: bool,
    /// Why nobody can ask a server now.
    why_unseen: Option<Error>,
    ended: Ends,
    /// How many of those who watch have a session that was not seen to end.
    watchers: usize,
    /// When the drain began.
    draining_since: Option<Instant>,
    unknown: Unknown,
}

/// How far the pool's life has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    Draining,
    /// Drained, or given up: nothing is opened any more.
    Over,
}

impl SessionTable {
    /// The one place where a session comes into the book.
    fn enter(&mut self, server: usize, id: u32, entry: Entry) -> Key {
        let key = Key { server, id, entered: self.entered };
        self.entered += 1;
        self.open.insert(key, entry);
        key
    }

    /// The one place where the end of a session is recorded: it is taken out of the book for it, so there is no second time.
    fn end(&mut self, key: Key, end: End) {
        let Some(entry) = self.open.remove(&key) else { return };
        if entry.holder == Holder::Others && entry.standing == Standing::Killed {
            self.unknown.ended_out += 1;
        }
        match end {
            End::Cut(_) if entry.is_the_drains => self.watchers += 1,
            _ if entry.is_the_drains => {}
            end => self.ended.record(end),
        }
    }
}

impl Default for Sessions {
    fn default() -> Self {
        let (changed, answered) = (Notify::new(), Notify::new());
        let (wanted, latency) = (watch::Sender::new(Wanted::default()), Arc::default());
        let spare = SpareDescriptors::new(ASKING);
        Self { state: Mutex::default(), changed, answered, wanted, latency, spare, driver: None }
    }
}

impl Sessions {
    /// The connections are in a pool of the driver's.
    pub(crate) fn of_driver(gauges: Gauges) -> Self {
        Self { driver: Some(gauges), ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, SessionTable> {
        // Each change is complete before anything can panic, so a poisoned lock carries no broken state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A life of the pool begins.
    pub(crate) fn restart(&self) {
        self.state().phase = Phase::Open;
        self.wanted.send_replace(Wanted::default());
    }

    /// Whether no drain has begun.
    pub(crate) fn is_open(&self) -> bool {
        self.state().phase == Phase::Open
    }

    /// Changes what is known of a session, if it is in the book.
    fn change(&self, key: Key, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.state().open.get_mut(&key) {
            change(entry);
        }
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Sessions").field("phase", &state.phase).field("open", &state.open.len()).finish()
    }
}
