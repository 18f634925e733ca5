//! One resource on its way through the drain, and its row in the report.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Error, ErrorKind, Outcome, Records, ResourceReport,
    node::{Ended, Node, Order},
    report::in_words,
    tally::{AtCut, Known, Tally},
};

/// How a drain ended. Errors are text by then: printing them is foreign code, and is done where the drain ran.
pub(super) type Finished = Result<Ended, Failure>;

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) panicked: bool,
    pub(super) message: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { panicked: error.kind() == ErrorKind::Panicked, message: error.to_string() }
    }
}

/// One resource on its way through the drain.
pub(super) struct Row {
    node: Arc<dyn Node>,
    pub(super) tally: Arc<Tally>,
    state: Progress,
}

enum Progress {
    Waiting,
    Running {
        began: Instant,
    },
    Over {
        took: Duration,
        finished: Finished,
        /// Checkouts that were out then.
        left_out: usize,
    },
}

impl Row {
    pub(super) fn new(node: Arc<dyn Node>) -> Self {
        Self { node, tally: Arc::default(), state: Progress::Waiting }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, Progress::Waiting)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, Progress::Over { .. })
    }

    pub(super) fn begin(&mut self) {
        self.state = Progress::Running { began: Instant::now() };
    }

    /// Tracked work has had its share of the budget: what is left of it is named, whatever becomes of it.
    pub(super) fn has_had(&self, share: Duration) {
        let stragglers = self.node.gate().stragglers();
        if self.node.facts().order != Order::First || self.is_over() || stragglers.is_empty() {
            return;
        }
        let share = in_words(share);
        self.tally.change(|known| {
            known.stragglers = stragglers;
            known.reasons.push(format!("still there after its share of {share}: the resources were drained beside it"));
        });
    }

    pub(super) fn end(&mut self, finished: Finished) {
        if let Progress::Running { began } = self.state {
            self.state = Progress::Over { took: began.elapsed(), finished, left_out: self.node.gate().out() };
        }
    }

    /// One whose drain has just ended, beside the one of the report.
    pub(super) fn over(node: Arc<dyn Node>, tally: Arc<Tally>, began: Instant, finished: Finished) -> Self {
        let mut row = Self { node, tally, state: Progress::Running { began } };
        row.end(finished);
        row
    }

    /// How its drain ended, of one that is [over](Self::over).
    pub(super) fn into_finished(self) -> Finished {
        match self.state {
            Progress::Over { finished, .. } => finished,
            // Not asked of one that is not over.
            Progress::Waiting | Progress::Running { .. } => Ok(Ended::Hung),
        }
    }

    /// The row of the report; none for tracked work where there was none. Ends the accounting of what has records.
    pub(super) fn report(&self) -> Option<ResourceReport> {
        self.row(self.node.facts().ledger.as_ref().map(|ledger| ledger.close()))
    }

    /// The same before the report is made: records may still be pending.
    pub(super) fn so_far(&self) -> Option<ResourceReport> {
        self.row(self.node.facts().ledger.as_ref().map(|ledger| ledger.records()))
    }

    fn row(&self, records: Option<Records>) -> Option<ResourceReport> {
        let facts = self.node.facts();
        let Known { step, mut sessions, open, stragglers, at_cut, mut reasons, is_incomplete, error } =
            self.tally.known();
        let (took, left_out) = match &self.state {
            Progress::Waiting => (Duration::ZERO, self.node.gate().out()),
            Progress::Running { began } => (began.elapsed(), self.node.gate().out()),
            Progress::Over { took, left_out, .. } => (*took, *left_out),
        };
        // One that has come to its end has accounted for all.
        if !matches!(self.state, Progress::Over { finished: Ok(Ended::Drained | Ended::NotInitialised), .. }) {
            if open > 0 {
                reasons.push(format!("{open} were open when it was left"));
            }
            sessions.cut += open;
        }
        if let Some(at) = at_cut {
            reasons.extend(why_cut(sessions.cut.saturating_sub(at.before), at, facts.address.as_deref()));
        }
        if !self.node.capabilities().confirmed_end {
            // Nobody can have seen their end.
            sessions.unconfirmed += std::mem::take(&mut sessions.closed);
        }
        let [refused, refused_tracked] = self.node.gate().refusals();
        let (outcome, error) = match &self.state {
            Progress::Waiting => (Outcome::NotReached, error),
            // Cut short by a second signal.
            Progress::Running { .. } => (Outcome::Hung, error),
            Progress::Over { finished, .. } => match finished {
                Ok(Ended::NotInitialised) => (Outcome::NotInitialised, error),
                Ok(Ended::Drained) => {
                    let lost = records.is_some_and(|records| records.written != records.accepted);
                    let ended = left_out == 0 && sessions.cut == 0 && sessions.left_behind == 0;
                    (if lost || is_incomplete || !ended { Outcome::Incomplete } else { Outcome::Drained }, error)
                }
                Ok(Ended::Hung) => (Outcome::Hung, error),
                Err(Failure { panicked: true, message }) => (Outcome::Panicked, Some(message.clone())),
                Err(Failure { panicked: false, message }) => (Outcome::Failed, Some(message.clone())),
            },
        };
        // Tracked work that there was none of.
        if facts.order == Order::First && outcome == Outcome::Drained && stragglers.is_empty() {
            return None;
        }
        // What a resource cannot do matters to who reads what became of its sessions.
        let cannot = if outcome == Outcome::NotInitialised { Vec::new() } else { self.node.capabilities().missing() };
        let name = facts.name.clone();
        Some(ResourceReport {
            name,
            outcome,
            step,
            took,
            sessions,
            stragglers,
            left_out,
            refused,
            refused_tracked,
            records,
            error,
            reasons,
            cannot,
        })
    }
}

/// Why so many sessions were cut when their time was over.
fn why_cut(cut: u64, at: AtCut, address: Option<&str>) -> Vec<String> {
    let held = cut.min(at.out);
    let after = in_words(at.after);
    let whom = address.unwrap_or("the server");
    let held_so = format!("{held} cut while checked out, after {after}");
    let silent = format!("{} cut since {whom} had not ended its side after {after}", cut - held);
    [(held, held_so), (cut - held, silent)].into_iter().filter(|(count, _)| *count > 0).map(|(_, why)| why).collect()
}
