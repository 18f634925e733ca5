//! How long a server takes to answer.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How long a server takes to answer, by what an adapter has seen of it: connecting, logging on, a check after a rest.
///
/// Sizes the time that a drain keeps for cancelling and for the last goodbyes, and how long it waits for what nobody else waits
/// for. A server that has become slow is known to be at once; one that has recovered is believed little by little.
#[derive(Debug, Default)]
pub struct Latency {
    /// In nanoseconds; zero where nothing was seen.
    slow: AtomicU64,
}

/// How much of the difference an answer that came sooner takes off.
const RECOVERY: u64 = 16;

impl Latency {
    /// The server took so long for one answer.
    pub fn saw(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let next = |slow: u64| Some(took.max(slow - slow.saturating_sub(took).div_ceil(RECOVERY)));
        // Relaxed: it stands alone. The closure never refuses.
        let _ = self.slow.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// What an answer may take, as far as is known; zero where nothing was seen.
    pub fn expected(&self) -> Duration {
        Duration::from_nanos(self.slow.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_expected_before_something_was_seen() {
        assert_eq!(Latency::default().expected(), Duration::ZERO);
    }

    #[test]
    fn what_was_slow_once_is_expected_until_many_answers_were_quicker() {
        let latency = Latency::default();
        let (quick, slow) = (Duration::from_millis(1), Duration::from_millis(100));
        latency.saw(quick);
        assert_eq!(latency.expected(), quick);
        latency.saw(slow);
        assert_eq!(latency.expected(), slow);
        latency.saw(quick);
        assert!(latency.expected() > slow * 9 / 10, "{:?}", latency.expected());
        for _ in 0..1000 {
            latency.saw(quick);
        }
        assert_eq!(latency.expected(), quick);
    }

    #[test]
    fn no_duration_upsets_it() {
        let latency = Latency::default();
        latency.saw(Duration::MAX);
        latency.saw(Duration::ZERO);
        assert!(latency.expected() > Duration::from_secs(1));
    }
}
