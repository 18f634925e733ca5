//! A pool of the driver's that the application built: what can be done for it from outside.

mod empty;
mod lent;

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use mysql_async::{Conn, Opts, Pool};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};
use tracing::Instrument as _;
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Resource,
    adapter::{Drain, IdleCheck, Latency},
};

pub(crate) use crate::wrapped::lent::LentConn;
use crate::{
    config::CONNECT_TIMEOUT,
    connect::{Connector, LATE_PATIENCE, TIDY_PATIENCE},
    error,
    gauges::Gauges,
    goodbye,
    home::Home,
    runtimes::{self, Life},
    sessions::{LEAVE_PATIENCE, NoAnswer, Sessions, Untidy, say_goodbye},
    wrapped::{
        empty::Emptying,
        lent::{Lent, back},
    },
};

/// A [`mysql_async::Pool`] as a resource: see [`Mysql::wrap`](crate::Mysql::wrap).
///
/// What is idle is taken out of the driver's pool, says `COM_QUIT`, and is seen to end, as what the guard hands out. What others have
/// taken from the pool the driver says goodbye to, once it is back: which sessions these are the server is asked, so that they are seen
/// to end, and their statements are cancelled.
pub struct Wrapped {
    pool: Pool,
    connector: Arc<Connector>,
    /// Of the runtime that the first checkout was made in: the driver's pool ends with that, unless somebody has used it before.
    life: OnceLock<Life>,
    idle_check: IdleCheck<()>,
    /// When somebody last had a checkout.
    used: Mutex<Instant>,
}

/// What the kernel has to tell after such a time is waited for.
const RESTS: Duration = Duration::from_millis(10);

/// What cancelling and the last goodbyes need at the least: somebody is opened who asks what runs and has it stopped, one step after the
/// other, each of which waits for the server or looks through the sockets of the machine.
const RESERVE: Duration = Duration::from_secs(3);

impl Wrapped {
    pub(crate) fn new(pool: Pool, opts: Opts) -> Self {
        let sessions = Sessions::of_driver(Gauges::of(&pool));
        let connector = Connector::new(Arc::new(sessions), opts, None, Some(CONNECT_TIMEOUT));
        Self {
            pool,
            connector: Arc::new(connector),
            life: OnceLock::new(),
            idle_check: IdleCheck::new(RESTS),
            used: Mutex::new(Instant::now()),
        }
    }

    fn used(&self) -> MutexGuard<'_, Instant> {
        // Each change is complete before anything can panic.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody has had a checkout for a while, or the process was frozen.
    fn has_rested(&self) -> bool {
        let used = *self.used();
        self.idle_check.is_suspect(used)
    }

    fn is_over(&self) -> bool {
        self.life.get().is_some_and(Life::is_over)
    }
}

impl Resource for Wrapped {
    type Pool = Pool;

    fn name(&self) -> &str {
        "mysql"
    }

    async fn init(&self) -> Result<Pool, Error> {
        Ok(self.pool.clone())
    }

    fn opened(&self) -> Option<Pool> {
        Some(self.pool.clone())
    }

    async fn goodbye(&self, pool: &Pool, drain: &Drain) -> Result<(), Error> {
        let sessions = Arc::clone(&self.connector.sessions);
        let _draining = sessions.begin_drain();
        let gauges = Gauges::of(pool);
        let emptying = Emptying {
            pool: pool.clone(),
            gauges: gauges.clone(),
            connector: Arc::clone(&self.connector),
            is_over: self.is_over(),
            grace: drain.grace(),
            limit: drain.halfway(),
        };
        let mut emptied = JoinSet::new();
        emptied.spawn(emptying.run(sessions.begin_opening()).in_current_span());
        goodbye::say(&self.connector, || {}, drain).await?;
        // What the driver does beside: its task may be on a runtime that does not run.
        let has_none = gauges.idle() + gauges.out() + sessions.moving() == 0;
        tokio::select! {
            Some(result) = emptied.join_next() => match result {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => drain.note(&failure),
                Err(panicked) => drain.note(&error::panicked(panicked)),
            },
            () = sleep(drain.grace()), if has_none => {}
            () = drain.until_cut() => {}
        }
        Ok(())
    }

    async fn cancel(&self, _: &Pool, _: &Drain) -> Result<(), Error> {
        self.connector.sessions.want(|wanted| wanted.cancel = true);
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL.without_all_sessions()
    }

    fn latency(&self) -> Option<Arc<Latency>> {
        Some(Arc::clone(&self.connector.sessions.latency))
    }

    fn reserve(&self, _: &Pool) -> Duration {
        RESERVE
    }
}

impl Checkouts for Wrapped {
    type Checkout = Conn;

    async fn checkout(&self, pool: &Pool) -> Result<Conn, Error> {
        self.life.get_or_init(|| runtimes::current(&self.connector));
        if self.has_rested() {
            // Whoever sees what the kernel knows gets on first: where everything stood still, a connection that the server has
            // closed would look as if it were open.
            yield_now().await;
        }
        let failed = |source| {
            let text = if self.is_over() {
                "the runtime has ended that the driver's pool was first used in, and the pool with it: `Mysql::new` makes one \
                 that outlives runtimes"
            } else {
                "no connection"
            };
            error::error(ErrorKind::Checkout, text, source)
        };
        let mut getting: Getting = Box::pin(pool.get_conn());
        // One that is idle is had at once.
        let first = match poll_fn(|context| Poll::Ready(getting.as_mut().poll(context))).await {
            Poll::Ready(conn) => {
                let conn = conn.map_err(failed)?;
                *self.used() = Instant::now();
                if self.connector.sessions.lend(&conn) {
                    return Ok(conn);
                }
                Ok((conn, Lent::new(&self.connector.sessions, None)))
            }
            Poll::Pending => Err(getting),
        };
        let (mut give, got) = oneshot::channel();
        let connector = Arc::clone(&self.connector);
        // Where nobody waits for it any more, it is opened and entered nevertheless: dropped before, it would end without a goodbye,
        // and nobody would see that.
        tokio::spawn(async move {
            let sessions = &connector.sessions;
            // The drain waits for it.
            let _opening = sessions.begin_opening();
            let (mut conn, lent) = match first {
                Ok(first) => first,
                Err(getting) => match until_late(getting, &mut give).await {
                    Some(Ok(conn)) => {
                        let is_known = sessions.lend(&conn);
                        let lent = Lent::new(sessions, None);
                        if is_known {
                            return hand_over(give, conn, lent);
                        }
                        (conn, lent)
                    }
                    Some(Err(failure)) => return drop(give.send(Err(Failed::Driver(failure)))),
                    None => return,
                },
            };
            match connector.adopt(&mut conn, true).await {
                Ok(()) => hand_over(give, conn, lent),
                Err(failure) => drop(give.send(Err(Failed::Ours(failure)))),
            }
        });
        let ended = "the runtime ended while a connection was opened";
        match got.await {
            Ok(Ok(handed)) => {
                *self.used() = Instant::now();
                handed.take().ok_or_else(|| Error::new(ErrorKind::Checkout, ended))
            }
            Ok(Err(Failed::Driver(source))) => Err(failed(source)),
            Ok(Err(Failed::Ours(failure))) => Err(failure),
            Err(_) => Err(Error::new(ErrorKind::Checkout, ended)),
        }
    }

    /// In the background it becomes what it was when it was opened: the driver's own reset leaves it in another database, and
    /// with another character set.
    fn give_back(&self, _: &Pool, conn: Conn) {
        *self.used() = Instant::now();
        let sessions = &self.connector.sessions;
        let runtime = Handle::try_current().ok().filter(|_| !conn.is_disconnected());
        let (Some(runtime), Some(key)) = (runtime, sessions.key_of(&conn)) else { return back(sessions, conn) };
        let untidy = Untidy::Lent(LentConn::new(conn, Lent::new(sessions, Some(key))));
        let Some(needs_reset) = sessions.until_reset(key, untidy) else { return };
        let connector = Arc::clone(&self.connector);
        runtime.spawn(async move {
            let Some(Untidy::Lent(conn)) = needs_reset.take() else { return };
            let Some((mut conn, lent)) = conn.into_parts() else { return };
            let opts = &connector.opts;
            let home = Home::by(opts);
            // Dropped at its limit, the connection is closed without a goodbye: a server that is slow has longer than one that others
            // wait for.
            let limit = TIDY_PATIENCE + LATE_PATIENCE;
            let reset = opts.pool_opts().reset_connection();
            let restoring = home.restore(&mut conn, opts, reset, &connector.separately);
            let restored = connector.sessions.answer_within(limit, restoring).await;
            // Before somebody else may give it back.
            drop(needs_reset);
            match restored {
                Ok(Ok(_)) => {
                    conn.reset_connection(false);
                    drop(LentConn::new(conn, lent));
                }
                Ok(Err(failure)) => {
                    tracing::debug!(session = conn.id(), error = %failure, "a connection is not used again");
                    let _ = timeout(LEAVE_PATIENCE, say_goodbye(conn)).await;
                }
                Err(NoAnswer) => {}
            }
        });
    }
}

type Getting = Pin<Box<dyn Future<Output = Result<Conn, mysql_async::Error>> + Send>>;

/// Why there is no checkout.
enum Failed {
    Driver(mysql_async::Error),
    Ours(Error),
}

/// A connection of the pool's; none where nobody waits for it, and it is not there a while after that.
async fn until_late<T>(
    mut getting: Getting,
    give: &mut oneshot::Sender<T>,
) -> Option<Result<Conn, mysql_async::Error>> {
    tokio::select! {
        conn = &mut getting => Some(conn),
        () = give.closed() => timeout(CONNECT_TIMEOUT, getting).await.ok(),
    }
}

fn hand_over(give: oneshot::Sender<Result<LentConn, Failed>>, conn: Conn, lent: Lent) {
    drop(give.send(Ok(LentConn::new(conn, lent))));
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrapped").field("sessions", &self.connector.sessions).finish_non_exhaustive()
    }
}
