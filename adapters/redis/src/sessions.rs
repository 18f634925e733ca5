//! A session: its mailbox, what happens on it, and the handles by which it is used.
//!
//! The driver splits a session in two: a connection, which takes requests, and a future that somebody must poll for anything
//! to happen. It drops a request that was not sent yet when its caller is gone, and tells nobody what became of one that wants
//! no answer. So here every request is the session's own: it lies in the mailbox until the [`Life`](winddown_net::Driver) takes
//! it, in order, hands it to the driver and keeps it until it is answered. Callers only listen. Whatever becomes of them,
//! what was taken is executed before the goodbye, and what is lost is known.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
    task::{Context, Poll},
};

use redis::{AsyncConnectionConfig, RedisConnectionInfo, Value, aio::MultiplexedConnection};
use tokio::sync::{Semaphore, oneshot};
use winddown_core::{
    Error, ErrorKind,
    adapter::{End, Opening},
};
use winddown_net::Socket;

use crate::{
    connect::{Connector, Dialogue, Endpoint},
    error::{closed, error},
    handle::{Handle, Settings},
    identity::Identity,
    mailbox::{Mailbox, Request, Verdict},
    stream::Activity,
};

/// All sessions of one pool.
pub(crate) type Sessions = winddown_net::Sessions<Part>;
/// One session.
pub(crate) type Session = winddown_net::Session<Part>;

/// What is known of a session.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) endpoint: Endpoint,
    /// How the server knows it, once it is open.
    identity: OnceLock<Identity>,
    mailbox: Arc<Mailbox>,
    /// Whether what waits at the server is ended when draining begins, though somebody waits for it.
    unblocks: bool,
}

impl Part {
    fn new(endpoint: Endpoint, mailbox: Arc<Mailbox>, unblocks: bool) -> Self {
        Self { endpoint, identity: OnceLock::new(), mailbox, unblocks }
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    /// Whether something is not answered yet.
    pub(crate) fn is_busy(&self) -> bool {
        self.mailbox.unanswered() > 0
    }

    /// Whether nobody waits for what the server works on.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.mailbox.is_abandoned()
    }

    /// Whether something waits at the server that is not to wait any more once draining has begun.
    pub(crate) fn waits_too_long(&self) -> bool {
        self.waits() && (self.unblocks || self.mailbox.is_abandoned())
    }

    /// Whether what the server works on is to be ended by a drain before its settling ends.
    pub(crate) fn is_left(&self) -> bool {
        self.is_abandoned() || self.waits_too_long()
    }

    /// Whether the server works on something that waits there.
    pub(crate) fn waits(&self) -> bool {
        self.mailbox.is_waiting()
    }

    /// Whether there is more than one thing that is not answered: what is queued is executed once the first is ended.
    pub(crate) fn has_more(&self) -> bool {
        self.mailbox.unanswered() > 1
    }

    /// How many requests were answered so far.
    pub(crate) fn answers(&self) -> usize {
        self.mailbox.answers()
    }

    /// Nothing is taken any more; the session says goodbye when all that was taken is answered.
    pub(crate) fn leave(&self) {
        self.mailbox.close();
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
    opening: Opening,
    config: AsyncConnectionConfig,
) -> Result<Handle, Error> {
    let (give, opened) = oneshot::channel();
    let link = Arc::clone(socket.link());
    let mailbox = Arc::new(Mailbox::of(Arc::clone(&connector.outdated)));
    let part = Part::new(endpoint.clone(), Arc::clone(&mailbox), connector.config.unblock_on_drain);
    let (database, is_resp3) = (endpoint.login.database, endpoint.login.protocol.supports_resp3());
    let of = Arc::clone(&mailbox);
    let life = |session| Box::pin(live(socket, endpoint, opening, config, of, session, give)) as _;
    let Some(session) = connector.sessions.enter(&link, part, life) else {
        return Err(Error::new(ErrorKind::ShuttingDown, "shutting down: nothing is opened any more"));
    };
    let task = session.run();
    match opened.await {
        Ok(opened) => opened.map(|connection| {
            session.is_open();
            let settings = Settings {
                ledger: Arc::clone(&connector.ledger),
                response_timeout: connector.config.response_timeout,
                database,
                is_shared: connector.config.pool.is_none(),
                is_resp3,
                waits: Arc::clone(&connector.waits),
            };
            Handle::new(session, task, mailbox, connection, settings)
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
    opening: Opening,
    question: redis::Cmd,
) -> Result<Value, Error> {
    let (give, answer) = oneshot::channel();
    let link = Arc::clone(socket.link());
    let part = Part::new(endpoint.clone(), Arc::new(Mailbox::of(Arc::default())), false);
    let life = |_| {
        let asking = async move {
            let mut dialogue = endpoint.log_in(&opening, socket).await.map(|(stream, _)| Dialogue::new(stream))?;
            let failed = |source| error(ErrorKind::Init, "cannot ask a server", source);
            let answers = dialogue.ask(&[question]).await.map_err(failed)?;
            dialogue.close().await.map_err(|source| failed(source.into()))?;
            answers.into_iter().next().ok_or_else(|| failed(closed()))
        };
        Box::pin(async move {
            // Nobody may be left to hear it.
            let _ = give.send(asking.await);
            // It was never one of those that callers have.
            End::Uncounted
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
    opening: Opening,
    config: AsyncConnectionConfig,
    mailbox: Arc<Mailbox>,
    session: Weak<Session>,
    give: oneshot::Sender<Result<MultiplexedConnection, Error>>,
) -> End {
    let (stream, identity) = match endpoint.log_in(&opening, socket).await {
        Ok(opened) => opened,
        Err(error) => {
            // Nobody may be left to hear it.
            let _ = give.send(Err(error));
            return End::Uncounted;
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
            return End::Uncounted;
        }
    };
    if let (Some(session), Some(identity)) = (session.upgrade(), identity) {
        // Set once, here.
        let _ = session.part().identity.set(identity);
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
        End::Cut(Some(error(ErrorKind::Incomplete, "a session ended without a goodbye", closed())))
    }
}

fn done(request: Request, verdict: Verdict) {
    if let Some(entry) = request.entry {
        entry.settle(verdict);
    }
}

impl<D> Drop for Exchange<D> {
    fn drop(&mut self) {
        self.mailbox.abandon();
    }
}
