//! What is counted of a pool, and whether it may open more: r2d2 says only how many are open.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What a pool, its manager and its sessions have in common.
#[derive(Debug, Default)]
pub(crate) struct Control {
    counts: Mutex<Counts>,
    /// One comes back, or was opened, and will be idle at once.
    pub(crate) comes: Notify,
}

#[derive(Debug, Default)]
struct Counts {
    /// Sessions that are the pool's, also those that it does not count yet.
    open: usize,
    /// Those that are being opened at this moment.
    opening: usize,
    /// Idle ones that somebody is about to take for a drain.
    claimed: usize,
    /// Why the last one could not be opened, if so. The pool tries that again by itself.
    failure: Option<String>,
    /// None is opened any more.
    refuses: bool,
    /// What comes back is dropped.
    closes: bool,
}

impl Control {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Each change is complete before anything can panic.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One is opened from now on, unless none is any more.
    pub(crate) fn open(self: &Arc<Self>) -> Option<Opening> {
        let mut counts = self.counts();
        if counts.refuses {
            return None;
        }
        counts.opening += 1;
        drop(counts);
        Some(Opening { control: Arc::clone(self), ended: Err("a panic".to_owned()) })
    }

    /// None is opened any more. How many still are.
    pub(crate) fn refuse(&self) -> usize {
        let mut counts = self.counts();
        counts.refuses = true;
        counts.opening
    }

    /// What comes back is dropped from now on, and so is what was still opened.
    pub(crate) fn close(&self) {
        let mut counts = self.counts();
        (counts.refuses, counts.closes) = (true, true);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.counts().closes
    }

    pub(crate) fn refuses(&self) -> bool {
        self.counts().refuses
    }

    /// Whether one who waits has to ask for another one.
    pub(crate) fn is_nothing_to_come(&self) -> bool {
        let counts = self.counts();
        !counts.refuses && counts.failure.is_none() && counts.opening == 0
    }

    /// Why the last one could not be opened, if so.
    pub(crate) fn failure(&self) -> Option<String> {
        self.counts().failure.clone()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.counts().open
    }

    pub(crate) fn claimed(&self) -> usize {
        self.counts().claimed
    }

    /// An idle one is about to be taken.
    pub(crate) fn claim(self: &Arc<Self>) -> Claim {
        self.counts().claimed += 1;
        Claim(Arc::clone(self))
    }
}

/// A session that is being opened.
#[derive(Debug)]
pub(crate) struct Opening {
    control: Arc<Control>,
    /// How it has, when it is dropped.
    ended: Result<(), String>,
}

impl Opening {
    /// It is open.
    pub(crate) fn opened(mut self) -> Counted {
        self.ended = Ok(());
        Counted(Arc::clone(&self.control))
    }

    /// It was not opened, for this reason.
    pub(crate) fn failed(mut self, reason: String) {
        self.ended = Err(reason);
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        // In one step: a drain never sees it as neither.
        let mut counts = self.control.counts();
        counts.opening -= 1;
        counts.open += usize::from(self.ended.is_ok());
        counts.failure = std::mem::replace(&mut self.ended, Ok(())).err();
        drop(counts);
        self.control.comes.notify_one();
    }
}

/// A session that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Control>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.counts().open -= 1;
    }
}

/// An idle session that is about to be taken, until this is dropped.
#[derive(Debug)]
pub(crate) struct Claim(Arc<Control>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.counts().claimed -= 1;
    }
}
