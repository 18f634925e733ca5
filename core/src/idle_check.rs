//! Which connections have been idle for so long that they must be looked at before somebody gets them.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// Says which connections of a pool an adapter must check before it hands them out: the server may have closed them while
/// they were idle.
///
/// A connection's rest is the time since it was last handed out, by the server's clock: that which a steady clock has
/// measured, and that for which the process was frozen meanwhile, when such a clock may have stood still. Freezes add up:
/// many short ones are as long a rest as one. A connection that is used again sooner costs two readings of the clock, and
/// no round trip. Connections are told apart by a `T` that each has one of.
///
/// It looks at the clock whenever it is asked about a connection, so a freeze is seen at the next checkout. A connection
/// that was made, and asked about by nobody, between a thaw and that checkout counts as one that was frozen: it may be checked
/// once too often.
#[derive(Debug)]
pub struct IdleCheck<T> {
    after: Duration,
    clocks: Mutex<Clocks>,
    /// How many are in `suspects`, so that nobody takes the lock for none.
    count: AtomicUsize,
    /// The connections that are to be asked.
    suspects: Mutex<Vec<Weak<T>>>,
}

/// What the two clocks say, and how they came apart.
#[derive(Debug)]
pub(crate) struct Clocks {
    /// When they were last known to go together.
    steady: Instant,
    wall: SystemTime,
    /// The freezes that were seen, the newest last. No more than it takes for [`IdleCheck::after`]: what was handed out before
    /// those has been idle anyway.
    freezes: VecDeque<Freeze>,
    /// How long all of these lasted.
    frozen: Duration,
}

#[derive(Debug)]
struct Freeze {
    /// When it was seen. What was handed out before this moment was frozen with the process.
    seen: Instant,
    lasted: Duration,
}

/// Into so many parts is the limit divided: shorter freezes are put together until they are one part. So many are kept.
const PARTS: u32 = 64;

impl<T> IdleCheck<T> {
    /// Connections that were not handed out for this long have been idle.
    pub fn new(after: Duration) -> Self {
        Self::at(after, Instant::now(), SystemTime::now())
    }

    fn at(after: Duration, steady: Instant, wall: SystemTime) -> Self {
        let clocks = Mutex::new(Clocks::new(steady, wall));
        Self { after, clocks, count: AtomicUsize::new(0), suspects: Mutex::default() }
    }

    /// Whether a connection that was last handed out, or made, at this moment must be looked at.
    pub fn is_suspect(&self, used: Instant) -> bool {
        self.is_suspect_at(used, || (Instant::now(), SystemTime::now()))
    }

    fn is_suspect_at(&self, used: Instant, now: impl FnOnce() -> (Instant, SystemTime)) -> bool {
        let mut clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
        // In here: a wait for the lock is no freeze.
        let (steady, wall) = now();
        clocks.passed_since(used, self.after, steady, wall) >= self.after
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
    pub fn take_suspect(&self, mark: &Arc<T>) -> bool {
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

impl Clocks {
    pub(crate) fn new(steady: Instant, wall: SystemTime) -> Self {
        Self { steady, wall, freezes: VecDeque::new(), frozen: Duration::ZERO }
    }

    /// How long it is since then, by the server's clock; less where that is more than `after` all the same.
    pub(crate) fn passed_since(
        &mut self,
        then: Instant,
        after: Duration,
        steady: Instant,
        wall: SystemTime,
    ) -> Duration {
        let ran = steady.saturating_duration_since(then);
        ran.saturating_add(self.frozen_since(then, after, steady, wall))
    }

    /// For how long the process was frozen since then; less where that is more than `after` all the same.
    fn frozen_since(&mut self, used: Instant, after: Duration, steady: Instant, wall: SystemTime) -> Duration {
        // A clock that was set back has told nothing.
        let passed = wall.duration_since(self.wall).unwrap_or_default();
        let stood_still = passed.saturating_sub(steady.saturating_duration_since(self.steady));
        let is_kept = stood_still >= after / PARTS;
        if is_kept || stood_still.is_zero() {
            (self.steady, self.wall) = (steady, wall);
        }
        if is_kept {
            self.keep(Freeze { seen: steady, lasted: stood_still }, after);
        }
        // One that is too short to be kept counts for every connection: rather too much than too little.
        let short = if is_kept { Duration::ZERO } else { stood_still };
        let since = self.freezes.iter().rev().take_while(|freeze| used < freeze.seen);
        since.fold(short, |frozen, freeze| frozen.saturating_add(freeze.lasted))
    }

    fn keep(&mut self, freeze: Freeze, after: Duration) {
        self.frozen = self.frozen.saturating_add(freeze.lasted);
        self.freezes.push_back(freeze);
        // What was handed out before the oldest of these has been idle, whatever that one adds.
        while let Some(oldest) = self.freezes.front().map(|freeze| freeze.lasted)
            && self.frozen.saturating_sub(oldest) >= after
        {
            self.frozen -= oldest;
            self.freezes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(5);
    const MS: Duration = Duration::from_millis(1);

    /// Both clocks, which only go when they are told to.
    struct World {
        idle_check: IdleCheck<()>,
        steady: Instant,
        wall: SystemTime,
    }

    impl World {
        fn new() -> Self {
            let (steady, wall) = (Instant::now(), SystemTime::now());
            Self { idle_check: IdleCheck::at(AFTER, steady, wall), steady, wall }
        }

        /// Hands a connection out; no two things happen at the same instant.
        fn uses(&mut self) -> Instant {
            let used = self.steady;
            self.runs(Duration::from_nanos(1));
            used
        }

        fn runs(&mut self, time: Duration) {
            self.steady += time;
            self.wall += time;
        }

        fn is_frozen(&mut self, time: Duration) {
            self.wall += time;
        }

        fn is_suspect(&self, used: Instant) -> bool {
            self.idle_check.is_suspect_at(used, || (self.steady, self.wall))
        }

        fn kept(&self) -> usize {
            self.idle_check.clocks.lock().unwrap().freezes.len()
        }
    }

    #[test]
    fn a_connection_is_suspect_when_it_has_rested_for_the_limit() {
        let mut world = World::new();
        let used = world.uses();
        world.runs(AFTER - MS);
        assert!(!world.is_suspect(used));
        world.runs(MS);
        assert!(world.is_suspect(used));
        let used = world.uses();
        assert!(!world.is_suspect(used));
    }

    #[test]
    fn a_clock_that_stood_still_counts_as_rest() {
        let mut world = World::new();
        let used = world.uses();
        world.is_frozen(AFTER - MS);
        assert!(!world.is_suspect(used));
        world.is_frozen(MS);
        assert!(world.is_suspect(used));
        assert!(world.is_suspect(used), "until it is handed out");
        world.runs(MS);
        assert!(!world.is_suspect(world.steady));
    }

    #[test]
    fn time_that_ran_and_time_that_stood_still_are_one_rest() {
        let mut world = World::new();
        let used = world.uses();
        world.runs(AFTER / 2);
        world.is_frozen(AFTER / 2 - MS);
        assert!(!world.is_suspect(used));
        world.runs(MS);
        assert!(world.is_suspect(used));
    }

    /// One connection is used in each invocation, and another by none: 200 freezes of 4.9 s are 980 s.
    #[test]
    fn short_freezes_add_up_for_a_connection_that_nobody_uses_meanwhile() {
        let mut world = World::new();
        let resting = world.uses();
        let mut warm = world.uses();
        for freeze in 1..=200 {
            world.is_frozen(AFTER - 100 * MS);
            world.runs(MS);
            assert!(!world.is_suspect(warm), "freeze {freeze}: it has been idle for 4.9 s");
            warm = world.uses();
            world.runs(MS);
            if freeze > 1 {
                assert!(world.is_suspect(resting), "freeze {freeze}");
            }
        }
        assert!(world.kept() <= 2, "what is older decides nothing");
    }

    #[test]
    fn freezes_that_are_too_short_to_be_kept_add_up_too() {
        let mut world = World::new();
        let resting = world.uses();
        for freeze in 1..5_000 {
            world.is_frozen(MS);
            assert!(!world.is_suspect(resting), "freeze {freeze}");
        }
        world.is_frozen(MS);
        assert!(world.is_suspect(resting));
        assert!(world.kept() <= PARTS as usize + 1);
        assert!(!world.is_suspect(world.steady));
    }

    #[test]
    fn a_clock_that_was_set_back_tells_nothing_and_hides_no_later_freeze() {
        let mut world = World::new();
        let used = world.uses();
        world.wall -= AFTER * 100;
        assert!(!world.is_suspect(used));
        world.is_frozen(AFTER);
        assert!(world.is_suspect(used));
    }

    #[test]
    fn a_suspect_is_asked_once() {
        let idle_check = IdleCheck::new(Duration::ZERO);
        let one = Arc::new(0);
        let other = Arc::new(0);
        idle_check.suspect(&one);
        idle_check.suspect(&one);
        assert!(!idle_check.take_suspect(&other));
        assert!(idle_check.take_suspect(&one));
        assert!(!idle_check.take_suspect(&one));
    }
}
