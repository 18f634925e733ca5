//! How the pool gets its connections, and what happens to one between two checkouts.

use std::{
    fmt,
    future::ready,
    io,
    ops::{Deref, DerefMut},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use deadpool::managed::{self, Metrics, Object, RecycleError, RecycleResult};
use mysql_async::{Conn, Opts, OptsBuilder, consts::StatusFlags, prelude::Queryable as _};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::timeout,
};
use winddown_core::{
    CredentialsProvider, Error, ErrorKind,
    adapter::{IdleCheck, Lifetime, Opening, Outdated, credentials},
};
use winddown_net::{Address, Endpoint, Options, Server, own_sockets::OwnSockets};

use crate::{
    error,
    home::{self, Home, Separately},
    origin::introduce,
    runtimes::{self, Life, Runtimes},
    sessions::{BeingOpened, Key, LEAVE_PATIENCE, NoAnswer, Sessions, Untidy},
    watcher::{self, Sight},
};

/// The pool of a [`Mysql`](crate::Mysql).
pub type Pool = managed::Pool<Manager>;

/// What its checkouts are: a [`Session`] that goes back to the pool.
pub type Connection = Object<Manager>;

/// How long it may take to tidy a connection up: longer, and it is replaced.
pub(crate) const TIDY_PATIENCE: Duration = Duration::from_secs(1);

/// A session with a server that took no writes from the beginning is not replaced sooner, for the next one may be with the
/// same: where somebody has just failed, and where others of the pool were with a server that took writes.
const REOPEN_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// How long the driver goes on to wait for an answer that has come too late for whoever asked: a server that is slow is said
/// goodbye to, one that is mute is not.
pub(crate) const LATE_PATIENCE: Duration = Duration::from_secs(3);

/// Does one step of opening a session. Its error where the limit was there first is that of a connection: another address may do.
pub(crate) async fn in_time<T, E: From<io::Error>>(
    limit: &Opening,
    step: &str,
    doing: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let late = |late| Err(io::Error::new(io::ErrorKind::TimedOut, late).into());
    limit.step(step, doing).await.unwrap_or_else(late)
}

/// Opens sessions and enters them in the book.
pub(crate) struct Connector {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) opts: Opts,
    /// How long opening a session with one address may take.
    pub(crate) limit: Duration,
    /// Which sessions are to be replaced without being asked.
    pub(crate) outdated: Outdated,
    pub(crate) runtimes: Runtimes,
    pub(crate) separately: Separately,
    credentials: Option<Arc<dyn CredentialsProvider>>,
    /// A server that a session was opened with took writes.
    took_writes: AtomicBool,
    /// The server's limit for a packet, once it has said so: the driver would ask for it each time. Zero before.
    max_packet: AtomicUsize,
}

impl Connector {
    pub(crate) fn new(
        sessions: Arc<Sessions>,
        opts: Opts,
        credentials: Option<Arc<dyn CredentialsProvider>>,
        connect_timeout: Option<Duration>,
    ) -> Self {
        let limit = connect_timeout.unwrap_or(Duration::MAX);
        let (outdated, took_writes) = (Outdated::default(), AtomicBool::new(false));
        let (max_packet, runtimes, separately) = (AtomicUsize::new(0), Runtimes::default(), Separately::default());
        Self { sessions, opts, limit, outdated, runtimes, separately, credentials, took_writes, max_packet }
    }

    /// The options, with the credentials for a new session in them.
    pub(crate) async fn login(&self) -> Result<Opts, Error> {
        let Some(credentials) = credentials(self.credentials.as_deref()).await? else { return Ok(self.opts.clone()) };
        let (user, password) = credentials.into_parts();
        let builder = OptsBuilder::from_opts(self.opts.clone()).pass(Some(password));
        Ok(match user {
            Some(user) => builder.user(Some(user)).into(),
            None => builder.into(),
        })
    }

    /// Opens a session.
    ///
    /// # Cancel safety
    /// Cancel safe: a session that is being opened then is ended with a goodbye as soon as it is open.
    async fn open(self: &Arc<Self>) -> Result<Session, Error> {
        let opts = self.login().await?;
        let Some(opening) = self.sessions.begin_opening() else {
            return Err(Error::new(ErrorKind::ShuttingDown, "shutting down: nothing is opened any more"));
        };
        let (mut give, opened) = oneshot::channel();
        let connector = Arc::clone(self);
        tokio::spawn(async move {
            let mut connecting = pin!(connector.connect(&opening, &opts));
            let result = tokio::select! {
                result = &mut connecting => result,
                () = give.closed() => match timeout(LEAVE_PATIENCE, &mut connecting).await {
                    Ok(result) => result,
                    // It is only to say whose it is, without which nobody can see it end; each step has its limit.
                    Err(_) if opening.has_entered() => connecting.await,
                    Err(_) => return,
                },
            };
            // Nobody may be left to get it: then it is dropped here, and the book sees to its goodbye.
            let _ = give.send(result);
        });
        opened
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Init, "the runtime ended while a session was opened")))
    }

    /// How the server is reached, by the driver's own sockets.
    fn kit(&self) -> winddown_net::Connector {
        winddown_net::Connector { options: Options::default(), limit: self.limit, shuffles: false }
    }

    /// Tries each address of the host.
    async fn connect(self: &Arc<Self>, opening: &BeingOpened, opts: &Opts) -> Result<Session, Error> {
        let opening = async |at: Endpoint| match self.connect_to(&at.address, opening, opts).await {
            Ok(session) => Ok(Ok(session)),
            Err(failure) if error::is_connection(&failure) => Err(error::late(&failure)
                .cloned()
                .unwrap_or_else(|| error::error(ErrorKind::Init, format!("cannot reach {at}"), failure))),
            // It was reached, and has answered.
            Err(failure) => {
                if error::is_full(&failure) {
                    self.sessions.found_full(None);
                }
                Ok(Err(error::open(failure)))
            }
        };
        self.kit().open([server(opts)], opening).await?
    }

    async fn connect_to(
        self: &Arc<Self>,
        address: &Address,
        opening: &BeingOpened,
        opts: &Opts,
    ) -> Result<Session, mysql_async::Error> {
        let limit = Opening::of(address, self.limit);
        let max_packet = self.max_packet.load(Ordering::Relaxed);
        let mut builder = at(address, opts);
        if max_packet > 0 && opts.max_allowed_packet().is_none() {
            builder = builder.max_allowed_packet(Some(max_packet));
        }
        let conn = in_time(&limit, "connecting, up to the end of the login,", Conn::new(builder)).await?;
        let key = opening.enter(address, opts, conn.id());
        tracing::debug!(session = key.id, %address, "opened a session");
        let mut session = Session {
            conn: Some(conn),
            key,
            life: runtimes::current(self),
            is_tidy: false,
            is_given_up: false,
            max_packet: None,
            home: Arc::new(Home::by(opts)),
            connector: Arc::clone(self),
        };
        in_time(&limit, "setting the session up", home::set_up(&mut session, opts)).await?;
        in_time(&limit, "asking the server which one it is", self.identify(opening, key, &mut session)).await?;
        let home = in_time(&limit, "asking for the database and the roles", Home::of(&mut session)).await?;
        self.took_writes.fetch_or(!home.is_read_only, Ordering::Relaxed);
        session.home = Arc::new(home);
        let known = Some(self.max_packet.load(Ordering::Relaxed)).filter(|known| *known > 0);
        session.max_packet = opts.max_allowed_packet().or(known);
        Ok(session)
    }

    /// Whose number it is: behind one address there may be several servers, and a proxy has numbers of its own.
    async fn identify(&self, opening: &BeingOpened, key: Key, conn: &mut Conn) -> Result<(), mysql_async::Error> {
        let introduced = introduce(conn).await?;
        if let Some(max_packet) = introduced.max_packet {
            self.max_packet.store(max_packet, Ordering::Relaxed);
        }
        if let Some(left) = self.sessions.many_left(key.server) {
            let sights = watcher::look(conn, introduced.origin.as_ref(), &left).await?;
            let of = |sight| {
                let found = left.iter().zip(&sights).filter(move |(_, found)| **found == sight);
                found.map(|(asked, _)| asked.key).collect::<Vec<_>>()
            };
            self.sessions.forget(of(Sight::Gone));
            self.sessions.forget_oldest(of(Sight::Unproven));
        }
        opening.is_open(key, introduced.origin);
        Ok(())
    }

    /// Enters a session in the book that somebody else has opened, which the guard lends, or the drain has taken.
    pub(crate) async fn adopt(&self, conn: &mut Conn, is_lent: bool) -> Result<(), Error> {
        let Some(opening) = self.sessions.begin_opening() else { return Ok(()) };
        let address = self.own_address().await?;
        let key = opening.enter(&address, &self.opts, conn.id());
        self.sessions.is_of(key, conn, is_lent);
        let limit = Opening::of(&address, self.limit);
        let identifying = self.identify(&opening, key, conn);
        let identified = in_time(&limit, "asking the server which one it is", identifying).await;
        identified.map_err(|failure| {
            self.sessions.gave_up(key);
            if error::is_broken(&failure) {
                self.sessions.is_broken(key);
            }
            error::error(ErrorKind::Checkout, "the connection does not answer", failure)
        })
    }

    /// Where the sessions are that somebody else has opened: of several addresses, one that this process is connected to.
    pub(crate) async fn own_address(&self) -> Result<Address, Error> {
        let mut found = self.kit().endpoints(&server(&self.opts)).await?;
        if found.len() > 1 {
            let own = OwnSockets::now();
            let is_own = |at: &Endpoint| own.iter().any(|own| Address::Tcp(own.remote) == at.address);
            let index = found.iter().position(is_own).unwrap_or_default();
            found.swap(0, index);
        }
        // There is one at least.
        Ok(found.swap_remove(0).address)
    }
}

/// The options for this address and no other, without what the application wants done in each session: that is
/// [done](home::set_up) once it is in the book.
pub(crate) fn at(address: &Address, opts: &Opts) -> OptsBuilder {
    let builder = OptsBuilder::from_opts(opts.clone())
        // The driver would change to another connection, which has another number.
        .prefer_socket(false)
        .after_connect(|_| Box::pin(ready(Ok(()))))
        .init(Vec::<String>::new())
        .setup(Vec::<String>::new())
        // Only its own pool asks for it, and would ask the server.
        .wait_timeout(Some(opts.wait_timeout().unwrap_or(0)));
    match address {
        Address::Tcp(address) => {
            let host = opts.ip_or_hostname().trim_matches(['[', ']']).to_owned();
            builder.ip_or_hostname(host).resolved_ips(Some(vec![address.ip()])).tcp_port(address.port())
        }
        Address::Unix(path) => builder.socket(Some(path.to_string_lossy())),
    }
}

/// The one that the options name.
fn server(opts: &Opts) -> Server {
    if let Some(path) = opts.socket() {
        return Server::Unix(path.into());
    }
    let host = opts.ip_or_hostname().trim_matches(['[', ']']).to_owned();
    Server::Tcp { host, port: opts.tcp_port(), at: opts.resolved_ips().clone().unwrap_or_default() }
}

/// What the pool asks for connections.
pub struct Manager {
    pub(crate) connector: Arc<Connector>,
    pub(crate) idle_check: IdleCheck<()>,
    pub(crate) lifetime: Lifetime,
    pub(crate) check_timeout: Duration,
    /// Whether sessions begin anew with each checkout.
    pub(crate) reset: bool,
    pub(crate) tidying: Tidying,
}

/// How many connections are being tidied up.
#[derive(Default)]
pub(crate) struct Tidying(Arc<watch::Sender<usize>>);

/// One of them, until this is dropped.
struct OneTidied(Arc<watch::Sender<usize>>);

impl Tidying {
    fn one(&self) -> OneTidied {
        self.0.send_modify(|tidying| *tidying += 1);
        OneTidied(Arc::clone(&self.0))
    }

    /// Ready when none is.
    async fn over(&self) {
        // The sender is here.
        let _ = self.0.subscribe().wait_for(|tidying| *tidying == 0).await;
    }
}

impl Drop for OneTidied {
    fn drop(&mut self) {
        self.0.send_modify(|tidying| *tidying -= 1);
    }
}

impl Manager {
    /// Tidies a connection up that has come back, before anybody else can get it: in the background, so that neither the
    /// caller who had it waits nor the next one.
    pub(crate) fn give_back(&self, connection: Connection) {
        let (sessions, key, reset) = (&self.connector.sessions, connection.key, self.reset);
        let is_too_old = self.lifetime.is_too_old(Object::metrics(&connection).created);
        let is_of_use =
            !connection.is_given_up && !connection.life.is_over() && !connection.is_disconnected() && !is_too_old;
        if !is_of_use || !sessions.is_open() {
            drop(Object::take(connection));
            return;
        }
        // Without a runtime it is tidied up before it is handed out.
        let Ok(runtime) = Handle::try_current() else { return drop(connection) };
        let Some(needs_reset) = sessions.until_reset(key, Untidy::Own(connection)) else { return };
        let tidying = self.tidying.one();
        runtime.spawn(async move {
            // Until it is back.
            let _tidying = tidying;
            let Some(Untidy::Own(mut connection)) = needs_reset.take() else { return };
            let answer = connection.tidy(reset).await;
            if !needs_reset.goes_back() || answer != Answer::Good {
                drop(Object::take(connection));
            }
        });
    }
}

/// Has those say goodbye that are to [leave at a flush](crate::Config::idle_at_flush), once those are back that are being tidied up.
///
/// # Cancel safety
/// Cancel safe: those that have not left stay.
pub(crate) async fn flush(pool: &Pool) {
    let Manager { lifetime, tidying, .. } = pool.manager();
    let Some(leaves) = lifetime.at_flush() else { return };
    // Where others work on there may always be one.
    let _ = timeout(TIDY_PATIENCE, tidying.over()).await;
    // What is dropped says goodbye at once.
    drop(pool.retain(|_, known| !leaves(known.created, known.recycled.unwrap_or(known.created))));
}

impl managed::Manager for Manager {
    type Type = Session;
    type Error = Error;

    async fn create(&self) -> Result<Session, Error> {
        self.connector.open().await
    }

    async fn recycle(&self, session: &mut Session, metrics: &Metrics) -> RecycleResult<Error> {
        let used = metrics.recycled.unwrap_or(metrics.created);
        if self.lifetime.is_over(metrics.created, used) {
            return Err(RecycleError::message("the connection has lived for as long as it may"));
        }
        if !session.is_usable() || session.life.is_over() || self.connector.outdated.is_outdated(metrics.created, used)
        {
            return Err(RecycleError::message("the connection is of no use any more"));
        }
        let answer = if !session.is_tidy {
            // It was taken from the pool directly.
            session.tidy(self.reset).await
        } else if self.idle_check.is_suspect(used) {
            // What the server has closed meanwhile is known to the kernel, and fails at once.
            session.asks(Question::Ping, self.check_timeout).await
        } else {
            Answer::Good
        };
        if answer == Answer::None {
            // The others would take as long to show the same.
            self.connector.outdated.unused_until_now();
        }
        if answer != Answer::Good {
            tracing::debug!("a connection is not as it was, replacing it");
            return Err(RecycleError::message("the connection does not answer as it should"));
        }
        session.is_tidy = false;
        Ok(())
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("sessions", &self.connector.sessions).finish_non_exhaustive()
    }
}

/// One session with the server: the driver's own [`Conn`], and its place in the book.
pub struct Session {
    /// There until it is dropped.
    conn: Option<Conn>,
    key: Key,
    /// Of the runtime that it was opened in.
    life: Life,
    is_tidy: bool,
    /// Nobody is handed it again.
    is_given_up: bool,
    /// The server's limit for a packet, or the options' own.
    max_packet: Option<usize>,
    /// What it is to be again when it is given back.
    home: Arc<Home>,
    connector: Arc<Connector>,
}

impl Session {
    pub(crate) fn life(&self) -> &Life {
        &self.life
    }

    /// Nobody has done anything in it that is to be undone.
    pub(crate) fn is_as_opened(&mut self) {
        self.is_tidy = true;
    }

    /// Has it leave the pool when it comes back, without waiting for its server.
    #[cfg(feature = "buffer")]
    pub(crate) fn give_up(&mut self) -> Key {
        self.is_given_up = true;
        self.key
    }

    /// How many bytes the server takes at once, if it has said so.
    #[cfg(feature = "buffer")]
    pub(crate) fn max_packet(&self) -> Option<usize> {
        self.max_packet
    }

    /// The server has refused to write: it is not what it was, and no session with it is used again. The next one is opened
    /// with whatever server is behind the host's name then.
    pub(crate) fn takes_no_writes(&self) {
        self.connector.outdated.opened_until_now();
    }

    /// Whether the session is no longer of use with a server that takes no writes. It is if there was no better one to be had:
    /// others may do no more than read.
    fn is_stale(&self, has_failed: bool) -> bool {
        if !self.home.is_read_only {
            self.takes_no_writes();
            return true;
        }
        // The host's name may have led to the server that it was before, or to one that was yet to take over.
        let took_writes = self.connector.took_writes.load(Ordering::Relaxed);
        let age = self.home.opened.elapsed();
        (has_failed && age >= REOPEN_PAUSES.0) || (took_writes && age >= REOPEN_PAUSES.1)
    }

    /// The driver's connection, unless its answer was waited for in vain.
    fn is_usable(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| !conn.is_disconnected())
    }

    /// Leaves nothing of what the last user has done. Whether that went well within [`TIDY_PATIENCE`].
    ///
    /// # Cancel safety
    /// As for [`Session::asks`].
    async fn tidy(&mut self, reset: bool) -> Answer {
        let answer = self.asks(Question::Tidy { reset }, TIDY_PATIENCE).await;
        self.is_tidy = answer == Answer::Good;
        answer
    }

    /// What the server answers within `limit`. If it is not good, the session is not usable any more.
    ///
    /// # Cancel safety
    /// Cancel safe. Where nobody waits any more, the driver does for a while: a connection that is dropped in the middle of an
    /// answer is closed without a goodbye.
    async fn asks(&mut self, question: Question, limit: Duration) -> Answer {
        let Some(conn) = self.conn.take() else { return Answer::Bad };
        let (key, connector, home, life) =
            (self.key, Arc::clone(&self.connector), Arc::clone(&self.home), self.life.clone());
        let mut asked = Self { conn: Some(conn), connector, home, life, ..*self };
        let (mut give, answer) = oneshot::channel();
        let began = Instant::now();
        let sessions = Arc::clone(&self.connector.sessions);
        tokio::spawn(async move {
            let outcome = {
                let mut outcome = pin!(sessions.answer_within(limit + LATE_PATIENCE, question.put(&mut asked)));
                tokio::select! {
                    // First: what reads a long result uses up what the runtime lets a task do at a time, and who is asked after
                    // that says nothing.
                    biased;
                    () = give.closed() => {
                        sessions.nobody_waits(key);
                        outcome.await
                    }
                    outcome = &mut outcome => outcome,
                }
            };
            match outcome {
                // Nobody may wait for it any more: then the book sees to its goodbye.
                Ok(Ok(())) => drop(give.send(asked)),
                Ok(Err(failure)) => {
                    tracing::debug!(session = key.id, error = %failure, "a connection is not used again");
                    let is_broken = error::is_broken(&failure) && !has_more_results(&asked);
                    drop(asked);
                    if is_broken {
                        sessions.is_broken(key);
                    }
                }
                Err(NoAnswer) => sessions.is_mute(key),
            }
        });
        let answer = timeout(limit, answer).await;
        self.connector.sessions.latency.saw(began.elapsed());
        match answer {
            Ok(Ok(mut asked)) => {
                self.conn = asked.conn.take();
                Answer::Good
            }
            Ok(Err(_)) => Answer::Bad,
            Err(_) => Answer::None,
        }
    }
}

/// Whether the server goes on with statements that came with one that it has answered.
fn has_more_results(conn: &Conn) -> bool {
    let more = StatusFlags::SERVER_MORE_RESULTS_EXISTS;
    conn.last_ok_packet().is_some_and(|ok| ok.status_flags().contains(more))
}

/// What a server has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Good,
    /// The session has ended, or is not what it should be.
    Bad,
    /// Not in time.
    None,
}

/// What a session is asked between two checkouts.
#[derive(Debug, Clone, Copy)]
enum Question {
    /// Is it there?
    Ping,
    /// To be what it was when it was opened, or, without `reset`, to roll back and to leave locks and the database.
    Tidy { reset: bool },
}

impl Question {
    async fn put(self, session: &mut Session) -> Result<(), mysql_async::Error> {
        let Self::Tidy { reset } = self else { return session.ping().await };
        let (connector, home) = (Arc::clone(&session.connector), Arc::clone(&session.home));
        // Only the caller has seen which error it was.
        let has_failed = session.last_ok_packet().is_none();
        let is_read_only = home.restore(session, &connector.opts, reset, &connector.separately).await?;
        if is_read_only && session.is_stale(has_failed) {
            return Err(mysql_async::Error::Other("the server takes no writes".into()));
        }
        Ok(())
    }
}

impl Deref for Session {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        self.conn.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Conn {
        self.conn.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            let is_given_up = self.is_given_up || self.life.is_over();
            self.connector.sessions.came_back(self.key, conn, is_given_up);
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the driver's own `Debug`, which shows the password.
        f.debug_struct("Session").field("id", &self.key.id).finish_non_exhaustive()
    }
}
