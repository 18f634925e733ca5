//! How the pool gets its connections, and what happens to one between two checkouts.

use std::{
    fmt, io,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use deadpool::managed::{self, Metrics, Object, RecycleError, RecycleResult};
use mysql_async::{Conn, Opts, OptsBuilder, prelude::Queryable as _};
use tokio::{net::lookup_host, runtime::Handle, sync::oneshot, time::timeout};
use winddown_core::{CredentialsProvider, Error, ErrorKind, Rested};

use crate::{
    error,
    origin::introduce,
    sessions::{Key, LEAVE_PATIENCE, Opening, Sessions},
    watcher::{self, Sight},
};

/// The pool of a [`Mysql`](crate::Mysql).
pub type Pool = managed::Pool<Manager>;

/// What its checkouts are: a [`Session`] that goes back to the pool.
pub type Connection = Object<Manager>;

/// How long it may take to tidy a connection up: longer, and it is replaced.
const TIDY_PATIENCE: Duration = Duration::from_secs(1);

/// How long the driver goes on to wait for an answer that has come too late for whoever asked: a server that is slow is said
/// goodbye to, one that is mute is not.
const LATE_PATIENCE: Duration = Duration::from_secs(3);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    /// The socket's path.
    Unix(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => fmt::Display::fmt(address, f),
            Self::Unix(path) => f.write_str(path),
        }
    }
}

/// Opens sessions and enters them in the book.
pub(crate) struct Connector {
    pub(crate) sessions: Arc<Sessions>,
    opts: Opts,
    credentials: Option<Arc<dyn CredentialsProvider>>,
    /// The server's limit for a packet, once it has said so: the driver would ask for it each time. Zero before.
    max_packet: AtomicUsize,
}

impl Connector {
    pub(crate) fn new(sessions: Arc<Sessions>, opts: Opts, credentials: Option<Arc<dyn CredentialsProvider>>) -> Self {
        Self { sessions, opts, credentials, max_packet: AtomicUsize::new(0) }
    }

    /// The options, with the credentials for a new session in them.
    pub(crate) async fn login(&self) -> Result<Opts, Error> {
        let Some(provider) = &self.credentials else { return Ok(self.opts.clone()) };
        let credentials = provider.credentials().await.map_err(|source| {
            let text = "the credentials provider has none";
            Error::new(ErrorKind::Init, text).with_source(source).retryable()
        })?;
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
                () = give.closed() => match timeout(LEAVE_PATIENCE, connecting).await {
                    Ok(result) => result,
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

    /// Tries each address of the host.
    async fn connect(&self, opening: &Opening, opts: &Opts) -> Result<Session, Error> {
        let mut last = None;
        for address in addresses(opts).await? {
            match self.connect_to(&address, opening, opts).await {
                Ok(session) => return Ok(session),
                Err(failure) if error::is_connection(&failure) => last = Some((address, failure)),
                Err(failure) => {
                    if error::is_full(&failure) {
                        self.sessions.found_full(None);
                    }
                    return Err(error::open(failure));
                }
            }
        }
        Err(match last {
            Some((address, failure)) => error::error(ErrorKind::Init, format!("cannot reach {address}"), failure),
            None => Error::new(ErrorKind::Init, "the host's name has no address").retryable(),
        })
    }

    async fn connect_to(
        &self,
        address: &Address,
        opening: &Opening,
        opts: &Opts,
    ) -> Result<Session, mysql_async::Error> {
        let max_packet = self.max_packet.load(Ordering::Relaxed);
        let mut builder = at(address, opts);
        if max_packet > 0 && opts.max_allowed_packet().is_none() {
            builder = builder.max_allowed_packet(Some(max_packet));
        }
        let conn = Conn::new(builder).await?;
        let key = opening.enter(address, opts, conn.id());
        tracing::debug!(session = key.id, %address, "opened a session");
        let mut session = Session {
            conn: Some(conn),
            key,
            is_tidy: false,
            is_given_up: false,
            max_packet: None,
            sessions: Arc::clone(&self.sessions),
        };
        self.identify(opening, key, &mut session).await?;
        let known = Some(self.max_packet.load(Ordering::Relaxed)).filter(|known| *known > 0);
        session.max_packet = opts.max_allowed_packet().or(known);
        Ok(session)
    }

    /// Whose number it is: behind one address there may be several servers, and a proxy has numbers of its own.
    async fn identify(&self, opening: &Opening, key: Key, conn: &mut Conn) -> Result<(), mysql_async::Error> {
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

    /// Enters a session in the book that somebody else has opened, the first time that it is seen.
    pub(crate) async fn adopt(&self, conn: &mut Conn) -> Result<(), Error> {
        if self.sessions.knows(conn.id()) {
            return Ok(());
        }
        let Some(opening) = self.sessions.begin_opening() else { return Ok(()) };
        let Some(address) = addresses(&self.opts).await?.into_iter().next() else { return Ok(()) };
        let key = opening.enter(&address, &self.opts, conn.id());
        let failed = |failure| error::error(ErrorKind::Checkout, "the connection does not answer", failure);
        self.identify(&opening, key, conn).await.map_err(failed)
    }
}

/// The options for this address and no other.
pub(crate) fn at(address: &Address, opts: &Opts) -> OptsBuilder {
    let builder = OptsBuilder::from_opts(opts.clone())
        // The driver would change to another connection, which has another number.
        .prefer_socket(false)
        // Only its own pool asks for it, and would ask the server.
        .wait_timeout(Some(opts.wait_timeout().unwrap_or(0)));
    match address {
        Address::Tcp(address) => {
            let host = opts.ip_or_hostname().trim_matches(['[', ']']).to_owned();
            builder.ip_or_hostname(host).resolved_ips(Some(vec![address.ip()])).tcp_port(address.port())
        }
        Address::Unix(path) => builder.socket(Some(path.clone())),
    }
}

async fn addresses(opts: &Opts) -> Result<Vec<Address>, Error> {
    if let Some(path) = opts.socket() {
        return Ok(vec![Address::Unix(path.to_owned())]);
    }
    let port = opts.tcp_port();
    if let Some(resolved) = opts.resolved_ips() {
        return Ok(resolved.iter().map(|ip| Address::Tcp((*ip, port).into())).collect());
    }
    let host = opts.ip_or_hostname().trim_matches(['[', ']']);
    let found = lookup_host((host, port)).await.map_err(|source: io::Error| {
        let text = format!("cannot look up the host {host}");
        Error::new(ErrorKind::Init, text).with_source(source).retryable()
    })?;
    Ok(found.map(Address::Tcp).collect())
}

/// What the pool asks for connections.
pub struct Manager {
    pub(crate) connector: Arc<Connector>,
    pub(crate) rested: Rested<()>,
    pub(crate) check_timeout: Duration,
    /// Whether sessions begin anew with each checkout.
    pub(crate) reset: bool,
    pub(crate) hung: Hung,
}

/// When a write last hung: what was handed out before that may be as dead.
pub(crate) struct Hung {
    since: Instant,
    /// In milliseconds after `since`; zero for never.
    at: AtomicU64,
}

impl Default for Hung {
    fn default() -> Self {
        Self { since: Instant::now(), at: AtomicU64::new(0) }
    }
}

impl Hung {
    #[cfg(feature = "buffer")]
    pub(crate) fn now(&self) {
        self.at.store(self.millis(Instant::now()).saturating_add(1), Ordering::Relaxed);
    }

    /// Whether a connection that was last handed out at this moment is to be looked at.
    fn is_suspect(&self, used: Instant) -> bool {
        self.millis(used) < self.at.load(Ordering::Relaxed)
    }

    fn millis(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX)
    }
}

impl Manager {
    fn is_suspect(&self, used: Instant) -> bool {
        self.rested.is_suspect(used) || self.hung.is_suspect(used)
    }

    /// Tidies a connection up that has come back, before anybody else can get it: in the background, so that neither the
    /// caller who had it waits nor the next one.
    pub(crate) fn give_back(&self, connection: Connection) {
        let (sessions, key, reset) = (&self.connector.sessions, connection.key, self.reset);
        if connection.is_given_up {
            drop(Object::take(connection));
            return;
        }
        if connection.is_disconnected() || !sessions.is_open() {
            drop(Object::take(connection));
            return;
        }
        // Without a runtime it is tidied up before it is handed out.
        let Ok(runtime) = Handle::try_current() else { return drop(connection) };
        if let Err(connection) = sessions.keep_untidy(key, connection) {
            drop(Object::take(connection));
            return;
        }
        let untidy = Untidy { sessions: Arc::clone(sessions), key };
        runtime.spawn(async move {
            let Some(mut connection) = untidy.take() else { return };
            if !connection.tidy(reset).await {
                drop(Object::take(connection));
            }
        });
    }
}

/// A connection that waits for being tidied up. It goes with the task that should do it.
struct Untidy {
    sessions: Arc<Sessions>,
    key: Key,
}

impl Untidy {
    fn take(&self) -> Option<Connection> {
        self.sessions.take_untidy(self.key)
    }
}

impl Drop for Untidy {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl managed::Manager for Manager {
    type Type = Session;
    type Error = Error;

    async fn create(&self) -> Result<Session, Error> {
        self.connector.open().await
    }

    async fn recycle(&self, session: &mut Session, metrics: &Metrics) -> RecycleResult<Error> {
        if !session.is_usable() {
            return Err(RecycleError::message("the connection was closed"));
        }
        if !session.is_tidy {
            // It was taken from the pool directly.
            if !session.tidy(self.reset).await {
                return Err(RecycleError::message("the connection could not be tidied up"));
            }
        } else if self.is_suspect(metrics.recycled.unwrap_or(metrics.created)) {
            // What the server has closed meanwhile is known to the kernel, and fails at once.
            if !session.asks(Question::Ping, self.check_timeout).await {
                tracing::debug!("a connection did not answer after a rest, replacing it");
                return Err(RecycleError::message("the server has closed the connection"));
            }
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
    is_tidy: bool,
    /// Nobody is handed it again.
    is_given_up: bool,
    /// The server's limit for a packet, or the options' own.
    max_packet: Option<usize>,
    sessions: Arc<Sessions>,
}

impl Session {
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

    /// The driver's connection, unless its answer was waited for in vain.
    fn is_usable(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| !conn.is_disconnected())
    }

    /// Leaves nothing of what the last user has done. Whether that went well within [`TIDY_PATIENCE`].
    ///
    /// # Cancel safety
    /// As for [`Session::asks`].
    async fn tidy(&mut self, reset: bool) -> bool {
        self.is_tidy = self.asks(Question::Tidy { reset }, TIDY_PATIENCE).await;
        self.is_tidy
    }

    /// Whether the server answers within `limit`. Otherwise the session is not usable any more.
    ///
    /// # Cancel safety
    /// Cancel safe. Where nobody waits any more, the driver does for a while: a connection that is dropped in the middle of an
    /// answer is closed without a goodbye.
    async fn asks(&mut self, question: Question, limit: Duration) -> bool {
        let Some(conn) = self.conn.take() else { return false };
        let (key, sessions) = (self.key, Arc::clone(&self.sessions));
        let mut asked = Self { conn: Some(conn), sessions, ..*self };
        let (give, answer) = oneshot::channel();
        let began = Instant::now();
        tokio::spawn(async move {
            match timeout(limit + LATE_PATIENCE, question.put(&mut asked)).await {
                // Nobody may wait for it any more: then the book sees to its goodbye.
                Ok(Ok(())) => drop(give.send(asked)),
                Ok(Err(failure)) => {
                    tracing::debug!(session = key.id, error = %failure, "a connection is not used again");
                    let is_broken = error::is_broken(&failure);
                    let sessions = Arc::clone(&asked.sessions);
                    drop(asked);
                    if is_broken {
                        sessions.is_broken(key);
                    }
                }
                Err(_) => asked.sessions.is_mute(key),
            }
        });
        let answer = timeout(limit, answer).await;
        self.sessions.latency.saw(began.elapsed());
        if let Ok(Ok(mut asked)) = answer {
            self.conn = asked.conn.take();
        }
        self.conn.is_some()
    }
}

/// What a session is asked between two checkouts.
#[derive(Debug, Clone, Copy)]
enum Question {
    /// Is it there?
    Ping,
    /// To read what is left of results, to roll back, and with `reset` to forget variables, temporary tables, locks and
    /// prepared statements.
    Tidy { reset: bool },
}

impl Question {
    async fn put(self, conn: &mut Conn) -> Result<(), mysql_async::Error> {
        match self {
            Self::Tidy { reset: true } if conn.reset().await? => Ok(()),
            // The driver rolls back and reads results before it sends anything.
            Self::Ping | Self::Tidy { .. } => conn.ping().await,
        }
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
            self.sessions.came_back(self.key, conn, self.is_given_up);
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the driver's own `Debug`, which shows the password.
        f.debug_struct("Session").field("id", &self.key.id).finish_non_exhaustive()
    }
}
