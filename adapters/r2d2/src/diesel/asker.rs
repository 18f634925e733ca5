//! Has the server stop what runs on sessions, on a session of its own.

use std::{
    cell::OnceCell,
    iter,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use diesel::{QueryResult, RunQueryDsl as _, dsl::sql, sql_types::Bool};
use tokio::{
    sync::{oneshot, watch},
    task::spawn_blocking,
};
use winddown_core::BoxError;
use winddown_net::own_sockets::{Connection, Open, OwnSockets};

use super::{
    DieselPostgres,
    identity::{Backend, Identity},
};

/// Between two looks at whether the session that has asked is gone, at first and at most. The kernel has no event for that.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// For how long it is looked at, though nobody waits for it any more.
const GONE: Duration = Duration::from_secs(60);

/// Asks for one pool, on a session that is opened when something is to be stopped, and is there for what comes until the drain is over.
pub(super) struct Asker<C> {
    opens: Box<dyn Fn() -> Result<C, BoxError> + Send + Sync>,
    state: Mutex<State>,
    /// Whether somebody asks, or has the session for that.
    is_asking: watch::Sender<bool>,
}

enum State {
    /// Nobody has asked yet.
    Idle,
    Asking(mpsc::Sender<Asked>),
    /// Nothing is asked for any more.
    Over,
}

/// What is to be stopped, unless nothing runs there any more.
struct Asked {
    backend: Backend,
    nothing_runs: Arc<AtomicBool>,
    answers: oneshot::Sender<Result<(), String>>,
}

impl<C: DieselPostgres> Asker<C> {
    pub(super) fn new(opens: impl Fn() -> Result<C, BoxError> + Send + Sync + 'static) -> Arc<Self> {
        let (state, is_asking) = (Mutex::new(State::Idle), watch::Sender::new(false));
        Arc::new(Self { opens: Box::new(opens), state, is_asking })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has this one stopped. Nobody else's: a backend that it is not any more is left alone.
    pub(super) async fn stop(self: Arc<Self>, backend: Backend, nothing_runs: Arc<AtomicBool>) -> Result<(), BoxError> {
        let (answers, answer) = oneshot::channel();
        let asked = Asked { backend, nothing_runs, answers };
        let begins = match &mut *self.state() {
            // Where nobody listens, nobody answers.
            State::Asking(asks) => asks.send(asked).err().and(None),
            State::Over => return Err("nothing is stopped any more".into()),
            idle @ State::Idle => {
                let (asks, listens) = mpsc::channel();
                let _ = asks.send(asked);
                *idle = State::Asking(asks);
                self.is_asking.send_replace(true);
                Some(listens)
            }
        };
        if let Some(listens) = begins {
            let asking = Asking(Arc::clone(&self));
            spawn_blocking(move || asking.until_over(&listens));
        }
        Ok(answer.await.map_err(|_| "nobody asks for what is to be stopped")??)
    }

    /// Nothing is asked for from now on. Ready when the session for that has ended.
    pub(super) fn over(self: Arc<Self>) -> impl Future<Output = ()> + Send {
        *self.state() = State::Over;
        async move {
            // It cannot be closed: the sender is here.
            let _ = self.is_asking.subscribe().wait_for(|is_asking| !is_asking).await;
        }
    }
}

/// One who asks, until this is dropped.
struct Asking<C: DieselPostgres>(Arc<Asker<C>>);

impl<C: DieselPostgres> Asking<C> {
    fn until_over(self, listens: &mpsc::Receiver<Asked>) {
        let mut session = None;
        while let Ok(first) = listens.recv() {
            let mut asked = proven(iter::once(first).chain(listens.try_iter()));
            // A session for nothing is none.
            if asked.is_empty() {
                continue;
            }
            let opened = match session.take() {
                Some(session) => Ok(session),
                None => OwnSession::open(&self.0),
            };
            let answer = opened.and_then(|mut opened| {
                asked.extend(proven(listens.try_iter()));
                let backends: Vec<_> = asked.iter().map(|asked| asked.backend).collect();
                opened.stop(&backends)?;
                session = Some(opened);
                Ok(())
            });
            let answer = answer.map_err(|error| error.to_string());
            for asked in asked {
                asked.answer(answer.clone());
            }
        }
    }
}

impl<C: DieselPostgres> Drop for Asking<C> {
    fn drop(&mut self) {
        self.0.is_asking.send_replace(false);
    }
}

impl Asked {
    fn answer(self, answer: Result<(), String>) {
        // Who has gone does not listen.
        let _ = self.answers.send(answer);
    }
}

/// Those on which something may run, and that are this process's for sure.
fn proven(asked: impl Iterator<Item = Asked>) -> Vec<Asked> {
    let sockets = OnceCell::new();
    asked
        .filter_map(|asked| {
            if asked.nothing_runs.load(Ordering::Relaxed) {
                asked.answer(Ok(()));
                return None;
            }
            if sockets.get_or_init(OwnSockets::now).has(&asked.backend.peer) {
                return Some(asked);
            }
            let text = "nothing proves that a session is this process's: it has ended, or is behind a pooler";
            asked.answer(Err(text.to_owned()));
            None
        })
        .collect()
}

/// The session that asks. Dropped, it is gone.
struct OwnSession<C> {
    connection: Option<C>,
    socket: Option<Connection>,
}

impl<C: DieselPostgres> OwnSession<C> {
    fn open(asker: &Asker<C>) -> Result<Self, BoxError> {
        let mut connection = (asker.opens)()?;
        let peer = Identity::of(&mut connection)?.peer();
        let socket = peer.and_then(|peer| OwnSockets::now().of(&peer));
        Ok(Self { connection: Some(connection), socket })
    }

    fn stop(&mut self, backends: &[Backend]) -> QueryResult<()> {
        match &mut self.connection {
            Some(connection) => stop(connection, backends).map(drop),
            None => Ok(()),
        }
    }
}

impl<C> Drop for OwnSession<C> {
    fn drop(&mut self) {
        drop(self.connection.take());
        let Some(socket) = self.socket else { return };
        let (began, mut pause) = (Instant::now(), PAUSES.0);
        while began.elapsed() < GONE {
            let open = Open::now();
            if !open.contains(&socket) {
                break;
            }
            thread::sleep(pause.max(open.rest()));
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

/// Stops what runs on these, of which each is left alone that is not what it was. How many there were.
///
/// A number is given to another backend in time, and after a restart of the server soon; no two of one number start in the same microsecond.
/// `pg_cancel_backend`: PostgreSQL documentation, "System Administration Functions", "Server Signaling Functions"; `backend_start`: "The
/// Cumulative Statistics System", "pg_stat_activity". A role may ask for that of its own sessions.
pub(super) fn stop(connection: &mut impl DieselPostgres, backends: &[Backend]) -> QueryResult<usize> {
    let these: Vec<_> = backends.iter().map(|Backend { pid, started, .. }| format!("({pid}, {started})")).collect();
    let text = format!(
        "/* winddown asks */ SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
         WHERE (pid, (extract(epoch FROM backend_start) * 1000000)::bigint) IN ({})",
        these.join(", ")
    );
    sql::<Bool>(&text).load::<bool>(connection).map(|signalled| signalled.len())
}
