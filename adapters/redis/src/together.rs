//! Callers who wait for the same: a failure is told to all of them.

use std::{
    future::Future,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use winddown_core::Error;

tokio::task_local! {
    /// How many failures whoever waits here had seen when it began.
    static SEEN: u64;
}

/// What was seen of a server so long ago says nothing of it now.
const OUTDATED: Duration = Duration::from_secs(5);

/// What has failed so far. Whoever began to wait before a failure is told of it, and tries no more: one after the other they
/// would each wait as long for the same. Whoever comes after it tries anew.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    count: AtomicU64,
    last: Mutex<Option<(Instant, Error)>>,
}

impl Failures {
    fn last(&self) -> MutexGuard<'_, Option<(Instant, Error)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something that asks [`told`](Self::told).
    pub(crate) fn waits<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        // Relaxed, here and below: who has not seen a failure yet tries once more than it had to.
        SEEN.scope(self.count.load(Ordering::Relaxed), work)
    }

    /// The failure that was there since this caller began to [wait](Self::waits), if it is still of interest.
    pub(crate) fn told(&self) -> Option<Error> {
        let seen = SEEN.try_with(|seen| *seen).ok()?;
        if self.count.load(Ordering::Relaxed) == seen {
            return None;
        }
        let last = self.last();
        let (failed, error) = last.as_ref()?;
        (failed.elapsed() < OUTDATED).then(|| error.clone())
    }

    /// Tells all who wait now.
    pub(crate) fn failed(&self, error: &Error) {
        *self.last() = Some((Instant::now(), error.clone()));
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// It works again: what failed before is of no interest.
    pub(crate) fn worked(&self) {
        if self.count.load(Ordering::Relaxed) > 0 {
            *self.last() = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use winddown_core::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn who_waits_is_told_and_who_comes_later_is_not() {
        let failures = Failures::default();
        assert!(failures.told().is_none(), "nobody waits");
        let error = Error::new(ErrorKind::Init, "gone");
        failures
            .waits(async {
                assert!(failures.told().is_none());
                failures.failed(&error);
                assert_eq!(failures.told().unwrap().to_string(), "gone");
            })
            .await;
        failures.waits(async { assert!(failures.told().is_none()) }).await;
        failures
            .waits(async {
                failures.failed(&error);
                failures.worked();
                assert!(failures.told().is_none());
            })
            .await;
    }
}
