//! The task that polls a session: of the application, of nobody any more, or of the drain.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{runtime::Handle, task::AbortHandle, time::timeout};

use super::Session;
use crate::orphans::{self, runtime_is_ending};

/// How long a session that nobody wants any more may take to say goodbye: it may be opening, or in a statement. Drivers on
/// their own would cut it at once.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// The task that polls a session, of the application or of nobody any more.
pub(super) type Task = Arc<Mutex<Option<AbortHandle>>>;

/// The task of a session that somebody holds. Dropped with its holder it is aborted; the session then says goodbye, see
/// [`Session::run`].
#[derive(Debug)]
#[must_use = "dropped it ends the session"]
pub struct Held(Option<Task>);

impl Held {
    /// Leaves the task as it is: nobody is known any more to hold the session.
    pub fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(task) = &self.0
            && let Some(task) = &*task.lock().unwrap_or_else(PoisonError::into_inner)
        {
            task.abort();
        }
    }
}

/// The task of a session. It is aborted when nobody wants the session any more, before a goodbye can be said, and ends with its
/// runtime, whoever wants the session; so when it is dropped, another one begins where it ended.
struct Running<P: Send + Sync + 'static> {
    session: Arc<Session<P>>,
    /// Nobody wants it any more.
    leaves: bool,
}

impl<P: Send + Sync + 'static> Drop for Running<P> {
    fn drop(&mut self) {
        let Self { session, leaves } = self;
        if session.driver.is_taken() || session.is_over() {
            return;
        }
        if !runtime_is_ending() {
            session.run_on(&Handle::current(), true);
        } else if !session.opened.load(Ordering::SeqCst) {
            // Whoever waited for it was on that runtime, and what it waits for itself may be a timer of that.
            session.cut_with(session.driver.end_unless_taken());
        } else if let Some(runtime) = orphans::runtime() {
            if let Some(link) = session.link.upgrade() {
                // A drain that takes it over now has moved it to a runtime of its own.
                session.driver.unless_taken(|| link.move_to(&runtime));
            }
            session.run_on(&runtime, *leaves);
        }
        // Otherwise nothing can be done but by a drain, which brings its own.
    }
}

impl<P: Send + Sync + 'static> Session<P> {
    /// Runs the session in a task of the current runtime. When the task is aborted another one gives the session a second to
    /// say goodbye, and then cuts it. When the runtime ends, the session goes on elsewhere.
    ///
    /// # Panics
    /// Without a runtime.
    pub fn run(self: &Arc<Self>) -> Held {
        self.run_on(&Handle::current(), false);
        Held(Some(Arc::clone(&self.task)))
    }

    fn run_on(self: &Arc<Self>, runtime: &Handle, leaves: bool) {
        let running = Running { session: Arc::clone(self), leaves };
        let task = runtime.spawn(async move {
            let Running { session, leaves } = &running;
            if *leaves { session.leave().await } else { session.until_taken().await }
        });
        // Where the runtime has ended meanwhile, another task is there already.
        if !task.is_finished() {
            *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        }
    }

    /// Polls the session to its end, or until the drain takes it over.
    async fn until_taken(&self) {
        let end = poll_fn(|cx| self.driver.poll_until_taken(cx)).await;
        self.ends_with(end);
    }

    /// Goes on without a holder: it says goodbye when its last statement is over. What takes too long is stopped first: the server
    /// would go on with it, and the book would not know of it any more.
    async fn leave(self: &Arc<Self>) {
        let mut ending = pin!(self.until_taken());
        if timeout(LEAVE_PATIENCE, &mut ending).await.is_ok() {
            return;
        }
        if let Some(stop) = self.stop.get() {
            let stopped = tokio::select! {
                biased;
                () = &mut ending => return,
                stopped = stop(Arc::clone(self)) => stopped,
            };
            match stopped {
                Ok(()) if timeout(LEAVE_PATIENCE, &mut ending).await.is_ok() => return,
                Ok(()) => {}
                Err(error) => {
                    if !self.driver.is_taken() {
                        self.runs_on(error);
                    }
                }
            }
        }
        self.cut_with(self.driver.end_unless_taken());
    }

    /// Goes on with the session on this runtime, to its end.
    pub(super) async fn go_on(self: Arc<Self>) {
        self.stop_task();
        if let Some(link) = self.link.upgrade() {
            link.move_to(&Handle::current());
        }
        self.finish().await;
    }

    /// Polls a session that was taken over to its end.
    pub async fn finish(&self) {
        let end = poll_fn(|cx| self.driver.poll(cx)).await;
        self.ends_with(end);
    }

    pub(super) fn stop_task(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }
}
