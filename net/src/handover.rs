//! Who polls a session: a task of the application, until the drain takes it over.

#[cfg(not(winddown_loom))]
use std::sync::{Mutex, MutexGuard};
use std::{
    future::Future,
    pin::Pin,
    sync::PoisonError,
    task::{Context, Poll},
};

#[cfg(winddown_loom)]
use loom::sync::{Mutex, MutexGuard};

/// A future that one polls until another takes it over. What wakes a future is what it was last polled with, so who polls and
/// whether it was taken over are settled under one lock: whoever had it before does not poll it once more after that.
pub(crate) struct Handover<F>(Mutex<State<F>>);

struct State<F> {
    /// Gone when it is over.
    future: Option<F>,
    is_taken: bool,
}

impl<F: Future + Unpin> Handover<F> {
    pub(crate) fn new(future: F) -> Self {
        Self(Mutex::new(State { future: Some(future), is_taken: false }))
    }

    fn state(&self) -> MutexGuard<'_, State<F>> {
        // One that has panicked stays, and panics again when it is polled again. Nothing else here can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls it for whoever has it first. Ready with nothing when it was over before, or is taken over.
    pub(crate) fn poll_until_taken(&self, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let state = self.state();
        if state.is_taken { Poll::Ready(None) } else { Self::poll_in(state, cx) }
    }

    /// Polls it for whoever has taken it over. Ready with nothing when it was over before.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        Self::poll_in(self.state(), cx)
    }

    fn poll_in(mut state: MutexGuard<'_, State<F>>, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let Some(future) = state.future.as_mut() else { return Poll::Ready(None) };
        let Poll::Ready(output) = Pin::new(future).poll(cx) else { return Poll::Pending };
        let over = state.future.take();
        // Dropping it may lead back to here.
        drop(state);
        drop(over);
        Poll::Ready(Some(output))
    }

    /// From now on only the one who calls this polls it.
    pub(crate) fn take_over(&self) {
        self.state().is_taken = true;
    }

    pub(crate) fn is_taken(&self) -> bool {
        self.state().is_taken
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state().future.is_none()
    }

    /// Takes it out as it is, so that nobody polls it any more. `None` where it was over before.
    pub(crate) fn end(&self) -> Option<F> {
        self.state().future.take()
    }

    /// The same, and `None` where it was taken over.
    pub(crate) fn end_unless_taken(&self) -> Option<F> {
        let mut state = self.state();
        if state.is_taken { None } else { state.future.take() }
    }
}

#[cfg(all(test, winddown_loom))]
mod models {
    //! `RUSTFLAGS="--cfg winddown_loom" cargo test --release -p winddown-net --lib models::`.

    use std::{future::poll_fn, task::Waker};

    use loom::{
        future::{AtomicWaker, block_on},
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    use super::*;

    /// What a server says, once.
    #[derive(Default)]
    struct Answer {
        is_there: AtomicBool,
        waker: AtomicWaker,
    }

    /// A session that is over when its server has answered.
    struct Session(Arc<Answer>);

    impl Future for Session {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.0.waker.register_by_ref(cx.waker());
            if self.0.is_there.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        }
    }

    /// The drain hears of what happens on a session that it has taken over, however late the application's task polls it.
    #[test]
    fn whoever_has_taken_a_session_over_is_woken() {
        loom::model(|| {
            let answer = Arc::new(Answer::default());
            let session = Arc::new(Handover::new(Session(Arc::clone(&answer))));
            let application = {
                let session = Arc::clone(&session);
                // It is aborted after this: nobody hears when it is woken.
                thread::spawn(move || session.poll_until_taken(&mut Context::from_waker(Waker::noop())).is_ready())
            };
            let server = thread::spawn(move || {
                answer.is_there.store(true, Ordering::Release);
                answer.waker.wake();
            });
            session.take_over();
            // Without a wake it would wait for ever, which loom finds.
            block_on(poll_fn(|cx| session.poll(cx)));
            assert!(session.is_over());
            application.join().unwrap();
            server.join().unwrap();
        });
    }

    /// A session that is taken over is not ended by whoever had it before.
    #[test]
    fn what_was_taken_over_is_not_cut_by_whoever_had_it() {
        loom::model(|| {
            let session = Arc::new(Handover::new(std::future::ready(())));
            let application = {
                let session = Arc::clone(&session);
                thread::spawn(move || session.end_unless_taken().is_some())
            };
            session.take_over();
            let mut polled = None;
            if !session.is_over() {
                polled = block_on(poll_fn(|cx| session.poll(cx)));
            }
            assert_eq!(polled.is_none(), application.join().unwrap(), "one of both has its end");
        });
    }
}
