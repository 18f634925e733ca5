//! A drain of the book: how it begins, what it asks for as it goes, and what is counted at its end.

use std::{mem, sync::Arc, time::Instant};

use mysql_async::Conn;
use winddown_core::adapter::{End, Ends};

use super::{Entry, Key, Phase, Server, Sessions, entry::Standing, needs_reset::Untidy};

/// What has happened since the drain last asked.
pub(crate) struct News {
    /// To be said goodbye to.
    pub(crate) returned: Vec<(Key, Conn)>,
    pub(crate) ended: Ends,
    /// How many are in the book.
    pub(crate) open: usize,
    /// How many are not, and others have taken them from a pool of the driver's.
    pub(crate) unknown: usize,
    /// How many of both somebody has, or is about to have.
    pub(crate) held: usize,
    /// Where they are.
    pub(crate) servers: Vec<Whereabouts>,
}

/// A server with sessions in the book.
pub(crate) struct Whereabouts {
    pub(crate) server: Arc<Server>,
    /// Nobody has some of them.
    pub(crate) abandoned: bool,
}

impl Sessions {
    /// Begins to drain; the drain is over when what this returns is dropped.
    pub(crate) fn begin_drain(&self) -> Draining<'_> {
        let untidy = {
            let mut state = self.state();
            state.phase = Phase::Draining;
            state.draining_since = Some(Instant::now());
            state.ended = Ends::default();
            state.why_unseen = None;
            state.watchers = 0;
            self.begin_counting(&mut state);
            state.take_untidy()
        };
        untidy.into_iter().for_each(Untidy::let_go);
        Draining(self)
    }

    /// What has happened since this was last asked. Those that came back are leaving from now on.
    pub(crate) fn news(&self) -> News {
        let mut state = self.state();
        let (returned, ended) = (mem::take(&mut state.returned), mem::take(&mut state.ended));
        for (key, _) in &returned {
            if let Some(entry) = state.open.get_mut(key) {
                entry.is_let_go(Standing::Leaving);
            }
        }
        let unknown = state.unknown(self.driver.as_ref());
        let is_held = |entry: &&Entry| entry.standing == Standing::Held;
        let held = state.open.values().filter(is_held).count() + state.opening + unknown;
        let seeks = state.seeks(self.driver.as_ref());
        let on = |server: &Arc<Server>| {
            let mut there = state.open.iter().filter(|(key, _)| key.server == server.index).peekable();
            let is_asked = seeks || there.peek().is_some();
            let abandoned = there.any(|(_, entry)| entry.is_leaving() || entry.has_left());
            is_asked.then(|| Whereabouts { server: Arc::clone(server), abandoned })
        };
        let servers = state.servers.iter().filter_map(on).collect();
        News { returned, ended, open: state.open.len(), unknown, held, servers }
    }

    /// Nothing is opened any more, and what is still in the book is cut.
    pub(crate) fn close_book(&self) -> Ends {
        let (ended, kept) = {
            let mut state = self.state();
            state.phase = Phase::Over;
            // What has come back without having been found was said goodbye to by the driver.
            let unknown = state.unknown(self.driver.as_ref());
            let unseen = state.unknown.most.saturating_sub(state.unknown.found + unknown);
            state.ended.cut += unknown;
            if mem::take(&mut state.unknown.counts) {
                state.ended.unconfirmed += unseen;
            }
            let open: Vec<Key> = state.open.keys().copied().collect();
            let why = state.why_unseen.take();
            for key in open {
                state.end(key, End::Cut(why.clone()));
            }
            (mem::take(&mut state.ended), (mem::take(&mut state.returned), mem::take(&mut state.spare)))
        };
        drop(kept);
        // Also where none of it was left to be cut: nobody waits for an answer any more.
        self.want(|wanted| wanted.cut = true);
        ended
    }

    /// Somebody who watches has opened a session, which is in nobody's way until it is left behind.
    pub(crate) fn watcher_came(&self) {
        self.state().watchers += 1;
    }

    /// That session has ended.
    pub(crate) fn watcher_left(&self) {
        self.state().watchers -= 1;
    }

    /// How many of those who watch have left a session behind.
    pub(crate) fn watchers(&self) -> usize {
        self.state().watchers
    }
}

/// Ends the drain, also where it is dropped at its deadline.
pub(crate) struct Draining<'a>(&'a Sessions);

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        self.0.close_book();
        self.0.spare.let_go();
    }
}
