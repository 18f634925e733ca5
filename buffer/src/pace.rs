//! How long a write may take before it is taken for hung.

use std::time::Duration;

/// A write is hung when it takes so many times as long as the slowest one lately.
const TIMES: u32 = 8;

/// And not before this: a server that fails over, or waits for a lock, takes seconds.
const FLOOR: Duration = Duration::from_secs(5);

/// The most that an age asks for.
const CEILING: Duration = Duration::from_secs(30);

/// So many times its age may pass before a buffer gives a write up.
const AGES: u32 = 4;

/// How often the bound is doubled at the most, one hung write after the other: 17 times from 5 s is a week.
const DOUBLINGS: u32 = 17;

/// What writes took lately.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The setting.
    within: Option<Duration>,
    /// From the buffer's age.
    floor: Duration,
    slowest: Duration,
    /// Writes in a row that were given up.
    hung: u32,
}

impl Pace {
    pub(crate) fn new(within: Option<Duration>, max_age: Duration) -> Self {
        let floor = max_age.saturating_mul(AGES).clamp(FLOOR, CEILING);
        Self { within, floor, slowest: Duration::ZERO, hung: 0 }
    }

    /// How long a write may take now. A target that is slower than any before gets the time it needs: after each write
    /// that was given up the next has twice as long.
    pub(crate) fn bound(&self) -> Duration {
        let own = || {
            let doubled = 1 << self.hung.min(DOUBLINGS);
            self.slowest.saturating_mul(TIMES).max(self.floor).saturating_mul(doubled)
        };
        self.within.unwrap_or_else(own)
    }

    /// The same with so much time left until all must be over: half of it, so that another one can follow; but what writes are
    /// known to take they get.
    pub(crate) fn bound_within(&self, left: Duration) -> Duration {
        self.bound().min((left / 2).max(self.slowest.saturating_mul(2)))
    }

    /// How long the goodbye waits for what is being written, with so much time left until all must be over.
    pub(crate) fn patience(&self, left: Duration) -> Duration {
        (left / 3).min(self.slowest.saturating_mul(TIMES).max(PATIENCE))
    }

    pub(crate) fn took(&mut self, time: Duration) {
        // Older ones are forgotten little by little.
        self.slowest = time.max(self.slowest / 8 * 7);
        self.hung = 0;
    }

    pub(crate) fn hung(&mut self) {
        self.hung = self.hung.saturating_add(1);
    }
}

/// A write that is under way when draining begins has this, where it is no more than a third of what is left.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_bound_follows_the_age_the_slowest_write_and_what_was_given_up() {
        let mut pace = Pace::new(None, SECOND);
        assert_eq!(pace.bound(), 5 * SECOND);
        assert_eq!(Pace::new(None, Duration::MAX).bound(), 30 * SECOND);
        pace.took(2 * SECOND);
        assert_eq!(pace.bound(), 16 * SECOND);
        pace.hung();
        assert_eq!(pace.bound(), 32 * SECOND);
        (0..100).for_each(|_| pace.took(Duration::ZERO));
        assert_eq!(pace.bound(), 5 * SECOND, "long ago");
        (0..100).for_each(|_| pace.hung());
        assert!(pace.bound() >= 100_000 * SECOND);
        assert_eq!(Pace::new(Some(SECOND), Duration::ZERO).bound(), SECOND);
    }

    #[test]
    fn in_a_drain_it_is_a_share_of_what_is_left_but_what_writes_take_they_get() {
        let mut pace = Pace::new(None, SECOND);
        assert_eq!(pace.bound_within(2 * SECOND), SECOND);
        assert_eq!((pace.patience(3 * SECOND), pace.patience(30 * SECOND)), (SECOND, 2 * SECOND));
        pace.took(2 * SECOND);
        assert_eq!(pace.bound_within(2 * SECOND), 4 * SECOND);
        assert_eq!(pace.patience(30 * SECOND), 10 * SECOND);
    }
}
