//! A pool of the driver's that the application built: what can be done for it from outside.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use mysql_async::{Conn, Opts, Pool};
use tokio::{runtime::Handle, task::JoinSet, time::timeout};
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Resource,
    adapter::{Drain, Latency},
};

use crate::{
    config::CONNECT_TIMEOUT,
    connect::{Connector, TIDY_PATIENCE},
    error::error,
    goodbye,
    home::Home,
    runtimes::{self, Life},
    sessions::{LEAVE_PATIENCE, Sessions},
};

/// A [`mysql_async::Pool`] as a resource: see [`Mysql::wrap`](crate::Mysql::wrap).
///
/// The driver's pool says the goodbye, `COM_QUIT` on every session once it is back, and never waits for the server. So the
/// server is asked about those sessions that the guard has handed out once; only they are counted, and only their
/// statements are cancelled.
pub struct Wrapped {
    pool: Pool,
    connector: Arc<Connector>,
    /// Of the runtime that the first checkout was made in: the driver's pool ends with that, unless somebody has used it before.
    life: OnceLock<Life>,
}

impl Wrapped {
    pub(crate) fn new(pool: Pool, opts: Opts) -> Self {
        let connector = Connector::new(Arc::new(Sessions::of_driver()), opts, None, Some(CONNECT_TIMEOUT));
        Self { pool, connector: Arc::new(connector), life: OnceLock::new() }
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
        // What the driver has ended long ago is not to be counted, so somebody asks before the others end.
        sessions.want(|wanted| wanted.watch = true);
        let mut leaving = JoinSet::new();
        let (pool, is_over) = (pool.clone(), self.is_over());
        leaving.spawn({
            let sessions = Arc::clone(&sessions);
            async move {
                if !sessions.is_empty() {
                    // A server that does not answer is told all the same.
                    let _ = timeout(LEAVE_PATIENCE, sessions.answered.notified()).await;
                }
                // Waits for every connection, those that are out and those that are being opened, without a limit.
                match pool.disconnect().await {
                    // Nobody was there to say it.
                    Ok(()) if is_over => sessions.all_left(),
                    Ok(()) => sessions.all_leave(),
                    Err(failure) => tracing::debug!(error = %failure, "the driver's pool could not be disconnected"),
                }
            }
        });
        goodbye::say(&self.connector, || {}, drain).await?;
        tokio::select! {
            // There may be sessions that nobody knows of but the driver.
            _ = leaving.join_next() => {}
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
}

impl Checkouts for Wrapped {
    type Checkout = Conn;

    async fn checkout(&self, pool: &Pool) -> Result<Conn, Error> {
        self.life.get_or_init(|| runtimes::current(&self.connector));
        let mut conn = pool.get_conn().await.map_err(|source| {
            let text = if self.is_over() {
                "the runtime has ended that the driver's pool was first used in, and the pool with it: `Mysql::new` makes one \
                 that outlives runtimes"
            } else {
                "no connection"
            };
            error(ErrorKind::Checkout, text, source)
        })?;
        self.connector.adopt(&mut conn).await?;
        Ok(conn)
    }

    /// In the background it becomes what it was when it was opened: the driver's own reset leaves it in another database, and
    /// with another character set.
    fn give_back(&self, _: &Pool, mut conn: Conn) {
        let sessions = &self.connector.sessions;
        sessions.seen_back(conn.id(), conn.is_disconnected());
        let runtime = Handle::try_current().ok().filter(|_| !conn.is_disconnected() && sessions.is_open());
        let Some(runtime) = runtime else { return };
        let connector = Arc::clone(&self.connector);
        runtime.spawn(async move {
            let opts = &connector.opts;
            let home = Home::by(opts);
            // Dropped at its limit, the connection is not used again.
            let reset = opts.pool_opts().reset_connection();
            match timeout(TIDY_PATIENCE, home.restore(&mut conn, opts, reset, &connector.separately)).await {
                Ok(Ok(_)) => conn.reset_connection(false),
                Ok(Err(failure)) => {
                    tracing::debug!(session = conn.id(), error = %failure, "a connection is not used again");
                    let _ = timeout(LEAVE_PATIENCE, conn.disconnect()).await;
                }
                Err(_) => {}
            }
        });
    }
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrapped").field("sessions", &self.connector.sessions).finish_non_exhaustive()
    }
}
