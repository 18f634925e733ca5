//! What callers want of a session, until the session takes it.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use redis::RedisResult;
use tokio::sync::OwnedSemaphorePermit;
use winddown_core::adapter::Outdated;

use crate::{
    error::closed,
    ledger::Entry,
    marks::{Carried, Marks},
    sessions::Session,
    waits::Waits,
};

/// A session that is younger than this is not replaced because of what its server says: an address that leads to a replica for
/// a while is asked ten times in a second at most.
const YOUNG: Duration = Duration::from_millis(100);

/// What callers want of a session, in order.
pub(crate) struct Mailbox {
    state: Mutex<MailboxState>,
    /// How many requests came in, and how many of them are answered.
    taken: AtomicUsize,
    answered: AtomicUsize,
    /// When the session began to be opened.
    began: Instant,
    /// What is known of all sessions with its server.
    outdated: Arc<Outdated>,
}

#[derive(Default)]
struct MailboxState {
    requests: Vec<Request>,
    closed: bool,
    /// Whose callers have gone: by how many requests came in before each.
    gone: Vec<usize>,
    /// What waits at the server, by the same number.
    waits: Vec<usize>,
    /// What all requests have left on the session, once they are executed.
    carried: Carried,
    /// The session's, while it waits for more.
    waker: Option<Waker>,
}

/// One message of a caller, of one command or several.
pub(crate) struct Request {
    /// Has the driver send it, gives the answer to the caller, and says what became of it.
    pub(crate) work: Pin<Box<dyn Future<Output = Verdict> + Send>>,
    /// How many requests it is on the wire.
    pub(crate) count: u64,
    /// Its line in the accounting, if nobody waits for its answer.
    pub(crate) entry: Option<Entry>,
    /// Its room in the window of the session.
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Executed,
    /// The server has answered that it will not.
    Refused,
    /// There was no answer; or that it is executed later, perhaps.
    Unknown,
}

impl Mailbox {
    /// Of a session that is to be opened, which is one of these.
    pub(crate) fn of(outdated: Arc<Outdated>) -> Self {
        Self {
            state: Mutex::default(),
            taken: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            began: Instant::now(),
            outdated,
        }
    }

    /// When it was opened.
    pub(crate) fn opened(&self) -> Instant {
        self.began
    }

    /// Whether it is not to be handed out any more, last handed out at this moment.
    pub(crate) fn is_outdated(&self, used: Instant) -> bool {
        self.outdated.is_outdated(self.began, used.max(self.began))
    }

    /// The server has said that it is not what it was: its address is asked anew. Those that are open are not handed out any
    /// more; whoever has one keeps it, and what is under way on it.
    pub(crate) fn server_has_changed(&self) {
        let now = Instant::now();
        // What an older session hears later says nothing of those that were opened since.
        if now.duration_since(self.began) >= YOUNG && !self.outdated.is_outdated(self.began, now) {
            tracing::debug!("a server takes no writes any more, its sessions are replaced");
            self.outdated.opened_until_now();
        }
    }

    fn state(&self) -> MutexGuard<'_, MailboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that are in the mailbox or with the server.
    pub(crate) fn unanswered(&self) -> usize {
        // In this order, and so that whoever sees an answer sees the request too: never too little. Whoever decides by it asks
        // again.
        let answers = self.answers();
        self.taken.load(Ordering::Relaxed) - answers
    }

    /// How many requests were answered so far.
    pub(crate) fn answers(&self) -> usize {
        self.answered.load(Ordering::Acquire)
    }

    /// Whether nobody waits for what the server works on. It answers in order, so that is the first that is not answered.
    pub(crate) fn is_abandoned(&self) -> bool {
        let state = self.state();
        !state.gone.is_empty() && state.gone.contains(&self.answers())
    }

    /// Whether the server works on something that waits there.
    pub(crate) fn is_waiting(&self) -> bool {
        let state = self.state();
        !state.waits.is_empty() && state.waits.contains(&self.answers())
    }

    /// What the next caller would find on the session.
    pub(crate) fn carried(&self) -> Carried {
        self.state().carried
    }

    /// The server has answered otherwise than a transaction is expected to be.
    pub(crate) fn is_unclear(&self) {
        self.state().carried.is_unclear();
    }

    /// The server has queued something.
    pub(crate) fn is_queued(&self) {
        self.state().carried.is_queued();
    }

    /// The session is as it was when it was opened.
    pub(crate) fn is_as_opened(&self) {
        self.state().carried = Carried::default();
    }

    /// The caller of this request has gone.
    fn caller_has_gone(&self, number: usize) {
        let mut state = self.state();
        let answers = self.answers();
        state.gone.retain(|gone| *gone >= answers);
        if number >= answers {
            state.gone.push(number);
        }
    }

    /// Puts a request in, unless the session takes nothing any more; how many came in before it. It is made at the moment when
    /// it is sure that it will be taken; `None` if its caller does not want it then.
    pub(crate) fn put(&self, marks: &Marks, request: impl FnOnce() -> Option<Request>) -> RedisResult<usize> {
        let mut state = self.state();
        if state.closed {
            return Err(closed());
        }
        let Some(request) = request() else { return Err(closed()) };
        state.requests.push(request);
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        state.carried = state.carried.after(marks);
        if !marks.waits.is_empty() {
            let answers = self.answers();
            state.waits.retain(|waits| *waits >= answers);
            state.waits.push(number);
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(number)
    }

    /// Nothing is put in any more.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Nobody takes anything out any more: what is left is never sent.
    pub(crate) fn abandon(&self) {
        self.close();
        let never_sent = mem::take(&mut self.state().requests);
        drop(never_sent);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// What there is, and whether that is all.
    pub(crate) fn take(&self, cx: &Context<'_>) -> (Vec<Request>, bool) {
        let waker = cx.waker().clone();
        let mut state = self.state();
        let before = state.waker.replace(waker);
        let taken = (mem::take(&mut state.requests), state.closed);
        drop(state);
        drop(before);
        taken
    }

    pub(crate) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Release);
    }
}

/// A caller that waits for the answer to its request. Dropped before that is there, it has gone.
pub(crate) struct Waiting<'a> {
    mailbox: &'a Mailbox,
    session: &'a Arc<Session>,
    waits: &'a Arc<Waits>,
    number: usize,
}

impl<'a> Waiting<'a> {
    /// For this request, by how many came in before it.
    pub(crate) fn new(mailbox: &'a Mailbox, session: &'a Arc<Session>, waits: &'a Arc<Waits>, number: usize) -> Self {
        Self { mailbox, session, waits, number }
    }

    /// The answer is there.
    pub(crate) fn answered(self) {
        mem::forget(self);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.mailbox.caller_has_gone(self.number);
        self.session.is_left();
        self.waits.look_at(self.session);
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("unanswered", &self.unanswered()).finish_non_exhaustive()
    }
}
