//! The resource: how sessions are opened, handed out, checked, given back and ended.

#[cfg(feature = "buffer")]
use std::cell::Cell;
use std::{
    fmt,
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use deadpool_postgres::{Client, Hook, HookError, Manager, ManagerConfig, Pool, Runtime, StatementCache};
use tokio::{task::JoinSet, time::timeout};
use tracing::Instrument as _;
#[cfg(feature = "buffer")]
use winddown_core::Checkout;
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Resource,
    adapter::{Drain, IdleCheck, Latency, Lifetime, Size, client_name},
};

use crate::{
    config::Config,
    connect::{Connector, hosts},
    error::{self, error},
    pooled::Pooled,
    sessions::{Session, Sessions, end, stop},
    tls::Tls,
    wrapped::Wrapped,
};

/// A PostgreSQL database as a resource.
///
/// Its goodbye says Terminate on every session, and returns when the server has closed them all.
pub struct Postgres {
    source: Source,
    sessions: Arc<Sessions>,
}

enum Source {
    Config {
        config: Box<Config>,
        idle_check: Arc<IdleCheck<StatementCache>>,
        lifetime: Arc<Lifetime>,
        pooled: Arc<Pooled>,
    },
    Wrapped(Arc<Wrapped>),
}

impl Postgres {
    /// The database of this URL, or of these `key=value` pairs, with the defaults of [`Config`]. Nothing is opened yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when it is no URL of a database; the message does not quote it.
    pub fn open(url: &str) -> Result<Self, Error> {
        url.parse::<Config>().map(Self::new)
    }

    /// The database of this configuration, ours or the driver's. Nothing is opened yet.
    pub fn new(config: impl Into<Config>) -> Self {
        let config = config.into();
        let idle_check = Arc::new(IdleCheck::new(config.check_after));
        let lifetime =
            Arc::new(Lifetime::new(config.max_lifetime, config.idle_timeout).idle_at_flush(config.idle_at_flush));
        let source = Source::Config { config: Box::new(config), idle_check, lifetime, pooled: Arc::default() };
        Self { source, sessions: Arc::default() }
    }

    /// The database whose URL is in `DATABASE_URL`. Nothing is opened yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the variable is not set, empty, or no URL of a database.
    pub fn from_env() -> Result<Self, Error> {
        Config::from_env().map(Self::new)
    }

    /// A pool that the application built. It is drained even if it was never used through the guard.
    ///
    /// Its sessions say goodbye and are seen to end, and what they run is cancelled, also those that the application took from its own
    /// clone of the pool, as far as they are proven to be the pool's: the README says where that is. Their driver runs on the
    /// application's runtime: where that is blocked they are cut. [`Postgres::new`] takes the same configuration, and depends on
    /// neither.
    pub fn wrap(pool: Pool) -> Self {
        let sessions: Arc<Sessions> = Arc::default();
        Self { source: Source::Wrapped(Arc::new(Wrapped::new(pool, Arc::clone(sessions.latency())))), sessions }
    }

    fn open_pool(
        &self,
        config: &Config,
        idle_check: &Arc<IdleCheck<StatementCache>>,
        lifetime: &Arc<Lifetime>,
        pooled: &Arc<Pooled>,
    ) -> Result<Pool, Error> {
        let Config {
            driver,
            pool,
            recycling_method,
            ssl_mode: _,
            roots: _,
            #[cfg(feature = "tls")]
                tls: _,
            credentials,
            connect_timeout,
            check_after: _,
            check_timeout,
            max_lifetime: _,
            idle_timeout: _,
            idle_at_flush: _,
        } = config;
        let bad = |message: &'static str| Error::new(ErrorKind::Config, message);
        if pool.max_size == 0 {
            return Err(bad("a pool of 0 connections hands out nothing: set pool.max_size to 1 or more"));
        }
        let tls = Tls::new(config)?;
        let sessions = Arc::clone(&self.sessions);
        let (credentials, limit) = (credentials.clone(), connect_timeout.unwrap_or(Duration::MAX));
        let connector = Connector { sessions: Arc::clone(&sessions), tls, credentials, limit };
        let mut driver = driver.clone();
        if driver.get_application_name().is_none()
            && let Some(name) = client_name()
        {
            driver.application_name(name);
        }
        let manager = ManagerConfig { recycling_method: recycling_method.clone() };
        let (idle_check, lifetime, patience) = (Arc::clone(idle_check), Arc::clone(lifetime), *check_timeout);
        let (entered, pooled) = (Arc::clone(pooled), Arc::clone(pooled));
        Pool::builder(Manager::from_connect(driver, connector, manager))
            .config(*pool)
            .runtime(Runtime::Tokio1)
            .pre_recycle(Hook::sync_fn(move |client, metrics| {
                let used = metrics.recycled.unwrap_or(metrics.created);
                if lifetime.is_over(metrics.created, used) {
                    return Err(HookError::message("the connection has lived for as long as it may"));
                }
                if sessions.outdated().is_outdated(metrics.created, used) {
                    return Err(HookError::message("another connection has shown that this one is of no use"));
                }
                if !idle_check.is_suspect(used) {
                    return Ok(());
                }
                // Before anything is asked: what the server has closed meanwhile is known to the kernel. One with a statement sees
                // for itself, and has that stopped.
                sessions.sweep(|session| !session.part().is_busy());
                if client.is_closed() {
                    return Err(HookError::message("the server has closed the connection"));
                }
                idle_check.suspect(&client.statement_cache);
                Ok(())
            }))
            // Before the pool's own way of recycling, and for those too who get a connection from the pool.
            .pre_recycle(Hook::async_fn(move |client, _| pooled.is_handed_on(client, patience)))
            .post_create(Hook::sync_fn(move |client, _| entered.enter(client)))
            .build()
            .map_err(|error| bad("cannot build the pool").with_source(error))
    }
}

#[cfg(feature = "buffer")]
impl Postgres {
    /// Takes the connection out of the pool and cuts it: nobody waits for what it does, and it may be dead.
    fn abandon(&self, client: Client) {
        let pooled = match &self.source {
            Source::Config { pooled, .. } => pooled,
            Source::Wrapped(wrapped) => return wrapped.abandon(client),
        };
        let session = pooled.session(&client);
        drop(Client::take(client));
        if let Some(session) = session {
            session.cut();
        }
    }
}

#[cfg(feature = "buffer")]
thread_local! {
    /// What is given back now, on this thread, is not to be used any more.
    static ABANDONS: Cell<bool> = const { Cell::new(false) };
}

/// Gives a checkout back that is not to be used any more: there is no other way to say that of it.
#[cfg(feature = "buffer")]
pub(crate) fn abandon(checkout: Checkout<Postgres>) {
    struct Over;

    impl Drop for Over {
        fn drop(&mut self) {
            ABANDONS.set(false);
        }
    }

    let _over = Over;
    ABANDONS.set(true);
    drop(checkout);
}

impl Resource for Postgres {
    type Pool = Pool;

    fn name(&self) -> &str {
        "postgres"
    }

    async fn init(&self) -> Result<Pool, Error> {
        let (config, idle_check, lifetime, pooled) = match &self.source {
            Source::Config { config, idle_check, lifetime, pooled } => (config, idle_check, lifetime, pooled),
            Source::Wrapped(wrapped) => return Ok(wrapped.pool().clone()),
        };
        self.sessions.restart();
        let pool = self.open_pool(config, idle_check, lifetime, pooled)?;
        let client = pool.get().await.map_err(|failure| error::open(failure.into()))?;
        let asked = Instant::now();
        client.simple_query("").await.map_err(|failure| error::open(failure.into()))?;
        self.sessions.latency().saw(asked.elapsed());
        Ok(pool)
    }

    fn opened(&self) -> Option<Pool> {
        match &self.source {
            Source::Config { .. } => None,
            Source::Wrapped(wrapped) => Some(wrapped.pool().clone()),
        }
    }

    async fn goodbye(&self, pool: &Pool, drain: &Drain) -> Result<(), Error> {
        if let Source::Wrapped(wrapped) = &self.source {
            return wrapped.goodbye(drain).await;
        }
        let draining = self.sessions.begin_drain();
        // Without its client a connection says goodbye, those that are out when they come back to a closed pool.
        let empty = || drop(pool.retain(|_, _| false));
        empty();
        pool.close();
        // Once more when all are back: a caller that waited for a connection and has gone leaves it in the closed pool.
        let is_left = |session: &Session| session.is_abandoned() && session.part().is_busy();
        draining.stop_abandoned(drain, draining.goodbye(drain, empty, end), is_left, stop).await
    }

    async fn cancel(&self, _: &Pool, drain: &Drain) -> Result<(), Error> {
        if let Source::Wrapped(wrapped) = &self.source {
            wrapped.cancel();
            return Ok(());
        }
        let mut asking = JoinSet::new();
        for session in self.sessions.open() {
            if session.part().is_busy() {
                let answers = session.part().answers();
                asking
                    .spawn(async move { session.part().cancel().await.map(|()| (session, answers)) }.in_current_span());
            }
        }
        let (mut asked, mut ending, mut result) = (Vec::new(), JoinSet::new(), Ok(()));
        loop {
            tokio::select! {
                Some(taken) = asking.join_next() => match taken {
                    Ok(Ok((session, answers))) => {
                        asked.push((Arc::clone(&session), answers));
                        ending.spawn(async move { session.part().answered_since(answers).await });
                    }
                    Ok(Err(not_asked)) => result = Err(not_asked.into()),
                    Err(panicked) => {
                        let text = "cancelling a statement panicked";
                        result = Err(Error::new(ErrorKind::Panicked, text).with_source(panicked));
                    }
                },
                // A request that was taken may reach nobody: only what is seen to end counts.
                Some(has_ended) = ending.join_next() => drain.count_cancelled(usize::from(matches!(has_ended, Ok(true)))),
                () = drain.until_cut() => break,
                else => break,
            }
        }
        for (session, answers) in asked {
            if session.part().answers() == answers {
                drain.note(&session.part().unseen());
            }
        }
        if !asking.is_empty() {
            // It ends here: the report says of whom did not answer.
            pending::<()>().await;
        }
        result
    }

    async fn flush(&self, pool: &Pool) -> Result<(), Error> {
        let Source::Config { lifetime, pooled, .. } = &self.source else { return Ok(()) };
        let leaving: Vec<_> = {
            let Some(leaves) = lifetime.at_flush() else { return Ok(()) };
            let kept = pool.retain(|_, known| !leaves(known.created, known.recycled.unwrap_or(known.created)));
            // Without its client a connection says goodbye.
            kept.removed.iter().filter_map(|client| pooled.session(client)).collect()
        };
        self.sessions.until_over(&leaving).await;
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        match &self.source {
            Source::Config { .. } => Capabilities::ALL,
            Source::Wrapped(_) => Capabilities::ALL.without_all_sessions(),
        }
    }

    fn latency(&self) -> Option<Arc<Latency>> {
        Some(Arc::clone(self.sessions.latency()))
    }

    fn reserve(&self, _: &Pool) -> Duration {
        match &self.source {
            Source::Config { .. } => RESERVE,
            Source::Wrapped(_) => WRAPPED_RESERVE,
        }
    }

    fn address(&self) -> Option<String> {
        match &self.source {
            Source::Config { config, .. } => hosts(&config.driver),
            Source::Wrapped(_) => None,
        }
    }

    fn size(&self, pool: &Pool) -> Option<Size> {
        let status = pool.status();
        Some(Size { open: status.size, idle: Some(status.available) })
    }
}

impl Checkouts for Postgres {
    type Checkout = Client;

    async fn checkout(&self, pool: &Pool) -> Result<Client, Error> {
        if let Source::Config { lifetime, .. } = &self.source
            && lifetime.is_sweep_due()
        {
            // Without its client a connection says goodbye.
            drop(pool.retain(|_, known| !lifetime.is_over(known.created, known.recycled.unwrap_or(known.created))));
        }
        loop {
            let client = match &self.source {
                Source::Config { .. } => pool.get().await,
                Source::Wrapped(wrapped) => wrapped.get().await,
            };
            let client = client.map_err(|failure| error(ErrorKind::Checkout, "no connection", failure.into()))?;
            match &self.source {
                Source::Config { config, idle_check, .. } if idle_check.take_suspect(&client.statement_cache) => {
                    let asked = Instant::now();
                    let answer = timeout(config.check_timeout, client.simple_query("")).await;
                    if let Ok(Ok(_)) = answer {
                        self.sessions.latency().saw(asked.elapsed());
                        return Ok(client);
                    }
                    if answer.is_err() {
                        // The others would take as long to show the same.
                        self.sessions.outdated().unused_until_now();
                    }
                    tracing::debug!("a connection did not answer after a rest, replacing it");
                    drop(Client::take(client));
                }
                Source::Config { .. } => return Ok(client),
                Source::Wrapped(wrapped) => {
                    wrapped.hands_out(&client);
                    return Ok(client);
                }
            }
        }
    }

    fn give_back(&self, pool: &Pool, client: Client) {
        #[cfg(feature = "buffer")]
        if ABANDONS.get() {
            return self.abandon(client);
        }
        match &self.source {
            Source::Config { lifetime, pooled, .. } => {
                // To a pool that is closed it says goodbye, which ends everything.
                if !pool.is_closed() {
                    pooled.comes_back(&client);
                    if lifetime.is_too_old(Client::metrics(&client).created) {
                        return drop(Client::take(client));
                    }
                }
                drop(client);
            }
            Source::Wrapped(wrapped) => wrapped.give_back(client),
        }
    }
}

/// What a request to cancel and the last goodbyes need at the least; what the server's answers need comes on top.
const RESERVE: Duration = Duration::from_millis(50);

/// For a pool that the application built somebody asks what runs, has it stopped, and leaves last: some eight steps, one after the
/// other, each of which waits for the server or looks through the sockets of the machine.
const WRAPPED_RESERVE: Duration = Duration::from_secs(3);

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Postgres");
        match &self.source {
            Source::Config { config, .. } => debug.field("config", config).field("sessions", &self.sessions),
            Source::Wrapped(wrapped) => debug.field("wrapped", wrapped),
        };
        debug.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_address_names_every_host_and_no_secret() {
        let of = |url: &str| Postgres::open(url).unwrap().address().unwrap();
        assert_eq!(of("postgres://app:secret@a.example,b.example:6543/orders"), "a.example:5432, b.example:6543");
        assert_eq!(of("host=/run/postgresql user=app password=secret"), "/run/postgresql/.s.PGSQL.5432");
    }
}
