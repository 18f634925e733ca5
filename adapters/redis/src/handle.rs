//! A session, as its users have it.

use std::{
    fmt,
    future::Future,
    iter,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{RedisError, RedisResult, ServerError, Value, aio::MultiplexedConnection};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::coop::{consume_budget, unconstrained},
    time::timeout,
};
use winddown_core::adapter::Ledger;
use winddown_net::Held;

use crate::{
    error::closed,
    ledger::Entry,
    listening::LookingAfter,
    mailbox::{Mailbox, Request, Verdict, Waiting},
    marks::{Marks, Wait},
    sessions::Session,
    waits::Waits,
};

/// How many bytes of requests may wait for their answers on one session: who comes then waits. It is what no-reply commands
/// can be ahead of the server, and so what a goodbye waits for: some two thousand small ones, a few milliseconds of its work.
const WINDOW: usize = 1 << 20;

/// What each request weighs besides its bytes: about what is kept for it.
const REQUEST_WEIGHT: usize = 400;

/// One session, as its users have it. The session says goodbye when the last clone is gone and everything is answered.
#[derive(Clone)]
pub(crate) struct Handle {
    line: Arc<Line>,
}

struct Line {
    mailbox: Arc<Mailbox>,
    connection: MultiplexedConnection,
    window: Arc<Semaphore>,
    settings: Settings,
    session: Arc<Session>,
    /// A caller has waited in vain, and nobody has asked since.
    doubtful: AtomicBool,
    /// Where somebody is told what is pushed.
    looked_after: OnceLock<LookingAfter>,
    _task: Held,
}

/// What a session's users need to know of its configuration.
pub(crate) struct Settings {
    /// Where commands are counted that want no answer.
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) response_timeout: Option<Duration>,
    pub(crate) database: i64,
    /// Whether several use it at the same time.
    pub(crate) is_shared: bool,
    pub(crate) is_resp3: bool,
    pub(crate) waits: Arc<Waits>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

impl Handle {
    pub(crate) fn new(
        session: Arc<Session>,
        task: Held,
        mailbox: Arc<Mailbox>,
        connection: MultiplexedConnection,
        settings: Settings,
    ) -> Self {
        let window = Arc::new(Semaphore::new(WINDOW));
        let (doubtful, looked_after) = (AtomicBool::new(false), OnceLock::new());
        let line = Line { mailbox, connection, window, settings, session, doubtful, looked_after, _task: task };
        Self { line: Arc::new(line) }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.line.session
    }

    pub(crate) fn database(&self) -> i64 {
        self.line.settings.database
    }

    /// Whether nothing is taken any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.line.mailbox.is_closed()
    }

    /// When it was opened.
    pub(crate) fn opened(&self) -> Instant {
        self.line.mailbox.opened()
    }

    /// Whether it is not to be handed out any more, because of what other sessions have shown; last handed out at this moment.
    pub(crate) fn is_outdated(&self, used: Instant) -> bool {
        self.line.mailbox.is_outdated(used)
    }

    /// Whether something is not answered yet.
    pub(crate) fn is_busy(&self) -> bool {
        self.line.mailbox.unanswered() > 0
    }

    /// Whether a caller has waited in vain since this was asked last.
    pub(crate) fn is_doubtful(&self) -> bool {
        // Relaxed: it stands alone. The load is all that it costs while nobody waits in vain.
        self.line.doubtful.load(Ordering::Relaxed) && self.line.doubtful.swap(false, Ordering::Relaxed)
    }

    /// Whether the next caller would find what only the end of the session undoes.
    pub(crate) fn is_changed(&self) -> bool {
        self.line.mailbox.carried().is_changed()
    }

    /// What is to be sent so that nothing is left of what its last user did. Nothing, if there is nothing.
    pub(crate) fn undoing(&self) -> Vec<redis::Pipeline> {
        self.line.mailbox.carried().undoing(self.database())
    }

    /// [Undoes](Self::undoing) what its last user has left on it.
    ///
    /// # Errors
    /// That of the server, or of the session, which is of no more use then.
    pub(crate) async fn undo(&self, messages: Vec<redis::Pipeline>) -> RedisResult<()> {
        let mut answers = Vec::new();
        for message in &messages {
            answers = self.pipeline(message, 0, message.len()).await?;
        }
        match answers.into_iter().find(|answer| *answer != Value::Okay) {
            None => {
                self.line.mailbox.is_as_opened();
                Ok(())
            }
            Some(answer) => {
                answer.extract_error()?;
                Err(closed())
            }
        }
    }

    /// It is to be looked at before it is handed out again.
    #[cfg(feature = "buffer")]
    pub(crate) fn distrust(&self) {
        self.line.doubtful.store(true, Ordering::Relaxed);
    }

    /// Makes one round trip, and tells whether there was an answer. That the user may not ask this, or that a proxy does not know
    /// it, is one; but not that the user is none any more.
    pub(crate) async fn answers(&self) -> bool {
        is_answer(&self.command(&redis::cmd("PING")).await)
    }

    /// For whoever looks at it now and then, and does not keep it open.
    pub(crate) fn watch(&self) -> Watch {
        Watch { line: Arc::downgrade(&self.line) }
    }

    /// For whoever closes it, and does not keep it open.
    pub(crate) fn mailbox(&self) -> Weak<Mailbox> {
        Arc::downgrade(&self.line.mailbox)
    }

    /// The task ends with the session.
    pub(crate) fn is_looked_after_by(&self, task: LookingAfter) {
        // It is opened once.
        let _ = self.line.looked_after.set(task);
    }

    /// Has the server execute a command. One that wants no answer is accepted when this returns `Ok`.
    ///
    /// # Cancel safety
    /// Dropped, it leaves the command as it is: one that was taken will be executed.
    pub(crate) async fn command(&self, command: &redis::Cmd) -> RedisResult<Value> {
        let wants_answer = !command.is_no_response();
        let marks = self.allowed(Marks::of(command))?;
        let mut command = command.clone();
        // The driver would drop the answer, and tell nobody if there was none.
        command.set_no_response(false);
        let (weight, mut connection) = (weight(&command), self.line.connection.clone());
        let work = async move { connection.send_packed_command(&command).await };
        if wants_answer {
            self.ask(weight, 1, marks, work).await
        } else {
            self.send(weight, marks, work).await.map(|()| Value::Nil)
        }
    }

    fn allowed(&self, marks: Marks) -> RedisResult<Marks> {
        let Settings { is_shared, is_resp3, .. } = self.line.settings;
        marks.allow(is_shared, is_resp3).map(|()| marks)
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
        let marks = self.allowed(Marks::of_all(pipeline))?;
        if pipeline.is_transaction() && self.line.mailbox.carried().is_in_multi() {
            // The server would refuse it, and the driver cannot take that.
            return Err((redis::ErrorKind::Client, "MULTI calls can not be nested").into());
        }
        let pipeline = pipeline.clone();
        // MULTI and EXEC.
        let ends = if pipeline.is_transaction() { 2 } else { 0 };
        let requests = (pipeline.len() + ends) as u64;
        let weights = pipeline.cmd_iter().map(weight).sum();
        let mut connection = self.line.connection.clone();
        let work = async move { connection.send_packed_commands(&pipeline, offset, count).await };
        self.ask(weights, requests, marks, work).await
    }

    /// What the driver does with this function on its own connection about subscriptions, which is one request on the wire.
    pub(crate) async fn with<F, T>(&self, work: impl FnOnce(MultiplexedConnection) -> F) -> RedisResult<T>
    where
        F: Future<Output = RedisResult<T>> + Send + 'static,
        T: Answer,
    {
        self.ask(REQUEST_WEIGHT, 1, Marks::of_subscriptions(), work(self.line.connection.clone())).await
    }

    async fn ask<T: Answer>(
        &self,
        weight: usize,
        count: u64,
        marks: Marks,
        work: impl Future<Output = RedisResult<T>> + Send + 'static,
    ) -> RedisResult<T> {
        self.in_time(async {
            let permit = self.room(weight).await?;
            let (give, answer) = oneshot::channel();
            let mailbox = Arc::clone(&self.line.mailbox);
            let of_transactions = marks.are_of_transactions();
            let is_waiting = !marks.waits.is_empty();
            let waits = is_waiting.then(|| (Arc::clone(&self.line.settings.waits), marks.waits.clone()));
            let work = Box::pin(unconstrained(async move {
                let result = work.await;
                let verdict = verdict(&result);
                if says_that_it_has_changed(&result) {
                    mailbox.server_has_changed();
                }
                note(&mailbox, of_transactions, &result);
                // Before the caller has it: who has all answers gives back a session that is not busy.
                mailbox.answered();
                // The caller may have gone.
                let _ = give.send(Delivery { result: Some(result), waits });
                verdict
            }));
            let request = || Some(Request { work, count, entry: None, _permit: permit });
            let put = self.line.mailbox.put(&marks, request)?;
            let waits = &self.line.settings.waits;
            let waiting = Waiting::new(&self.line.mailbox, &self.line.session, waits, put);
            if is_waiting {
                waits.look_at(&self.line.session);
            }
            let answer = answer.await.map_or_else(|_| Err(closed()), Delivery::arrived);
            waiting.answered();
            answer
        })
        .await
    }

    async fn send(
        &self,
        weight: usize,
        marks: Marks,
        work: impl Future<Output = RedisResult<Value>> + Send + 'static,
    ) -> RedisResult<()> {
        // Nothing else makes a task yield that does nothing but this.
        consume_budget().await;
        let permit = self.in_time(self.room(weight)).await?;
        let mailbox = Arc::clone(&self.line.mailbox);
        let of_transactions = marks.are_of_transactions();
        let work = Box::pin(unconstrained(async move {
            let result = work.await;
            if says_that_it_has_changed(&result) {
                mailbox.server_has_changed();
            }
            note(&mailbox, of_transactions, &result);
            mailbox.answered();
            verdict(&result)
        }));
        // Under the lock of the mailbox: what is accepted there is sent, or known to be lost.
        self.line.mailbox.put(&marks, || {
            let entry = Some(Entry::accept(&self.line.settings.ledger)?);
            Some(Request { work, count: 1, entry, _permit: permit })
        })?;
        Ok(())
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
        match self.line.settings.response_timeout {
            None => work.await,
            Some(limit) => timeout(limit, work).await.unwrap_or_else(|_| {
                self.line.doubtful.store(true, Ordering::Relaxed);
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

/// A session that somebody may have.
pub(crate) struct Watch {
    line: Weak<Line>,
}

impl Watch {
    /// As [`Handle::answers`]; `None` where nobody has the session any more. One that is busy is not asked: whoever it is busy for
    /// waits, and what it waits in may take its time.
    pub(crate) async fn answers(&self) -> Option<bool> {
        let (give, answer) = oneshot::channel();
        {
            let line = self.line.upgrade()?;
            if line.mailbox.is_closed() {
                return None;
            }
            let Ok(permit) = Arc::clone(&line.window).try_acquire_many_owned(REQUEST_WEIGHT as u32) else {
                return Some(true);
            };
            if line.mailbox.unanswered() > 0 {
                return Some(true);
            }
            let (mailbox, mut connection) = (Arc::clone(&line.mailbox), line.connection.clone());
            let work = Box::pin(unconstrained(async move {
                let result = connection.send_packed_command(&redis::cmd("PING")).await;
                mailbox.answered();
                // Nobody may wait any more.
                let _ = give.send(is_answer(&result));
                verdict(&result)
            }));
            let request = || Some(Request { work, count: 1, entry: None, _permit: permit });
            line.mailbox.put(&Marks::default(), request).ok()?;
        }
        Some(answer.await.unwrap_or(false))
    }

    /// Ends the session.
    pub(crate) fn cut(&self) {
        if let Some(line) = self.line.upgrade() {
            line.mailbox.close();
            line.session.cut();
        }
    }
}

/// A refusal is an answer, but not that the user is none any more.
fn is_answer(result: &RedisResult<Value>) -> bool {
    match result {
        Ok(Value::ServerError(refusal)) => refusal.code() != "NOAUTH",
        Ok(_) => true,
        Err(_) => false,
    }
}

fn weight(command: &redis::Cmd) -> usize {
    let bytes = command.args_iter().map(|argument| match argument {
        redis::Arg::Simple(bytes) => bytes.len(),
        _ => 0,
    });
    REQUEST_WEIGHT + bytes.sum::<usize>()
}

/// An answer on its way to its caller. What a command took that waited is known to be lost if it does not arrive.
struct Delivery<T: Answer> {
    result: Option<RedisResult<T>>,
    waits: Option<(Arc<Waits>, Vec<Wait>)>,
}

impl<T: Answer> Delivery<T> {
    fn arrived(mut self) -> RedisResult<T> {
        self.result.take().unwrap_or_else(|| Err(closed()))
    }
}

impl<T: Answer> Drop for Delivery<T> {
    fn drop(&mut self) {
        if let (Some(Ok(answer)), Some((waits, commands))) = (&self.result, &self.waits) {
            waits.taken(commands, |at| answer.has(at));
        }
    }
}

/// The answer to a message.
pub(crate) trait Answer: Send + 'static {
    /// Whether the server refuses it, or a part of it.
    fn is_refusal(&self) -> bool {
        false
    }

    /// The refusals in it.
    fn refusals(&self) -> impl Iterator<Item = &ServerError> {
        iter::empty()
    }

    /// Whether it is not executed yet: a part of a transaction.
    fn is_queued(&self) -> bool {
        false
    }

    /// Whether there is something in this place of it.
    fn has(&self, _: usize) -> bool {
        false
    }
}

impl Answer for Value {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::ServerError(_))
    }

    fn refusals(&self) -> impl Iterator<Item = &ServerError> {
        refusal(self).into_iter()
    }

    fn is_queued(&self) -> bool {
        matches!(self, Self::SimpleString(text) if text == "QUEUED")
    }

    fn has(&self, _: usize) -> bool {
        !matches!(self, Self::Nil | Self::ServerError(_)) && !self.is_queued()
    }
}

impl Answer for Vec<Value> {
    fn is_refusal(&self) -> bool {
        self.iter().any(Answer::is_refusal)
    }

    fn is_queued(&self) -> bool {
        self.last().is_some_and(Answer::is_queued)
    }

    fn has(&self, at: usize) -> bool {
        self.get(at).is_some_and(|answer| answer.has(0))
    }

    fn refusals(&self) -> impl Iterator<Item = &ServerError> {
        self.iter()
            .flat_map(|answer| match answer {
                // What a transaction answers.
                Value::Array(answers) => answers.as_slice(),
                answer => std::slice::from_ref(answer),
            })
            .filter_map(refusal)
    }
}

fn refusal(answer: &Value) -> Option<&ServerError> {
    match answer {
        Value::ServerError(refusal) => Some(refusal),
        _ => None,
    }
}

impl Answer for () {}

/// Whether the server says that it is no primary any more, or has just been started: others may be by now. What it says to who
/// only reads from a replica is not among these.
fn says_that_it_has_changed<T: Answer>(result: &Result<T, RedisError>) -> bool {
    let has_changed = |refusal: &ServerError| match refusal.code() {
        "READONLY" | "LOADING" => true,
        // So ends what waits at a server that becomes a replica. `CLIENT UNBLOCK` says it in other words.
        "UNBLOCKED" => refusal.details().is_some_and(|details| details.contains("instance state changed")),
        _ => false,
    };
    match result {
        Ok(answer) => answer.refusals().any(has_changed),
        // A transaction that was aborted, or nothing of the server's.
        Err(error) => {
            let refusals = error.clone().into_server_errors();
            refusals.is_some_and(|refusals| refusals.iter().any(|(_, refusal)| has_changed(refusal)))
        }
    }
}

/// What is expected to be on a session is not certain after such an answer.
fn note<T: Answer>(mailbox: &Mailbox, of_transactions: bool, result: &Result<T, RedisError>) {
    match result {
        Ok(answer) if answer.is_queued() => mailbox.is_queued(),
        Ok(answer) if !answer.is_refusal() => {}
        _ if of_transactions => mailbox.is_unclear(),
        _ => {}
    }
}

fn verdict<T: Answer>(result: &Result<T, RedisError>) -> Verdict {
    match result {
        Ok(answer) if answer.is_refusal() => Verdict::Refused,
        Ok(answer) if answer.is_queued() => Verdict::Unknown,
        Ok(_) => Verdict::Executed,
        Err(_) => Verdict::Unknown,
    }
}
