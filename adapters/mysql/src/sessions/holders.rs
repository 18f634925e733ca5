//! Who has the connections of a pool of the driver's: the guard, the drain, or others, of whom the driver says only how many.

use std::sync::Arc;

use mysql_async::Conn;
use winddown_core::adapter::End;

use super::{Entry, Key, Server, SessionTable, Sessions, entry::Standing};
use crate::{gauges::Gauges, watcher::Found};

/// Who has a connection of a pool of the driver's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// Others, as far as anybody knows.
    Others,
    /// The drain.
    Drain,
    /// The guard has lent it.
    Guard,
    /// Nobody any more.
    Nobody,
}

/// What there is to know of those that others have taken from a pool of the driver's, and that are not in the book.
#[derive(Default)]
pub(super) struct Unknown {
    /// What was idle is in the book, so that whatever is out and is not there is one of these.
    pub(super) counts: bool,
    /// There is a server that can be asked which they are.
    seeks: bool,
    /// How many checkouts of the guard are out.
    lent: usize,
    /// How many were out together with those that were found, at most.
    pub(super) most: usize,
    /// How many were found, on the server or as they came back, and are in the book since.
    pub(super) found: usize,
    /// How many have ended whose connection somebody has nevertheless.
    pub(super) ended_out: usize,
    /// How many the driver's pool had when the drain began.
    at_begin: usize,
    /// How many of them the drain has ended and dropped.
    dropped: usize,
    /// Why some were left alone.
    pub(super) reason: Option<String>,
}

/// Where a connection is, as long as it is there: the driver keeps it in a box.
fn place(conn: &Conn) -> usize {
    std::ptr::from_ref(conn.opts()).addr()
}

impl SessionTable {
    fn entry_of(&mut self, conn: &Conn) -> Option<(Key, &mut Entry)> {
        let (id, place) = (conn.id(), place(conn));
        let found = self.open.iter_mut().find(|(key, entry)| key.id == id && entry.conn == place);
        found.map(|(key, entry)| (*key, entry))
    }

    /// How many are out of a pool of the driver's, and not in the book.
    pub(super) fn unknown(&self, driver: Option<&Gauges>) -> usize {
        let Some(driver) = driver.filter(|_| self.unknown.counts) else { return 0 };
        let is_out = |entry: &&Entry| matches!(entry.holder, Holder::Others | Holder::Drain);
        let known = self.open.values().filter(is_out).count();
        driver.out().saturating_sub(known + self.unknown.lent + self.unknown.ended_out)
    }

    /// Whether the pool's one server is to be asked which of its sessions others have.
    pub(super) fn seeks(&self, driver: Option<&Gauges>) -> bool {
        self.unknown.seeks && self.servers.len() == 1 && self.unknown(driver) > 0
    }
}

impl Entry {
    /// Its connection is that of somebody who gives it back to the driver's pool.
    fn is_the_drivers(&self) -> bool {
        matches!(self.standing, Standing::Held | Standing::Unwanted)
    }
}

impl Sessions {
    /// The guard lends this connection. Whether it is in the book.
    pub(crate) fn lend(&self, conn: &Conn) -> bool {
        let mut state = self.state();
        state.unknown.lent += 1;
        let entry = state.entry_of(conn);
        entry.map(|(_, entry)| entry.holder = Holder::Guard).is_some()
    }

    /// What was lent is back, or was not lent after all.
    pub(crate) fn is_back(&self, key: Option<Key>) {
        let mut state = self.state();
        state.unknown.lent -= 1;
        if let Some(entry) = key.and_then(|key| state.open.get_mut(&key)).filter(|entry| entry.holder == Holder::Guard)
        {
            entry.holder = Holder::Others;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Its place in the book.
    pub(crate) fn key_of(&self, conn: &Conn) -> Option<Key> {
        Some(self.state().entry_of(conn)?.0)
    }

    /// The place of one that came back to the drain, which may have found it on the server's list before.
    pub(crate) fn key_of_returned(&self, conn: &Conn) -> Option<Key> {
        let mut state = self.state();
        if let Some((key, _)) = state.entry_of(conn) {
            return Some(key);
        }
        let is_it = |(key, entry): &(&Key, &mut Entry)| entry.is_found && entry.conn == 0 && key.id == conn.id();
        let (key, entry) = state.open.iter_mut().find(is_it)?;
        entry.conn = place(conn);
        Some(*key)
    }

    /// It was entered, and this is its connection; `is_lent` by the guard.
    pub(crate) fn is_of(&self, key: Key, conn: &Conn, is_lent: bool) {
        let mut state = self.state();
        if !is_lent && state.unknown.counts {
            state.unknown.found += 1;
        }
        if let Some(entry) = state.open.get_mut(&key) {
            entry.conn = place(conn);
            if is_lent {
                entry.holder = Holder::Guard;
            }
        }
    }

    /// It was opened for the drain.
    pub(crate) fn is_the_drains(&self, key: Key) {
        self.change(key, |entry| entry.is_the_drains = true);
    }

    /// What was idle in the driver's pool is in the book, so that others have what is out and is not there.
    pub(crate) fn count_unknown(&self) {
        let mut state = self.state();
        (state.unknown.counts, state.unknown.seeks) = (true, true);
        drop(state);
        self.note_unknown();
    }

    /// A drain begins, which counts what it drops.
    pub(super) fn begin_counting(&self, state: &mut SessionTable) {
        state.unknown.dropped = 0;
        state.unknown.at_begin = self.driver.as_ref().map_or(0, Gauges::all);
    }

    /// The drain has dropped a connection that is over.
    pub(crate) fn dropped(&self) {
        self.state().unknown.dropped += 1;
    }

    /// How many are on their way in a pool of the driver's, but for those that the drain has dropped: where the driver's task does not
    /// run, it never takes note of them.
    pub(crate) fn moving(&self) -> usize {
        let Some(driver) = &self.driver else { return 0 };
        // In this order: what happens meanwhile makes it one too many, and not one too few.
        let (dropped, at_begin) = {
            let state = self.state();
            (state.unknown.dropped, state.unknown.at_begin)
        };
        let moving = driver.moving();
        let noted = at_begin.saturating_sub(driver.all());
        moving.saturating_sub(dropped.saturating_sub(noted))
    }

    /// Whether there are sessions that others than the guard have, as far as anybody knows.
    pub(crate) fn are_with_others(&self) -> bool {
        let state = self.state();
        let is_with_others = |entry: &Entry| entry.is_the_drivers() && entry.holder == Holder::Others;
        state.open.values().any(is_with_others) || state.unknown(self.driver.as_ref()) > 0
    }

    /// How many others have that are not in the book.
    pub(crate) fn unknown(&self) -> usize {
        self.state().unknown(self.driver.as_ref())
    }

    /// Whether a server is to be asked which they are.
    pub(crate) fn seeks(&self) -> bool {
        self.state().seeks(self.driver.as_ref())
    }

    /// No server can be asked which they are.
    pub(crate) fn cannot_seek(&self) {
        self.state().unknown.seeks = false;
    }

    /// So many there are now: at most, once nobody is given any more.
    pub(crate) fn note_unknown(&self) {
        let mut state = self.state();
        let now = state.unknown(self.driver.as_ref()) + state.unknown.found;
        state.unknown.most = state.unknown.most.max(now);
    }

    /// All that others have were found: it is these.
    pub(crate) fn found(&self, server: &Server, found: Vec<Found>) {
        self.note_unknown();
        let mut state = self.state();
        state.unknown.found += found.len();
        for Found { id, origin, listed } in found {
            let (origin, seen) = (Some(Arc::new(origin)), Some(listed));
            let entry = Entry { origin, seen, is_found: true, ..Entry::new() };
            state.enter(server.index, id, entry);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Which of those that the server lists are the unknown ones is not to be told.
    pub(crate) fn left_alone(&self, unknown: usize, could_be: usize) {
        self.state().unknown.reason.get_or_insert_with(|| {
            format!(
                "{unknown} taken from the pool directly, and the server lists {could_be} of this process that could be these: what \
                 they run was left alone"
            )
        });
    }

    /// Why some of those that others have were left alone, if they were.
    pub(crate) fn why_left_alone(&self) -> Option<String> {
        self.state().unknown.reason.take()
    }

    /// What was to be cut is left as it is.
    pub(crate) fn left(&self, key: Key) {
        let mut state = self.state();
        state.unknown.ended_out += 1;
        state.end(key, End::Cut(None));
        drop(state);
        self.changed.notify_one();
    }

    /// The driver has said goodbye on all connections that it had.
    pub(crate) fn all_leave(&self) {
        for entry in self.state().open.values_mut() {
            if entry.is_the_drivers() {
                (entry.standing, entry.has_said) = (Standing::Leaving, true);
            }
            entry.holder = Holder::Nobody;
        }
        self.changed.notify_one();
    }

    /// The driver has let go of all connections, and said nothing on any.
    pub(crate) fn all_left(&self) {
        let mut state = self.state();
        state.unknown.counts = false;
        state.open.values_mut().filter(|entry| entry.is_the_drivers()).for_each(|entry| {
            entry.is_let_go(Standing::Left);
        });
        drop(state);
        self.changed.notify_one();
    }
}
