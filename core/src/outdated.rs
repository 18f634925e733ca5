//! Which connections of a pool are not to be used any more, because of what another one has shown.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// Says which connections of a pool are to be replaced without being asked, from what was seen on one of them. One that did not
/// answer after a rest is seldom alone: the others would each take as long to show the same. And a server that has become
/// read-only says so on one session, and means all of them.
///
/// Asking costs two relaxed loads.
#[derive(Debug)]
pub struct Outdated {
    began: Instant,
    /// Both in nanoseconds after `began`; zero for never.
    unused: AtomicU64,
    opened: AtomicU64,
}

impl Default for Outdated {
    fn default() -> Self {
        Self { began: Instant::now(), unused: AtomicU64::new(0), opened: AtomicU64::new(0) }
    }
}

impl Outdated {
    /// A connection did not answer: those that nobody has used since are as dead.
    pub fn unused_until_now(&self) {
        self.unused.fetch_max(self.nanos(Instant::now()), Ordering::Relaxed);
    }

    /// The server is not what it was: what is open now is of no use, used or not.
    pub fn opened_until_now(&self) {
        self.opened.fetch_max(self.nanos(Instant::now()), Ordering::Relaxed);
    }

    /// Whether a connection that was opened and last handed out at these moments is to be replaced.
    pub fn is_outdated(&self, opened: Instant, used: Instant) -> bool {
        // Relaxed: who has just seen it on another thread may hand one more out.
        let before = |mark: &AtomicU64, moment| {
            let mark = mark.load(Ordering::Relaxed);
            mark > 0 && self.nanos(moment) <= mark
        };
        before(&self.opened, opened) || before(&self.unused, used)
    }

    fn nanos(&self, moment: Instant) -> u64 {
        // At least one: a mark at the very beginning is one. 584 years fit.
        u64::try_from(moment.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_is_outdated_at_first() {
        let outdated = Outdated::default();
        let before = outdated.began - Duration::from_secs(1);
        assert!(!outdated.is_outdated(before, before));
    }

    #[test]
    fn what_was_used_since_is_not_as_dead() {
        let outdated = Outdated::default();
        let before = Instant::now();
        outdated.unused_until_now();
        let after = Instant::now() + Duration::from_nanos(1);
        assert!(outdated.is_outdated(before, before));
        assert!(!outdated.is_outdated(before, after));
    }

    #[test]
    fn what_was_opened_before_is_of_no_use_though_it_was_used_since() {
        let outdated = Outdated::default();
        let before = Instant::now();
        outdated.opened_until_now();
        let after = Instant::now() + Duration::from_nanos(1);
        assert!(outdated.is_outdated(before, after));
        assert!(!outdated.is_outdated(after, after));
    }
}
