//! The servers that sessions are with, and those of the pool's own sessions that ask one that has no room for another.

use std::sync::{Arc, Mutex, PoisonError};

use mysql_async::{Conn, Opts};
use winddown_core::Error;
use winddown_net::Address;

use super::{Asked, Key, SessionTable, Sessions};

/// Where sessions are, and who can ask for them: without a privilege a user sees their own.
pub(crate) struct Server {
    pub(crate) index: usize,
    pub(crate) address: Address,
    /// What the last session was opened with.
    opts: Mutex<Opts>,
}

impl Server {
    pub(crate) fn opts(&self) -> Opts {
        self.opts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn was_opened_with(&self, opts: &Opts) {
        *self.opts.lock().unwrap_or_else(PoisonError::into_inner) = opts.clone();
    }
}

impl SessionTable {
    /// This server, which is entered where it is new.
    pub(super) fn server(&mut self, address: &Address, opts: &Opts) -> Arc<Server> {
        let known =
            self.servers.iter().find(|server| server.address == *address && server.opts().user() == opts.user());
        known.cloned().unwrap_or_else(|| {
            let index = self.servers.len();
            let server = Arc::new(Server { index, address: address.clone(), opts: Mutex::new(opts.clone()) });
            self.servers.push(Arc::clone(&server));
            server
        })
    }
}

impl Sessions {
    /// No server has been heard of.
    pub(crate) fn are_nowhere(&self) -> bool {
        self.state().servers.is_empty()
    }

    /// This one can be asked.
    pub(crate) fn are_at(&self, address: &Address, opts: &Opts) {
        self.state().server(address, opts);
    }

    /// The sessions that this server may list.
    pub(crate) fn on(&self, server: usize) -> Vec<Asked> {
        let state = self.state();
        let entries = state.open.iter().filter(|(key, _)| key.server == server);
        entries.map(|(key, entry)| entry.asked(*key)).collect()
    }

    /// What to ask about this session, and where. `None` if it is not in the book any more.
    #[cfg(feature = "buffer")]
    pub(crate) fn asked(&self, key: Key) -> Option<(Arc<Server>, Asked)> {
        let state = self.state();
        let server = state.servers.iter().find(|server| server.index == key.server)?;
        Some((Arc::clone(server), state.open.get(&key)?.asked(key)))
    }

    /// A server had no room for another session; and why nobody can ask it, if it is that.
    pub(crate) fn found_full(&self, why_unseen: Option<Error>) {
        let mut state = self.state();
        state.is_full = true;
        state.why_unseen = why_unseen.or_else(|| state.why_unseen.take());
    }

    /// Somebody can ask this server: nobody of the pool has to.
    pub(crate) fn found_room(&self, server: usize) {
        let spare = {
            let mut state = self.state();
            (state.is_full, state.why_unseen) = (false, None);
            state.spare.remove(&server)
        };
        if let Some((key, conn)) = spare {
            self.give_back(key, conn);
        }
    }

    /// Keeps this connection to ask its server with, where that had no room for another session and has work that somebody may
    /// have to stop. Otherwise it is to say goodbye.
    pub(crate) fn keep_spare(&self, key: Key, conn: Conn) -> Option<(Key, Conn)> {
        let mut state = self.state();
        let mut others = state.open.iter().filter(|(other, _)| **other != key && other.server == key.server);
        let is_of_use =
            state.is_full && !state.spare.contains_key(&key.server) && others.any(|(_, other)| other.may_run());
        if !is_of_use {
            return Some((key, conn));
        }
        state.spare.insert(key.server, (key, conn));
        None
    }

    /// The connection that was kept to ask this server with.
    pub(crate) fn take_spare(&self, server: usize) -> Option<(Key, Conn)> {
        self.state().spare.remove(&server)
    }

    /// A connection that was kept is not needed any more.
    pub(crate) fn give_back(&self, key: Key, conn: Conn) {
        self.state().returned.push((key, conn));
        self.changed.notify_one();
    }
}
