//! One session in the book: what is known of it, and which end that makes when its server lists it no more.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use winddown_core::{Error, ErrorKind, adapter::End};

use super::holders::Holder;
use crate::{origin::Origin, watcher::Listed};

/// Names a session: its server, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) server: usize,
    pub(crate) id: u32,
    /// How many were entered before it: a server that was started again gives a number again.
    pub(super) entered: u64,
}

/// What is known of a session.
pub(super) struct Entry {
    /// What tells it from all others, besides its number; where its server has said so.
    pub(super) origin: Option<Arc<Origin>>,
    pub(super) standing: Standing,
    /// Its goodbye is on the way: that is all that can be done from here.
    pub(super) has_said: bool,
    /// When somebody last waited for it.
    pub(super) waited_for: Instant,
    /// When its connection was dropped because it did not answer when it was to be tidied up, or because a statement failed of
    /// whose results something was left: as far as anybody knows it was open until then.
    pub(super) dropped: Option<Instant>,
    /// What the server said of it, if it listed it while draining.
    pub(super) seen: Option<Listed>,
    /// Where its connection is, if it is of a pool of the driver's.
    pub(super) holder: Holder,
    /// Tells its connection from others of the driver's pool that had the same number, on a server that was started again.
    pub(super) conn: usize,
    /// Nobody has entered it but the drain, which has found it on the server's list.
    pub(super) is_found: bool,
    /// It was opened for the drain, and is in no count of the pool's.
    pub(super) is_the_drains: bool,
}

/// How far a session has come on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The pool or somebody else has its connection.
    Held,
    /// It was asked something between two checkouts, and has not answered in time, or before a drain began: nobody is handed it
    /// again.
    Unwanted,
    /// The drain says goodbye, or has said it.
    Leaving,
    /// The driver has dropped its connection: after a goodbye of its own, or without one where the future of a statement
    /// was dropped or the connection broke. It may have ended long before the drain.
    Left,
    /// The same with a connection that was found broken while nothing ran on it.
    Broken,
    /// It could not say goodbye.
    Failed,
    /// The server was told to end it.
    Killed,
}

impl Entry {
    pub(super) fn new() -> Self {
        Self {
            origin: None,
            standing: Standing::Held,
            has_said: false,
            waited_for: Instant::now(),
            dropped: None,
            seen: None,
            holder: Holder::Others,
            conn: 0,
            is_found: false,
            is_the_drains: false,
        }
    }

    /// Nobody waits any more for what it was asked between two checkouts.
    pub(super) fn is_not_waited_for(&mut self) {
        if self.standing == Standing::Held {
            self.is_let_go(Standing::Unwanted);
        }
    }

    /// Nobody waits for it any more, from now on, since it stands so.
    pub(super) fn is_let_go(&mut self, standing: Standing) {
        (self.standing, self.waited_for) = (standing, Instant::now());
    }

    pub(super) fn has_left(&self) -> bool {
        matches!(self.standing, Standing::Left | Standing::Broken)
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.standing, Standing::Unwanted | Standing::Leaving)
    }

    /// Something may run on it that the drain has not let go of.
    pub(super) fn may_run(&self) -> bool {
        matches!(self.standing, Standing::Held | Standing::Unwanted | Standing::Left)
    }

    /// What its end is, now that its server lists it no more. `is_drivers`: it is of a pool of the driver's.
    pub(super) fn ended(&self, draining_since: Option<Instant>, is_drivers: bool) -> End {
        // Its connection was dropped in the drain.
        let left_open = self.dropped.is_some_and(|dropped| draining_since.is_some_and(|since| dropped >= since));
        match (self.standing, self.seen) {
            (Standing::Left, None) if left_open => End::Closed,
            (Standing::Leaving, _) | (Standing::Unwanted | Standing::Left | Standing::Broken, Some(_)) => End::Closed,
            (Standing::Failed | Standing::Killed, _) => End::Cut(None),
            // The server has ended it while somebody had it: in order if that was no loss.
            (Standing::Held, Some(seen)) if is_drivers || !seen.is_busy => End::Closed,
            (Standing::Held, Some(_)) => {
                let text = "the server has ended a session in the middle of a statement";
                End::Cut(Some(Error::new(ErrorKind::Incomplete, text)))
            }
            // It had ended before.
            (Standing::Held | Standing::Unwanted | Standing::Left | Standing::Broken, None) => End::Uncounted,
        }
    }

    /// What its end is, now that nobody can tell it from others, for this reason. `None` as long as somebody keeps it: until it
    /// is to be `cut`.
    pub(super) fn ended_unproven(&self, why: &Error, cut: bool) -> Option<End> {
        Some(match self.standing {
            Standing::Leaving if self.has_said => End::Unconfirmed,
            Standing::Held | Standing::Unwanted | Standing::Leaving if !cut => return None,
            Standing::Held | Standing::Unwanted | Standing::Leaving | Standing::Left => End::Cut(Some(why.clone())),
            Standing::Broken => End::Uncounted,
            Standing::Failed | Standing::Killed => End::Cut(None),
        })
    }

    pub(super) fn asked(&self, key: Key) -> Asked {
        Asked {
            key,
            origin: self.origin.clone(),
            is_leaving: self.is_leaving(),
            has_left: self.has_left(),
            waited_for: self.waited_for,
            is_found: self.is_found,
        }
    }
}

/// What somebody who watches a server asks about.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) key: Key,
    pub(crate) origin: Option<Arc<Origin>>,
    /// The drain says goodbye, or nobody will be handed it again.
    pub(crate) is_leaving: bool,
    /// The driver has dropped its connection.
    pub(crate) has_left: bool,
    /// When somebody last waited for what it does.
    pub(crate) waited_for: Instant,
    /// Nobody has entered it but the drain.
    pub(crate) is_found: bool,
}

impl Asked {
    /// Nobody has waited for what it does for that long. Where the drain says goodbye on its connection something runs only if
    /// results were read by half, and a server may be listed as busy for a moment that has answered: that is given longer.
    pub(crate) fn is_abandoned_for(&self, grace: Duration, leaving: Duration) -> bool {
        let waited_for = self.waited_for.elapsed();
        (self.has_left && waited_for >= grace) || (self.is_leaving && waited_for >= grace.max(leaving))
    }
}
