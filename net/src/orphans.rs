//! Where sessions go on whose runtime has ended.
//!
//! A pool may outlive the runtime that its sessions were opened in, as a static one does in tests that have a runtime each. Its
//! clients do not know of that, and would wait for ever for sessions that nobody polls. So these go on here: on one thread for
//! all of the process, which begins with the first of them, and sleeps while nothing happens.

use std::{
    future::{Future, pending},
    io,
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

use tokio::runtime::{Builder, Handle};

static RUNTIME: Mutex<Option<Handle>> = Mutex::new(None);

/// The runtime of that thread; none where the system gives no thread.
pub(crate) fn runtime() -> Option<Handle> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if runtime.is_none() {
        *runtime = start().ok();
    }
    runtime.clone()
}

fn start() -> io::Result<Handle> {
    let (give, started) = mpsc::sync_channel(1);
    thread::Builder::new().name("winddown-orphans".into()).spawn(move || {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(give.send(Err(error))),
        };
        let _ = give.send(Ok(runtime.handle().clone()));
        runtime.block_on(pending::<()>());
    })?;
    started.recv().map_err(io::Error::other)?
}

/// Runs this on that thread: it goes on, and its timers do, where the runtime of the caller ends or stands still meanwhile. `None`
/// where the system gives no thread.
///
/// # Cancel safety
/// Dropped, it goes on without anybody who waits for it.
pub async fn run_apart<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    runtime()?.spawn(work).await.ok()
}

/// Whether the runtime that this is called on is ending, or there is none: a task that it is given would not be run.
pub fn runtime_is_ending() -> bool {
    let Ok(runtime) = Handle::try_current() else { return true };
    // It ends at once only where the runtime takes none any more.
    let probe = runtime.spawn(pending::<()>());
    let is_ending = probe.is_finished();
    probe.abort();
    is_ending
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tells(mpsc::Sender<bool>);

    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.send(runtime_is_ending()).unwrap();
        }
    }

    #[test]
    fn a_task_that_is_aborted_is_told_from_one_that_ends_with_its_runtime() {
        assert!(runtime_is_ending(), "there is none");
        for mut builder in [Builder::new_current_thread(), Builder::new_multi_thread()] {
            let runtime = builder.enable_all().build().unwrap();
            let (tell, told) = mpsc::channel();
            let task = || {
                let tells = Tells(tell.clone());
                runtime.spawn(async move {
                    let _tells = tells;
                    pending::<()>().await;
                })
            };
            let (aborted, _left) = (task(), task());
            runtime.block_on(async {
                tokio::task::yield_now().await;
                aborted.abort();
                aborted.await.unwrap_err();
            });
            assert!(!told.recv().unwrap());
            drop(runtime);
            assert!(told.recv().unwrap());
        }
    }
}
