//! What the guard has lent from a pool of the driver's: it counts as lent until it is back with that pool, or with the drain.

use std::sync::Arc;

use mysql_async::Conn;

use crate::sessions::{Key, Sessions};

/// A checkout of the guard that is out. Dropped, it is back.
pub(super) struct Lent {
    /// None where something else says when it is back.
    sessions: Option<Arc<Sessions>>,
    key: Option<Key>,
}

impl Lent {
    pub(super) fn new(sessions: &Arc<Sessions>, key: Option<Key>) -> Self {
        Self { sessions: Some(Arc::clone(sessions)), key }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(sessions) = self.sessions.take() {
            sessions.is_back(self.key);
        }
    }
}

/// A connection that is lent, and that nobody uses: on its way to whoever waits for it, or waiting for being reset. Dropped, it
/// goes back.
pub(crate) struct LentConn {
    /// There until somebody has it.
    conn: Option<Conn>,
    lent: Lent,
}

impl LentConn {
    pub(super) fn new(conn: Conn, lent: Lent) -> Self {
        Self { conn: Some(conn), lent }
    }

    /// For somebody who uses it.
    pub(super) fn into_parts(mut self) -> Option<(Conn, Lent)> {
        let lent = Lent { sessions: self.lent.sessions.take(), key: self.lent.key };
        Some((self.conn.take()?, lent))
    }

    /// For the guard's caller, who gives it back.
    pub(super) fn take(mut self) -> Option<Conn> {
        self.lent.sessions = None;
        self.conn.take()
    }
}

impl Drop for LentConn {
    fn drop(&mut self) {
        // Once: it is what was lent that goes back.
        if let (Some(conn), Some(sessions)) = (self.conn.take(), self.lent.sessions.take()) {
            back(&sessions, conn);
        }
    }
}

/// What was lent is the driver's pool's again, or the drain's.
pub(super) fn back(sessions: &Sessions, conn: Conn) {
    let key = sessions.key_of(&conn);
    match key {
        Some(key) if conn.is_disconnected() || !sessions.is_open() => sessions.came_back(key, conn, false),
        _ => drop(conn),
    }
    sessions.is_back(key);
}
