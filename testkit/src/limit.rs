//! Limits of time for tests. What a test waits until it has its server does not count: others may have it, and take their
//! time with it.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    task_local,
    time::{Instant, timeout},
};

/// How long it may take at least until a limit that has run out while a test waits is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

task_local! {
    static CLOCK: Arc<Clock>;
}

/// What one test has waited for its servers.
#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<Waits>);

#[derive(Debug, Default)]
struct Waits {
    /// Those that are over.
    over: Duration,
    /// How many there are now, and since when.
    now: Option<(usize, Instant)>,
}

impl Clock {
    /// All waits so far.
    pub(crate) fn waited(&self) -> Duration {
        let waits = self.lock();
        waits.over + waits.now.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// Runs a test whose waits are noted here, as far as it does not leave its own task.
    pub(crate) async fn run<F: Future>(self: Arc<Self>, test: F) -> F::Output {
        CLOCK.scope(self, test).await
    }

    fn lock(&self) -> MutexGuard<'_, Waits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The test that runs in this task waits for a server until this is dropped.
#[derive(Debug)]
#[must_use = "dropped the wait is over"]
pub(crate) struct Waiting(Option<Arc<Clock>>);

impl Waiting {
    pub(crate) fn begin() -> Self {
        let clock = CLOCK.try_with(Arc::clone).ok();
        if let Some(clock) = &clock {
            clock.lock().now.get_or_insert_with(|| (0, Instant::now())).0 += 1;
        }
        Self(clock)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(clock) = &self.0 else { return };
        let mut waits = clock.lock();
        if let Some((count, since)) = waits.now.take() {
            match count - 1 {
                0 => waits.over += since.elapsed(),
                left => waits.now = Some((left, since)),
            }
        }
    }
}

/// What the future returns, if it is ready in time. [Waits](Waiting) of this task do not count.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let clock = CLOCK.try_with(Arc::clone).unwrap_or_default();
    let (began, before) = (Instant::now(), clock.waited());
    let mut future = pin!(future);
    loop {
        let counts = began.elapsed().saturating_sub(clock.waited() - before);
        let left = limit.saturating_sub(counts);
        if left.is_zero() {
            return None;
        }
        if let Ok(output) = timeout(left.max(AGAIN), &mut future).await {
            return Some(output);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn what_hangs_is_found_when_its_time_is_up() {
        let began = Instant::now();
        assert_eq!(within(LIMIT, pending::<()>()).await, None);
        assert_eq!(began.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_a_server_does_not_count_and_what_follows_does() {
        let began = Instant::now();
        let test = within(LIMIT, async {
            let waiting = Waiting::begin();
            sleep(LIMIT * 10).await;
            drop(waiting);
            sleep(LIMIT / 2).await;
            {
                let (_one, _other) = (Waiting::begin(), Waiting::begin());
                sleep(LIMIT * 3).await;
            }
            pending::<()>().await;
        });
        assert_eq!(Arc::<Clock>::default().run(test).await, None);
        assert!((LIMIT * 14..LIMIT * 14 + AGAIN * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}
