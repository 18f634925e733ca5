//! A session: its mailbox, what happens on it, and the handles by which it is used.
//!
//! The driver splits a session in two: a connection, which takes requests, and a future that somebody must poll for anything
//! to happen. It drops a request that was not sent yet when its caller is gone, and tells nobody what became of one that wants
//! no answer. So here every request is the session's own: it lies in the mailbox until the [`Life`](winddown_net::Life) takes
//! it, in order, hands it to the driver and keeps it until it is answered. Callers only listen. Whatever becomes of them,
//! what was taken is executed before the goodbye, and what is lost is known.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError, RedisResult, Value, aio::MultiplexedConnection};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::coop::{consume_budget, unconstrained},
    time::timeout,
};
use winddown_core::{Error, ErrorKind, Ledger};
use winddown_net::{End, Held, Socket};

use crate::{
    connect::{Connector, Dialogue, Endpoint},
    error::{closed, error},
    ledger::Entry,
    stream::Activity,
};

/// All sessions of one pool.
pub(crate) type Sessions = winddown_net::Sessions<Part>;
/// One session.
pub(crate) type Session = winddown_net::Session<Part>;

/// How many bytes of requests may wait for their answers on one session: who comes then waits. It is what no-reply commands
/// can be ahead of the server, and so what a goodbye waits for: some two thousand small ones, a few milliseconds of its work.
const WINDOW: usize = 1 << 20;

/// What each request weighs besides its bytes: about what is kept for it.
const REQUEST_WEIGHT: usize = 400;

/// What is known of a session.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) endpoint: Endpoint,
    /// The number by which the server knows it, once it is open.
    id: OnceLock<i64>,
    mailbox: Arc<Mailbox>,
}

impl Part {
    pub(crate) fn id(&self) -> Option<i64> {
        self.id.get().copied()
    }

    /// Whether something is not answered yet.
    pub(crate) fn is_busy(&self) -> bool {
        self.mailbox.unanswered() > 0
    }

    /// Nothing is taken any more; the session says goodbye when all that was taken is answered.
    pub(crate) fn leave(&self) {
        self.mailbox.close();
    }
}

/// What callers want of a session, in order.
#[derive(Default)]
struct Mailbox {
    state: Mutex<MailboxState>,
    /// Requests that are in the mailbox or with the server.
    unanswered: AtomicUsize,
}

#[derive(Default)]
struct MailboxState {
    requests: Vec<Request>,
    closed: bool,
    /// The session's, while it waits for more.
    waker: Option<Waker>,
}

/// One message of a caller, of one command or several.
struct Request {
    /// Has the driver send it, gives the answer to the caller, and says what became of it.
    work: Pin<Box<dyn Future<Output = Verdict> + Send>>,
    /// How many requests it is on the wire.
    count: u64,
    /// Its line in the books, if nobody waits for its answer.
    entry: Option<Entry>,
    _permit: OwnedSemaphorePermit,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Executed,
    /// The server has answered that it will not.
    Refused,
    /// There was no answer.
    Unknown,
}

impl Mailbox {
    fn state(&self) -> MutexGuard<'_, MailboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unanswered(&self) -> usize {
        // Relaxed, everywhere: whoever decides by it asks again.
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Puts a request in, unless the session takes nothing any more. `accept` runs at the moment when it is sure of that.
    fn put(&self, request: impl FnOnce() -> Option<Request>) -> RedisResult<()> {
        let mut state = self.state();
        if state.closed {
            return Err(closed());
        }
        let Some(request) = request() else { return Err(closed()) };
        state.requests.push(request);
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// What there is, and whether that is all.
    fn take(&self, cx: &Context<'_>) -> (Vec<Request>, bool) {
        let waker = cx.waker().clone();
        let mut state = self.state();
        let before = state.waker.replace(waker);
        let taken = (mem::take(&mut state.requests), state.closed);
        drop(state);
        drop(before);
        taken
    }

    fn answered(&self) {
        self.unanswered.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("unanswered", &self.unanswered()).finish_non_exhaustive()
    }
}

/// Opens a session on a connected socket.
///
/// # Cancel safety
/// Cancel safe: a session that is being opened then is ended with a goodbye as soon as it is open.
pub(crate) async fn open_on(
    connector: &Connector,
    socket: Socket,
    endpoint: Endpoint,
    config: AsyncConnectionConfig,
) -> Result<Handle, Error> {
    let (give, opened) = oneshot::channel();
    let link = Arc::clone(socket.link());
    let mailbox = Arc::new(Mailbox::default());
    let part = Part { endpoint: endpoint.clone(), id: OnceLock::new(), mailbox: Arc::clone(&mailbox) };
    let database = endpoint.login.database;
    let of = Arc::clone(&mailbox);
    let life = |session| Box::pin(live(socket, endpoint, config, of, session, give)) as _;
    let Some(session) = connector.sessions.enter(&link, part, life) else {
        return Err(Error::new(ErrorKind::ShuttingDown, "shutting down: nothing is opened any more"));
    };
    let task = session.run();
    match opened.await {
        Ok(opened) => opened.map(|connection| {
            session.is_open();
            let window = Arc::new(Semaphore::new(WINDOW));
            let ledger = Arc::clone(&connector.ledger);
            let response_timeout = connector.config.response_timeout;
            let line = Line { mailbox, connection, window, ledger, database, response_timeout, session, _task: task };
            Handle { line: Arc::new(line) }
        }),
        // Cut while it was being opened.
        Err(_) => Err(error(ErrorKind::Init, "cannot open a session", closed())),
    }
}

/// Asks a server one question over a connected socket, in a session that ends with that: when the answer is here, the
/// server has closed its side.
///
/// # Cancel safety
/// Cancel safe: a session that has begun is ended with a goodbye.
pub(crate) async fn ask_on(
    sessions: &Arc<Sessions>,
    socket: Socket,
    endpoint: Endpoint,
    question: redis::Cmd,
) -> Result<Value, Error> {
    let (give, answer) = oneshot::channel();
    let link = Arc::clone(socket.link());
    let part = Part { endpoint: endpoint.clone(), id: OnceLock::new(), mailbox: Arc::default() };
    let life = |_| {
        let asking = async move {
            let mut dialogue = endpoint.log_in(socket).await.map(|(stream, _)| Dialogue::new(stream))?;
            let failed = |source| error(ErrorKind::Init, "cannot ask a server", source);
            let answers = dialogue.ask(&[question]).await.map_err(failed)?;
            dialogue.close().await.map_err(|source| failed(source.into()))?;
            answers.into_iter().next().ok_or_else(|| failed(closed()))
        };
        Box::pin(async move {
            // Nobody may be left to hear it.
            let _ = give.send(asking.await);
            // It was never one of those that callers have.
            End::NeverOpened
        }) as _
    };
    let Some(session) = sessions.enter(&link, part, life) else {
        return Err(Error::new(ErrorKind::ShuttingDown, "shutting down: nothing is opened any more"));
    };
    let _task = session.run();
    answer.await.unwrap_or_else(|_| Err(error(ErrorKind::Init, "cannot ask a server", closed())))
}

/// Opens a session, gives its connection away, and drives it until the server has closed its side.
async fn live(
    socket: Socket,
    endpoint: Endpoint,
    config: AsyncConnectionConfig,
    mailbox: Arc<Mailbox>,
    session: Weak<Session>,
    give: oneshot::Sender<Result<MultiplexedConnection, Error>>,
) -> End {
    let (stream, id) = match endpoint.log_in(socket).await {
        Ok(opened) => opened,
        Err(error) => {
            // Nobody may be left to hear it.
            let _ = give.send(Err(error));
            return End::NeverOpened;
        }
    };
    let activity = Arc::clone(stream.activity());
    // What is asked for is done already, but that the driver speaks the third version only if it has asked for it itself.
    let info = RedisConnectionInfo::default().set_skip_set_lib_name().set_protocol(endpoint.login.protocol);
    // A request is in the driver's queue as soon as it is started, so the queue must take all that there can be; the window
    // limits it. When a caller gives up is not for the driver to say.
    let config = config.set_response_timeout(None).set_connection_timeout(None);
    let config = config.set_pipeline_buffer_size(Semaphore::MAX_PERMITS);
    let (connection, driver) = match MultiplexedConnection::new_with_config(&info, stream, config).await {
        Ok(opened) => opened,
        Err(source) => {
            let _ = give.send(Err(error(ErrorKind::Init, "cannot open a session", source)));
            return End::NeverOpened;
        }
    };
    if let Some(session) = session.upgrade() {
        // Set once, here.
        let _ = session.part().id.set(id);
    }
    if give.send(Ok(connection)).is_err() {
        // The caller has gone.
        mailbox.close();
    }
    let taken = activity.sent();
    let driver = Box::pin(driver);
    Exchange { driver, mailbox, activity, taken, in_flight: VecDeque::new(), over: false }.await
}

/// What happens on an open session, to its end.
struct Exchange<D> {
    driver: Pin<Box<D>>,
    mailbox: Arc<Mailbox>,
    activity: Arc<Activity>,
    /// How many requests the driver was given, with those that opened the session.
    taken: u64,
    /// Those that are not answered, in order.
    in_flight: VecDeque<Request>,
    /// Nothing more comes.
    over: bool,
}

impl<D: Future<Output = ()>> Future for Exchange<D> {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = &mut *self;
        loop {
            let (requests, over) = this.mailbox.take(cx);
            this.over = over;
            for request in requests {
                this.start(request, cx);
            }
            let ended = this.driver.as_mut().poll(cx).is_ready();
            this.hear(cx);
            if ended {
                return Poll::Ready(this.end());
            }
            let may_leave = this.over && this.in_flight.is_empty() && !this.activity.is_leaving();
            if !may_leave {
                return Poll::Pending;
            }
            // The stream says it when the driver reads next.
            this.activity.leave();
        }
    }
}

impl<D> Exchange<D> {
    /// Hands a request to the driver: it is in the driver's queue when its work was polled once.
    fn start(&mut self, mut request: Request, cx: &mut Context<'_>) {
        self.taken += request.count;
        if let Some(entry) = &mut request.entry {
            entry.handed(self.taken, &self.activity);
        }
        match request.work.as_mut().poll(cx) {
            Poll::Ready(verdict) => done(request, verdict),
            Poll::Pending => self.in_flight.push_back(request),
        }
    }

    /// Gives the answers to those who listen. The server answers in order, so the first one tells.
    fn hear(&mut self, cx: &mut Context<'_>) {
        while let Some(mut request) = self.in_flight.pop_front() {
            match request.work.as_mut().poll(cx) {
                Poll::Ready(verdict) => done(request, verdict),
                Poll::Pending => {
                    self.in_flight.push_front(request);
                    return;
                }
            }
        }
    }

    fn end(&self) -> End {
        if self.activity.has_ended() && self.mailbox.unanswered() == 0 {
            return End::Closed;
        }
        End::Failed(error(ErrorKind::Incomplete, "a session ended without a goodbye", closed()))
    }
}

fn done(request: Request, verdict: Verdict) {
    if let Some(entry) = request.entry {
        entry.settle(verdict);
    }
}

impl<D> Drop for Exchange<D> {
    fn drop(&mut self) {
        // What is left in the mailbox is never sent.
        self.mailbox.close();
        let never_sent = mem::take(&mut self.mailbox.state().requests);
        drop(never_sent);
    }
}

/// One session, as its users have it. The session says goodbye when the last clone is gone and everything is answered.
#[derive(Clone)]
pub(crate) struct Handle {
    line: Arc<Line>,
}

struct Line {
    mailbox: Arc<Mailbox>,
    connection: MultiplexedConnection,
    window: Arc<Semaphore>,
    ledger: Arc<Ledger>,
    database: i64,
    response_timeout: Option<Duration>,
    session: Arc<Session>,
    _task: Held,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

impl Handle {
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.line.session
    }

    pub(crate) fn database(&self) -> i64 {
        self.line.database
    }

    /// Whether nothing is taken any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.line.mailbox.is_closed()
    }

    /// Whether something is not answered yet.
    pub(crate) fn is_busy(&self) -> bool {
        self.line.mailbox.unanswered() > 0
    }

    /// One round trip.
    pub(crate) async fn ping(&self) -> RedisResult<()> {
        self.command(&redis::cmd("PING")).await?.extract_error().map(drop)
    }

    /// Has the server execute a command. One that wants no answer is accepted when this returns `Ok`.
    ///
    /// # Cancel safety
    /// Dropped, it leaves the command as it is: one that was taken will be executed.
    pub(crate) async fn command(&self, command: &redis::Cmd) -> RedisResult<Value> {
        let wants_answer = !command.is_no_response();
        let mut command = command.clone();
        // The driver would drop the answer, and tell nobody if there was none.
        command.set_no_response(false);
        let (weight, mut connection) = (weight(&command), self.line.connection.clone());
        let work = async move { connection.send_packed_command(&command).await };
        if wants_answer { self.ask(weight, 1, work).await } else { self.send(weight, work).await.map(|()| Value::Nil) }
    }

    /// Has the server execute a pipeline.
    ///
    /// # Cancel safety
    /// As [`command`](Self::command).
    pub(crate) async fn pipeline(
        &self,
        pipeline: &redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let pipeline = pipeline.clone();
        // MULTI and EXEC.
        let ends = if pipeline.is_transaction() { 2 } else { 0 };
        let requests = (pipeline.len() + ends) as u64;
        let weights = pipeline.cmd_iter().map(weight).sum();
        let mut connection = self.line.connection.clone();
        self.ask(weights, requests, async move { connection.send_packed_commands(&pipeline, offset, count).await })
            .await
    }

    /// What the driver does with this function on its own connection, which is one request on the wire.
    pub(crate) async fn with<F, T>(&self, work: impl FnOnce(MultiplexedConnection) -> F) -> RedisResult<T>
    where
        F: Future<Output = RedisResult<T>> + Send + 'static,
        T: Answer,
    {
        self.ask(REQUEST_WEIGHT, 1, work(self.line.connection.clone())).await
    }

    async fn ask<T: Answer>(
        &self,
        weight: usize,
        count: u64,
        work: impl Future<Output = RedisResult<T>> + Send + 'static,
    ) -> RedisResult<T> {
        self.in_time(async {
            let permit = self.room(weight).await?;
            let (give, answer) = oneshot::channel();
            let mailbox = Arc::clone(&self.line.mailbox);
            let work = Box::pin(unconstrained(async move {
                let result = work.await;
                let verdict = verdict(&result);
                // Before the caller has it: who has all answers gives back a session that is not busy.
                mailbox.answered();
                // The caller may have gone.
                let _ = give.send(result);
                verdict
            }));
            self.line.mailbox.put(|| Some(Request { work, count, entry: None, _permit: permit }))?;
            answer.await.unwrap_or_else(|_| Err(closed()))
        })
        .await
    }

    async fn send(
        &self,
        weight: usize,
        work: impl Future<Output = RedisResult<Value>> + Send + 'static,
    ) -> RedisResult<()> {
        // Nothing else makes a task yield that does nothing but this.
        consume_budget().await;
        let permit = self.in_time(self.room(weight)).await?;
        let mailbox = Arc::clone(&self.line.mailbox);
        let work = Box::pin(unconstrained(async move {
            let verdict = verdict(&work.await);
            mailbox.answered();
            verdict
        }));
        // Under the lock of the mailbox: what is accepted there is sent, or known to be lost.
        self.line.mailbox.put(|| {
            let entry = Some(Entry::accept(&self.line.ledger)?);
            Some(Request { work, count: 1, entry, _permit: permit })
        })
    }

    /// Waits until there is room for so much more in the window.
    async fn room(&self, weight: usize) -> RedisResult<OwnedSemaphorePermit> {
        let permits = u32::try_from(weight.min(WINDOW)).expect("the window is that small");
        // Where there is room a call is taken when it is polled for the first time. To wait may take another turn even then:
        // the runtime has a task that does much yield.
        if let Ok(permit) = Arc::clone(&self.line.window).try_acquire_many_owned(permits) {
            return Ok(permit);
        }
        Arc::clone(&self.line.window).acquire_many_owned(permits).await.map_err(|_| closed())
    }

    async fn in_time<T>(&self, work: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        match self.line.response_timeout {
            None => work.await,
            Some(limit) => timeout(limit, work).await.unwrap_or_else(|_| {
                let text = format!("no answer within the response_timeout of {limit:?}");
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text).into())
            }),
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("session", &self.line.session).finish()
    }
}

fn weight(command: &redis::Cmd) -> usize {
    let bytes = command.args_iter().map(|argument| match argument {
        redis::Arg::Simple(bytes) => bytes.len(),
        _ => 0,
    });
    REQUEST_WEIGHT + bytes.sum::<usize>()
}

/// An answer, and whether it is the server's refusal.
pub(crate) trait Answer: Send + 'static {
    fn is_refusal(&self) -> bool {
        false
    }
}

impl Answer for Value {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::ServerError(_))
    }
}

impl Answer for Vec<Value> {}

impl Answer for () {}

fn verdict<T: Answer>(result: &Result<T, RedisError>) -> Verdict {
    match result {
        Ok(answer) if answer.is_refusal() => Verdict::Refused,
        Ok(_) => Verdict::Executed,
        Err(_) => Verdict::Unknown,
    }
}
