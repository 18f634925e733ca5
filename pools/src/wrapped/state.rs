//! Who has which session.

use std::collections::HashMap;

use tokio::time::{Duration, Instant};
use winddown_core::{Error, adapter::Ends};

use crate::{speaks::Canceller, wrapped::OPENING};

/// How long a statement may take to end that the server was asked to stop, until it is asked again: a request that comes between two
/// statements stops none.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// How late an answer may be on a busy machine where nothing is to be stopped: nobody here sees whether a statement runs, and one that was
/// asked to stop counts as one.
const LATE: Duration = Duration::from_secs(1);

pub(super) struct State<O> {
    pub(super) phase: Phase,
    /// What runs is to be stopped, whoever has it.
    pub(super) is_cancelling: bool,
    next: u64,
    /// How many callers wait for a connection, or have left one behind that is being opened.
    pub(super) getting: usize,
    /// How many the pool was opening when the drain last looked, for whomever, and since when it is as many.
    opening: Option<(usize, Instant)>,
    /// Those that the guard has handed out, or the drain has taken.
    pub(super) sessions: HashMap<u64, Known>,
    /// Came back while draining.
    pub(super) returned: Vec<(u64, O)>,
    /// That have ended, and that their pool counts for ever.
    pub(super) ended: usize,
    pub(super) ends: Ends,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    Open,
    /// What comes back is taken over; since when.
    Draining(Instant),
    /// What comes back is closed.
    Over,
}

/// What is known of a session.
#[derive(Default)]
pub(super) struct Known {
    pub(super) canceller: Option<Canceller>,
    /// Since when nobody has it who had it from the guard.
    since: Option<Instant>,
    /// It is on its way to its end.
    pub(super) is_taken: bool,
    /// When the server was last asked to stop what runs there.
    asked: Option<Instant>,
    /// How many times it was asked, but for those that did not reach it.
    times: usize,
    /// Everything is that was sent over it, or it is over.
    is_answered: bool,
}

impl Known {
    /// When what runs there is to be stopped, if it is.
    fn stop_at(&self, began: Instant, grace: Duration, is_cancelling: bool) -> Option<Instant> {
        if self.is_answered || !self.canceller.as_ref().is_some_and(Canceller::is_needed) {
            return None;
        }
        let first = match self.since {
            _ if is_cancelling => began,
            Some(since) => since.max(began) + grace.max(LATE),
            None => return None,
        };
        Some(self.asked.map_or(first, |asked| asked + STOP_PATIENCE))
    }
}

impl<O> State<O> {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Open,
            is_cancelling: false,
            next: 0,
            getting: 0,
            opening: None,
            sessions: HashMap::new(),
            returned: Vec::new(),
            ended: 0,
            ends: Ends::default(),
        }
    }

    /// One more is handed out.
    pub(super) fn enter(&mut self, canceller: Option<Canceller>) -> u64 {
        self.next += 1;
        self.sessions.insert(self.next, Known { canceller, ..Known::default() });
        self.next
    }

    /// Nobody has it any more.
    pub(super) fn is_back(&mut self, number: u64) -> Phase {
        if let Some(known) = self.sessions.get_mut(&number) {
            known.since = Some(Instant::now());
        }
        self.phase
    }

    /// The drain takes it, or one that was idle. On that nothing runs, as far as the guard has had it.
    pub(super) fn take(&mut self, number: Option<u64>) -> u64 {
        let number = number.unwrap_or_else(|| self.enter(None));
        if let Some(known) = self.sessions.get_mut(&number) {
            known.is_taken = true;
        }
        number
    }

    /// So many are being opened now. Returns how many of them are waited for.
    pub(super) fn opens(&mut self, opening: usize) -> usize {
        let since = match self.opening {
            Some((before, since)) if before == opening => since,
            _ => Instant::now(),
        };
        self.opening = Some((opening, since));
        if since.elapsed() < OPENING { opening } else { 0 }
    }

    pub(super) fn is_opening(&self) -> bool {
        self.opening.is_some_and(|(opening, _)| opening > 0)
    }

    pub(super) fn taken(&self) -> usize {
        self.sessions.values().filter(|known| known.is_taken).count()
    }

    /// It is answered. A statement that the server was asked to stop has ended with that.
    pub(super) fn is_answered(&mut self, number: u64) {
        if let Some(known) = self.sessions.get_mut(&number)
            && !std::mem::replace(&mut known.is_answered, true)
            && known.times > 0
        {
            self.ends.cancelled += 1;
        }
    }

    /// The server could not be asked to stop what runs there.
    pub(super) fn asked_in_vain(&mut self, number: u64, failure: Error) {
        self.ends.error = Some(failure);
        if let Some(known) = self.sessions.get_mut(&number) {
            known.times = known.times.saturating_sub(1);
        }
    }

    /// Whom the server is to be asked about now, and when to look again.
    pub(super) fn overdue(&mut self, grace: Duration) -> (Vec<(u64, Canceller)>, Option<Instant>) {
        let Phase::Draining(began) = self.phase else { return (Vec::new(), None) };
        let (now, is_cancelling) = (Instant::now(), self.is_cancelling);
        let (mut overdue, mut next) = (Vec::new(), None);
        for (number, known) in &mut self.sessions {
            let Some(mut at) = known.stop_at(began, grace, is_cancelling) else { continue };
            if at <= now {
                known.asked = Some(now);
                known.times += 1;
                overdue.extend(known.canceller.clone().map(|canceller| (*number, canceller)));
                at = now + STOP_PATIENCE;
            }
            next = Some(next.map_or(at, |next: Instant| next.min(at)));
        }
        (overdue, next)
    }
}
