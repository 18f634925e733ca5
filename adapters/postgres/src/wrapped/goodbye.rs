//! The drain of a pool that the application built.
//!
//! Each connection is asked for one more answer, which comes when all that runs on it is over, and then says goodbye. Its end is seen
//! in the kernel, where the server knows its client by the address that its socket has here. Else one that has answered says goodbye
//! last: it asks the server about the others until none of them is listed. Where something has to be stopped and there is nobody to
//! ask, the pool's own manager opens a session, on the drain's runtime.

use std::{
    collections::{HashMap, HashSet},
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use deadpool::managed::Manager as _;
use deadpool_postgres::{Client, ClientWrapper, Pool, Timeouts};
use tokio::{
    task::JoinSet,
    time::{Instant, error::Elapsed, sleep, sleep_until, timeout, timeout_at},
};
use tokio_postgres::CancelToken;
use tracing::Instrument as _;
use winddown_core::{
    Error, ErrorKind,
    adapter::{Drain, Ends},
};
use winddown_net::own_sockets::{Connection, Open, OwnSockets};

use crate::{
    error::error,
    tls,
    wrapped::{
        Known, Phase, Session, Wrapped, key,
        leave::says_goodbye,
        roll_back,
        server::{self, Listed, SessionId},
    },
};

/// A connection that the drain has.
pub(super) enum Held {
    /// Not the pool's any more.
    Taken(ClientWrapper),
    /// The pool's still: given up it would make room there for another one.
    Pooled(Client),
}

impl Deref for Held {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        match self {
            Self::Taken(client) => client,
            Self::Pooled(client) => client,
        }
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut ClientWrapper {
        match self {
            Self::Taken(client) => client,
            Self::Pooled(client) => client,
        }
    }
}

/// One that has not answered yet.
struct Waiting {
    known: Known,
    since: Instant,
    /// The server has said that it runs something, and was asked to stop that, by the secret that the session has for it.
    is_stopped: bool,
}

/// One that has said goodbye.
struct Leaving {
    /// Its task ends with it.
    held: Held,
    /// On which its end is seen. Without it the server is asked.
    connection: Option<Connection>,
    /// It is one of the pool's, not one that the drain has opened.
    is_counted: bool,
}

/// The one that asks about the others.
struct Asker {
    held: Arc<Held>,
    listed: Listed,
    /// Of the pool's, not opened for this.
    is_counted: bool,
    /// How long an answer takes.
    answers_in: Duration,
}

/// A statement that the server was asked to stop.
struct Stopping {
    statement: Option<i64>,
    asked: Instant,
}

enum Event {
    /// All is answered.
    Answered(u64, Held, Result<Session, tokio_postgres::Error>),
    /// One was opened to ask, and which it is.
    Opened(Result<(ClientWrapper, Session), Error>),
    /// The pool has this many connections less to give.
    Reserved(Option<Client>),
    /// One came back to the pool.
    CameBack(Option<Client>),
    /// What is listed of those that were asked about; nothing if there was no answer in time.
    Listed(HashSet<SessionId>, Result<Result<Vec<Listed>, tokio_postgres::Error>, Elapsed>),
    Cancelled(HashMap<SessionId, Option<i64>>, Result<Vec<SessionId>, tokio_postgres::Error>),
    AskedBySecret(Result<(), Error>),
}

/// How often a server is asked again that has nothing new to say: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// How long a statement may take to end that the server was asked to stop, until it is asked again.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// How long one that nobody can be asked about has to end: twice as long as an answer takes, within these limits.
const UNSEEN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// When one that could not be opened is tried again: those that leave make room for it.
const OPEN_AGAIN: Duration = Duration::from_millis(100);

/// The one that asks does not leave to be opened again within this time.
const REOPENED_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Goodbye<'a> {
    wrapped: &'a Wrapped,
    drain: &'a Drain,
    tasks: JoinSet<Event>,
    next: u64,
    waiting: HashMap<u64, Waiting>,
    leaving: HashMap<SessionId, Leaving>,
    /// They said goodbye, and nobody can ask about them.
    unseen: Vec<Held>,
    asker: Option<Asker>,
    /// One of the pool's, where the drain has opened the one that asks.
    deputy: Option<Asker>,
    stopping: HashMap<SessionId, Stopping>,
    /// All that were the drain's to end.
    met: HashSet<SessionId>,
    /// How many of the pool's connections are here.
    pooled: usize,
    /// They have ended. The pool must not have them before it is closed.
    ended: Vec<Held>,
    /// Once somebody has answered: looking takes the kernel some milliseconds, in which nobody else gets on here.
    own: Option<OwnSockets>,
    /// Those that were not among them at first.
    looked_for: HashSet<SessionId>,
    look_at: Instant,
    look_pause: Duration,
    is_asking: bool,
    /// It has not answered in time.
    is_silent: bool,
    is_opening: bool,
    ask_at: Instant,
    pause: Duration,
    open_at: Instant,
    /// When somebody is to be there who can ask, if connections are out then: what they run may have to be stopped.
    prepare_at: Instant,
    /// Why there is nobody to ask.
    cannot_open: Option<Error>,
    /// Who was asked to stop something by the secret of the session alone.
    asked_by_secret: HashSet<usize>,
    is_left_alone: bool,
    /// How many of those that are not to be seen the drain has opened.
    opened_unseen: usize,
    /// How many were out when the pool was closed at the end: what comes back after that is closed as it is.
    out_at_end: Option<usize>,
}

impl<'a> Goodbye<'a> {
    pub(super) fn new(wrapped: &'a Wrapped, drain: &'a Drain) -> Self {
        let now = Instant::now();
        Self {
            wrapped,
            drain,
            tasks: JoinSet::new(),
            next: 0,
            waiting: HashMap::new(),
            leaving: HashMap::new(),
            unseen: Vec::new(),
            asker: None,
            deputy: None,
            stopping: HashMap::new(),
            met: HashSet::new(),
            pooled: 0,
            ended: Vec::new(),
            own: None,
            looked_for: HashSet::new(),
            look_at: now,
            look_pause: PAUSES.0,
            is_asking: false,
            is_silent: false,
            is_opening: false,
            ask_at: now,
            pause: PAUSES.0,
            open_at: now,
            prepare_at: now + (drain.deadline() - now) / 2,
            cannot_open: None,
            asked_by_secret: HashSet::new(),
            is_left_alone: false,
            opened_unseen: 0,
            out_at_end: None,
        }
    }

    fn pool(&self) -> &'a Pool {
        &self.wrapped.pool
    }

    pub(super) async fn say(mut self) -> Result<(), Error> {
        while !self.begin() {
            self.wrapped.changed.notified().await;
        }
        let mut settled = false;
        loop {
            self.take_over();
            self.go_on();
            self.drain.set_open(self.left());
            if settled && self.is_over() {
                if self.deputy.is_none() {
                    break;
                }
                self.hand_over();
            }
            let wakes = self.wakes();
            tokio::select! {
                // One look for all that have said goodbye by then.
                biased;
                Some(Ok(event)) = self.tasks.join_next() => self.on(event),
                () = self.wrapped.changed.notified() => {}
                () = self.drain.until_returned(), if !settled => settled = true,
                () = self.drain.until_cut() => {
                    self.cut().await;
                    return Ok(());
                }
                () = sleep_until(wakes.unwrap_or_else(Instant::now)), if wakes.is_some() => self.look(),
            }
        }
        self.end().await;
        Ok(())
    }

    /// Takes over what is idle. What is out with the guard's checkouts comes back through the guard. Where others have taken
    /// something from the pool, the pool stays open until that is back: a closed one ends it without a goodbye.
    ///
    /// `false`, and nothing is begun, while the guard gives one back to the pool: it would be taken for one that somebody else has.
    fn begin(&mut self) -> bool {
        {
            let mut state = self.wrapped.state();
            if state.returning > 0 {
                return false;
            }
            // What the guard has given back is idle, and what it gives back from now on comes here.
            state.phase = Phase::Draining;
        }
        self.take_idle();
        let by_guard = {
            let state = self.wrapped.state();
            state.out.len() + state.returning
        };
        // Asked for last: what comes here meanwhile is the pool's no more.
        let status = self.pool().status();
        if status.size <= by_guard {
            self.pool().close();
            return true;
        }
        self.wrapped.state().phase = Phase::Collecting;
        if status.max_size <= status.size {
            self.collect();
            return true;
        }
        // There is room for more, which nobody is to have. The pool gives it up when it has one more connection than it may have:
        // so one is opened, for this.
        let pool = self.pool().clone();
        let at_once = Timeouts { wait: Some(Duration::ZERO), create: None, recycle: None };
        self.is_opening = true;
        self.spawn(async move { Event::Reserved(pool.timeout_get(&at_once).await.ok()) });
        true
    }

    fn take_idle(&mut self) {
        for client in self.pool().retain(|_, _| false).removed {
            self.ask_for_the_last_answer(Held::Taken(client));
        }
    }

    fn spawn(&mut self, task: impl Future<Output = Event> + Send + 'static) {
        self.tasks.spawn(task.in_current_span());
    }

    /// Waits for what comes back to the pool.
    fn collect(&mut self) {
        let pool = self.pool().clone();
        let whenever = Timeouts { wait: None, create: None, recycle: None };
        self.spawn(async move { Event::CameBack(pool.timeout_get(&whenever).await.ok()) });
    }

    fn take_over(&mut self) {
        let returned = std::mem::take(&mut self.wrapped.state().returned);
        for held in returned {
            self.ask_for_the_last_answer(held);
        }
        let collects = self.wrapped.state().phase == Phase::Collecting;
        if collects && !self.is_opening && self.out() == 0 {
            // Whoever waits for one is told.
            self.close_pool();
        }
    }

    /// What comes back from now on comes from the guard.
    fn close_pool(&self) {
        self.pool().close();
        self.wrapped.state().phase = Phase::Draining;
    }

    /// The answer comes when all is over that runs on it.
    fn ask_for_the_last_answer(&mut self, held: Held) {
        if matches!(held, Held::Pooled(_)) {
            self.pooled += 1;
        }
        let known = self.wrapped.state().known.remove(&key(&held)).unwrap_or_else(|| Known::of(&held));
        // The server has ended it, or its runtime has: it is nobody's to end.
        if held.is_closed() {
            return self.is_done(held);
        }
        self.met.extend(known.id());
        self.next += 1;
        let (number, token, session) = (self.next, known.token.clone(), Arc::clone(&known.session));
        self.waiting.insert(number, Waiting { known, since: Instant::now(), is_stopped: false });
        self.spawn(async move {
            let answer = match session.get() {
                Some(session) => held.simple_query("").await.map(|_| *session),
                None => match identify(&held, &token).await {
                    // A transaction that has failed answers nothing.
                    Err(failure) if failure.as_db_error().is_some() => {
                        roll_back(&held);
                        identify(&held, &token).await
                    }
                    answer => answer,
                },
            };
            Event::Answered(number, held, answer)
        });
    }

    fn is_done(&mut self, held: Held) {
        if matches!(held, Held::Pooled(_)) {
            self.ended.push(held);
        }
    }

    /// How many of the pool's are out.
    fn out(&self) -> usize {
        self.out_at_end.unwrap_or_else(|| self.pool().status().size.saturating_sub(self.pooled))
    }

    /// How many have not ended.
    fn left(&self) -> usize {
        let leaving = self.leaving.values().filter(|leaving| leaving.is_counted).count();
        let asker = self.asker.iter().chain(&self.deputy).filter(|asker| asker.is_counted).count();
        self.waiting.len() + leaving + asker + self.out()
    }

    fn is_over(&self) -> bool {
        let nobody = self.waiting.is_empty() && self.leaving.is_empty() && self.stopping.is_empty();
        let comes_back = self.out() > 0 || self.wrapped.state().is_one_coming_back();
        nobody && !self.is_opening && !self.is_asking && !comes_back
    }

    fn is_cancelling(&self) -> bool {
        self.wrapped.state().is_cancelling
    }

    /// Those that are out and were handed out by the guard once, whoever has them now.
    fn known_out(&self) -> Vec<Known> {
        let state = self.wrapped.state();
        state.known.values().filter(|known| known.cache.strong_count() > 0).cloned().collect()
    }

    /// What nobody waits for any more, although it has had its time.
    fn overdue(&self) -> impl Iterator<Item = &Waiting> {
        let now = Instant::now();
        self.waiting.values().filter(move |waiting| waiting.since + self.drain.grace() <= now)
    }

    /// What is to be stopped if it runs.
    fn unwanted(&self) -> Vec<Known> {
        let mut unwanted: Vec<_> = self.overdue().map(|waiting| waiting.known.clone()).collect();
        if self.is_cancelling() {
            unwanted.extend(self.known_out());
        }
        unwanted
    }

    /// When there is something to do, whatever happens until then.
    fn wakes(&self) -> Option<Instant> {
        let now = Instant::now();
        let overdue = self.waiting.values().map(|waiting| waiting.since + self.drain.grace());
        let can_ask = self.asker.is_some() && !self.is_silent;
        let ask = (can_ask && !self.is_asking && self.wants_to_ask()).then_some(self.ask_at);
        let open = (!can_ask && !self.is_opening && self.wants_to_ask()).then_some(self.open_at);
        // A closed pool says nothing when it has lost one.
        let lost = (self.out() > 0 && self.pool().is_closed()).then(|| now + PAUSES.1);
        let look = self.sees_ends().then_some(self.look_at);
        let prepare = (self.is_unprepared() && !self.is_opening).then(|| self.prepare_at.max(self.open_at));
        overdue.filter(|at| *at > now).chain(prepare).chain(look).chain(ask).chain(open).chain(lost).min()
    }

    fn wants_to_ask(&self) -> bool {
        let cancels = self.is_cancelling() && self.out() > 0;
        let leaves_unseen = self.leaving.values().any(|leaving| leaving.connection.is_none());
        leaves_unseen || !self.stopping.is_empty() || cancels || self.overdue().next().is_some()
    }

    /// Begins what is to be begun.
    fn go_on(&mut self) {
        let now = Instant::now();
        if !self.wants_to_ask() {
            self.dismiss_of_no_use(now);
            if self.is_unprepared() && !self.is_opening && now >= self.prepare_at.max(self.open_at) {
                self.open();
            }
            return;
        }
        let Some(asker) = self.asker.as_ref().filter(|_| !self.is_silent) else {
            if !self.is_opening && now >= self.open_at {
                self.open();
            }
            if self.cannot_open.is_some() {
                self.stop_unseen();
            }
            return;
        };
        if self.is_asking || now < self.ask_at {
            return;
        }
        let (held, patience) = (Arc::clone(&asker.held), STOP_PATIENCE.max(asker.answers_in * 8));
        let unwanted = self.unwanted();
        let ids: HashSet<SessionId> = unwanted
            .iter()
            .filter_map(Known::id)
            .chain(self.leaving.keys().copied())
            .chain(self.stopping.keys().copied())
            .collect();
        let cancels = self.is_cancelling() && self.out() > 0;
        let ports =
            if cancels { OwnSockets::now().iter().map(|own| own.local.port()).collect() } else { HashSet::new() };
        // Some have not said yet which session they are, as those that are in the middle of a statement.
        let pids = ids.iter().map(|id| id.pid).chain(unwanted.iter().filter_map(Known::pid)).collect();
        self.is_asking = true;
        self.spawn(async move { Event::Listed(ids, timeout(patience, server::list(&held, &pids, &ports)).await) });
    }

    fn is_unprepared(&self) -> bool {
        self.asker.is_none() && self.out() > 0
    }

    /// Whether a pooler is known to be between the pool and its server.
    fn is_behind_a_pooler(&self) -> bool {
        let waiting = self.waiting.values().map(|waiting| waiting.known.clone());
        waiting.chain(self.known_out()).any(|known| matches!(known.session.get(), Some(Session::Pooled)))
    }

    /// Nobody who is opened could ask about the others.
    fn cannot_ask_behind_a_pooler(&mut self) {
        self.open_at = self.drain.deadline();
        let text =
            "which sessions are the pool's is not to be seen behind a pooler: what runs was told to stop, unseen";
        self.cannot_open = Some(Error::new(ErrorKind::Incomplete, text));
    }

    /// Opens one as the pool does, on the drain's runtime.
    fn open(&mut self) {
        if self.is_behind_a_pooler() {
            return self.cannot_ask_behind_a_pooler();
        }
        self.is_opening = true;
        let pool = self.pool().clone();
        self.spawn(async move {
            let opened = async {
                let client = pool.manager().create().await.map_err(cannot_ask)?;
                let session = identify(&client, &client.cancel_token()).await.map_err(cannot_ask)?;
                Ok((client, session))
            };
            Event::Opened(opened.await)
        });
    }

    /// Has stopped whatever runs on sessions that nobody can be asked about.
    fn stop_unseen(&mut self) {
        for known in self.unwanted() {
            self.stop_by_secret(&known);
        }
    }

    /// The request has the secret of the session in it, and reaches no other one. Once for each; whether this was the time.
    fn stop_by_secret(&mut self, known: &Known) -> bool {
        let is_first = self.asked_by_secret.insert(known.cache.as_ptr().addr());
        if is_first {
            let token = known.token.clone();
            self.spawn(async move { Event::AskedBySecret(cancel_by_secret(&token).await) });
        }
        is_first
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Answered(number, held, answer) => self.on_answer(number, held, answer),
            Event::Opened(opened) => {
                self.is_opening = false;
                match opened {
                    Ok((client, session)) => self.on_opened(client, session),
                    Err(failure) => {
                        self.open_at = Instant::now() + OPEN_AGAIN;
                        self.cannot_open = Some(failure);
                    }
                }
            }
            Event::Reserved(opened) => {
                self.is_opening = false;
                let Some(opened) = opened else {
                    // Those that come back to it now end without a goodbye.
                    return self.close_pool();
                };
                self.take_idle();
                self.pool().resize(self.pool().status().size.saturating_sub(1));
                let is_the_pools = Client::metrics(&opened).recycled.is_some();
                let client = Client::take(opened);
                self.collect();
                if is_the_pools {
                    // It came back just now.
                    return self.ask_for_the_last_answer(Held::Taken(client));
                }
                self.is_opening = true;
                self.spawn(async move {
                    let token = client.cancel_token();
                    let session = identify(&client, &token).await.map_err(cannot_ask);
                    Event::Opened(session.map(|session| (client, session)))
                });
            }
            Event::CameBack(Some(client)) => {
                self.ask_for_the_last_answer(Held::Pooled(client));
                self.collect();
            }
            Event::CameBack(None) => {
                // Closed, or it gives nothing any more.
                self.close_pool();
            }
            Event::Listed(asked, Ok(Ok(listed))) => self.on_list(&asked, &listed),
            Event::Cancelled(statements, Ok(taken)) => {
                self.is_asking = false;
                for id in taken {
                    let statement = statements.get(&id).copied().flatten();
                    self.stopping.insert(id, Stopping { statement, asked: Instant::now() });
                }
                self.ask_soon();
            }
            Event::Listed(_, Ok(Err(failure))) | Event::Cancelled(_, Err(failure)) => self.on_refusal(&failure),
            Event::Listed(_, Err(_)) => {
                self.is_asking = false;
                // The runtime of one that the pool has opened may stand still.
                self.is_silent = self.asker.as_ref().is_some_and(|asker| asker.is_counted);
            }
            Event::AskedBySecret(Ok(())) => {}
            Event::AskedBySecret(Err(failure)) => self.drain.note(&failure),
        }
    }

    fn on_answer(&mut self, number: u64, held: Held, answer: Result<Session, tokio_postgres::Error>) {
        let Some(Waiting { is_stopped, known, since }) = self.waiting.remove(&number) else { return };
        // All that it was asked before has come to an end.
        self.drain.count_cancelled(usize::from(is_stopped));
        let session = match answer {
            Ok(session) => session,
            Err(_) if held.is_closed() => {
                // It was ended by somebody else.
                self.drain.count_unconfirmed(1);
                return self.is_done(held);
            }
            // It does not say which one it is.
            Err(_) => known.session.get().copied().unwrap_or(Session::Unknown),
        };
        let Session::Direct(listed) = session else {
            return self.leaves_unseen(held);
        };
        self.met.insert(listed.id);
        let answers_in = since.elapsed();
        if self.connection(&listed).is_some() {
            return self.leaves(held, &listed, true);
        }

        match (&self.asker, &self.deputy) {
            (None, _) => self.asker = Some(Asker { held: Arc::new(held), listed, is_counted: true, answers_in }),
            // Whom the drain has opened is asked about by one of the pool's.
            (Some(asker), None) if !asker.is_counted => {
                self.deputy = Some(Asker { held: Arc::new(held), listed, is_counted: true, answers_in });
            }
            _ => return self.leaves(held, &listed, true),
        }
        self.ask_soon();
    }

    fn on_opened(&mut self, client: ClientWrapper, session: Session) {
        let held = Held::Taken(client);
        let Session::Direct(listed) = session else {
            self.cannot_ask_behind_a_pooler();
            self.opened_unseen += 1;
            return self.leaves_unseen(held);
        };
        self.cannot_open = None;
        // Seen now: that takes the kernel some time, which may not be there when it is to leave.
        self.connection(&listed);
        self.met.insert(listed.id);
        let opened = Asker { held: Arc::new(held), listed, is_counted: false, answers_in: Duration::ZERO };
        match self.asker.take() {
            None => self.asker = Some(opened),
            Some(silent) if self.is_silent => {
                self.asker = Some(opened);
                self.dismiss(silent);
            }
            Some(asker) => {
                self.asker = Some(asker);
                self.dismiss(opened);
            }
        }
        self.is_silent = false;
        self.ask_soon();
    }

    /// One that has asked says goodbye like the others.
    fn dismiss(&mut self, asker: Asker) {
        let Asker { held, listed, is_counted, .. } = asker;
        match Arc::try_unwrap(held) {
            Ok(held) => self.leaves(held, &listed, is_counted),
            // In the middle of a question, which nobody has then: not reached.
            Err(_) if is_counted => self.drain.count_cut(1),
            Err(_) => self.drain.count_left_behind(1),
        }
    }

    /// What one was opened for is over, and nothing else is to be asked yet: it would stand among those that somebody has. Not where
    /// it would be opened again at once, or nobody would see it end.
    fn dismiss_of_no_use(&mut self, now: Instant) {
        let is_early = self.prepare_at.saturating_duration_since(now) > REOPENED_AFTER;
        let opened = self.asker.as_ref().filter(|asker| !asker.is_counted).map(|asker| asker.listed);
        let Some(listed) = opened.filter(|_| is_early && !self.is_asking && self.deputy.is_none()) else { return };
        if self.connection(&listed).is_some()
            && let Some(asker) = self.asker.take()
        {
            self.dismiss(asker);
        }
    }

    /// The one that was opened leaves before the last of the pool's, which asks about it.
    fn hand_over(&mut self) {
        if let Some(deputy) = self.deputy.take()
            && let Some(opened) = self.asker.replace(deputy)
        {
            self.dismiss(opened);
        }
    }

    /// Where the end of this session is seen, if it is.
    fn connection(&mut self, listed: &Listed) -> Option<Connection> {
        let peer = listed.peer?;
        if let Some(connection) = self.own.as_ref().and_then(|own| own.of(&peer)) {
            return Some(connection);
        }
        // It may have been connected since.
        if self.looked_for.insert(listed.id) {
            self.own = Some(OwnSockets::now());
        }
        self.own.as_ref()?.of(&peer)
    }

    /// Says goodbye, and is seen to end or asked about.
    fn leaves(&mut self, mut held: Held, listed: &Listed, is_counted: bool) {
        let connection = self.connection(listed);
        says_goodbye(&mut held);
        self.leaving.insert(listed.id, Leaving { held, connection, is_counted });
        if connection.is_some() {
            (self.look_at, self.look_pause) = (Instant::now() + PAUSES.0, PAUSES.0);
        } else {
            self.ask_soon();
        }
    }

    fn sees_ends(&self) -> bool {
        self.leaving.values().any(|leaving| leaving.connection.is_some())
    }

    /// Looks which have ended. The kernel has no event for that: the driver has the socket.
    fn look(&mut self) {
        if !self.sees_ends() || Instant::now() < self.look_at {
            return;
        }
        let open = Open::now();
        let is_over = |leaving: &Leaving| leaving.connection.is_some_and(|connection| !open.contains(&connection));
        let over: Vec<_> = self.leaving.extract_if(|_, leaving| is_over(leaving)).collect();
        self.look_pause = if over.is_empty() { (self.look_pause * 2).min(PAUSES.1) } else { PAUSES.0 };
        self.look_at = Instant::now() + self.look_pause.max(open.rest());
        for (_, leaving) in over {
            self.has_ended(leaving);
        }
    }

    /// For the last time, before what is left is called cut: it may have ended since the look before.
    fn look_now(&mut self) {
        self.look_at = Instant::now();
        self.look();
    }

    fn has_ended(&mut self, leaving: Leaving) {
        self.drain.count_closed(usize::from(leaving.is_counted));
        self.is_done(leaving.held);
    }

    /// Says goodbye, and nobody can be asked about it.
    fn leaves_unseen(&mut self, mut held: Held) {
        says_goodbye(&mut held);
        self.unseen.push(held);
    }

    fn on_list(&mut self, asked: &HashSet<SessionId>, listed: &[Listed]) {
        self.is_asking = false;
        let listed: HashMap<SessionId, &Listed> = listed.iter().map(|listed| (listed.id, listed)).collect();
        let is_gone = |id: &SessionId| asked.contains(id) && !listed.contains_key(id);
        let mut has_changed = false;
        let gone: Vec<_> = self.leaving.extract_if(|id, leaving| leaving.connection.is_none() && is_gone(id)).collect();
        for (_, leaving) in gone {
            has_changed = true;
            self.has_ended(leaving);
        }
        let mut again = Vec::new();
        self.stopping.retain(|id, stopping| match listed.get(id) {
            Some(listed) if listed.is_busy && listed.statement == stopping.statement => {
                // A request that came between two statements has stopped none.
                if stopping.asked.elapsed() > STOP_PATIENCE {
                    again.push(*id);
                }
                true
            }
            None if !asked.contains(id) => true,
            _ => {
                has_changed = true;
                self.drain.count_cancelled(1);
                false
            }
        });
        let busy: HashSet<i32> = listed.values().filter(|listed| listed.is_busy).map(|listed| listed.id.pid).collect();
        for known in self.unwanted() {
            let runs = known.id().is_none() && known.pid().is_some_and(|pid| busy.contains(&pid));
            if runs && self.stop_by_secret(&known) {
                let waiting = self.waiting.values_mut().filter(|waiting| waiting.known.cache.ptr_eq(&known.cache));
                waiting.for_each(|waiting| waiting.is_stopped = true);
            }
        }
        let mut unwanted: HashSet<SessionId> = self.unwanted().iter().filter_map(Known::id).collect();
        unwanted.extend(self.unknown(listed.values().copied()));
        let runs = |id: &SessionId| listed.get(id).is_some_and(|listed| listed.is_busy);
        again.extend(unwanted.into_iter().filter(|id| runs(id) && !self.stopping.contains_key(id)));
        self.pause = if has_changed { PAUSES.0 } else { (self.pause * 2).min(PAUSES.1) };
        self.ask_at = Instant::now() + self.pause;
        if let Some(asker) = self.asker.as_ref().filter(|_| !again.is_empty()) {
            let held = Arc::clone(&asker.held);
            let statements = again.iter().map(|id| (*id, listed[id].statement)).collect();
            self.is_asking = true;
            self.spawn(async move { Event::Cancelled(statements, server::cancel(&held, &again).await) });
        }
    }

    /// Those that others have taken from the pool, and that the guard has never seen. All of them are with this user and this
    /// database, and on sockets of this process: where the server lists [exactly](OwnSockets::exactly) as many of such, it is these.
    fn unknown<'b>(&mut self, listed: impl Iterator<Item = &'b Listed>) -> Vec<SessionId> {
        let out = self.known_out();
        let expected = self.out().saturating_sub(out.len());
        if expected == 0 || !self.is_cancelling() {
            return Vec::new();
        }
        let here = self.waiting.values().map(|waiting| &waiting.known).chain(&out);
        let known: HashSet<i32> = here.filter_map(Known::pid).collect();
        let could_be = listed
            .filter(|listed| !self.met.contains(&listed.id) && !known.contains(&listed.id.pid))
            .filter_map(|listed| Some((listed.id, listed.peer?)));
        let found = OwnSockets::now().exactly(expected, could_be);
        if let (Err(could_be), false) = (&found, self.is_left_alone) {
            self.is_left_alone = true;
            self.drain.reason(format!(
                "{expected} taken from the pool directly, and the server lists {could_be} of this process that could be these: what \
                 they run was left alone"
            ));
        }
        found.unwrap_or_default()
    }

    /// The one that asks was refused an answer, or is gone.
    fn on_refusal(&mut self, failure: &tokio_postgres::Error) {
        self.is_asking = false;
        tracing::debug!(error = %failure, "the server could not be asked about the sessions of a pool");
        self.pause = (self.pause * 2).min(PAUSES.1);
        self.ask_at = Instant::now() + self.pause;
        if self.asker.as_ref().is_some_and(|asker| asker.held.is_closed())
            && let Some(gone) = std::mem::replace(&mut self.asker, self.deputy.take())
        {
            // It was ended by somebody else.
            self.drain.count_unconfirmed(usize::from(gone.is_counted));
            self.ended.extend(Arc::try_unwrap(gone.held));
        }
    }

    /// When all that is left is the one that asks.
    async fn end(mut self) {
        self.close();
        let answers_in = self.asker.as_ref().map_or(Duration::ZERO, |asker| asker.answers_in);
        let while_nobody_sees = sleep((answers_in * 2).clamp(UNSEEN.0, UNSEEN.1));
        if let Some(asker) = self.asker.take() {
            if self.connection(&asker.listed).is_some() {
                self.dismiss(asker);
            } else if let Ok(held) = Arc::try_unwrap(asker.held) {
                // Nobody is left to ask about it.
                self.opened_unseen += usize::from(!asker.is_counted);
                self.leaves_unseen(held);
            }
        }
        if !self.unseen.is_empty() {
            while_nobody_sees.await;
        }
        let drain = self.drain;
        tokio::select! {
            () = self.until_seen() => {}
            () = drain.until_cut() => {}
        }
        self.count();
    }

    /// Until all that is seen to end has ended.
    async fn until_seen(&mut self) {
        while self.sees_ends() {
            sleep_until(self.look_at).await;
            self.look();
        }
    }

    /// What is left is cut, or stays with its holder to the end of the process.
    async fn cut(mut self) {
        self.close();
        // What was opened for the drain has done what it could.
        self.tasks.shutdown().await;
        self.look_now();
        if let Some(asker) = self.asker.take_if(|asker| !asker.is_counted) {
            self.dismiss(asker);
            // Those of the pool have had their time. A look that has begun then is not broken off.
            let _ = timeout_at(self.drain.halfway(), async {
                while self.leaving.values().any(|leaving| !leaving.is_counted && leaving.connection.is_some()) {
                    sleep_until(self.look_at).await;
                    self.look();
                }
            })
            .await;
            self.look_now();
        }
        self.count();
    }

    /// Whoever waits for a connection is told, and what comes back is not taken any more.
    fn close(&mut self) {
        let returned = {
            let mut state = self.wrapped.state();
            state.phase = Phase::Over;
            std::mem::take(&mut state.returned)
        };
        // Those that the pool still counts are in the count of what is out.
        let taken = returned.iter().filter(|held| matches!(held, Held::Taken(_))).count();
        self.out_at_end = Some(self.out());
        self.pool().close();
        self.drain.count_cut(taken);
        if let Some(failure) = self.cannot_open.take() {
            self.drain.note(&failure);
        }
    }

    /// What has become of the last.
    fn count(&self) {
        let opened = self.leaving.values().filter(|leaving| !leaving.is_counted).count()
            + self.asker.iter().filter(|asker| !asker.is_counted).count()
            + self.opened_unseen;
        let unconfirmed = self.unseen.len() - self.opened_unseen;
        self.drain.count(Ends { cut: self.left(), unconfirmed, ..Ends::default() }, 0);
        self.drain.count_left_behind(opened);
    }

    fn ask_soon(&mut self) {
        self.ask_at = Instant::now();
        self.pause = PAUSES.0;
    }
}

/// Asks a connection which session it is.
async fn identify(client: &tokio_postgres::Client, token: &CancelToken) -> Result<Session, tokio_postgres::Error> {
    Ok(Session::of(token, &client.simple_query(&server::own()).await?))
}

fn cannot_ask(failure: tokio_postgres::Error) -> Error {
    error(ErrorKind::Incomplete, "the server could not be asked what runs", failure.into())
}

/// The request goes as the driver sends it: what is between us and the server may lose it (PgBouncer does), since nobody waits for
/// an answer. It has a number in it that is worth nothing once the session has ended, so nobody checks whom it reaches; whether it is
/// encrypted is for the pool's own configuration to say.
async fn cancel_by_secret(token: &CancelToken) -> Result<(), Error> {
    let failed =
        |failure: tokio_postgres::Error| error(ErrorKind::Incomplete, "cannot cancel a statement", failure.into());
    token.cancel_query(tls::unchecked()?).await.map_err(failed)
}
