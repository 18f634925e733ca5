//! One drain as its adapter sees it: the instants that matter, where to count, and the loop that ends a pool's sessions.

use std::{
    fmt,
    future::{Future, poll_fn},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::Instrument as _;

use crate::{
    Error, ErrorKind,
    gate::Gate,
    report::Step,
    tally::{AtCut, Tally},
};

/// One drain of one resource, as its adapter sees it: the instants that matter, and where to count.
///
/// The counts are in the report even if the adapter hangs afterwards, so an adapter counts each session when it is
/// sure of it, not at the end.
pub struct Drain {
    pub(crate) deadlines: Deadlines,
    pub(crate) grace: Duration,
    pub(crate) gate: Arc<Gate>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) began: Instant,
}

/// The instants of one drain, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadlines {
    /// Settling ends, cancelling begins.
    pub(crate) settle: Instant,
    /// What is left is cut.
    pub(crate) cut: Instant,
    /// The resource is left as it is.
    pub(crate) end: Instant,
}

/// No further error is quoted beyond this length.
const MOST_QUOTED: usize = 1000;

impl Drain {
    /// When the resource is left as it is, whatever it does.
    pub fn deadline(&self) -> Instant {
        self.deadlines.end
    }

    /// Half of what is left now until the [`deadline`](Self::deadline). What still ends after the cut has until then: the rest is for
    /// saying how that went, on a machine that is busy.
    pub fn halfway(&self) -> Instant {
        let now = Instant::now();
        now + self.deadline().saturating_duration_since(now) / 2
    }

    /// How long what nobody waits for may go on, from when draining begins or its checkout comes back: what is about to end is
    /// let end. Some answers of the server, as [`Resource::latency`](crate::Resource::latency) knows it.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Ready when every checkout is back.
    pub async fn until_returned(&self) {
        poll_fn(|context| self.gate.poll_settled(context)).await;
    }

    /// Ready when settling has ended, and the time that is kept for the last resort begins: see [`Resource::reserve`](crate::Resource::reserve).
    pub async fn until_cancel(&self) {
        sleep_until(self.deadlines.settle).await;
    }

    /// Ready when what is left must be cut, shortly before [`deadline`](Self::deadline).
    pub async fn until_cut(&self) {
        sleep_until(self.deadlines.cut).await;
        self.tally.step(Step::Cut);
        let (after, out) = (self.began.elapsed(), self.gate.out() as u64);
        self.tally.change(|known| {
            known.at_cut.get_or_insert(AtCut { after, out, before: known.sessions.cut });
        });
    }

    /// So many sessions are open at this moment, in no other count. Where the drain is left with them, because it has not ended
    /// in time, has failed or blocks its thread, the report calls them cut: the adapter need not come to that.
    pub fn set_open(&self, sessions: usize) {
        self.tally.change(|known| known.open = sessions as u64);
    }

    /// What has happened since this was last said, at once: how so many sessions ended, and how many are still
    /// [open](Self::set_open). An error of theirs is [noted](Self::note).
    pub fn count(&self, ends: Ends, open: usize) {
        let Ends { closed, unconfirmed, cut, cancelled, error } = ends;
        self.tally.change(|known| {
            known.sessions.closed += closed as u64;
            known.sessions.unconfirmed += unconfirmed as u64;
            known.sessions.cut += cut as u64;
            known.sessions.cancelled += cancelled as u64;
            known.open = open as u64;
        });
        if let Some(error) = error {
            self.note(&error);
        }
    }

    /// So many sessions said goodbye, and the server has closed its side.
    pub fn count_closed(&self, sessions: usize) {
        self.tally.change(|known| known.sessions.closed += sessions as u64);
    }

    /// So many sessions were ended from our side in order, and nobody can see whether the server has closed its own. Where the
    /// capabilities say that this is so of [all](crate::Capabilities::confirmed_end), what is counted as closed counts as this.
    pub fn count_unconfirmed(&self, sessions: usize) {
        self.tally.change(|known| known.sessions.unconfirmed += sessions as u64);
    }

    /// So many sessions were cut, or are left to the end of the process.
    pub fn count_cut(&self, sessions: usize) {
        self.tally.change(|known| known.sessions.cut += sessions as u64);
    }

    /// So many sessions that the drain itself opened were not seen to end: those that ask a server, or cancel. They are of none of
    /// the pool's, and in no other count.
    pub fn count_left_behind(&self, sessions: usize) {
        self.tally.change(|known| known.sessions.left_behind += sessions as u64);
    }

    /// Quotes an error in the report, without making the outcome a failure. Several are quoted one after the other, each once.
    pub fn note(&self, error: &Error) {
        let text = error.to_string();
        self.tally.change(|known| match &mut known.error {
            Some(known) if known.contains(&text) => {}
            Some(known) if known.len() < MOST_QUOTED => {
                known.push_str("; ");
                known.push_str(&text);
            }
            // Whoever fails this often has been quoted enough.
            Some(_) => {}
            None => known.error = Some(text),
        });
    }

    /// Says in the report that something has gone another way than a drain in order: the outcome is
    /// [`Incomplete`](crate::Outcome::Incomplete), for this reason.
    pub fn incomplete(&self, reason: String) {
        self.tally.change(|known| {
            known.is_incomplete = true;
            known.reasons.push(reason);
        });
    }

    /// Says in the report why something was not done. That alone is no failure.
    pub fn reason(&self, reason: String) {
        self.tally.change(|known| known.reasons.push(reason));
    }

    /// The server was asked to stop so many statements.
    pub fn count_cancelled(&self, statements: usize) {
        self.tally.change(|known| known.sessions.cancelled += statements as u64);
    }
}

impl Drain {
    /// Steps 2, 3 and 5 of the drain protocol for a pool whose sessions can be taken out one by one: each is told to
    /// [close](Source::close) when nobody has it any more, beside the others, until every checkout is back and none is open.
    /// Whether that was so before what is left must be [cut](Self::until_cut): cutting is the adapter's then. What closes a session is
    /// not waited for once that is in no count of the open ones.
    ///
    /// # Cancel safety
    /// What closes is aborted when it is dropped; what was counted stands.
    ///
    /// # Errors
    /// [`ErrorKind::Panicked`] when closing a session panicked, after the others have ended.
    pub async fn sessions<S: Source>(&self, source: &S) -> Result<bool, Error> {
        let mut closing = JoinSet::new();
        let mut are_returned = false;
        let mut result = Ok(());
        let panicked = |error| Error::new(ErrorKind::Panicked, "closing a session panicked").with_source(error);
        loop {
            let News { returned, ends, open } = source.news(self);
            let again = source.stop_abandoned(self);
            self.count(ends, open);
            for session in returned {
                // What is said of it belongs to this drain.
                closing.spawn(source.close(session).in_current_span());
            }
            // A caller that was connecting may open one more session until it has left.
            if are_returned && open == 0 {
                // Each has ended, though who closes one need not have heard of it.
                while let Some(closed) = closing.try_join_next() {
                    result = result.and_then(|()| closed.map_err(panicked));
                }
                return result.map(|()| true);
            }
            tokio::select! {
                Some(closed) = closing.join_next() => {
                    result = result.and_then(|()| closed.map_err(panicked));
                }
                () = source.changed() => {}
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
                () = self.until_returned(), if !are_returned => {
                    are_returned = true;
                    source.all_returned();
                }
                () = self.until_cut() => {
                    // Nobody goes on with them beside whoever cuts them.
                    closing.shutdown().await;
                    return result.map(|()| false);
                }
            }
        }
    }

    /// The same for a pool or client that only closes as a whole: waits for that, and counts as unconfirmed what was open
    /// before, since nobody sees the end of each. What `open` still has when it is over, or when what is left must be
    /// [cut](Self::until_cut), is counted as cut.
    ///
    /// # Cancel safety
    /// That of `close`; what is open then the report counts as cut.
    ///
    /// # Errors
    /// That of `close`.
    pub async fn closing(
        &self,
        open: impl Fn() -> usize,
        close: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        let before = open();
        self.set_open(before);
        let result = tokio::select! {
            result = close => result,
            () = self.until_cut() => Ok(()),
        };
        let left = open();
        self.count(Ends { unconfirmed: before.saturating_sub(left), cut: left, ..Ends::default() }, 0);
        result
    }
}

/// A pool whose sessions can be taken out one by one, as [`Drain::sessions`] ends them.
///
/// It keeps its own book: which sessions are open, and how those that are not have ended, each recorded once, in
/// [`Ends::record`], when it is known.
pub trait Source: Sync {
    /// A session that nobody has any more.
    type Session;

    /// What has happened since this was last asked, all at one moment.
    fn news(&self, drain: &Drain) -> News<Self::Session>;

    /// Ready when there may be news: a session was opened, has come back, or has ended by itself.
    ///
    /// # Cancel safety
    /// Must be cancel safe: it is dropped and asked for again, and nothing may be missed between.
    fn changed(&self) -> impl Future<Output = ()> + Send;

    /// Says goodbye on a session and waits until the server has closed its side; its end is in the [`news`](Self::news).
    ///
    /// # Cancel safety
    /// Is dropped when what is left must be cut.
    fn close(&self, session: Self::Session) -> impl Future<Output = ()> + Send + 'static;

    /// Every checkout is back. By default nothing follows from that.
    fn all_returned(&self) {}

    /// Stops what nobody waits for any more and has lasted for the drain's [grace](Drain::grace), and counts it: a statement
    /// whose future was dropped (L6). When to look again; `None` where only news can change anything. Must not block. By
    /// default there is nothing.
    fn stop_abandoned(&self, drain: &Drain) -> Option<Instant> {
        let _ = drain;
        None
    }
}

/// What has happened to a pool's sessions: see [`Source::news`].
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "adapters make it")]
pub struct News<S> {
    /// To be closed: nobody has them any more, and they are not handed out again.
    pub returned: Vec<S>,
    /// Those that have ended.
    pub ends: Ends,
    /// How many are open: idle, checked out, being opened or closed.
    pub open: usize,
}

/// How one session ended.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is no other way")]
pub enum End {
    /// With a goodbye, and the server has closed its side.
    Closed,
    /// With a goodbye, and nobody can see whether the server has closed its side.
    Unconfirmed,
    /// In any other way; with an error, if there is one.
    Cut(Option<Error>),
    /// Before it was open, or before the drain.
    Uncounted,
}

/// How so many sessions ended.
#[derive(Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "adapters make it")]
pub struct Ends {
    /// With a goodbye, and the server has closed its side.
    pub closed: usize,
    /// With a goodbye, and nobody can see whether the server has closed its side. Where the capabilities say that this is so of
    /// [all](crate::Capabilities::confirmed_end), what is counted as closed counts as this.
    pub unconfirmed: usize,
    /// In any other way, or left to the end of the process.
    pub cut: usize,
    /// Statements that the server was asked to stop.
    pub cancelled: usize,
    /// Of the last one that ended with an error.
    pub error: Option<Error>,
}

impl Ends {
    /// Records the end of one session.
    pub fn record(&mut self, end: End) {
        match end {
            End::Closed => self.closed += 1,
            End::Unconfirmed => self.unconfirmed += 1,
            End::Cut(error) => {
                self.cut += 1;
                self.error = error.or_else(|| self.error.take());
            }
            End::Uncounted => {}
        }
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain").field("deadlines", &self.deadlines).finish_non_exhaustive()
    }
}
