//! Which connections have rested for so long that they must be looked at before somebody gets them.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// Says which connections of a pool an adapter must check before it hands them out: the server may have closed them while
/// they rested.
///
/// It goes by the time since a connection was last handed out, and by whether the process was frozen meanwhile: then the
/// clock that measures that time may have stood still. A connection that is used again sooner costs two readings of the
/// clock, and no round trip. Connections are told apart by a `T` that each has one of.
#[derive(Debug)]
pub struct Rested<T> {
    after: Duration,
    clocks: Mutex<Clocks>,
    /// How many are in `suspects`, so that nobody takes the lock for none.
    count: AtomicUsize,
    /// The connections that are to be asked.
    suspects: Mutex<Vec<Weak<T>>>,
}

#[derive(Debug)]
struct Clocks {
    steady: Instant,
    wall: SystemTime,
    /// What was handed out before this moment has rested since a freeze.
    thawed: Option<Instant>,
}

impl<T> Rested<T> {
    /// Connections that were not handed out for this long have rested.
    pub fn new(after: Duration) -> Self {
        let clocks = Clocks { steady: Instant::now(), wall: SystemTime::now(), thawed: None };
        Self { after, clocks: Mutex::new(clocks), count: AtomicUsize::new(0), suspects: Mutex::default() }
    }

    /// Whether a connection that was last handed out, or made, at this moment must be looked at.
    pub fn is_suspect(&self, used: Instant) -> bool {
        let now = Instant::now();
        now.saturating_duration_since(used) >= self.after || self.thawed(now).is_some_and(|thawed| used < thawed)
    }

    /// When the process was last found to have been frozen.
    fn thawed(&self, now: Instant) -> Option<Instant> {
        let mut clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
        let wall = SystemTime::now();
        // A clock that was set back has told nothing.
        let passed = wall.duration_since(clocks.wall).unwrap_or_default();
        let stood_still = passed.saturating_sub(now.saturating_duration_since(clocks.steady));
        if stood_still >= self.after {
            clocks.thawed = Some(now);
        }
        (clocks.steady, clocks.wall) = (now, wall);
        clocks.thawed
    }

    /// The connection with this mark is to be asked before somebody gets it.
    pub fn suspect(&self, mark: &Arc<T>) {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.retain(|suspect| suspect.strong_count() > 0 && !std::ptr::eq(suspect.as_ptr(), Arc::as_ptr(mark)));
        suspects.push(Arc::downgrade(mark));
        // Relaxed, here and below: the lock orders what matters, and whoever suspects a connection is the one that gets it.
        self.count.store(suspects.len(), Ordering::Relaxed);
    }

    /// Whether the connection with this mark is to be asked; once.
    pub fn is_to_be_checked(&self, mark: &Arc<T>) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        let before = suspects.len();
        suspects.retain(|suspect| !std::ptr::eq(suspect.as_ptr(), Arc::as_ptr(mark)));
        self.count.store(suspects.len(), Ordering::Relaxed);
        suspects.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_suspect_when_it_has_rested_for_the_limit() {
        let rested = Rested::<()>::new(Duration::from_secs(60));
        let used = |ago: u64| Instant::now() - Duration::from_secs(ago);
        assert!(!rested.is_suspect(used(59)));
        assert!(rested.is_suspect(used(60)));
    }

    #[test]
    fn a_clock_that_stood_still_counts_as_rest() {
        let rested = Rested::<()>::new(Duration::from_secs(60));
        let used = Instant::now();
        rested.clocks.lock().unwrap().wall -= Duration::from_secs(59);
        assert!(!rested.is_suspect(used));
        rested.clocks.lock().unwrap().wall -= Duration::from_secs(61);
        assert!(rested.is_suspect(used));
        assert!(rested.is_suspect(used), "until it is handed out");
        assert!(!rested.is_suspect(Instant::now()));
    }

    #[test]
    fn a_suspect_is_asked_once() {
        let rested = Rested::new(Duration::ZERO);
        let one = Arc::new(0);
        let other = Arc::new(0);
        rested.suspect(&one);
        rested.suspect(&one);
        assert!(!rested.is_to_be_checked(&other));
        assert!(rested.is_to_be_checked(&one));
        assert!(!rested.is_to_be_checked(&one));
    }
}
