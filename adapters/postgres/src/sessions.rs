//! A session: how it is opened, what is known of it, and how what runs on it is stopped.
//!
//! The driver splits a session in two: a client, which the pool has, and a connection, a future that somebody must poll
//! for anything to happen. The connection is kept in the book of sessions, which the drain takes over.

use std::{
    fmt,
    future::{Future, pending, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{Arc, OnceLock, Weak},
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_postgres::{
    CancelToken, Client, SimpleQueryMessage,
    config::{SslMode, SslNegotiation, TargetSessionAttrs},
};
use winddown_core::{
    Error, ErrorKind,
    adapter::{End, Opening, Outdated},
};
use winddown_net::{Held, Socket, run_apart, runtime_is_ending};

use crate::{
    error::{Failure, driver_error, refused},
    pooled,
    stream::{Activity, Carries, Negotiated, Stream, Wire},
    tls::Tls,
    token::CancelKey,
};

type Connection = tokio_postgres::Connection<Stream, Stream>;
type OpenedClient = Result<Client, tokio_postgres::Error>;

/// All sessions of one pool.
pub(crate) type Sessions = winddown_net::Sessions<Part>;
/// One session.
pub(crate) type Session = winddown_net::Session<Part>;

/// What is known of a session.
#[derive(Debug)]
pub(crate) struct Part {
    endpoint: Endpoint,
    /// Known once it is open.
    opened: OnceLock<Opened>,
}

struct Opened {
    token: CancelToken,
    activity: Arc<Activity>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("activity", &self.activity).finish_non_exhaustive()
    }
}

/// How to reach the server of a session once more, to cancel what it runs.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) at: winddown_net::Endpoint,
    pub(crate) tls: Tls,
}

/// Who waits for a session that is being opened, step by step.
struct Caller {
    negotiated: oneshot::Sender<()>,
    opened: oneshot::Sender<OpenedClient>,
}

/// Opens a session on a connected socket.
///
/// # Cancel safety
/// Cancel safe: a session that is being opened then is ended with a goodbye as soon as it is open.
pub(crate) async fn open_on(
    sessions: &Arc<Sessions>,
    socket: Socket,
    endpoint: Endpoint,
    opening: &Opening,
    config: tokio_postgres::Config,
) -> Result<(Client, JoinHandle<()>), Failure> {
    let (says_negotiated, negotiated) = oneshot::channel();
    let (give, opened) = oneshot::channel();
    let caller = Caller { negotiated: says_negotiated, opened: give };
    let link = Arc::clone(socket.link());
    let part = Part { endpoint: endpoint.clone(), opened: OnceLock::new() };
    let outdated = Arc::clone(sessions.outdated());
    let life = |session| Box::pin(live(socket, endpoint, config, session, caller, outdated)) as _;
    let entered = sessions.enter(&link, part, life);
    let Some(session) = entered else {
        return Err(Error::new(ErrorKind::ShuttingDown, "shutting down: nothing is opened any more").into());
    };
    session.is_stopped_by(|session| Box::pin(give_up(session)));
    let task = session.run();
    // Where it is not, what has opened instead says why.
    let _ = session.opening(opening, "TLS", negotiated).await?;
    let Ok(opened) = session.opening(opening, "the login", opened).await? else {
        // Cut while it was being opened.
        return Err(driver_error(io::ErrorKind::ConnectionAborted.into()).await.into());
    };
    let client = opened?;
    session.is_open();
    pooled::is_next(Arc::clone(&session));
    // The driver's pool aborts this task when it lets go of the client, and tells nobody else.
    let holder = Holder { session, task: Some(task) };
    let held = async move {
        let _holder = holder;
        pending().await
    };
    Ok((client, tokio::spawn(held)))
}

/// Stands for whoever has the client of a session.
struct Holder {
    session: Arc<Session>,
    task: Option<Held>,
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends with the runtime that it was on: somebody may have the client all the same.
        if runtime_is_ending() {
            return self.task.take().map(Held::let_go).unwrap_or_default();
        }
        self.session.abandon();
    }
}

/// Stops the statement of a session that nobody waits for, and waits until the server has ended it: then there may be another
/// one. How many were stopped. Where nobody takes the request the session is cut: there is nothing else to wait for.
pub(crate) async fn stop(session: Arc<Session>) -> Result<usize, Error> {
    let part = session.part();
    let answers = part.answers();
    let ended = async || timeout(STOP_PATIENCE, part.answered_since(answers)).await;
    if part.is_completing() && ended().await == Ok(true) {
        return Ok(0);
    }
    loop {
        match part.cancel().await {
            Ok(()) => {
                if let Ok(has_ended) = ended().await {
                    return Ok(usize::from(has_ended));
                }
                // A request that came between two statements has stopped none, and poolers may lose one.
            }
            Err(NotAsked { error, is_refused: true }) => {
                session.fail(error);
                return Ok(0);
            }
            Err(NotAsked { error, .. }) => return Err(error),
        }
    }
}

/// How long a statement may take to end that the server was asked to stop, until it is asked again.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// Stops the statement of a session that is given up outside of a drain.
async fn give_up(session: Arc<Session>) -> Result<(), Error> {
    let part = session.part();
    if !part.is_busy() {
        return Ok(());
    }
    let answers = part.answers();
    part.cancel_within(ASK_PATIENCE).await?;
    match timeout(STOP_PATIENCE, part.answered_since(answers)).await {
        Ok(true) => Ok(()),
        _ => Err(part.unseen()),
    }
}

/// Stops the statement of a session whose connection has broken, by no act of the server's: that goes on with it, and sees only
/// when it answers that nobody is there. Whether it has ended nobody can see any more, so it is asked twice: a request that comes
/// before the server has begun stops nothing. Why it may run on, if the server could not be asked.
async fn stop_behind(session: Arc<Session>) -> Option<Error> {
    let part = session.part();
    for pause in [Duration::ZERO, ASK_AGAIN] {
        sleep(pause).await;
        match part.cancel_within(ASK_PATIENCE).await {
            Ok(()) => {}
            // Where nobody is there to ask, what was there has ended, and its statements with it.
            Err(NotAsked { is_refused: true, .. }) => return None,
            Err(NotAsked { error, .. }) => return Some(error),
        }
    }
    None
}

/// How long a server may take at most to begin with what it has got, on most machines.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// How long a server may take to take a request to stop a statement, where no drain says how long.
const ASK_PATIENCE: Duration = Duration::from_secs(5);

/// The server was not asked to stop a statement.
#[derive(Debug)]
pub(crate) struct NotAsked {
    error: Error,
    /// Nobody is there to ask.
    is_refused: bool,
}

impl From<NotAsked> for Error {
    fn from(NotAsked { error, .. }: NotAsked) -> Self {
        error
    }
}

/// Ends a session that was taken over although somebody still holds its client: stops its statement if there is one,
/// and says goodbye.
pub(crate) async fn end(session: Arc<Session>) {
    if let Some(opened) = session.part().opened.get() {
        opened.activity.leave();
    }
    if session.part().is_busy() {
        // What keeps it from being stopped keeps it from its goodbye too, and so it is cut.
        let _ = session.part().cancel().await;
    }
    session.finish().await;
}

impl Part {
    fn activity(&self) -> Option<&Activity> {
        self.opened.get().map(|opened| &*opened.activity)
    }

    /// Whether the server works on a statement of the session.
    pub(crate) fn is_busy(&self) -> bool {
        self.activity().is_some_and(Activity::runs_statement)
    }

    fn is_completing(&self) -> bool {
        self.activity().is_some_and(Activity::is_completing)
    }

    /// What it would carry to whoever gets it now.
    pub(crate) fn carries(&self) -> Carries {
        self.activity().map_or(Carries::Nothing, Activity::carries)
    }

    /// How many requests the server has answered to the end.
    pub(crate) fn answers(&self) -> usize {
        self.activity().map_or(0, Activity::answers)
    }

    /// Whether there are more answers than these, when there are or none can come any more.
    pub(crate) async fn answered_since(&self, answers: usize) -> bool {
        match self.activity() {
            Some(activity) => activity.answered_since(answers).await,
            None => false,
        }
    }

    /// Asks the server to stop its statement, and waits until the server has taken the request: that is when it closes
    /// the connection that brought it. Poolers lose a request whose bearer does not wait. What nobody reads of the statement's
    /// rows is thrown away from now on: a server that cannot send them does not hear that it is to stop.
    pub(crate) async fn cancel(&self) -> Result<(), NotAsked> {
        let Some(Opened { token, activity }) = self.opened.get() else { return Ok(()) };
        activity.throw_away();
        if CancelKey::of(token).is_some_and(CancelKey::is_missing) {
            let text = format!("{} gave no key to stop a statement with, which may run on", self.endpoint.at);
            return Err(NotAsked { error: Error::new(ErrorKind::Incomplete, text), is_refused: false });
        }
        let in_time = |error| self.not_asked(Failure::Ours(error));
        let opening = self.endpoint.at.opening();
        let transport = match self.endpoint.at.dial_anyway(&opening).await.map_err(refused) {
            Ok(socket) => {
                let negotiating = self.endpoint.tls.negotiate(socket, self.endpoint.at.host.as_deref());
                opening.step("TLS", negotiating).await.map_err(in_time)?
            }
            Err(error) => Err(error),
        };
        let asking = token.cancel_query_raw(transport.map_or_else(Stream::failed, Stream::over), Negotiated);
        let asked = opening.step("the request to cancel", asking).await.map_err(in_time)?;
        asked.map_err(|error| self.not_asked(error.into()))
    }

    async fn cancel_within(&self, limit: Duration) -> Result<(), NotAsked> {
        let late = |_| Err(self.not_asked(Failure::Other(format!("no answer within {limit:?}").into())));
        timeout(limit, self.cancel()).await.unwrap_or_else(late)
    }

    fn not_asked(&self, failure: Failure) -> NotAsked {
        let is_refused = failure.is_refused_connection();
        let text = format!("cannot ask {} to stop a statement, which may run on", self.endpoint.at);
        NotAsked { error: crate::error::error(ErrorKind::Incomplete, text, failure), is_refused }
    }

    /// The server was asked to stop a statement, and nobody has seen that it did.
    pub(crate) fn unseen(&self) -> Error {
        let whom = &self.endpoint.at;
        let text = format!("{whom} was asked to stop a statement, and nobody has seen it end: it may run on");
        Error::new(ErrorKind::Incomplete, text)
    }
}

/// Opens a session, gives its client away, and drives it until the server has closed its side.
async fn live(
    socket: Socket,
    endpoint: Endpoint,
    config: tokio_postgres::Config,
    session: Weak<Session>,
    caller: Caller,
    outdated: Arc<Outdated>,
) -> End {
    let stream =
        endpoint.tls.negotiate(socket, endpoint.at.host.as_deref()).await.map_or_else(Stream::failed, Stream::over);
    if config.get_target_session_attrs() != TargetSessionAttrs::ReadOnly {
        stream.watched_for(&outdated);
    }
    // Nobody may be left to hear it, here and below.
    let _ = caller.negotiated.send(());
    let (activity, wire) = (Arc::clone(stream.activity()), stream.wire().clone());
    let (client, connection) = match start(stream, config).await {
        Ok(started) => started,
        Err(error) => {
            let _ = caller.opened.send(Err(error));
            return End::Uncounted;
        }
    };
    if let Some(session) = session.upgrade() {
        // Set once, here.
        let _ = session.part().opened.set(Opened { token: client.cancel_token(), activity: Arc::clone(&activity) });
    }
    // A caller that has gone drops the client, and so it is said goodbye.
    let _ = caller.opened.send(Ok(client));
    let Some(ended) = until_unread(connection, &wire, &activity).await else {
        return match wire.read_out().await {
            Ok(()) => End::Closed,
            Err(source) => {
                let text = "a session ended without a goodbye, in the middle of what nobody has read";
                End::Cut(Some(Error::new(ErrorKind::Incomplete, text).with_source(source)))
            }
        };
    };
    match ended {
        Ok(()) => End::Closed,
        Err(_) if activity.has_left() => End::Closed,
        // The server's own last word, an idle timeout say, with nothing under way: it has ended the session in order.
        Err(error) if error.as_db_error().is_some() && !activity.is_busy() => End::Closed,
        Err(error) => lost(&session, error).await,
    }
}

/// The end of a session that was none of either side's doing. What the server still works on for it is stopped first; where that
/// was before a drain, there is nothing else to count.
async fn lost(session: &Weak<Session>, error: tokio_postgres::Error) -> End {
    let is_broken = error.as_db_error().is_none();
    let mut why = crate::error::error(ErrorKind::Incomplete, "a session ended without a goodbye", error.into());
    if let Some(broken) = session.upgrade().filter(|session| is_broken && session.part().is_busy()) {
        let is_draining = broken.is_draining();
        let no_thread = broken.part().not_asked(Failure::Other("the system gives no thread for that".into()));
        // Apart: a session goes from one runtime to the next, and timers cannot.
        let runs_on = run_apart(stop_behind(broken)).await.unwrap_or(Some(no_thread.error));
        if let Some(runs_on) = runs_on {
            if let Some(session) = session.upgrade() {
                session.runs_on(runs_on.clone());
            }
            why = runs_on;
        }
        if !is_draining {
            return End::Uncounted;
        }
    }
    End::Cut(Some(why))
}

/// How the driver's connection ended; none where it stands still, since its caller does not read what nobody need read any more.
async fn until_unread(
    connection: Connection,
    wire: &Wire,
    activity: &Activity,
) -> Option<Result<(), tokio_postgres::Error>> {
    let (mut connection, mut unwanted) = (pin!(connection), pin!(activity.unwanted()));
    let mut is_unwanted = false;
    poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(ended));
        }
        is_unwanted = is_unwanted || unwanted.as_mut().poll(cx).is_ready();
        // Asked behind the driver: it has read what it could.
        if is_unwanted && wire.is_unread() { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
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
