//! Calls that block, and may never return, on a thread that nobody has to wait for.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    thread,
};

use tokio::sync::{Mutex, oneshot};
use winddown_core::{Error, ErrorKind, adapter::Drain};

/// Runs one call at a time, each on a thread of its own: not on tokio's blocking threads, for which a runtime waits when
/// it ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Aside {
    /// Held by the call, and not by who waits for it: where one hangs, those that come after it wait in their futures,
    /// and no threads pile up.
    turn: Arc<Mutex<()>>,
}

impl Aside {
    /// # Cancel safety
    /// Cancel safe: a call that has begun goes on, one that has not is not made.
    ///
    /// # Errors
    /// Those of the call; [`ErrorKind::Panicked`] where it panicked, [`ErrorKind::Config`] where no thread can be started.
    pub(crate) async fn run(&self, call: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let (sender, answer) = oneshot::channel();
        let call = move || {
            let result = caught(call);
            drop(turn);
            // Whoever waited may have gone.
            let _ = sender.send(result);
        };
        let no_thread = |error| Error::new(ErrorKind::Config, "cannot start a thread to flush on").with_source(error);
        thread::Builder::new().name("winddown-flush".into()).spawn(call).map_err(no_thread)?;
        answer.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Panicked, "the thread of the flush ended")))
    }
}

/// What the call returns, or its panic.
fn caught(call: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    // Nothing of the call is used after it has panicked.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err(Error::new(ErrorKind::Panicked, "the flush panicked")))
}

/// The flushes that have failed, whether or not somebody still waited for them: what was in them is lost (S5), and the
/// report has to say so.
#[cfg(feature = "otel")]
#[derive(Debug, Clone, Default)]
pub(crate) struct Failures(Arc<std::sync::Mutex<Failed>>);

#[cfg(feature = "otel")]
#[derive(Debug, Default)]
struct Failed {
    times: u64,
    last: Option<Error>,
}

#[cfg(feature = "otel")]
impl Failures {
    /// Makes the call, and keeps its failure: on the thread that makes it, so that nobody need wait for that.
    pub(crate) fn keep(&self, call: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let result = caught(call);
        if let Err(error) = &result {
            let mut failed = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            failed.times += 1;
            failed.last = Some(error.clone());
        }
        result
    }

    /// What the last flush returned, and what became of those before it.
    pub(crate) fn and(&self, last: Result<(), Error>) -> Result<(), Error> {
        let failed = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(before) = failed.last.clone() else { return last };
        let times = format!("flushes that failed before: {}", failed.times);
        Err(Error::new(ErrorKind::Write, times).with_source(last.err().unwrap_or(before)))
    }
}

/// Waits for the flush of a drain until the resource is left. When its time is nearly up the report is told why.
pub(crate) async fn watched(
    drain: &Drain,
    slow: &'static str,
    flush: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    let mut flush = pin!(flush);
    tokio::select! {
        biased;
        flushed = &mut flush => flushed,
        () = drain.until_cut() => {
            drain.note(&Error::new(ErrorKind::Timeout, slow));
            flush.await
        }
    }
}

#[cfg(all(test, feature = "otel"))]
mod tests {
    use super::*;

    fn lost() -> Result<(), Error> {
        Err(Error::new(ErrorKind::Write, "lost"))
    }

    #[tokio::test]
    async fn s5_a_failure_is_kept_whoever_hears_of_it_and_so_is_a_panic() {
        let (aside, failures) = (Aside::default(), Failures::default());
        assert!(failures.and(Ok(())).is_ok());
        let (let_go, wait) = std::sync::mpsc::channel::<()>();
        let late = failures.clone();
        let mut abandoned = Box::pin(aside.run(move || {
            late.keep(|| {
                // Closed when the test wants it to go on.
                let _ = wait.recv();
                lost()
            })
        }));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(abandoned.as_mut().poll(&mut context).is_pending(), "it has begun, and waits");
        drop(abandoned);
        drop(let_go);
        let panics = failures.clone();
        let error = aside.run(move || panics.keep(|| panic!("the exporter has a bug"))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panicked);
        let error = failures.and(Ok(())).unwrap_err().to_string();
        assert_eq!(error, "flushes that failed before: 2: the flush panicked");
        let error = failures.and(lost()).unwrap_err().to_string();
        assert_eq!(error, "flushes that failed before: 2: lost");
    }
}
