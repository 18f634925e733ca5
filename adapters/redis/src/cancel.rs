//! Ends commands that wait at the server: over a connection of its own, since that of the session waits with them.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
#[cfg(feature = "deadpool")]
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, RedisResult, Value, cmd};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, timeout_at},
};
use winddown_core::{Error, ErrorKind, adapter::Drain};
use winddown_net::Address;

#[cfg(feature = "deadpool")]
use crate::wrapped;
use crate::{
    connect::{Dialogue, Endpoint},
    error::{closed, error},
    identity::{Identity, Proof},
    sessions::{Part, Session, Sessions},
};

/// Between two questions. Nobody tells when the next command of a session begins to wait.
const PAUSE: Duration = Duration::from_millis(2);

/// The same where it takes long.
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// How long a server may take to close its side of a connection with which something was ended before its drain.
const MOMENT: Duration = Duration::from_secs(1);

/// What has waited for its answer for that long when the drain has begun may have to be ended: a connection for that is opened
/// then, so that none must be when time is short.
const PREPARE_AFTER: Duration = Duration::from_millis(10);

/// Connections with servers that may have to be asked to end something: one for each server, opened once.
#[derive(Default)]
pub(crate) struct Prepared {
    lines: Mutex<HashMap<Option<Address>, Arc<AsyncMutex<Line>>>>,
    unseen: Arc<AtomicUsize>,
    /// The user may not end anything, so nobody is asked to.
    is_refused: AtomicBool,
}

/// The connection with one server. Who has a question waits for who is asking.
#[derive(Default)]
struct Line {
    open: Option<Open>,
    /// It was asked something, and the answer was not waited for: of no more use, but to be closed.
    is_asking: bool,
    spoilt: Vec<Open>,
}

struct Open {
    channel: Channel,
    session: Unseen,
    /// Where the server tells.
    identity: Option<Identity>,
    /// The numbers of those that were proven to be ours over this connection. As long as it is there the server is the same.
    proven: HashSet<i64>,
}

/// What a server is asked over.
pub(crate) enum Channel {
    Ours(Dialogue),
    /// A connection of the driver's.
    #[cfg(feature = "deadpool")]
    Driver(MultiplexedConnection),
}

impl Channel {
    async fn ask(&mut self, questions: &[Cmd]) -> RedisResult<Vec<Value>> {
        match self {
            Self::Ours(dialogue) => dialogue.ask(questions).await,
            #[cfg(feature = "deadpool")]
            Self::Driver(connection) => wrapped::ask(connection, questions).await,
        }
    }

    /// Says goodbye, and waits until the server has closed its side. Whether that was seen.
    async fn close(self) -> bool {
        match self {
            // One that broke is as good as closed: its server sees that, or is gone.
            Self::Ours(dialogue) => {
                let _ = dialogue.close().await;
                true
            }
            #[cfg(feature = "deadpool")]
            Self::Driver(mut connection) => {
                // The same of a refusal.
                let _ = wrapped::quit(&mut connection).await;
                wrapped::is_closed(&mut connection).await == Some(true)
            }
        }
    }
}

/// A server that can be asked, over a connection that is opened for that.
pub(crate) trait Reachable: Sync {
    /// Where it is. None where there is no other one to be told from.
    fn address(&self) -> Option<&Address>;

    /// What an error calls it.
    fn server(&self) -> String;

    /// Opens a session of ours alone, that is in no book. Returns how the server knows it, too, if it tells.
    fn open(&self) -> impl Future<Output = Result<(Channel, Option<Identity>), Error>> + Send;
}

impl Reachable for Endpoint {
    fn address(&self) -> Option<&Address> {
        Some(&self.at.address)
    }

    fn server(&self) -> String {
        self.server.to_string()
    }

    async fn open(&self) -> Result<(Channel, Option<Identity>), Error> {
        let (dialogue, identity) = self.dialogue().await?;
        Ok((Channel::Ours(dialogue), identity))
    }
}

/// What a server says of a session.
#[derive(Debug)]
pub(crate) enum Asked {
    Answers(Vec<Value>),
    /// It is not listed any more.
    Gone,
    /// Nothing was asked, since it may be somebody else's.
    Unproven(&'static str),
}

/// Counts a session with a server from before it is opened until it was seen to end. Dropped, it stays counted.
struct Unseen(Arc<AtomicUsize>);

impl Unseen {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        // SeqCst, here and below: a count for a report.
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }

    /// It has ended, or never began.
    fn ended(self) {
        // A drain may have counted it already.
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1));
    }
}

impl Line {
    /// Asks the server of this endpoint about these sessions, over the connection that there is, or a new one where there is none or
    /// it is of no use. Only about those that are proven to be ours.
    async fn ask(
        &mut self,
        server: &impl Reachable,
        unseen: &Arc<AtomicUsize>,
        whom: &[Identity],
        questions: impl Fn(i64) -> Vec<Cmd> + Send + Sync,
    ) -> Result<Vec<Asked>, Error> {
        if whom.is_empty() {
            return Ok(Vec::new());
        }
        if self.is_asking {
            self.spoilt.extend(self.open.take());
        }
        let was_prepared = self.open.is_some();
        self.open(server, unseen).await?;
        match self.ask_proven(whom, &questions).await {
            Ok(answers) => Ok(answers),
            // The server has ended it meanwhile.
            Err(_) if was_prepared => {
                self.open(server, unseen).await?;
                self.ask_proven(whom, &questions).await.map_err(cannot_ask)
            }
            Err(source) => Err(cannot_ask(source)),
        }
    }

    async fn open(&mut self, server: &impl Reachable, unseen: &Arc<AtomicUsize>) -> Result<(), Error> {
        if self.open.is_some() {
            return Ok(());
        }
        let session = Unseen::begin(unseen);
        match server.open().await {
            Ok((channel, identity)) => {
                self.open = Some(Open { channel, session, identity, proven: HashSet::new() });
                self.is_asking = false;
                Ok(())
            }
            Err(error) => {
                session.ended();
                Err(error)
            }
        }
    }

    #[cfg(feature = "deadpool")]
    async fn clients(&mut self, server: &impl Reachable, unseen: &Arc<AtomicUsize>) -> Result<Vec<Identity>, Error> {
        if self.is_asking {
            self.spoilt.extend(self.open.take());
        }
        self.open(server, unseen).await?;
        let answers = self.converse(&[cmd("CLIENT").arg("LIST").take()]).await.map_err(cannot_ask)?;
        match (answers.first(), self.open.as_ref().and_then(|open| open.identity.as_ref())) {
            (Some(Value::ServerError(refusal)), _) => Err(cannot_ask(refusal.clone().into())),
            (Some(listed), Some(asking)) => Ok(asking.others(listed)),
            _ => Ok(Vec::new()),
        }
    }

    /// Both over one connection: what was proven holds for the server that is asked.
    async fn ask_proven(
        &mut self,
        whom: &[Identity],
        questions: &(impl Fn(i64) -> Vec<Cmd> + Sync),
    ) -> Result<Vec<Asked>, RedisError> {
        let open = self.open.as_ref().ok_or_else(closed)?;
        let new: Vec<_> = whom.iter().filter(|session| !open.proven.contains(&session.id)).collect();
        let listed = self.converse(&new.iter().map(|session| list(session.id)).collect::<Vec<_>>()).await?;
        let mut asked: HashMap<i64, Asked> = HashMap::new();
        let open = self.open.as_mut().ok_or_else(closed)?;
        for (session, listed) in new.into_iter().zip(&listed) {
            let proof = match &open.identity {
                Some(asking) => session.prove(asking, listed),
                None => Proof::No("the server tells no numbers"),
            };
            match proof {
                Proof::Ours => drop(open.proven.insert(session.id)),
                Proof::Gone => drop(asked.insert(session.id, Asked::Gone)),
                Proof::No(why) => drop(asked.insert(session.id, Asked::Unproven(why))),
            }
        }
        let ours: Vec<i64> = whom.iter().map(|session| session.id).filter(|id| !asked.contains_key(id)).collect();
        let questions: Vec<Vec<Cmd>> = ours.iter().map(|id| questions(*id)).collect();
        let lengths: Vec<usize> = questions.iter().map(Vec::len).collect();
        let mut answers = self.converse(&questions.concat()).await?.into_iter();
        for (id, length) in ours.into_iter().zip(lengths) {
            asked.insert(id, Asked::Answers(answers.by_ref().take(length).collect()));
        }
        Ok(whom.iter().map(|session| asked.remove(&session.id).unwrap_or(Asked::Gone)).collect())
    }

    /// As many answers as questions.
    async fn converse(&mut self, questions: &[Cmd]) -> Result<Vec<Value>, RedisError> {
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let open = self.open.as_mut().ok_or_else(closed)?;
        self.is_asking = true;
        let answers = open.channel.ask(questions).await;
        self.is_asking = false;
        let answers =
            answers.and_then(|answers| if answers.len() == questions.len() { Ok(answers) } else { Err(closed()) });
        if answers.is_err()
            && let Some(open) = self.open.take()
        {
            // It broke: its server sees that, or is gone.
            open.session.ended();
        }
        answers
    }
}

/// Counts what was not seen to end when it is dropped, and lets go of it: at the end of a goodbye, also where the deadline drops
/// that. The process may live on.
pub(crate) struct LeftBehind<'a> {
    prepared: &'a Prepared,
    drain: &'a Drain,
}

impl Drop for LeftBehind<'_> {
    fn drop(&mut self) {
        self.drain.count_left_behind(self.prepared.unseen.swap(0, Ordering::SeqCst));
        // Dropped outside of the lock.
        let left = std::mem::take(&mut *self.prepared.lines());
        drop(left);
    }
}

fn cannot_ask(source: RedisError) -> Error {
    error(ErrorKind::Incomplete, CANNOT, source)
}

const CANNOT: &str = "cannot end a command that waits at the server";

pub(crate) fn unproven(server: &impl Reachable, why: &str) -> Error {
    let text = format!("{CANNOT} {}: the session there is not proven to be ours, since {why}", server.server());
    Error::new(ErrorKind::Incomplete, text)
}

impl Prepared {
    /// Whether anything can be ended: known once a server was asked.
    pub(crate) fn can_stop(&self) -> bool {
        // Relaxed: it stands alone, and is written before anybody has a session.
        !self.is_refused.load(Ordering::Relaxed)
    }

    /// What the servers say to that.
    pub(crate) fn found(&self, can_stop: bool) {
        self.is_refused.store(!can_stop, Ordering::Relaxed);
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<Option<Address>, Arc<AsyncMutex<Line>>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, address: Option<&Address>) -> Arc<AsyncMutex<Line>> {
        Arc::clone(self.lines().entry(address.cloned()).or_default())
    }

    /// Asks a server about these sessions: only about those that are proven to be ours.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub(crate) async fn ask(
        &self,
        server: &impl Reachable,
        whom: &[Identity],
        questions: impl Fn(i64) -> Vec<Cmd> + Send + Sync,
    ) -> Result<Vec<Asked>, Error> {
        let line = self.line(server.address());
        let mut line = line.lock().await;
        line.ask(server, &self.unseen, whom, questions).await
    }

    /// All clients of a server, as it lists them, but the one that asks.
    ///
    /// # Errors
    /// When it cannot be asked, or refuses.
    #[cfg(feature = "deadpool")]
    pub(crate) async fn clients(&self, server: &impl Reachable) -> Result<Vec<Identity>, Error> {
        let line = self.line(server.address());
        let mut line = line.lock().await;
        line.clients(server, &self.unseen).await
    }

    /// Whether there is a connection, or one is being opened.
    pub(crate) fn is_open(&self) -> bool {
        self.unseen.load(Ordering::SeqCst) > 0
    }

    /// The sessions that stay busy when a drain has begun: their servers may have to be asked to end something.
    pub(crate) async fn staying(&self, sessions: &Sessions) -> Vec<Arc<Session>> {
        let waiting: Vec<_> =
            busy(sessions.open()).into_iter().map(|session| (session.part().answers(), session)).collect();
        tokio::time::sleep(PREPARE_AFTER).await;
        // One that gets its answers is about to end by itself.
        let stays =
            |(answers, session): (usize, Arc<Session>)| (session.part().answers() == answers).then_some(session);
        busy(waiting.into_iter().filter_map(stays).collect())
    }

    /// Opens a connection with each server of these sessions.
    pub(crate) async fn prepare(&self, sessions: Vec<Arc<Session>>) {
        if !self.can_stop() {
            return;
        }
        join_all(by_server(sessions).into_iter().map(|(address, sessions)| async move {
            let line = self.line(Some(&address));
            let mut line = line.lock().await;
            // Where it cannot be opened now it is tried again when it is needed, and what is wrong is told then.
            let _ = line.open(&sessions[0].part().endpoint, &self.unseen).await;
        }))
        .await;
    }

    /// What is not closed when this is dropped is in the report.
    pub(crate) fn count_left_behind<'a>(&'a self, drain: &'a Drain) -> LeftBehind<'a> {
        LeftBehind { prepared: self, drain }
    }

    /// Closes all, and waits until the servers have closed their sides, but not longer than half of what is left of the drain, or
    /// for a moment where it has not come to this resource yet.
    pub(crate) async fn close(&self, drain: Option<&Drain>) {
        let lines: Vec<_> = self.lines().values().cloned().collect();
        let limit = drain.map_or_else(|| Instant::now() + MOMENT, Drain::halfway);
        let closing = lines.into_iter().map(|line| async move {
            // Held until they are closed: cancelling and the goodbye both come here, and whoever is second waits for the first.
            let mut line = line.lock().await;
            let Line { open, spoilt, .. } = std::mem::take(&mut *line);
            let closing = open.into_iter().chain(spoilt).map(|open| async move {
                if timeout_at(limit, open.channel.close()).await.unwrap_or(false) {
                    open.session.ended();
                }
            });
            join_all(closing).await;
        });
        join_all(closing).await;
    }

    /// Has the servers of these sessions end whatever waits there, until nothing of them is unanswered. What is queued behind a
    /// command that waits is executed. `stopped` is told how many were ended, as they are.
    ///
    /// # Cancel safety
    /// Cancel safe: what was ended is.
    ///
    /// # Errors
    /// That of a server that could not be asked, or refuses; the others have been asked all the same.
    pub(crate) async fn stop(
        &self,
        sessions: Vec<Arc<Session>>,
        stopped: impl Fn(usize) + Send + Sync,
    ) -> Result<(), Error> {
        if !self.can_stop() {
            return Ok(());
        }
        let servers = by_server(busy(sessions));
        let stopping = servers.values().map(|sessions| {
            let identities = |sessions: &[Arc<Session>]| {
                busy(sessions.to_vec()).iter().filter_map(|session| session.part().identity().cloned()).collect()
            };
            self.stop_at(&sessions[0].part().endpoint, move || identities(sessions), &stopped)
        });
        join_all(stopping).await.into_iter().collect()
    }

    /// The same for the sessions of one server that are busy, as long as they are.
    pub(crate) async fn stop_at(
        &self,
        server: &impl Reachable,
        busy: impl Fn() -> Vec<Identity> + Send + Sync,
        stopped: &(impl Fn(usize) + Send + Sync),
    ) -> Result<(), Error> {
        let (mut left_alone, mut failed) = (HashSet::new(), Ok(()));
        let mut pause = PAUSE;
        loop {
            let mut busy = busy();
            busy.retain(|session| !left_alone.contains(&session.id));
            if busy.is_empty() {
                return failed;
            }
            let answers = self.ask(server, &busy, |id| vec![unblock(id), list(id)]).await?;
            let mut waiting = Vec::new();
            for (session, asked) in busy.into_iter().zip(answers) {
                let answers = match asked {
                    Asked::Answers(answers) => answers,
                    Asked::Gone => {
                        left_alone.insert(session.id);
                        continue;
                    }
                    Asked::Unproven(why) => {
                        left_alone.insert(session.id);
                        failed = Err(unproven(server, why));
                        continue;
                    }
                };
                match &answers[..] {
                    [Value::Int(1), _] => stopped(1),
                    // It waits, and cannot be told to stop: as one does for whom all clients were paused.
                    [Value::Int(_), listed] if is_blocked(listed) => waiting.push(session),
                    [Value::Int(_), _] => {}
                    [Value::ServerError(refusal), ..] => return Err(cannot_ask(refusal.clone().into())),
                    _ => return Err(cannot_ask(closed())),
                }
            }
            let answers = self.ask(server, &waiting, |id| vec![kill(id)]).await?;
            let killed = |asked: &&Asked| matches!(asked, Asked::Answers(answers) if answers[..] == [Value::Int(1)]);
            stopped(answers.iter().filter(killed).count());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Ends what waits at the server of this session and is left, as this says; how many. Only what can be unblocked: others may
    /// have something queued behind it. What the server works on ends by itself. Where nothing proves that what waits there is of
    /// this session, that is cut.
    ///
    /// # Errors
    /// That of a server that could not be asked, or refuses, or proves nothing.
    pub(crate) async fn stop_left(
        &self,
        session: Arc<Session>,
        is_left: impl Fn(&Part) -> bool,
    ) -> Result<usize, Error> {
        if !self.can_stop() {
            return Ok(0);
        }
        let part = session.part();
        let Some(identity) = part.identity() else { return Ok(0) };
        let answers = part.answers();
        while is_left(part) && part.answers() == answers && !session.is_over() {
            let asked = self.ask(&part.endpoint, std::slice::from_ref(identity), |id| vec![unblock(id)]).await?;
            match asked.first() {
                Some(Asked::Answers(answers)) => match &answers[..] {
                    [Value::Int(1)] => return Ok(1),
                    [Value::Int(_)] => {}
                    [Value::ServerError(refusal)] => return Err(cannot_ask(refusal.clone().into())),
                    _ => return Err(cannot_ask(closed())),
                },
                Some(Asked::Unproven(why)) => {
                    let error = unproven(&part.endpoint, why);
                    // It takes nothing any more: its server sees that.
                    if part.waits() && !part.has_more() {
                        session.fail(error.clone());
                    }
                    return Err(error);
                }
                Some(Asked::Gone) | None => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(0)
    }
}

fn by_server(sessions: Vec<Arc<Session>>) -> HashMap<Address, Vec<Arc<Session>>> {
    let mut servers: HashMap<Address, Vec<Arc<Session>>> = HashMap::new();
    for session in sessions {
        servers.entry(session.part().endpoint.at.address.clone()).or_default().push(session);
    }
    servers
}

fn busy(mut sessions: Vec<Arc<Session>>) -> Vec<Arc<Session>> {
    sessions.retain(|session| session.part().is_busy() && !session.is_over());
    sessions
}

/// Ends nothing: there is no session of this number. The answer says whether the user may end any.
pub(crate) fn may_unblock() -> Cmd {
    unblock(0)
}

/// Its caller gets an error of the server, `UNBLOCKED`.
fn unblock(id: i64) -> Cmd {
    cmd("CLIENT").arg("UNBLOCK").arg(id).arg("ERROR").take()
}

pub(crate) fn list(id: i64) -> Cmd {
    cmd("CLIENT").arg("LIST").arg("ID").arg(id).take()
}

pub(crate) fn kill(id: i64) -> Cmd {
    cmd("CLIENT").arg("KILL").arg("ID").arg(id).take()
}

/// Whether the server's line about a client has the flag for one that waits in a command.
/// <https://redis.io/docs/latest/commands/client-list/>
fn is_blocked(listed: &Value) -> bool {
    let line = redis::from_redis_value_ref::<String>(listed).unwrap_or_default();
    line.split(' ').any(|field| field.strip_prefix("flags=").is_some_and(|flags| flags.contains('b')))
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use tokio::{io::AsyncReadExt as _, net::TcpListener, sync::Notify};
    use winddown_core::{Checkouts, Lifecycle, Resource};
    use winddown_net::{Options, Transport, dial};

    use super::*;
    use crate::stream::Stream;

    /// Its goodbye has a connection of its own, and does not come to an end.
    struct Hangs {
        server: Address,
        prepared: Prepared,
        is_open: Notify,
    }

    impl Resource for Hangs {
        type Pool = ();

        fn name(&self) -> &str {
            "hangs"
        }

        async fn init(&self) -> Result<(), Error> {
            Ok(())
        }

        async fn goodbye(&self, (): &(), drain: &Drain) -> Result<(), Error> {
            let _left_behind = self.prepared.count_left_behind(drain);
            let session = Unseen::begin(&self.prepared.unseen);
            let socket = dial(&self.server, &Options::default()).await.unwrap();
            let channel = Channel::Ours(Dialogue::new(Stream::over(Transport::Plain(socket))));
            let (identity, proven) = (Some(Identity::new(1, None)), HashSet::new());
            let open = Some(Open { channel, session, identity, proven });
            self.prepared.line(Some(&self.server)).lock().await.open = open;
            self.is_open.notify_one();
            pending().await
        }
    }

    impl Checkouts for Hangs {
        type Checkout = Infallible;

        async fn checkout(&self, (): &()) -> Result<Infallible, Error> {
            Err(Error::new(ErrorKind::Checkout, "it has none"))
        }

        fn give_back(&self, (): &(), nothing: Infallible) {
            match nothing {}
        }
    }

    #[tokio::test]
    async fn what_a_goodbye_that_hangs_has_opened_is_closed() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(server.local_addr().unwrap());
        let budget = Duration::from_secs(2);
        let lifecycle = Lifecycle::builder().signals(false).budget(budget).build().unwrap();
        let guard =
            lifecycle.guard(Hangs { server: address, prepared: Prepared::default(), is_open: Notify::default() });
        lifecycle.init().await.unwrap();
        // On a machine that is late the report may be out before the goodbye was left, and counts nothing then.
        let (report, ()) = tokio::join!(lifecycle.drain(), guard.resource().is_open.notified());
        assert!(report.resource("hangs").unwrap().sessions.left_behind <= 1, "{report}");
        // The guard is there still, and with it the resource.
        let (mut socket, _) = server.accept().await.unwrap();
        let end = tokio::time::timeout(Duration::from_secs(20), socket.read(&mut [0])).await;
        assert_eq!(end.expect("nobody closes it").unwrap(), 0);
        drop(guard);
    }

    #[test]
    fn a_client_that_waits_has_a_flag() {
        let line = |flags: &str| Value::BulkString(format!("id=3 name=b flags={flags} db=0").into_bytes());
        assert!(is_blocked(&line("b")));
        assert!(is_blocked(&line("Pb")));
        assert!(!is_blocked(&line("N")));
        assert!(!is_blocked(&Value::BulkString(Vec::new())));
    }
}
