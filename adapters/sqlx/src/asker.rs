//! A session of the drain's own that asks the server about those of the pool, has it stop what they run, and leaves last.

use std::{sync::Arc, time::Duration};

use sqlx::{ConnectOptions as _, Connection as _};
use tokio::{
    spawn,
    sync::oneshot,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tracing::Instrument as _;
use winddown_core::{
    Error, ErrorKind,
    adapter::{Drain, Latency},
};
use winddown_net::own_sockets::{Connection, Open, OwnSockets, unlisting};

use crate::{
    backend::{Backend, Listed},
    book::{Book, Due},
    error::error,
};

/// How often a server is asked again that has nothing new to say: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// When a session that could not be opened is tried again: those that leave make room for it.
const OPEN_AGAIN: Duration = Duration::from_millis(100);

/// Who asks, once there is something to ask.
pub(crate) struct Asker<DB: Backend> {
    book: Arc<Book<DB>>,
    latency: Arc<Latency>,
    began: Instant,
    session: Option<Session<DB>>,
    /// Opened to its end, whoever waits for it: given up it would end without a goodbye.
    opening: Option<JoinHandle<Result<Session<DB>, sqlx::Error>>>,
    /// It was said why something was not stopped.
    has_told: bool,
    pause: Duration,
}

struct Session<DB: Backend> {
    conn: DB::Connection,
    /// On which its end is seen.
    connection: Option<Connection>,
}

impl<DB: Backend> Asker<DB> {
    pub(crate) fn new(book: &Arc<Book<DB>>, latency: &Arc<Latency>) -> Self {
        Self {
            book: Arc::clone(book),
            latency: Arc::clone(latency),
            began: Instant::now(),
            session: None,
            opening: None,
            has_told: false,
            pause: PAUSES.0,
        }
    }

    /// Asks whenever there is something to ask, until it is told that all is over, and leaves then.
    pub(crate) async fn run(mut self, drain: &Drain, mut is_over: oneshot::Receiver<()>) {
        let book = Arc::clone(&self.book);
        loop {
            tokio::select! {
                biased;
                _ = &mut is_over => break,
                () = self.ask(drain) => {}
            }
            // It would be one more of those that are waited for.
            self.leave(drain).await;
            tokio::select! {
                biased;
                _ = &mut is_over => break,
                () = book.wanted.notified() => {}
            }
        }
        self.leave(drain).await;
    }

    /// Asks until there is nothing to ask.
    async fn ask(&mut self, drain: &Drain) {
        let book = Arc::clone(&self.book);
        self.pause = PAUSES.0;
        loop {
            let due = book.due(drain.grace(), self.began);
            let is_wanted = !matches!(due, Due::Never) || book.wants_others().is_some();
            if !is_wanted {
                return;
            }
            // It is there by the time that there is something to ask.
            if self.session.is_none()
                && let Err(failure) = self.open().await
            {
                tracing::debug!(error = %failure, "the server could not be asked about the sessions of a pool");
                if matches!(due, Due::Now(_)) {
                    drain.note(&failure);
                }
                // What is full may have room soon; else it is not there, or does not let us in.
                if !failure.is_retryable() || is_gone(&failure) {
                    book.cannot_ask();
                }
                sleep(OPEN_AGAIN).await;
                continue;
            }
            let sessions = match book.due(drain.grace(), self.began) {
                Due::Now(sessions) => sessions,
                Due::At(_) | Due::Soon | Due::Never if book.wants_others().is_some() => Vec::new(),
                Due::At(at) => {
                    tokio::select! {
                        () = book.wanted.notified() => {}
                        () = sleep_until(at) => {}
                    }
                    continue;
                }
                Due::Soon => {
                    book.wanted.notified().await;
                    continue;
                }
                Due::Never => return,
            };
            let asked = self.look(&sessions, drain).await;
            if let Err(failure) = asked {
                tracing::debug!(error = %failure, "the server could not be asked about the sessions of a pool");
                // Another one asks.
                self.session = None;
            }
            tokio::select! {
                () = sleep(self.pause) => self.pause = (self.pause * 2).min(PAUSES.1),
                () = book.wanted.notified() => self.pause = PAUSES.0,
            }
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        let failed = |source| error(ErrorKind::Incomplete, "cannot ask the server which sessions it lists", source);
        let opening = self.opening.get_or_insert_with(|| {
            let options = self.book.options_for_asking();
            let (book, latency) = (Arc::clone(&self.book), Arc::clone(&self.latency));
            let opened = async move {
                let began = Instant::now();
                let mut conn = options.connect().await?;
                let peer = DB::peer(&mut conn).await?;
                latency.saw(began.elapsed());
                let connection = match peer.map(|peer| book.with_server(peer)) {
                    Some(peer) => spawn_blocking(move || OwnSockets::now().of(&peer)).await.ok().flatten(),
                    None => None,
                };
                Ok(Session { conn, connection })
            };
            spawn(opened.in_current_span())
        });
        let opened = opening.await;
        self.opening = None;
        let panicked = |error| Error::new(ErrorKind::Panicked, "opening a session panicked").with_source(error);
        self.session = Some(opened.map_err(panicked)?.map_err(failed)?);
        Ok(())
    }

    async fn look(&mut self, sessions: &[DB::Session], drain: &Drain) -> Result<(), sqlx::Error> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let listed = DB::list(&mut session.conn, Some(sessions)).await?;
        let to_stop = self.book.seen(sessions, &listed);
        if !to_stop.is_empty() {
            let own = own().await;
            let (ours, unproven): (Vec<_>, Vec<_>) =
                to_stop.into_iter().partition(|listed| is_ours(&self.book, listed, &own));
            // Not asked about again at once.
            self.book.have_stopped(&unproven);
            if !unproven.is_empty() && !std::mem::replace(&mut self.has_told, true) {
                drain.reason(UNPROVEN.to_owned());
            }
            let sessions: Vec<_> = ours.iter().map(|listed| listed.session.clone()).collect();
            if !sessions.is_empty() {
                drain.count_cancelled(DB::cancel(&mut session.conn, &sessions).await?);
                self.book.have_stopped(&ours);
            }
        }
        if let Some((expected, known)) = self.book.wants_others() {
            let listed = DB::list(&mut session.conn, None).await?;
            let own = own().await;
            let others = listed.into_iter().filter(|listed| !known.contains(&listed.session));
            let others = others.filter_map(|listed| Some((listed.session, self.book.with_server(listed.peer?))));
            let found = own.exactly(expected, others).map_err(|could_be| {
                drain.reason(format!(
                    "{expected} sessions were taken from the pool itself, and {could_be} could be these: none of them is told to stop"
                ));
            });
            self.book.found_others(expected, found.ok());
        }
        Ok(())
    }

    /// Says goodbye, if there is one, and returns when the server has closed its side.
    async fn leave(&mut self, drain: &Drain) {
        // A look at the kernel that has begun then is not broken off.
        let until = drain.halfway();
        let (session, opening) = (self.session.take(), self.opening.take());
        if session.is_none() && opening.is_none() {
            return;
        }
        let left = timeout_at(until, async {
            let session = match (session, opening) {
                (None, Some(opening)) => opening.await.ok()?,
                (session, _) => Ok(session?),
            };
            // One that was not opened is none.
            let Ok(Session { conn, connection }) = session else { return Some(()) };
            let began = Instant::now();
            conn.close().await.ok()?;
            let connection = connection?;
            let mut pause = PAUSES.0;
            loop {
                let open = Open::now();
                if !open.contains(&connection) {
                    break;
                }
                // The last look is at the end.
                let now = Instant::now();
                if now >= until {
                    return None;
                }
                sleep_until(until.min(now + pause.max(open.rest()))).await;
                pause = (pause * 2).min(PAUSES.1);
            }
            if DB::UNLISTS_LATE {
                sleep_until((Instant::now() + unlisting(began.elapsed())).min(until)).await;
            }
            Some(())
        });
        if !matches!(left.await, Ok(Some(()))) {
            drain.count_left_behind(1);
        }
    }
}

/// Has the server stop what this session runs, if it is proven ours. What comes of it shows in the session.
#[cfg(feature = "buffer")]
pub(crate) async fn stop<DB: Backend>(book: &Arc<Book<DB>>, session: DB::Session) {
    if !DB::IS_SERVER {
        return DB::interrupt(&session);
    }
    let stopped = async {
        let mut conn = book.options_for_asking().connect().await?;
        let listed = DB::list(&mut conn, Some(std::slice::from_ref(&session))).await?;
        let own = own().await;
        if listed.iter().any(|listed| listed.is_busy && is_ours(book, listed, &own)) {
            DB::cancel(&mut conn, &[session]).await?;
        }
        conn.close().await
    };
    if let Err(failure) = stopped.await {
        tracing::warn!(error = %failure, "what a write that hangs runs on the server could not be stopped");
    }
}

const UNPROVEN: &str = "what some sessions run was not stopped: the server does not see an address of this process at their other end, so that \
                        nobody knows whether they are ours";

/// Nobody listens, or it does not answer as a server would.
fn is_gone(failure: &Error) -> bool {
    let source = std::error::Error::source(failure).and_then(|source| source.downcast_ref::<sqlx::Error>());
    matches!(source, Some(sqlx::Error::Io(_)))
}

/// Whether the server sees this process at its other end.
fn is_ours<DB: Backend>(book: &Book<DB>, listed: &Listed<DB::Session>, own: &OwnSockets) -> bool {
    listed.peer.is_some_and(|peer| own.has(&book.with_server(peer)))
}

/// Read after the server's list: what is on that has a socket here, if it is ours. The kernel takes some milliseconds for it, on a busy
/// machine more.
async fn own() -> OwnSockets {
    spawn_blocking(OwnSockets::now).await.unwrap_or_default()
}
