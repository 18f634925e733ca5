//! The book of sessions: which are open, who drives them, and how each one ended.
//!
//! The driver splits a session in two: a client, which the pool has, and a connection, a future that somebody must poll
//! for anything to happen. The connection is kept here, in the book. A task of the application polls it there, until the
//! drain takes it over: then it goes on on the drain's own thread, whatever the application's runtime does.

use std::{
    collections::HashMap,
    fmt,
    future::{Future, poll_fn},
    io, mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    task::{AbortHandle, JoinHandle},
    time::timeout,
};
use tokio_postgres::{
    CancelToken, Client, SimpleQueryMessage,
    config::{SslMode, SslNegotiation, TargetSessionAttrs},
};
use winddown_core::{Error, ErrorKind};

use crate::{
    error::Failure,
    socket::{Address, Link, Options, Socket, dial},
    stream::{Activity, Negotiated, Stream},
    tls::{Tls, refused},
};

/// How long a session that nobody wants any more may take to say goodbye: it may be opening, or in a statement. The driver
/// on its own would cut it at once.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

type Connection = tokio_postgres::Connection<Stream, Stream>;
type OpenedClient = Result<Client, tokio_postgres::Error>;

/// All sessions of one pool.
#[derive(Default)]
pub(crate) struct Sessions {
    state: Mutex<State>,
    /// A session was opened or has ended.
    pub(crate) changed: Notify,
}

#[derive(Default)]
struct State {
    phase: Phase,
    last: u64,
    open: HashMap<u64, Arc<Session>>,
    /// While draining: those that the drain has not taken over yet.
    fresh: Vec<Arc<Session>>,
    ended: Ended,
    /// How long the last one took to open, from when its socket was connected.
    opening: Option<Duration>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    Draining,
    /// Drained, or given up: nothing is opened any more.
    Over,
}

/// What has happened since the drain last asked.
pub(crate) struct News {
    /// To be taken over.
    pub(crate) fresh: Vec<Arc<Session>>,
    pub(crate) ended: Ended,
    /// How many are open, or being opened.
    pub(crate) open: usize,
}

/// Sessions that have ended.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// Said goodbye, and the server has closed its side.
    pub(crate) closed: usize,
    /// Ended in any other way, the last of them with this error.
    pub(crate) cut: usize,
    pub(crate) error: Option<Error>,
}

/// How to reach the server of a session once more, to cancel what it runs.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    /// The host as it was asked for; none for a Unix socket.
    pub(crate) host: Option<String>,
    pub(crate) options: Options,
    pub(crate) tls: Tls,
}

impl Endpoint {
    pub(crate) async fn dial(&self) -> io::Result<Socket> {
        dial(&self.address, &self.options).await.map_err(|source| {
            let text = match (&self.address, &self.host) {
                (Address::Tcp(address), Some(host)) => format!("cannot reach {host} at {address}"),
                (Address::Tcp(address), None) => format!("cannot reach {address}"),
                (Address::Unix(path), _) => format!("cannot reach {}", path.display()),
            };
            refused(Error::new(ErrorKind::Init, text).with_source(source).retryable())
        })
    }
}

/// One session, from when the server is connected to when it has closed its side.
pub(crate) struct Session {
    id: u64,
    sessions: Weak<Sessions>,
    endpoint: Endpoint,
    link: Arc<Link>,
    /// All that happens on it. Gone when it is over.
    life: Mutex<Option<Life>>,
    /// Known once it is open.
    opened: OnceLock<Opened>,
    /// The application's task that polls it.
    task: Mutex<Option<AbortHandle>>,
    /// The drain polls it now.
    taken: AtomicBool,
}

type Life = Pin<Box<dyn Future<Output = Result<(), Over>> + Send>>;

struct Opened {
    token: CancelToken,
    activity: Arc<Activity>,
}

/// Why a session is over, other than by a goodbye.
enum Over {
    NeverOpened,
    Failed(tokio_postgres::Error),
}

impl Sessions {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything can panic, so a poisoned lock carries no broken state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A life of the pool begins.
    pub(crate) fn begin_life(&self) {
        self.state().phase = Phase::Open;
    }

    /// Begins to drain; the drain is over when what this returns is dropped.
    pub(crate) fn begin_drain(&self) -> Draining<'_> {
        let mut state = self.state();
        state.phase = Phase::Draining;
        state.ended = Ended::default();
        state.fresh = state.open.values().cloned().collect();
        Draining(self)
    }

    /// How long the last session took to open.
    pub(crate) fn opening(&self) -> Option<Duration> {
        self.state().opening
    }

    pub(crate) fn news(&self) -> News {
        let mut state = self.state();
        let (fresh, ended) = (mem::take(&mut state.fresh), mem::take(&mut state.ended));
        News { fresh, ended, open: state.open.len() }
    }

    /// The sessions that are open, or being opened.
    pub(crate) fn open(&self) -> Vec<Arc<Session>> {
        self.state().open.values().cloned().collect()
    }

    /// Ends those whose server has closed its side: it may have done so while nobody looked.
    pub(crate) fn sweep(&self) {
        for session in self.open() {
            if session.link.is_closed() {
                session.cut();
            }
        }
    }

    /// Opens a session on a connected socket.
    ///
    /// # Cancel safety
    /// Cancel safe: a session that is being opened then is ended with a goodbye as soon as it is open.
    pub(crate) async fn open_on(
        self: &Arc<Self>,
        socket: Socket,
        endpoint: Endpoint,
        config: tokio_postgres::Config,
    ) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        let Some((session, opened)) = self.enter(socket, endpoint, config) else {
            let error = Error::new(ErrorKind::ShuttingDown, "shutting down: nothing is opened any more");
            return Err(driver_error(refused(error)).await);
        };
        let began = Instant::now();
        let task = Held(Some(session.spawn_run()));
        match opened.await {
            Ok(opened) => opened.map(|client| {
                self.state().opening = Some(began.elapsed());
                (client, task.let_go())
            }),
            // Cut while it was being opened.
            Err(_) => Err(driver_error(io::ErrorKind::ConnectionAborted.into()).await),
        }
    }

    /// Enters a session in the book, if it is still open.
    fn enter(
        self: &Arc<Self>,
        socket: Socket,
        endpoint: Endpoint,
        config: tokio_postgres::Config,
    ) -> Option<(Arc<Session>, oneshot::Receiver<OpenedClient>)> {
        let (give, opened) = oneshot::channel();
        let mut state = self.state();
        if state.phase == Phase::Over {
            return None;
        }
        state.last += 1;
        let id = state.last;
        let link = Arc::clone(socket.link());
        let session = Arc::new_cyclic(|session: &Weak<Session>| Session {
            id,
            sessions: Arc::downgrade(self),
            link,
            life: Mutex::new(Some(Box::pin(live(socket, endpoint.clone(), config, Weak::clone(session), give)))),
            endpoint,
            opened: OnceLock::new(),
            task: Mutex::new(None),
            taken: AtomicBool::new(false),
        });
        state.open.insert(id, Arc::clone(&session));
        if state.phase == Phase::Draining {
            state.fresh.push(Arc::clone(&session));
        }
        drop(state);
        self.changed.notify_one();
        Some((session, opened))
    }

    fn over(&self, id: u64, result: Result<(), Over>) {
        let mut state = self.state();
        if state.open.remove(&id).is_none() {
            return;
        }
        match result {
            Ok(()) => state.ended.closed += 1,
            Err(Over::NeverOpened) => {}
            Err(Over::Failed(error)) => {
                state.ended.cut += 1;
                let text = "a session ended without a goodbye";
                state.ended.error = Some(crate::error::error(ErrorKind::Incomplete, text, error.into()));
            }
        }
        drop(state);
        self.changed.notify_one();
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Sessions").field("phase", &state.phase).field("open", &state.open.len()).finish()
    }
}

/// Ends the drain, also where it is dropped at its deadline: what is open then is cut.
pub(crate) struct Draining<'a>(&'a Sessions);

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        let open = {
            let mut state = self.0.state();
            state.phase = Phase::Over;
            mem::take(&mut state.open)
        };
        for session in open.into_values() {
            session.cut();
        }
    }
}

/// The task of a session that nobody has got yet. Dropped with the caller that wanted it, it is aborted, as the pool does
/// with that of a client it drops.
struct Held(Option<JoinHandle<()>>);

impl Held {
    fn let_go(mut self) -> JoinHandle<()> {
        self.0.take().expect("it is let go once")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// The application's task of a session. The pool aborts it when it drops the client, before a goodbye can be said; so
/// when it is dropped, another one begins where it ended.
struct Running(Arc<Session>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.take_leave();
    }
}

impl Session {
    fn life(&self) -> MutexGuard<'_, Option<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut life = self.life();
        let Some(future) = life.as_mut() else { return Poll::Ready(()) };
        let Poll::Ready(result) = future.as_mut().poll(cx) else { return Poll::Pending };
        let over = life.take();
        drop(life);
        drop(over);
        if let Some(sessions) = self.sessions.upgrade() {
            sessions.over(self.id, result);
        }
        Poll::Ready(())
    }

    /// Polls the session to its end, or until the drain takes it over.
    async fn run(&self) {
        poll_fn(|cx| if self.is_taken() { Poll::Ready(()) } else { self.poll(cx) }).await;
    }

    fn spawn_run(self: &Arc<Self>) -> JoinHandle<()> {
        let running = Running(Arc::clone(self));
        let task = tokio::spawn(async move { running.0.run().await });
        self.is_run_by(task.abort_handle());
        task
    }

    /// Goes on without a client: it says goodbye when its last statement is over, and is cut if that takes too long.
    fn take_leave(self: &Arc<Self>) {
        if self.is_taken() || self.life().is_none() {
            return;
        }
        // Without a runtime, or with one that ends, nothing can be done but by a drain, which brings its own.
        let Ok(runtime) = Handle::try_current() else { return };
        let session = Arc::clone(self);
        let task = runtime.spawn(async move {
            if timeout(LEAVE_PATIENCE, session.run()).await.is_err() && !session.is_taken() {
                session.cut();
            }
        });
        self.is_run_by(task.abort_handle());
    }

    fn is_run_by(&self, task: AbortHandle) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    fn is_taken(&self) -> bool {
        // SeqCst, here and below: it is read under no lock, once for each poll, and nothing is gained by less.
        self.taken.load(Ordering::SeqCst)
    }

    fn stop_task(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Goes on with the session on this runtime, to its end.
    pub(crate) async fn take_over(self: Arc<Self>) {
        self.taken.store(true, Ordering::SeqCst);
        self.stop_task();
        self.link.move_to_next_user();
        self.finish().await;
    }

    /// Polls a session that was taken over to its end.
    async fn finish(&self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    /// Ends a session that was taken over although somebody still holds its client: stops its statement if there is one,
    /// and says goodbye.
    pub(crate) async fn end(self: Arc<Self>) {
        if let Some(opened) = self.opened.get() {
            opened.activity.leave();
        }
        if self.is_busy() {
            // What keeps it from being stopped keeps it from its goodbye too, and so it is cut.
            let _ = self.cancel().await;
        }
        self.finish().await;
    }

    /// Whether the server works on a statement of it.
    pub(crate) fn is_busy(&self) -> bool {
        self.opened.get().is_some_and(|opened| opened.activity.is_busy())
    }

    /// Asks the server to stop its statement, and waits until the server has taken the request: that is when it closes
    /// the connection that brought it. Poolers lose a request whose bearer does not wait.
    pub(crate) async fn cancel(&self) -> Result<(), Error> {
        let Some(Opened { token, .. }) = self.opened.get() else { return Ok(()) };
        let failed =
            |failure: Failure| crate::error::error(ErrorKind::Incomplete, "cannot cancel a statement", failure);
        let socket = self.endpoint.dial().await;
        let stream = match socket {
            Ok(socket) => self.endpoint.tls.negotiate(socket, self.endpoint.host.as_deref()).await,
            Err(error) => Err(error),
        };
        let stream = stream.unwrap_or_else(Stream::failed);
        token.cancel_query_raw(stream, Negotiated).await.map_err(|error| failed(error.into()))
    }

    /// Closes the socket, as it is.
    pub(crate) fn cut(&self) {
        // Outside of the lock: it drops the driver's half of everything that waits for it.
        let life = self.life().take();
        drop(life);
        self.stop_task();
        if let Some(sessions) = self.sessions.upgrade() {
            sessions.over(self.id, Err(Over::NeverOpened));
        }
    }
}

/// Opens a session, gives its client away, and drives it until the server has closed its side.
async fn live(
    socket: Socket,
    endpoint: Endpoint,
    config: tokio_postgres::Config,
    session: Weak<Session>,
    give: oneshot::Sender<OpenedClient>,
) -> Result<(), Over> {
    let stream = endpoint.tls.negotiate(socket, endpoint.host.as_deref()).await.unwrap_or_else(Stream::failed);
    let activity = Arc::clone(stream.activity());
    let (client, connection) = match start(stream, config).await {
        Ok(started) => started,
        Err(error) => {
            // Nobody may be left to hear it.
            let _ = give.send(Err(error));
            return Err(Over::NeverOpened);
        }
    };
    if let Some(session) = session.upgrade() {
        // Set once, here.
        let _ = session.opened.set(Opened { token: client.cancel_token(), activity: Arc::clone(&activity) });
    }
    // A caller that has gone drops the client, and so it is said goodbye.
    let _ = give.send(Ok(client));
    match connection.await {
        Ok(()) => Ok(()),
        Err(_) if activity.has_left() => Ok(()),
        Err(error) => Err(Over::Failed(error)),
    }
}

async fn start(
    stream: Stream,
    mut config: tokio_postgres::Config,
) -> Result<(Client, Connection), tokio_postgres::Error> {
    // The stream is what it is to be already; so the driver must neither ask the server for TLS nor, where there is TLS,
    // take it for a plain one.
    if stream.is_tls() {
        config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    } else {
        config.ssl_mode(SslMode::Disable);
    }
    let (client, connection) = config.connect_raw(stream, Negotiated).await?;
    match config.get_target_session_attrs() {
        TargetSessionAttrs::Any => Ok((client, connection)),
        wanted => suits(client, connection, wanted).await,
    }
}

/// Asks the server whether it is what was wanted.
async fn suits(
    client: Client,
    connection: Connection,
    wanted: TargetSessionAttrs,
) -> Result<(Client, Connection), tokio_postgres::Error> {
    let mut connection = Box::pin(connection);
    let answer = {
        let mut asking = pin!(client.simple_query("SHOW transaction_read_only"));
        poll_fn(|cx| {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Err(ended.err()));
            }
            asking.as_mut().poll(cx).map_err(Some)
        })
        .await
    };
    let closed = || driver_error(io::ErrorKind::UnexpectedEof.into());
    let answer = match answer {
        Ok(answer) => answer,
        Err(Some(error)) => return Err(error),
        Err(None) => return Err(closed().await),
    };
    let read_only = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let text = match (wanted, read_only) {
        (TargetSessionAttrs::ReadWrite, Some("on")) => "the database does not allow writes",
        (TargetSessionAttrs::ReadOnly, Some("off")) => "the database is not read only",
        _ => return Ok((client, *Pin::into_inner(connection))),
    };
    drop(client);
    // It says goodbye; how that goes does not change what is wrong.
    let _ = connection.await;
    // Another server may become the one that is wanted.
    Err(driver_error(refused(Error::new(ErrorKind::Init, text).retryable())).await)
}

/// The driver's error for one of ours: it can be had only by failing in the driver's hands.
pub(crate) async fn driver_error(error: io::Error) -> tokio_postgres::Error {
    let mut config = tokio_postgres::Config::new();
    config.user("nobody").ssl_mode(SslMode::Disable);
    let failed = config.connect_raw(Stream::failed(error), Negotiated).await;
    failed.err().expect("nobody can connect over a stream that fails")
}
