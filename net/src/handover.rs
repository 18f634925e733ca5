//! Who polls a session: a task of the application, until the drain takes it over.

#[cfg(not(winddown_loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU8, Ordering},
};
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

#[cfg(winddown_loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU8, Ordering},
};

/// A future that one polls until another takes it over. What wakes a future is what it was last polled with, so who polls and
/// whether it was taken over are settled under one lock: whoever had it before does not poll it once more after that.
pub(crate) struct Handover<F> {
    state: Mutex<Half<F>>,
    bell: Arc<Bell>,
}

/// What the future wakes, on behalf of whoever polls it.
struct Bell {
    /// One of the states below.
    state: AtomicU8,
    polled_by: Mutex<Option<Waker>>,
}

/// It was not woken since it was polled.
const QUIET: u8 = 0;
/// It is being polled: what it is asked for now it may find without being woken.
const POLLED: u8 = 1;
/// It was woken, and not polled since.
const RUNG: u8 = 2;

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Release: whoever sees it finds what it was rung for. A swap and no store: where it was being polled, the end of that
        // poll comes before it or sees it.
        self.state.swap(RUNG, Ordering::Release);
        let polled_by = self.polled_by.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(polled_by) = polled_by {
            polled_by.wake();
        }
    }
}

struct Half<F> {
    /// Gone when it is over.
    future: Option<F>,
    is_taken: bool,
}

impl<F: Future + Unpin> Handover<F> {
    pub(crate) fn new(future: F) -> Self {
        let bell = Bell { state: AtomicU8::new(QUIET), polled_by: Mutex::new(None) };
        Self { state: Mutex::new(Half { future: Some(future), is_taken: false }), bell: Arc::new(bell) }
    }

    fn state(&self) -> MutexGuard<'_, Half<F>> {
        // One that has panicked stays, and panics again when it is polled again. Nothing else here can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls it for whoever has it first. Ready with nothing when it was over before, or is taken over.
    pub(crate) fn poll_until_taken(&self, cx: &Context<'_>) -> Poll<Option<F::Output>> {
        let state = self.state();
        if state.is_taken { Poll::Ready(None) } else { self.poll_for(state, cx.waker()) }
    }

    /// Polls it for whoever has taken it over. Ready with nothing when it was over before.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Option<F::Output>> {
        self.poll_for(self.state(), cx.waker())
    }

    /// Polls it now if it was woken and not polled since, on behalf of whoever has it, who is woken as before; and waits for who
    /// polls it meanwhile. Not where it was taken over.
    pub(crate) fn poll_if_woken(&self) -> Poll<Option<F::Output>> {
        // Acquire: pairs with the ringing, and with the end of being polled.
        let is_quiet = || self.bell.state.load(Ordering::Acquire) == QUIET;
        if is_quiet() {
            return Poll::Pending;
        }
        let state = self.state();
        if state.is_taken || is_quiet() { Poll::Pending } else { self.poll_in(state) }
    }

    fn poll_for(&self, state: MutexGuard<'_, Half<F>>, waker: &Waker) -> Poll<Option<F::Output>> {
        {
            let mut polled_by = self.bell.polled_by.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *polled_by {
                Some(known) => known.clone_from(waker),
                unknown => *unknown = Some(waker.clone()),
            }
        }
        self.poll_in(state)
    }

    fn poll_in(&self, mut state: MutexGuard<'_, Half<F>>) -> Poll<Option<F::Output>> {
        let Some(future) = state.future.as_mut() else { return Poll::Ready(None) };
        // Before it is polled: what it is woken for from here on it may not have seen. What it was woken for until here it has to
        // see, which is why this is a swap that acquires: a store could become visible only after the poll has looked, and would
        // silence a bell that was rung in between.
        self.bell.state.swap(POLLED, Ordering::Acquire);
        let waker = Waker::from(Arc::clone(&self.bell));
        let polled = Pin::new(future).poll(&mut Context::from_waker(&waker));
        // Where it was rung meanwhile, it stays so.
        let _ = self.bell.state.compare_exchange(POLLED, QUIET, Ordering::Release, Ordering::Relaxed);
        let Poll::Ready(output) = polled else { return Poll::Pending };
        let over = state.future.take();
        // Dropping it may lead back to here.
        drop(state);
        drop(over);
        Poll::Ready(Some(output))
    }

    /// Does this unless it was taken over, and not while it is being polled or taken over: what whoever had it first still does to what
    /// the future uses would else come behind what the other one has done to it.
    pub(crate) fn unless_taken(&self, work: impl FnOnce()) {
        let state = self.state();
        if !state.is_taken {
            work();
        }
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

    use std::{future::poll_fn, sync::OnceLock, task::Waker};

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

    /// The runtime of a session ends just when a drain takes the session over: its socket is not moved away from the drain.
    #[test]
    fn whoever_had_a_session_does_not_move_it_away_from_the_drain() {
        loom::model(|| {
            let answer = Arc::new(Answer::default());
            let session = Arc::new(Handover::new(Session(Arc::clone(&answer))));
            let application = {
                let (session, answer) = (Arc::clone(&session), Arc::clone(&answer));
                // A socket that was moved wakes nobody who has polled it before.
                thread::spawn(move || session.unless_taken(|| drop(answer.waker.take_waker())))
            };
            session.take_over();
            let server = thread::spawn(move || {
                answer.is_there.store(true, Ordering::Release);
                answer.waker.wake();
            });
            block_on(poll_fn(|cx| session.poll(cx)));
            application.join().unwrap();
            server.join().unwrap();
        });
    }

    /// A session that takes what it is asked for, and never ends.
    struct Taker {
        asked: Arc<Answer>,
        has_taken: Arc<AtomicBool>,
    }

    impl Future for Taker {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.asked.waker.register_by_ref(cx.waker());
            if self.asked.is_there.load(Ordering::Acquire) {
                self.has_taken.store(true, Ordering::Release);
            }
            Poll::Pending
        }
    }

    /// A session that looks at nothing but what it was asked for, and registers nothing anew: what is not there yet, it has to be
    /// woken for, and polled again.
    struct Reader {
        asked: Arc<AtomicBool>,
        waker: Arc<OnceLock<Waker>>,
        has_taken: Arc<AtomicBool>,
    }

    impl Future for Reader {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.waker.get_or_init(|| cx.waker().clone());
            // What makes it visible is the wake alone.
            if self.asked.load(Ordering::Relaxed) {
                self.has_taken.store(true, Ordering::Release);
            }
            Poll::Pending
        }
    }

    /// Being polled while it is woken does not undo the wake: either that poll finds what it is woken for, or it stays woken.
    #[test]
    fn a_session_that_is_woken_while_it_is_polled_loses_no_wake() {
        loom::model(|| {
            let (asked, has_taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let waker = Arc::new(OnceLock::new());
            let reader =
                Reader { asked: Arc::clone(&asked), waker: Arc::clone(&waker), has_taken: Arc::clone(&has_taken) };
            let session = Arc::new(Handover::new(reader));
            let poll = |session: &Handover<Reader>| {
                assert!(session.poll_until_taken(&Context::from_waker(Waker::noop())).is_pending());
            };
            poll(&session);
            let application = {
                let session = Arc::clone(&session);
                thread::spawn(move || poll(&session))
            };
            asked.store(true, Ordering::Relaxed);
            waker.get().unwrap().wake_by_ref();
            assert!(session.poll_if_woken().is_pending());
            assert!(has_taken.load(Ordering::Acquire));
            application.join().unwrap();
        });
    }

    /// What a session was asked for is on its way when it has caught up, whoever polls it meanwhile.
    #[test]
    fn what_a_session_was_asked_for_is_taken_when_it_has_caught_up() {
        loom::model(|| {
            let (asked, has_taken) = (Arc::new(Answer::default()), Arc::new(AtomicBool::new(false)));
            let taker = Taker { asked: Arc::clone(&asked), has_taken: Arc::clone(&has_taken) };
            let session = Arc::new(Handover::new(taker));
            let poll = |session: &Handover<Taker>| {
                assert!(session.poll_until_taken(&mut Context::from_waker(Waker::noop())).is_pending());
            };
            poll(&session);
            let application = {
                let session = Arc::clone(&session);
                thread::spawn(move || poll(&session))
            };
            asked.is_there.store(true, Ordering::Release);
            asked.waker.wake();
            assert!(session.poll_if_woken().is_pending());
            assert!(has_taken.load(Ordering::Acquire));
            application.join().unwrap();
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
