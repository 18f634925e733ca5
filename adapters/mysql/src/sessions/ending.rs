//! How a session comes to its end: what becomes of its connection, what its server is told, and what that says of it.

use std::{
    task::{Context, Waker},
    time::{Duration, Instant},
};

use mysql_async::{Conn, QueryResult, TextProtocol, prelude::Queryable as _};
use tokio::{runtime::Handle, time::timeout};
use winddown_core::{Error, adapter::End};

use super::{Entry, Key, Phase, Sessions, entry::Standing, holders::Holder};
use crate::{error, watcher::Listed};

/// How long a session that nobody wants any more may go on opening, or take to say goodbye.
pub(crate) const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// Reads what is left of results. The driver does so before whatever it is asked next, and takes a refusal among them, as of a statement
/// that was stopped, for one of that: it was not sent then.
pub(crate) async fn read_out(conn: &mut Conn) {
    // By which protocol they come the driver alone knows.
    let left = QueryResult::<TextProtocol>::new(&mut *conn);
    let read = if left.is_empty() { left.drop_result().await } else { conn.ping().await };
    if let Err(failure) = read {
        tracing::trace!(error = %failure, "what was left of results has ended");
    }
}

/// Says goodbye, once what is left of results was read and the driver's own transaction rolled back.
pub(crate) async fn say_goodbye(mut conn: Conn) -> Result<(), mysql_async::Error> {
    read_out(&mut conn).await;
    conn.disconnect().await
}

/// What becomes of its connection.
impl Sessions {
    /// The connection of a session is nobody's any more. One that was given up has hung: no goodbye is waited for.
    pub(crate) fn came_back(&self, key: Key, conn: Conn, is_given_up: bool) {
        let mut state = self.state();
        let is_draining = state.phase == Phase::Draining;
        let is_taken_over = is_draining && !conn.is_disconnected() && !is_given_up;
        if let Some(entry) = state.open.get_mut(&key) {
            entry.holder = if is_taken_over { Holder::Drain } else { Holder::Nobody };
            match entry.standing {
                _ if is_taken_over => {}
                Standing::Held => entry.is_let_go(Standing::Left),
                Standing::Unwanted => entry.standing = Standing::Left,
                _ => {}
            }
        }
        let dropped = if is_taken_over {
            state.returned.push((key, conn));
            None
        } else {
            Some(conn)
        };
        drop(state);
        self.changed.notify_one();
        if is_draining {
            self.want(|wanted| wanted.left += 1);
        }
        // The driver would close the socket, and nothing else: it forgets its goodbye where a connection is dropped.
        let Some(conn) = dropped else { return };
        if conn.is_disconnected() {
            drop(conn);
            return self.dropped();
        }
        let mut goodbye = Box::pin(say_goodbye(conn));
        // Most need no more than this, and where the runtime ends nobody would poll it again.
        let is_said = goodbye.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        if let (false, Ok(runtime)) = (is_said, Handle::try_current()) {
            runtime.spawn(timeout(LEAVE_PATIENCE, goodbye));
        }
    }

    /// Nobody waits any more for what goes on there: whatever it was asked, its connection is not handed out again.
    pub(crate) fn nobody_waits(&self, key: Key) {
        self.change(key, Entry::is_not_waited_for);
        self.changed.notify_one();
    }

    /// The connection of this session was found to be closed while nothing ran on it.
    pub(crate) fn is_broken(&self, key: Key) {
        self.change(key, |entry| {
            if entry.standing == Standing::Left {
                entry.standing = Standing::Broken;
            }
        });
    }

    /// This session has not answered in time, and its connection is dropped for that.
    pub(crate) fn is_mute(&self, key: Key) {
        self.change(key, |entry| entry.dropped = Some(Instant::now()));
    }

    /// The connection of this session was dropped in the middle of an answer.
    pub(crate) fn gave_up(&self, key: Key) {
        self.change(key, |entry| {
            entry.is_let_go(Standing::Left);
            entry.holder = Holder::Nobody;
        });
    }

    /// The goodbye of a session is on its way.
    pub(crate) fn said(&self, key: Key) {
        self.change(key, |entry| (entry.has_said, entry.holder) = (true, Holder::Nobody));
    }

    /// The goodbye of a session has failed.
    pub(crate) fn failed(&self, key: Key, failure: mysql_async::Error) {
        tracing::debug!(session = key.id, error = %failure, "a session could not say goodbye");
        self.change(key, |entry| {
            if entry.standing != Standing::Leaving {
                return;
            }
            entry.holder = Holder::Nobody;
            match failure {
                // Of the driver's own rollback: it takes it for the goodbye's, and has closed the connection instead.
                mysql_async::Error::Server(_) => {
                    (entry.standing, entry.dropped) = (Standing::Left, Some(Instant::now()));
                }
                // A connection that is broken was so before: the server's side of it may have ended long ago.
                _ if error::is_broken(&failure) => entry.standing = Standing::Broken,
                _ => entry.standing = Standing::Failed,
            }
        });
    }
}

/// What its server is told, and what that says of it.
impl Sessions {
    /// The server was asked about a session, and this is what it said.
    pub(crate) fn saw(&self, key: Key, listed: Option<Listed>) {
        let mut state = self.state();
        let draining_since = state.draining_since;
        let Some(entry) = state.open.get_mut(&key) else { return };
        if listed.is_some() {
            entry.seen = listed;
            return;
        }
        let end = entry.ended(draining_since, self.driver.is_some());
        state.end(key, end);
        drop(state);
        self.changed.notify_one();
    }

    /// Nobody can tell these from others that the server lists, which is why. What they have left undone is not waited for; they
    /// are told nothing, and whoever has a connection of one keeps it until what is left is to be `cut`.
    pub(crate) fn unproven(&self, keys: impl IntoIterator<Item = Key>, why: &Error, cut: bool) {
        self.end_unasked(keys, |entry| entry.ended_unproven(why, cut));
    }

    /// Nobody can ask for these, which is why: whether they have ended will not be known.
    pub(crate) fn unseen(&self, keys: impl IntoIterator<Item = Key>, why: &Error) {
        self.end_unasked(keys, |_| Some(End::Cut(Some(why.clone()))));
    }

    /// Ends those of these for which there is an end, without having been told by their server.
    fn end_unasked(&self, keys: impl IntoIterator<Item = Key>, end: impl Fn(&Entry) -> Option<End>) {
        let mut state = self.state();
        for key in keys {
            if let Some(end) = state.open.get(&key).and_then(&end) {
                state.end(key, end);
            }
        }
        drop(state);
        self.answered.notify_one();
        self.changed.notify_one();
    }

    /// The server was told to stop so many statements.
    pub(crate) fn cancelled(&self, statements: usize) {
        self.state().ended.cancelled += statements;
        self.changed.notify_one();
    }

    /// The server was told to end this session.
    pub(crate) fn killed(&self, key: Key) {
        self.change(key, |entry| entry.standing = Standing::Killed);
    }
}
