//! A pool of `deadpool-redis` that the application built.
//!
//! What is idle is taken out of it, and the rest as it comes back. Each is asked for one more answer, which comes when everything is
//! that was sent before, and is told `QUIT` then. What waits is ended over a connection that the pool's own manager opens: so nothing is
//! to be known but the pool.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant as StdInstant},
};

use deadpool::managed::{Manager as _, PoolError, Status};
use deadpool_redis::{Connection as FromPool, Pool};
use futures_util::FutureExt as _;
use redis::{
    Cmd, RedisError, Value,
    aio::{ConnectionLike as _, MultiplexedConnection},
    cmd,
};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::unconstrained,
    time::{Instant, sleep, timeout_at},
};
use winddown_core::{
    Error, ErrorKind,
    adapter::{Drain, End, Ends, Getting, Latency, Lender, News, Source},
};
use winddown_net::own_sockets::OwnSockets;

use crate::{
    cancel::{Channel, Prepared, Reachable, kill},
    config::Config,
    error::error,
    identity::Identity,
    wrapped::{Known, ask, half, is_closed, lent::Lent, message, questions, quit},
};

/// Between two looks at what comes back to the pool directly: that has an event only for who waits for a connection, and has one opened
/// for whoever does where there is room.
const LOOK: Duration = Duration::from_millis(5);

/// Until something is to be stopped again that is there still: at first, and at most, as long as that does nothing. To look which sockets
/// are ours takes the kernel some milliseconds, and more where there are many, in which nobody else gets on here.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(640));

/// How long a session may take to open for a caller who has gone.
const OPENING: Duration = Duration::from_secs(5);

pub(crate) struct WrappedPool {
    pool: Pool,
    opened_with: Option<Config>,
    latency: Arc<Latency>,
    state: Mutex<State>,
    /// One came back, or has ended, or cancelling has begun.
    changed: Notify,
    /// Something is to be stopped.
    unwanted: Notify,
}

#[derive(Default)]
struct State {
    phase: Phase,
    /// What waits is to be ended, whoever has it.
    is_cancelling: bool,
    next: u64,
    /// How many callers wait for a connection, or have left one behind that is being opened.
    getting: usize,
    /// The sessions that were handed out once, by their numbers at the server.
    known: HashMap<i64, Identity>,
    /// What the guard has handed out.
    out: HashMap<u64, Arc<Lent>>,
    /// Came back while draining.
    returned: Vec<Taken>,
    /// On their way to the end.
    closing: HashMap<u64, Arc<Lent>>,
    /// Those that are answered, and have nothing to be stopped any more.
    answered: HashSet<i64>,
    /// What is to be stopped and has not said which session it is, as the server lists it.
    found: Vec<Identity>,
    /// Why something was left alone.
    left_alone: Option<String>,
    ends: Ends,
}

#[derive(Debug, Default, Clone, Copy)]
enum Phase {
    #[default]
    Open,
    /// What comes back is taken over; since when.
    Draining(Instant),
    /// What comes back is closed.
    Over,
}

/// A connection that is not the pool's any more.
pub(crate) struct Taken {
    connection: MultiplexedConnection,
    lent: Arc<Lent>,
}

impl State {
    fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining(_))
    }

    /// What the pool has handed out, or the drain has taken from it.
    fn lend(&mut self) -> Arc<Lent> {
        self.next += 1;
        Arc::new(Lent::new(self.next))
    }

    /// When it is to be stopped whatever waits on this connection, that nobody has any more.
    fn overdue_at(&self, lent: &Lent, grace: Duration) -> Option<Instant> {
        let Phase::Draining(began) = self.phase else { return None };
        let since = lent.since()?.max(began);
        (!lent.is_answered()).then_some(since + grace)
    }

    /// Whatever waits on these is to be ended.
    fn unwanted(&self, grace: Duration) -> impl Iterator<Item = &Arc<Lent>> {
        let now = Instant::now();
        let overdue = move |lent: &&Arc<Lent>| self.overdue_at(lent, grace).is_some_and(|at| at <= now);
        let out = self.is_cancelling.then_some(&self.out).into_iter().flat_map(HashMap::values);
        self.closing.values().filter(overdue).chain(out)
    }
}

impl WrappedPool {
    pub(crate) fn new(pool: Pool, opened_with: Option<Config>) -> Self {
        Self {
            pool,
            opened_with,
            latency: Arc::default(),
            state: Mutex::default(),
            changed: Notify::new(),
            unwanted: Notify::new(),
        }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn status(&self) -> Status {
        self.pool.status()
    }

    pub(crate) fn latency(&self) -> &Arc<Latency> {
        &self.latency
    }

    pub(crate) fn opened_with(&self) -> Option<&Config> {
        self.opened_with.as_ref()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of the pool's.
    ///
    /// # Cancel safety
    /// A session that is being opened for a caller who goes is opened to its end, and given back: its driver would close the socket as it
    /// is.
    ///
    /// # Errors
    /// That of the pool.
    pub(crate) async fn get(self: &Arc<Self>) -> Result<(FromPool, Arc<Lent>), Error> {
        let pool = self.pool.clone();
        let connection =
            Getting::new(self, async move { pool.get().await }, OPENING).await.map_err(|failure| match failure {
                PoolError::Backend(source) => error(ErrorKind::Init, "cannot open a session", source),
                failure => Error::new(ErrorKind::Checkout, "no connection").with_source(failure),
            })?;
        let lent = {
            let mut state = self.state();
            let lent = state.lend();
            state.out.insert(lent.number, Arc::clone(&lent));
            lent
        };
        self.gets_to_know(&connection, &lent);
        Ok((connection, lent))
    }

    /// Asks the server which session this is, in front of what its user asks, and waits for nothing: a drain may find it busy, and
    /// has to tell it from others then. The driver does not say which of its connections it is, so the number is asked always, and the
    /// rest as long as one of the pool's is not known.
    fn gets_to_know(self: &Arc<Self>, connection: &MultiplexedConnection, lent: &Arc<Lent>) {
        let Ok(runtime) = Handle::try_current() else { return };
        let are_known = self.state().known.len() >= self.pool.status().size;
        let message = message(questions().iter().take(if are_known { 1 } else { 3 }));
        let mut asking = connection.clone();
        let mut answers = Box::pin(async move { asking.send_packed_commands(&message, 0, message.len()).await });
        // On its way with that. It may be answered by then.
        let at_once = unconstrained(&mut answers).now_or_never();
        let (wrapped, lent, asked) = (Arc::downgrade(self), Arc::clone(lent), StdInstant::now());
        let mut connection = connection.clone();
        runtime.spawn(async move {
            let answers = match at_once {
                Some(answers) => answers,
                None => answers.await,
            };
            let (Ok(mut answers), Some(wrapped)) = (answers, wrapped.upgrade()) else { return };
            wrapped.latency.saw(asked.elapsed());
            if are_known && !wrapped.is_known(&answers, &lent) {
                // The pool has it in the place of one that has ended: those that are known are not all.
                wrapped.state().known.clear();
                let Ok(all) = ask(&mut connection, &questions()).await else { return };
                answers = all;
            }
            if let Some(identity) = Known::new(None, &answers).identity.filter(|_| lent.identity().is_none()) {
                wrapped.state().known.insert(identity.id, identity.clone());
                lent.is(identity);
            }
        });
    }

    /// Whether it is one of those that are known, by its number.
    fn is_known(&self, answers: &[Value], lent: &Lent) -> bool {
        let Some(Value::Int(id)) = answers.first() else { return true };
        let known = self.state().known.get(id).cloned();
        let is_known = known.is_some();
        known.into_iter().for_each(|identity| lent.is(identity));
        is_known
    }

    /// It is none of the pool's any more.
    fn takes(&self, connection: FromPool, lent: &Arc<Lent>) -> Taken {
        let connection = FromPool::take(connection);
        if let Some(identity) = lent.identity() {
            self.state().known.remove(&identity.id);
        }
        Taken { connection, lent: Arc::clone(lent) }
    }

    /// Takes back what was handed out. What is not as it was when it was opened is made so, or ends; as what still waits for an answer
    /// does, when that has come.
    pub(crate) fn returned(self: &Arc<Self>, mut connection: FromPool, lent: &Arc<Lent>) {
        let phase = {
            let mut state = self.state();
            state.out.remove(&lent.number);
            state.phase
        };
        let is_good = !lent.is_busy() && !lent.is_changed();
        match phase {
            Phase::Open if is_good => {
                // What the next one sends comes after it.
                for message in lent.undoing(connection.get_db()) {
                    message.cmd_iter().for_each(|command| send(&mut connection, command));
                }
                drop(connection);
            }
            Phase::Open | Phase::Draining(_) => {
                lent.nobody_has_it();
                let taken = self.takes(connection, lent);
                match Handle::try_current() {
                    Ok(runtime) if matches!(phase, Phase::Open) => {
                        self.state().closing.insert(lent.number, Arc::clone(lent));
                        runtime.spawn(Arc::clone(self).close(taken));
                    }
                    // The drain's.
                    _ => self.state().returned.push(taken),
                }
            }
            Phase::Over => {
                send(&mut connection, &cmd("QUIT"));
                drop(connection);
            }
        }
        self.changed.notify_one();
    }

    /// Something on the connection hung: it is closed as it is.
    #[cfg(feature = "buffer")]
    pub(crate) fn abandoned(&self, connection: FromPool, lent: &Arc<Lent>) {
        self.state().out.remove(&lent.number);
        drop(self.takes(connection, lent));
        self.changed.notify_one();
    }

    /// Has what waits ended, by whoever says the goodbyes.
    pub(crate) fn cancel(&self) {
        self.state().is_cancelling = true;
        self.changed.notify_one();
    }

    /// Has every connection say goodbye when everything on it is answered, and sees that the server has closed its side.
    pub(crate) async fn goodbye(self: &Arc<Self>, prepared: &Prepared, drain: &Drain) -> Result<(), Error> {
        let _left_behind = prepared.count_left_behind(drain);
        let _closed = Closed(self);
        self.state().phase = Phase::Draining(Instant::now());
        let over = Notify::new();
        let ending = async {
            let ended = drain.sessions(&Draining(Arc::clone(self))).await;
            over.notify_one();
            ended
        };
        let stopping = async {
            let mut pause = PAUSES.0;
            loop {
                tokio::select! {
                    biased;
                    () = over.notified() => return,
                    () = self.unwanted.notified() => {}
                }
                let began = Instant::now();
                let stopping = async {
                    // To its end, which comes with that of what it is about: what it has ended is counted.
                    if let Err(failure) = self.stop(prepared, drain).await {
                        drain.note(&failure);
                    }
                    if !self.state().is_cancelling {
                        // Who was asked would stand among those that somebody has.
                        prepared.close(Some(drain)).await;
                    }
                };
                tokio::select! {
                    () = stopping => {}
                    () = drain.until_cut() => return,
                }
                pause = if began.elapsed() > pause { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
                tokio::select! {
                    () = over.notified() => return,
                    () = sleep(pause) => {}
                }
            }
        };
        let (ended, ()) = tokio::join!(ending, stopping);
        if let Ok(false) = ended {
            self.cut(prepared, drain).await;
        }
        prepared.close(Some(drain)).await;
        ended.map(drop)
    }

    /// Waits until everything is answered, says goodbye, and sees that the server has closed its side.
    async fn close(self: Arc<Self>, taken: Taken) {
        let lent = Arc::clone(&taken.lent);
        let end = self.leave(taken).await;
        let mut state = self.state();
        // One that is cut is in the count of those already.
        if state.closing.remove(&lent.number).is_some() && state.is_draining() {
            state.ends.record(end);
        }
        drop(state);
        self.changed.notify_one();
    }

    async fn leave(&self, Taken { mut connection, lent }: Taken) -> End {
        let was_busy = lent.is_busy();
        // What is late for the driver is queued all the same.
        let answers = loop {
            match ask(&mut connection, &questions()).await {
                Err(failure) if failure.is_timeout() => {}
                answers => break answers,
            }
        };
        if let Some(identity) = answers.as_ref().ok().and_then(|answers| Known::new(None, answers).identity) {
            lent.is(identity);
        }
        lent.answered();
        {
            let mut state = self.state();
            if state.is_draining() {
                state.answered.extend(lent.identity().map(|identity| identity.id));
            }
        }
        match answers {
            Ok(_) => {}
            // The server had closed it before, and lost nothing with that.
            Err(_) if !was_busy => return End::Uncounted,
            Err(source) => {
                let text = "whether everything that was sent was executed is not known";
                return End::Cut(Some(error(ErrorKind::Incomplete, text, source)));
            }
        }
        // What it is answered does not matter: its end is seen.
        let _ = quit(&mut connection).await;
        loop {
            match is_closed(&mut connection).await {
                Some(true) => return End::Closed,
                // Nobody has heard that.
                Some(false) => return End::Unconfirmed,
                None => {}
            }
        }
    }

    /// Has the server end whatever waits there and nobody wants any more.
    async fn stop(&self, prepared: &Prepared, drain: &Drain) -> Result<(), Error> {
        let found = self.find(prepared, drain).await;
        let busy = || {
            let state = self.state();
            let lent = state.unwanted(drain.grace()).filter_map(|lent| lent.identity());
            lent.chain(state.found.iter().cloned()).filter(|session| !state.answered.contains(&session.id)).collect()
        };
        prepared.stop_at(self, busy, &|commands| drain.count_cancelled(commands)).await?;
        found
    }

    /// Looks for sessions whose number is not known: those that others have taken from the pool, and that the guard has never seen. All
    /// of them are on sockets of this process: where the server lists [exactly](OwnSockets::exactly) as many of such, it is these.
    async fn find(&self, prepared: &Prepared, drain: &Drain) -> Result<(), Error> {
        let expected = || {
            let state = self.state();
            let unknown = state.unwanted(drain.grace()).filter(|lent| lent.identity().is_none()).count();
            let with_others = if state.is_cancelling { self.with_others(&state) } else { 0 };
            (unknown + with_others).saturating_sub(state.found.len())
        };
        if expected() == 0 {
            return Ok(());
        }
        let clients = prepared.clients(self).await?;
        let own = OwnSockets::now();
        // What has come back meanwhile is not looked for.
        let expected = expected();
        let mut state = self.state();
        let met: HashSet<i64> = {
            let lent = state.out.values().chain(state.closing.values()).filter_map(|lent| lent.identity());
            lent.chain(state.found.iter().cloned())
                .map(|session| session.id)
                .chain(state.answered.iter().copied())
                .collect()
        };
        let could_be = clients.into_iter().filter(|client| !met.contains(&client.id));
        let could_be = could_be.filter_map(|client| client.peer().map(|peer| (client, peer)));
        let found = own.exactly(expected, could_be);
        state.left_alone = match found {
            Ok(found) => {
                state.found.extend(found);
                None
            }
            Err(could_be) => Some(format!(
                "{expected} taken from the pool directly, and the server lists {could_be} of this process that could be these: \
                 what waits there was left alone"
            )),
        };
        Ok(())
    }

    /// How many others have taken from the pool, once what is idle is out of it.
    fn with_others(&self, state: &State) -> usize {
        self.pool.status().size.saturating_sub(state.out.len())
    }

    /// What is left is cut: by the server, where that can be asked.
    async fn cut(&self, prepared: &Prepared, drain: &Drain) {
        let (ends, whom) = {
            let mut state = self.state();
            state.phase = Phase::Over;
            let closing: Vec<_> = std::mem::take(&mut state.closing).into_values().collect();
            let returned = std::mem::take(&mut state.returned);
            let mut ends = std::mem::take(&mut state.ends);
            ends.cut += closing.len() + returned.len() + self.pool.status().size;
            if closing.iter().any(|lent| !lent.is_answered()) {
                let text = "whether everything that was sent was executed is not known: no answer in time";
                ends.error = Some(Error::new(ErrorKind::Incomplete, text));
            }
            state.left_alone.take().into_iter().for_each(|why| drain.reason(why));
            let lent = closing.iter().chain(state.out.values()).filter_map(|lent| lent.identity());
            let found = state.found.iter().filter(|session| !state.answered.contains(&session.id)).cloned();
            (ends, lent.chain(found).collect::<Vec<_>>())
        };
        drain.count(ends, 0);
        self.pool.close();
        let killing = prepared.ask(self, &whom, |id| vec![kill(id)]);
        // Late, it says nothing.
        if let Ok(Err(failure)) = timeout_at(half(drain), killing).await {
            drain.note(&failure);
        }
    }
}

/// Sends a command, and does not wait for its answer.
fn send(connection: &mut MultiplexedConnection, command: &Cmd) {
    let mut command = command.clone();
    // The driver does not send what nobody waits for, unless nobody is to.
    command.set_no_response(true);
    // On its way when it was polled once. What is over takes nothing, and needs nothing.
    let _ = unconstrained(connection.send_packed_command(&command)).now_or_never();
}

/// Closes the pool at the end of a goodbye, also where the deadline drops that.
struct Closed<'a>(&'a WrappedPool);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state().phase = Phase::Over;
        self.0.pool.close();
    }
}

/// The drain's side of it.
struct Draining(Arc<WrappedPool>);

impl Source for Draining {
    type Session = Taken;

    fn news(&self, _: &Drain) -> News<Taken> {
        let WrappedPool { pool, .. } = &*self.0;
        let idle = pool.retain(|_, _| false).removed;
        let mut state = self.0.state();
        let mut returned = std::mem::take(&mut state.returned);
        for connection in idle {
            let lent = state.lend();
            lent.nobody_has_it();
            returned.push(Taken { connection, lent });
        }
        for Taken { lent, .. } in &returned {
            state.closing.insert(lent.number, Arc::clone(lent));
        }
        // What others have would be closed by it without a goodbye.
        if self.0.with_others(&state) == 0 {
            pool.close();
        }
        // One that is being opened for a caller who has gone comes back too.
        let open = pool.status().size + state.getting + state.closing.len();
        News { returned, ends: std::mem::take(&mut state.ends), open }
    }

    async fn changed(&self) {
        let is_looked_for = !self.0.pool.is_closed();
        tokio::select! {
            () = self.0.changed.notified() => {}
            () = sleep(LOOK), if is_looked_for => {}
        }
    }

    fn close(&self, taken: Taken) -> impl Future<Output = ()> + Send + 'static {
        Arc::clone(&self.0).close(taken)
    }

    fn stop_abandoned(&self, drain: &Drain) -> Option<Instant> {
        let state = self.0.state();
        let (now, mut next, mut is_overdue) = (Instant::now(), None, false);
        for at in state.closing.values().filter_map(|lent| state.overdue_at(lent, drain.grace())) {
            if at <= now {
                is_overdue = true;
            } else {
                next = Some(next.map_or(at, |next: Instant| next.min(at)));
            }
        }
        if is_overdue || (state.is_cancelling && self.0.pool.status().size > 0) {
            self.0.unwanted.notify_one();
            // Until it is over: its number may be known by then.
            return Some(now + PAUSES.0);
        }
        next
    }
}

impl Lender<FromPool> for WrappedPool {
    fn begin_getting(&self) {
        self.state().getting += 1;
    }

    fn end_getting(&self) {
        self.state().getting -= 1;
        self.changed.notify_one();
    }

    fn give_back(self: &Arc<Self>, connection: FromPool) {
        let lent = self.state().lend();
        self.returned(connection, &lent);
    }
}

impl Reachable for WrappedPool {
    fn address(&self) -> Option<&winddown_net::Address> {
        None
    }

    fn server(&self) -> String {
        "the server of the pool".to_owned()
    }

    async fn open(&self) -> Result<(Channel, Option<Identity>), Error> {
        let failed =
            |source: RedisError| error(ErrorKind::Incomplete, "cannot open a session to ask the server", source);
        let mut connection = self.pool.manager().create().await.map_err(failed)?;
        let answers = ask(&mut connection, &questions()).await.map_err(failed)?;
        Ok((Channel::Driver(connection), Known::new(None, &answers).identity))
    }
}

impl fmt::Debug for WrappedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrappedPool").field("pool", &self.pool.status()).finish_non_exhaustive()
    }
}
