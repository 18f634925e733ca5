//! A connection that the application built: what can be done for it from outside.
//!
//! The driver says no goodbye and does not tell when the server has closed its side. But the server closes it when it is told
//! `QUIT`, once it has executed what was sent before, and it can be asked who is connected: over a session of our own, where it is
//! known what the connection was opened with.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use redis::{
    Cmd, Pipeline, RedisError, RedisResult, Value,
    aio::{ConnectionLike, ConnectionManager, MultiplexedConnection},
    cmd,
};
#[cfg(feature = "cluster")]
use redis::{
    cluster_async::ClusterConnection,
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo},
};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use winddown_core::{
    Capabilities, Error, ErrorKind,
    adapter::{Drain, End, Ends, IdleCheck, credentials},
};
use winddown_net::Server;

use crate::{
    cancel::{Asked, Prepared, kill, list, unproven},
    config::Config,
    connect::{Endpoint, server},
    error::{closed, error},
    identity::text,
    wrapped::{self, Known, half, is_closed, message, part, questions},
};

/// A connection with one server, or one with each of a cluster.
#[derive(Clone)]
pub(crate) enum One {
    Manager(ConnectionManager),
    Multiplexed(MultiplexedConnection),
    #[cfg(feature = "cluster")]
    Cluster(ClusterConnection),
}

/// Between two questions: a server has no event for what it lists.
const PAUSE: Duration = Duration::from_millis(2);

/// How long a manager may take to connect anew when its connection turns out to be closed.
const REOPENING: Duration = Duration::from_secs(2);

pub(crate) struct Wrapped {
    form: Form,
    /// A clone, until the drain lets go of it.
    existing: Mutex<Option<One>>,
    opened_with: Option<Config>,
    known: Mutex<Option<Vec<Known>>>,
    /// It has broken since then, and may have been opened anew.
    is_stale: AtomicBool,
    /// Nothing is expected over it any more: all is answered, or it is over.
    is_heard: AtomicBool,
    /// Nothing is sent through the guard any more.
    is_over: AtomicBool,
    idle_check: IdleCheck<()>,
    /// Asks who it is, from when it was wrapped on.
    learning: Mutex<Option<JoinHandle<()>>>,
    /// When it was last handed out.
    used: Mutex<std::time::Instant>,
}

/// What kind of connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Manager,
    Multiplexed,
    #[cfg(feature = "cluster")]
    Cluster,
}

/// Why a connection could not be heard to the end.
enum Silent {
    /// It is over.
    Over(RedisError),
    /// Its answers did not come in time.
    Late,
}

impl Wrapped {
    pub(crate) fn new(existing: One, opened_with: Option<Config>) -> Self {
        let rest = opened_with.as_ref().map_or(Duration::from_secs(1), |config| config.check_after);
        Self {
            form: existing.form(),
            existing: Mutex::new(Some(existing)),
            opened_with,
            known: Mutex::default(),
            is_stale: AtomicBool::new(false),
            is_heard: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            idle_check: IdleCheck::new(rest),
            learning: Mutex::default(),
            used: Mutex::new(std::time::Instant::now()),
        }
    }

    /// Begins to learn who it is to its server, if there is a runtime to do that on: by the time of the drain the connection may wait
    /// for something, and not answer.
    pub(crate) fn wrapped(self) -> Arc<Self> {
        let wrapped = Arc::new(self);
        if wrapped.opened_with.is_some()
            && let Ok(runtime) = Handle::try_current()
        {
            let weak = Arc::downgrade(&wrapped);
            let learning = runtime.spawn(async move {
                let Some(wrapped) = weak.upgrade() else { return };
                wrapped.learn().await;
            });
            *wrapped.learning.lock().unwrap_or_else(PoisonError::into_inner) = Some(learning);
        }
        wrapped
    }

    pub(crate) fn opened_with(&self) -> Option<&Config> {
        self.opened_with.as_ref()
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let asks = self.opened_with.is_some();
        match self.form {
            Form::Multiplexed if asks => Capabilities::ALL,
            Form::Multiplexed => Capabilities::ALL.without_cancel(),
            // The driver may open another session whenever it likes.
            _ => {
                let all = Capabilities::ALL.without_all_sessions();
                match asks {
                    true if self.is_resp2() => all,
                    true => all.without_goodbye().without_confirmed_end(),
                    // What it speaks is known when it is drained.
                    false => all.without_goodbye().without_confirmed_end().without_cancel(),
                }
            }
        }
    }

    /// Whether it is known without asking to speak the second version of the protocol.
    fn is_resp2(&self) -> bool {
        self.opened_with.as_ref().is_some_and(|with| !with.driver.redis_settings().protocol().supports_resp3())
    }

    /// A clone of it, until the drain is over.
    pub(crate) fn existing(&self) -> RedisResult<One> {
        self.existing.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)
    }

    fn known(&self) -> MutexGuard<'_, Option<Vec<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> Vec<Known> {
        self.known().clone().unwrap_or_default()
    }

    /// Learns who it is to its server, on its first use and after a rest: a connection that waits for something does not answer. A
    /// manager whose connection was closed meanwhile opens another.
    pub(crate) async fn checked(&self) {
        let now = std::time::Instant::now();
        let used = std::mem::replace(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner), now);
        let is_known = self.known().is_some() && !self.is_stale.swap(false, Ordering::Relaxed);
        if is_known && !self.idle_check.is_suspect(used) {
            return;
        }
        // Boxed, since it happens seldom.
        let asking = Box::pin(async {
            match self.ask().await {
                // It was closed; whoever is first to use it finds that out.
                Err(error) if error.is_unrecoverable_error() => self.ask().await,
                answer => answer,
            }
        });
        if let Ok(Ok(sessions)) = timeout(self.limit(), asking).await {
            *self.known() = Some(sessions);
        }
    }

    async fn learn(&self) {
        // One that waits for something is not kept open by the question.
        if let Ok(Ok(sessions)) = timeout(self.limit(), self.ask()).await {
            self.known().get_or_insert(sessions);
        }
    }

    /// Has nothing asked any more that nobody waits for: a manager whose connection was told goodbye would open another for it.
    async fn stop_learning(&self, drain: &Drain) {
        let learning = self.learning.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(learning) = learning {
            learning.abort();
            // It may be on a runtime that nobody polls any more.
            let _ = timeout_at(half(drain).min(Instant::now() + self.limit()), learning).await;
        }
    }

    fn limit(&self) -> Duration {
        self.opened_with.as_ref().map_or(Duration::from_millis(500), |config| config.check_timeout)
    }

    /// Asks the server, over the connection, who it is there. Answered when everything is that was sent before.
    async fn ask(&self) -> RedisResult<Vec<Known>> {
        #[cfg(feature = "cluster")]
        if let One::Cluster(connection) = &self.existing()? {
            let mut nodes: Vec<(String, Vec<Value>)> = Vec::new();
            for question in questions() {
                let answers = match on_all(connection, question).await {
                    Err(error) if crate::error::is_denied(&error) => continue,
                    answers => answers?,
                };
                for (node, answer) in answers {
                    match nodes.iter_mut().find(|(known, _)| *known == node) {
                        Some((_, answers)) => answers.push(answer),
                        None => nodes.push((node, vec![answer])),
                    }
                }
            }
            return Ok(nodes.into_iter().map(|(node, answers)| Known::new(Some(node), &answers)).collect());
        }
        let message = message(&questions());
        let answers = self.existing()?.pipeline(&message, 0, message.len()).await?;
        Ok(vec![Known::new(None, &answers)])
    }

    /// Waits until everything that was sent before is executed: the server answers in order. Who it is to its server is known
    /// anew then.
    async fn answered(&self, prepared: &Prepared) -> Result<Vec<Known>, Silent> {
        let mut reopened = false;
        loop {
            match self.ask().await {
                Ok(sessions) => {
                    *self.known() = Some(sessions.clone());
                    return Ok(sessions);
                }
                // The driver's own limit: what is queued is queued.
                Err(error) if error.is_timeout() => {}
                Err(error) if reopened || self.form == Form::Multiplexed => {
                    return Err(Silent::Over(error));
                }
                // The driver opens another now, if the server is there.
                Err(error) => {
                    reopened = true;
                    for session in self.sessions() {
                        if self.located(&session, prepared).await.is_err_and(|error| is_not_there(&error)) {
                            return Err(Silent::Over(error));
                        }
                    }
                    match timeout(REOPENING, self.ask()).await {
                        Ok(Err(error)) if !error.is_timeout() => return Err(Silent::Over(error)),
                        Ok(_) => {}
                        Err(_) => return Err(Silent::Over(error)),
                    }
                }
            }
        }
    }

    /// Where its server, or a node of its cluster, can be asked.
    async fn endpoints(&self, node: Option<&str>) -> Result<Vec<Endpoint>, Error> {
        let Some(config) = &self.opened_with else { return Ok(Vec::new()) };
        let server = match node.and_then(|node| node.rsplit_once(':')) {
            Some((host, port)) => Server::tcp(host, port.parse().unwrap_or_default()),
            None => server(&config.driver)?,
        };
        let mut login = config.login();
        login.writes = false;
        if let Some(credentials) = credentials(config.credentials.as_deref()).await? {
            login.is(credentials);
        }
        let tls = config.tls_of(&config.driver)?;
        let found = config.connector().endpoints(&server).await?;
        let endpoint = |at| Endpoint { at, server: server.clone(), tls: tls.clone(), login: login.clone() };
        Ok(found.into_iter().map(endpoint).collect())
    }

    /// The server that knows this session, and what it says of it. None where it cannot be asked, and that is no error.
    async fn located(&self, session: &Known, prepared: &Prepared) -> Result<Option<(Endpoint, Asked)>, Error> {
        let Some(identity) = &session.identity else { return Ok(None) };
        let mut last = Ok(None);
        for endpoint in self.endpoints(session.node.as_deref()).await? {
            last = match prepared.ask(&endpoint, std::slice::from_ref(identity), |_| Vec::new()).await {
                Ok(asked) => match asked.into_iter().next() {
                    Some(Asked::Unproven(why)) => Err(unproven(&endpoint, why)),
                    Some(asked) => return Ok(Some((endpoint, asked))),
                    None => Ok(None),
                },
                Err(error) => Err(error),
            };
        }
        last
    }

    /// Has the server end whatever waits on the connection, whoever has sent it, until it has answered everything.
    ///
    /// # Errors
    /// That of a server that cannot be asked, or refuses, or proves nothing.
    pub(crate) async fn stop(&self, prepared: &Prepared, drain: &Drain) -> Result<(), Error> {
        let stopping = self.sessions().into_iter().map(|session| async move {
            let Some((endpoint, Asked::Answers(_))) = self.located(&session, prepared).await? else { return Ok(()) };
            let busy = || match self.is_heard.load(Ordering::SeqCst) {
                true => Vec::new(),
                false => session.identity.iter().cloned().collect(),
            };
            prepared.stop_at(&endpoint, busy, &|commands| drain.count_cancelled(commands)).await
        });
        join_all(stopping).await.into_iter().collect()
    }

    /// Waits for every answer, ends what nobody waits for, says goodbye, and sees that the server has closed its side.
    pub(crate) async fn goodbye(&self, prepared: &Prepared, drain: &Drain) -> Result<(), Error> {
        let _left_behind = prepared.count_left_behind(drain);
        let _let_go = LetGo(self);
        drain.set_open(self.sessions().len().max(1));
        let answered = async {
            drain.until_returned().await;
            let (heard, gone) = (Notify::new(), Notify::new());
            let hearing = async {
                let answered = self.answered(prepared).await;
                self.is_heard.store(true, Ordering::SeqCst);
                heard.notify_one();
                answered
            };
            let stopping = async {
                tokio::select! {
                    () = heard.notified() => return,
                    () = sleep(drain.grace()) => {}
                }
                // To its end, which comes when the connection is heard: what it has ended is counted, and what it has opened known.
                let Err(error) = self.stop(prepared, drain).await else { return };
                drain.note(&error);
                if is_not_there(&error) {
                    // The driver may try for as long as somebody waits.
                    tokio::select! {
                        () = heard.notified() => {}
                        () = sleep(REOPENING) => gone.notify_one(),
                    }
                }
            };
            let hearing = async {
                tokio::select! {
                    answered = hearing => answered,
                    () = gone.notified() => Err(Silent::Late),
                }
            };
            tokio::join!(hearing, stopping).0
        };
        let answered = tokio::select! {
            answered = answered => answered,
            () = drain.until_cut() => {
                // One of four equal parts: the others are for having it ended, for closing what asks, and for the report.
                let answered = timeout_at(part(drain, 4), self.answered(prepared)).await;
                answered.unwrap_or(Err(Silent::Late))
            }
        };
        self.is_over.store(true, Ordering::SeqCst);
        match answered {
            Ok(sessions) => self.leave(sessions, prepared, drain).await,
            Err(silent) => self.give_up(&silent, prepared, drain).await,
        }
        prepared.close(Some(drain)).await;
        Ok(())
    }

    /// Everything is answered: says goodbye.
    async fn leave(&self, sessions: Vec<Known>, prepared: &Prepared, drain: &Drain) {
        // At least one, where the user may ask no node of a cluster.
        let count = sessions.len().max(1);
        let stays_closed = |session: &Known| session.is_resp2.unwrap_or_else(|| self.is_resp2());
        let stay_closed = if sessions.is_empty() { self.is_resp2() } else { sessions.iter().all(stays_closed) };
        if self.form != Form::Multiplexed && !stay_closed {
            drain.count(Ends { unconfirmed: count, ..Ends::default() }, 0);
            let text =
                "its driver would connect anew at once if the server were told goodbye: it ends with the process";
            drain.reason(text.to_owned());
            return;
        }
        self.stop_learning(drain).await;
        let quit = timeout_at(half(drain), async {
            match self.quit().await {
                // It is over, and its driver has begun to open another, which is told too.
                Err(error) if self.form != Form::Multiplexed && error.is_unrecoverable_error() => {
                    timeout(REOPENING, self.quit()).await.unwrap_or(Err(error))
                }
                said => said,
            }
        })
        .await;
        let said = match quit {
            Ok(Ok(())) => true,
            // It is over: closed by the server meanwhile.
            Ok(Err(error)) if !error.is_timeout() => false,
            _ => return self.give_up(&Silent::Late, prepared, drain).await,
        };
        let (mut left, ending) = (count, sessions.iter().map(|session| self.end_of(session, said, prepared, drain)));
        // Each is counted when it is known, whatever becomes of the others.
        let mut ending: FuturesUnordered<_> = ending.collect();
        while let Some(is_closed) = ending.next().await {
            left -= 1;
            let mut ends = Ends::default();
            ends.record(if is_closed { End::Closed } else { End::Unconfirmed });
            drain.count(ends, left);
        }
        drain.count(Ends { unconfirmed: left, ..Ends::default() }, 0);
    }

    /// Whether the server is seen to list this session no more.
    async fn end_of(&self, session: &Known, said: bool, prepared: &Prepared, drain: &Drain) -> bool {
        match timeout_at(half(drain), self.gone(session, prepared)).await {
            Ok(Ok(true)) => true,
            Ok(Err(error)) if self.opened_with.is_some() => {
                drain.note(&error);
                said && self.has_closed().await
            }
            _ => said && timeout_at(half(drain), self.has_closed()).await.unwrap_or(false),
        }
    }

    /// Asks until the server lists this session no more; `false` where nobody can be asked.
    async fn gone(&self, session: &Known, prepared: &Prepared) -> Result<bool, Error> {
        let Some((endpoint, asked)) = self.located(session, prepared).await? else { return Ok(false) };
        let (Some(identity), Asked::Answers(_)) = (&session.identity, asked) else { return Ok(true) };
        loop {
            let asked = prepared.ask(&endpoint, std::slice::from_ref(identity), |id| vec![list(id)]).await?;
            match asked.into_iter().next() {
                Some(Asked::Answers(answers)) => match answers.into_iter().next() {
                    Some(Value::ServerError(refusal)) => {
                        let text = "whether the server has ended a session is not known";
                        return Err(error(ErrorKind::Incomplete, text, refusal.into()));
                    }
                    Some(line) if text(&line).trim().is_empty() => return Ok(true),
                    _ => {}
                },
                Some(Asked::Unproven(why)) => return Err(unproven(&endpoint, why)),
                Some(Asked::Gone) | None => return Ok(true),
            }
            sleep(PAUSE).await;
        }
    }

    /// Whether the connection itself shows, after its goodbye, that the server has closed its side.
    async fn has_closed(&self) -> bool {
        // A manager would connect anew.
        let Ok(One::Multiplexed(mut connection)) = self.existing() else { return false };
        is_closed(&mut connection).await == Some(true)
    }

    async fn quit(&self) -> RedisResult<()> {
        let quit = cmd("QUIT");
        #[cfg(feature = "cluster")]
        if let One::Cluster(connection) = &self.existing()? {
            return on_all(connection, quit).await.map(drop);
        }
        match self.existing()? {
            One::Multiplexed(mut connection) => wrapped::quit(&mut connection).await,
            mut other => other.command(&quit).await?.extract_error().map(drop),
        }
    }

    /// Not everything is answered: has the server end the connection, if it can be asked, and says so.
    async fn give_up(&self, silent: &Silent, prepared: &Prepared, drain: &Drain) {
        let sessions = self.sessions();
        let unknown = "whether everything that was sent was executed is not known";
        match silent {
            Silent::Over(source) => drain.note(&error(ErrorKind::Incomplete, unknown, source.clone())),
            Silent::Late => drain.note(&Error::new(ErrorKind::Incomplete, format!("{unknown}: no answer in time"))),
        }
        if sessions.is_empty() {
            let mut ends = Ends::default();
            ends.record(match silent {
                Silent::Over(_) => End::Unconfirmed,
                Silent::Late => End::Cut(None),
            });
            drain.count(ends, 0);
            return;
        }
        let ending = async {
            let ending = sessions.iter().map(|session| async move {
                match silent {
                    // The socket is closed on this side, and the server sees it, or is gone.
                    Silent::Over(_) => self.gone(session, prepared).await,
                    Silent::Late => {
                        if let Some((endpoint, Asked::Answers(_))) = self.located(session, prepared).await?
                            && let Some(identity) = &session.identity
                        {
                            prepared.ask(&endpoint, std::slice::from_ref(identity), |id| vec![kill(id)]).await?;
                        }
                        Ok(false)
                    }
                }
            });
            join_all(ending).await
        };
        let ended: Vec<Result<bool, Error>> = timeout_at(part(drain, 3), ending).await.unwrap_or_default();
        for error in ended.iter().filter_map(|ended| ended.as_ref().err()) {
            drain.note(error);
        }
        let count = |is: bool| ended.iter().filter(|ended| ended.as_ref().is_ok_and(|ended| *ended == is)).count();
        let (closed, unseen) = (count(true), if matches!(silent, Silent::Over(_)) { count(false) } else { 0 });
        let cut = sessions.len() - closed - unseen;
        drain.count(Ends { closed, unconfirmed: unseen, cut, ..Ends::default() }, 0);
    }
}

/// Lets go of the connection at the end of a goodbye, also where the deadline drops that: the driver closes its socket when the
/// application has no clone of it either.
struct LetGo<'a>(&'a Wrapped);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
        let last = self.0.existing.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Dropped outside of the lock.
        drop(last);
    }
}

/// Whether the error says that nobody is at the server's address, and not only that no answer came in time.
fn is_not_there(error: &Error) -> bool {
    let mut causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.any(|cause| {
        let refused =
            |kind| matches!(kind, std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::ConnectionReset);
        let by_driver = cause.downcast_ref::<RedisError>().is_some_and(RedisError::is_connection_dropped);
        by_driver || cause.downcast_ref::<std::io::Error>().is_some_and(|error| refused(error.kind()))
    })
}

/// Has every node of a cluster execute a command: the answer of each, by its address.
#[cfg(feature = "cluster")]
async fn on_all(connection: &ClusterConnection, command: Cmd) -> RedisResult<Vec<(String, Value)>> {
    let every = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllNodes, None));
    match connection.clone().route_command(command, every).await? {
        Value::Map(answers) => Ok(answers.into_iter().map(|(node, answer)| (text(&node), answer)).collect()),
        _ => Err(closed()),
    }
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Wrapped");
        debug.field("form", &self.form).field("opened_with", &self.opened_with).finish_non_exhaustive()
    }
}

impl One {
    fn form(&self) -> Form {
        match self {
            Self::Manager(_) => Form::Manager,
            Self::Multiplexed(_) => Form::Multiplexed,
            #[cfg(feature = "cluster")]
            Self::Cluster(_) => Form::Cluster,
        }
    }

    async fn command(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Manager(manager) => manager.send_packed_command(command).await,
            Self::Multiplexed(connection) => connection.send_packed_command(command).await,
            #[cfg(feature = "cluster")]
            Self::Cluster(connection) => connection.req_packed_command(command).await,
        }
    }

    async fn pipeline(&mut self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        match self {
            Self::Manager(manager) => manager.send_packed_commands(pipeline, offset, count).await,
            Self::Multiplexed(connection) => connection.send_packed_commands(pipeline, offset, count).await,
            #[cfg(feature = "cluster")]
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count).await,
        }
    }
}

/// A clone of the connection in a checkout. After the goodbye it sends nothing: a manager would connect anew.
pub(crate) struct Borrowed {
    /// `None` where the drain has let go of it before.
    existing: Option<One>,
    wrapped: Arc<Wrapped>,
}

macro_rules! subscribing {
    ($($name:ident),*) => {
        $(pub(crate) async fn $name(&mut self, to: Vec<Vec<u8>>) -> RedisResult<()> {
            let result = match self.open()? {
                One::Manager(manager) => manager.$name(to).await,
                One::Multiplexed(connection) => connection.$name(to).await,
                #[cfg(feature = "cluster")]
                One::Cluster(connection) => connection.$name(to).await,
            };
            self.heard(result)
        })*
    };
}

impl Borrowed {
    pub(crate) fn of(wrapped: Arc<Wrapped>) -> Self {
        Self { existing: wrapped.existing().ok(), wrapped }
    }

    fn open(&mut self) -> RedisResult<&mut One> {
        // SeqCst: once in a life, and nothing is gained by less.
        let existing = self.existing.as_mut().filter(|_| !self.wrapped.is_over.load(Ordering::SeqCst));
        existing.ok_or_else(closed)
    }

    /// What has broken is somebody else to its server when it was opened anew.
    fn heard<T>(&self, result: RedisResult<T>) -> RedisResult<T> {
        if result.as_ref().is_err_and(RedisError::is_unrecoverable_error) {
            self.wrapped.is_stale.store(true, Ordering::SeqCst);
        }
        result
    }

    pub(crate) async fn command(&mut self, command: &Cmd) -> RedisResult<Value> {
        let result = self.open()?.command(command).await;
        self.heard(result)
    }

    pub(crate) async fn pipeline(
        &mut self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let result = self.open()?.pipeline(pipeline, offset, count).await;
        self.heard(result)
    }

    pub(crate) fn database(&self) -> i64 {
        match &self.existing {
            Some(One::Manager(manager)) => manager.get_db(),
            Some(One::Multiplexed(connection)) => connection.get_db(),
            #[cfg(feature = "cluster")]
            Some(One::Cluster(connection)) => connection.get_db(),
            None => 0,
        }
    }

    subscribing!(subscribe, unsubscribe, psubscribe, punsubscribe);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_not_there_is_told_from_one_that_is_late() {
        let of = |kind: std::io::ErrorKind| {
            Error::new(ErrorKind::Init, "cannot reach it").with_source(std::io::Error::from(kind))
        };
        assert!(is_not_there(&of(std::io::ErrorKind::ConnectionRefused)));
        assert!(is_not_there(&of(std::io::ErrorKind::ConnectionReset)));
        assert!(!is_not_there(&of(std::io::ErrorKind::TimedOut)));
        assert!(!is_not_there(&Error::new(ErrorKind::Init, "late")));
    }
}
