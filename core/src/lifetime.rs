//! How long a pool's sessions live, and how long they may be idle.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use crate::idle_check::Clocks;

/// Says which sessions of a pool are to say goodbye and be replaced: those that are older than they may be, and those that
/// nobody has used for too long.
///
/// It has no timer: a pool asks when it hands a session out, when one comes back, and now and then about those that are idle.
/// Without limits that costs nothing. Time for which the process was frozen counts, as for
/// [`IdleCheck`](crate::adapter::IdleCheck).
#[derive(Debug)]
pub struct Lifetime {
    max_lifetime: Option<Duration>,
    idle_timeout: Option<Duration>,
    /// The same for a flush.
    idle_at_flush: Option<Duration>,
    /// Each session's own limit comes from this and from when it was opened.
    seed: u64,
    began: Instant,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    clocks: Clocks,
    /// When the idle ones were last looked through.
    swept: Instant,
}

/// A session's own limit is shorter by so much at most, of the whole.
const JITTER: f64 = 0.1;

/// So often in the shorter limit are those that are idle looked through, while the pool is used all the time.
const SWEEPS: u32 = 10;

impl Lifetime {
    /// Sessions live for so long at most, and are idle for so long; `None` for no limit.
    pub fn new(max_lifetime: Option<Duration>, idle_timeout: Option<Duration>) -> Self {
        Self::at(max_lifetime, idle_timeout, fastrand::u64(..), now(), SystemTime::now())
    }

    fn at(
        max_lifetime: Option<Duration>,
        idle_timeout: Option<Duration>,
        seed: u64,
        steady: Instant,
        wall: SystemTime,
    ) -> Self {
        let known = Mutex::new(Known { clocks: Clocks::new(steady, wall), swept: steady });
        Self { max_lifetime, idle_timeout, idle_at_flush: None, seed, began: steady, known }
    }

    /// The same, and at a flush sessions leave that have been idle for so long by then; `None` for none.
    #[must_use]
    pub fn idle_at_flush(mut self, limit: Option<Duration>) -> Self {
        self.idle_at_flush = limit;
        self
    }

    /// For a flush: whether a session that was opened and last handed out at these moments is to leave. `None` where all stay.
    pub fn at_flush(&self) -> Option<impl Fn(Instant, Instant) -> bool + '_> {
        let limit = self.idle_at_flush?;
        Some(move |opened, used| self.has_passed(used, limit) || self.is_over(opened, used))
    }

    /// Whether a session that was opened and last handed out at these moments is not to be handed out again.
    pub fn is_over(&self, opened: Instant, used: Instant) -> bool {
        self.is_too_old(opened) || self.idle_timeout.is_some_and(|limit| self.has_passed(used, limit))
    }

    /// Whether a session that was opened at this moment has lived for as long as it may: for one that comes back.
    pub fn is_too_old(&self, opened: Instant) -> bool {
        self.limit_of(opened).is_some_and(|limit| self.has_passed(opened, limit))
    }

    /// Whether it is time to look through the idle sessions for those whose life [is over](Self::is_over): the pool is about to
    /// be used. True at most ten times in the shorter limit, so that a checkout seldom pays for it.
    pub fn is_sweep_due(&self) -> bool {
        let Some(shorter) = self.max_lifetime.into_iter().chain(self.idle_timeout).min() else { return false };
        let mut known = self.known();
        let (steady, wall) = (now(), SystemTime::now());
        let last = known.swept;
        let is_due = known.clocks.passed_since(last, self.longer(), steady, wall) >= shorter / SWEEPS;
        if is_due {
            known.swept = steady;
        }
        is_due
    }

    /// How long a session lives that was opened at this moment.
    fn limit_of(&self, opened: Instant) -> Option<Duration> {
        let max = self.max_lifetime?;
        // One that was opened before counts as one that was opened then. 584 years fit.
        let nanos = u64::try_from(opened.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX);
        let part = fastrand::Rng::with_seed(self.seed ^ nanos).f64();
        Some(max.saturating_sub(max.mul_f64(JITTER * part)))
    }

    fn has_passed(&self, since: Instant, limit: Duration) -> bool {
        let mut known = self.known();
        // In here: a wait for the lock is no freeze.
        let (steady, wall) = (now(), SystemTime::now());
        known.clocks.passed_since(since, self.longer(), steady, wall) >= limit
    }

    /// What the clocks have to remember.
    fn longer(&self) -> Duration {
        self.max_lifetime.into_iter().chain(self.idle_timeout).chain(self.idle_at_flush).max().unwrap_or_default()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tests move this clock; the standard library's it is otherwise.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(all(test, not(winddown_loom)))]
mod tests {
    use tokio::time::advance;

    use super::*;

    const LIFE: Duration = Duration::from_secs(1800);
    const IDLE: Duration = Duration::from_secs(600);
    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn without_limits_no_session_ends() {
        let lifetime = Lifetime::new(None, None);
        let opened = now();
        advance(Duration::from_secs(86_400 * 365)).await;
        assert!(!lifetime.is_over(opened, opened) && !lifetime.is_too_old(opened) && !lifetime.is_sweep_due());
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_when_it_has_been_idle_for_the_limit() {
        let lifetime = Lifetime::new(None, Some(IDLE));
        let opened = now();
        advance(IDLE - MS).await;
        assert!(!lifetime.is_over(opened, opened), "1 ms before");
        advance(MS).await;
        assert!(lifetime.is_over(opened, opened));
        advance(MS).await;
        assert!(lifetime.is_over(opened, opened), "1 ms after");
        let used = now();
        assert!(!lifetime.is_over(opened, used), "somebody has used it");
        assert!(!lifetime.is_too_old(opened), "it may be as old as it likes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_has_a_limit_of_its_own() {
        assert!(Lifetime::new(Some(LIFE), Some(IDLE)).at_flush().is_none());
        let lifetime = Lifetime::new(None, None).idle_at_flush(Some(IDLE));
        let leaves = lifetime.at_flush().unwrap();
        let opened = now();
        advance(IDLE - MS).await;
        assert!(!leaves(opened, opened), "1 ms before");
        advance(2 * MS).await;
        assert!(leaves(opened, opened), "1 ms after");
        assert!(!leaves(opened, now()) && !lifetime.is_over(opened, opened));
        let all = Lifetime::new(None, None).idle_at_flush(Some(Duration::ZERO));
        assert!(all.at_flush().unwrap()(now(), now()), "without a limit all leave");
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_at_its_own_limit_however_much_it_is_used() {
        let lifetime = Lifetime::new(Some(LIFE), None);
        let opened = now();
        let own = lifetime.limit_of(opened).unwrap();
        advance(own - MS).await;
        assert!(!lifetime.is_over(opened, now()) && !lifetime.is_too_old(opened), "1 ms before");
        // The clock goes in whole milliseconds.
        advance(2 * MS).await;
        assert!(lifetime.is_over(opened, now()) && lifetime.is_too_old(opened), "1 ms after");
        assert!(!lifetime.is_over(now(), now()), "its successor begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_were_opened_together_do_not_end_together() {
        let lifetime = Lifetime::new(Some(LIFE), None);
        let began = now();
        let limits: Vec<_> = (0..1000).map(|n| lifetime.limit_of(began + Duration::from_micros(n)).unwrap()).collect();
        assert!(limits.iter().all(|limit| *limit > LIFE.mul_f64(0.9) - MS && *limit <= LIFE));
        // Each tenth of the tenth has its share: they are spread over all of it.
        for tenth in 0..10 {
            let (from, to) =
                (LIFE.mul_f64(0.9 + 0.01 * f64::from(tenth)), LIFE.mul_f64(0.91 + 0.01 * f64::from(tenth)));
            let count = limits.iter().filter(|limit| (from..to).contains(limit)).count();
            assert!((50..200).contains(&count), "{count} between {from:?} and {to:?}");
        }
        let again = lifetime.limit_of(began).unwrap();
        assert_eq!(again, limits[0], "a session's limit stays what it is");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_are_idle_are_looked_through_when_the_pool_is_used_and_not_too_often() {
        let lifetime = Lifetime::new(Some(LIFE), Some(IDLE));
        assert!(!lifetime.is_sweep_due());
        advance(IDLE / SWEEPS - MS).await;
        assert!(!lifetime.is_sweep_due(), "1 ms before");
        advance(MS).await;
        assert!(lifetime.is_sweep_due());
        assert!(!lifetime.is_sweep_due(), "that was just done");
        advance(IDLE).await;
        assert!(lifetime.is_sweep_due(), "whatever is over by now is found by the first who comes");
    }

    #[test]
    fn time_for_which_the_process_was_frozen_counts() {
        let (steady, wall) = (now(), SystemTime::now());
        // The other clock went on.
        let lifetime = Lifetime::at(Some(LIFE), Some(IDLE), 0, steady, wall.checked_sub(IDLE).unwrap());
        assert!(lifetime.is_over(steady, steady), "it was idle");
        assert!(!lifetime.is_too_old(steady));
        assert!(lifetime.is_sweep_due());
        let lifetime = Lifetime::at(Some(LIFE), None, 0, steady, wall.checked_sub(LIFE).unwrap());
        assert!(lifetime.is_too_old(steady));
    }
}
