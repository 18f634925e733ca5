//! What is known of a drain while it goes on.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::report::{SessionCounts, Step, Straggler};

/// What is known so far about the drain of one resource, readable at any moment: when a resource hangs, the report is
/// written from this.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    inner: Mutex<Known>,
}

#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) step: Step,
    pub(crate) sessions: SessionCounts,
    /// Sessions that are in no column yet.
    pub(crate) open: u64,
    pub(crate) stragglers: Vec<Straggler>,
    /// When what was left had to be cut.
    pub(crate) at_cut: Option<AtCut>,
    pub(crate) reasons: Vec<String>,
    /// One of them is of something that went wrong.
    pub(crate) is_incomplete: bool,
    pub(crate) error: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct AtCut {
    /// How long the drain had taken.
    pub(crate) after: Duration,
    /// Checkouts that were out.
    pub(crate) out: u64,
    /// Sessions that were cut before, for another reason.
    pub(crate) before: u64,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            step: Step::Waiting,
            sessions: SessionCounts::default(),
            open: 0,
            stragglers: Vec::new(),
            at_cut: None,
            reasons: Vec::new(),
            is_incomplete: false,
            error: None,
        }
    }
}

impl Tally {
    pub(crate) fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Reaches a step. Steps that run beside each other may come in any order; the furthest one counts.
    pub(crate) fn step(&self, step: Step) {
        self.change(|known| known.step = known.step.max(step));
    }

    pub(crate) fn known(&self) -> Known {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
