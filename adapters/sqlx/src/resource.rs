//! The pool as a resource.

use std::{
    env, fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use sqlx::{ConnectOptions as _, Connection, Pool, pool::PoolOptions};
use tokio::{runtime::Handle, time::timeout};
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Resource,
    adapter::{Drain, Getting, Latency, Lender, Size},
};

use crate::{
    backend::{Backend, Known},
    book::Book,
    error::error,
    goodbye::{self, until_answered},
    lent::{Lent, Parts},
};

/// Where [`Sqlx::from_env`] looks for the URL.
const URL_VARIABLE: &str = "DATABASE_URL";

/// What cancelling and the last goodbyes need at the least: somebody is opened who asks what runs and has it stopped, one step after the
/// other, each of which waits for the server or looks through the sockets of the machine.
const RESERVE: Duration = Duration::from_secs(3);

/// A file needs less: what runs is interrupted in this process.
const FILE_RESERVE: Duration = Duration::from_millis(50);

/// How long one that nobody waits for any more may take to be opened.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a server is asked why nobody gets in.
const WHY_PATIENCE: Duration = Duration::from_secs(1);

/// A pool of sqlx as a resource.
///
/// Checkouts are [`Lent`], which derefs to the driver's `PoolConnection`; the guard's `pool()` is the [`Pool`](sqlx::Pool) itself.
pub struct Sqlx<DB: Backend> {
    name: String,
    origin: Origin<DB>,
    /// Of the pool that is open now.
    shared: RwLock<Option<Shared<DB>>>,
    latency: Arc<Latency>,
}

type Options<DB> = <<DB as sqlx::Database>::Connection as Connection>::Options;

enum Origin<DB: Backend> {
    Options(PoolOptions<DB>, Options<DB>),
    Pool(Pool<DB>),
}

/// What is known of the sessions of a pool.
struct Shared<DB: Backend> {
    book: Arc<Book<DB>>,
    known: Arc<Known<DB>>,
}

impl<DB: Backend> Clone for Shared<DB> {
    fn clone(&self) -> Self {
        Self { book: Arc::clone(&self.book), known: Arc::clone(&self.known) }
    }
}

impl<DB: Backend> Shared<DB> {
    fn new(pool: Pool<DB>) -> Self {
        let known = Known::new(pool.options().get_max_connections() as usize);
        Self { book: Book::new(pool), known: Arc::new(known) }
    }
}

impl<DB: Backend> Sqlx<DB> {
    /// A pool that the application has built. It stays as it is; what is taken from a clone of it is drained too.
    pub fn wrap(pool: Pool<DB>) -> Self {
        let shared = Shared::new(pool.clone());
        Self::of(Origin::Pool(pool), Some(shared))
    }

    /// A pool with these options, which is built by `init` or on first use.
    pub fn new(pool: PoolOptions<DB>, connect: Options<DB>) -> Self {
        Self::of(Origin::Options(pool, connect), None)
    }

    /// A pool with the driver's default options for the database of this URL.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the driver does not understand the URL.
    pub fn open(url: &str) -> Result<Self, Error> {
        let connect = url.parse().map_err(|source: sqlx::Error| {
            // The driver's error may quote the URL, and that has a password in it.
            let why = match source {
                sqlx::Error::Configuration(_) => "sqlx does not understand it",
                _ => "it is none",
            };
            Error::new(ErrorKind::Config, format!("no URL of the kind `{}...`: {why}", DB::URL))
        })?;
        Ok(Self::new(PoolOptions::new(), connect))
    }

    /// The same for the URL in the variable `DATABASE_URL`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the variable is not set, or the driver does not understand it.
    pub fn from_env() -> Result<Self, Error> {
        let url = env::var(URL_VARIABLE).map_err(|_| {
            Error::new(ErrorKind::Config, format!("{URL_VARIABLE} is not set: it takes `{}...`", DB::URL))
        })?;
        Self::open(&url)
    }

    /// The name of the resource in errors and reports.
    ///
    /// Defaults to `postgres`, `mysql` or `sqlite`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    fn of(origin: Origin<DB>, shared: Option<Shared<DB>>) -> Self {
        Self { name: DB::RESOURCE.to_owned(), origin, shared: RwLock::new(shared), latency: Arc::default() }
    }

    /// What is known of the sessions of the pool that is open; of one that is not open nobody asks.
    fn shared(&self, pool: &Pool<DB>) -> Shared<DB> {
        let shared = self.shared.read().unwrap_or_else(PoisonError::into_inner).clone();
        shared.unwrap_or_else(|| Shared::new(pool.clone()))
    }
}

impl<DB: Backend> Resource for Sqlx<DB> {
    type Pool = Pool<DB>;

    fn name(&self) -> &str {
        &self.name
    }

    async fn init(&self) -> Result<Pool<DB>, Error> {
        let (options, connect) = match &self.origin {
            Origin::Pool(pool) => return Ok(pool.clone()),
            Origin::Options(options, connect) => (options.clone(), connect.clone()),
        };
        let began = Instant::now();
        let pool = match options.connect_with(connect.clone()).await {
            Ok(pool) => pool,
            Err(sqlx::Error::PoolTimedOut) => return Err(why_not::<DB>(&connect).await),
            Err(source) => return Err(error(ErrorKind::Init, CANNOT_CONNECT, source)),
        };
        self.latency.saw(began.elapsed());
        *self.shared.write().unwrap_or_else(PoisonError::into_inner) = Some(Shared::new(pool.clone()));
        Ok(pool)
    }

    fn opened(&self) -> Option<Pool<DB>> {
        match &self.origin {
            Origin::Pool(pool) => Some(pool.clone()),
            Origin::Options(..) => None,
        }
    }

    async fn goodbye(&self, pool: &Pool<DB>, drain: &Drain) -> Result<(), Error> {
        let Shared { book, known } = self.shared(pool);
        goodbye::say(&book, &known, &self.latency, drain).await
    }

    async fn cancel(&self, pool: &Pool<DB>, _: &Drain) -> Result<(), Error> {
        self.shared(pool).book.cancel();
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        DB::CAPABILITIES
    }

    fn size(&self, pool: &Pool<DB>) -> Option<Size> {
        Some(Size { open: pool.size() as usize, idle: Some(pool.num_idle()) })
    }

    fn latency(&self) -> Option<Arc<Latency>> {
        DB::IS_SERVER.then(|| Arc::clone(&self.latency))
    }

    fn reserve(&self, _: &Pool<DB>) -> Duration {
        if DB::IS_SERVER { RESERVE } else { FILE_RESERVE }
    }

    fn address(&self) -> Option<String> {
        let url = match &self.origin {
            Origin::Options(_, connect) => connect.to_url_lossy(),
            Origin::Pool(pool) => pool.connect_options().to_url_lossy(),
        };
        let host = url.host_str().filter(|host| DB::IS_SERVER && !host.is_empty())?;
        Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
    }
}

const CANNOT_CONNECT: &str = "cannot connect";

/// The driver tries again what is refused, and says only that its time is up.
async fn why_not<DB: Backend>(connect: &Options<DB>) -> Error {
    let source = match timeout(WHY_PATIENCE, connect.connect()).await {
        Ok(Err(source)) => source,
        Ok(Ok(conn)) => {
            // It has room by now. The next try gets in.
            if let Err(failure) = conn.close().await {
                tracing::debug!(error = %failure, "a session could not say goodbye");
            }
            sqlx::Error::PoolTimedOut
        }
        Err(_) => sqlx::Error::PoolTimedOut,
    };
    error(ErrorKind::Init, CANNOT_CONNECT, source)
}

impl<DB: Backend> Checkouts for Sqlx<DB> {
    type Checkout = Lent<DB>;

    async fn checkout(&self, pool: &Pool<DB>) -> Result<Lent<DB>, Error> {
        let Shared { book, known } = self.shared(pool);
        let latency = Arc::clone(&self.latency);
        let getting = {
            let book = Arc::clone(&book);
            async move {
                let mut conn = book.pool.acquire().await?;
                let began = Instant::now();
                let limit = book.pool.options().get_acquire_timeout();
                let session = match timeout(limit, DB::introduce(&mut conn, &known)).await {
                    Ok(Ok(session)) => book.proven(session).await,
                    // Whatever it is, its user will see it. A pooler may not know what was prepared.
                    Ok(Err(failure)) => {
                        tracing::debug!(error = %failure, "the server does not say which session it is");
                        None
                    }
                    Err(_) => return Err(sqlx::Error::PoolTimedOut),
                };
                latency.saw(began.elapsed());
                Ok(Lent::new(&book, conn, session, Handle::current()))
            }
        };
        Getting::new(&book, getting, CONNECT_TIMEOUT)
            .await
            .map_err(|source| error(ErrorKind::Checkout, "no connection", source))
    }

    /// In the background a transaction that was left open is ended, and the driver looks at the connection.
    fn give_back(&self, pool: &Pool<DB>, lent: Lent<DB>) {
        self.shared(pool).book.give_back(lent);
    }
}

impl<DB: Backend> Lender<Lent<DB>> for Book<DB> {
    fn begin_getting(&self) {
        Self::begin_getting(self);
    }

    fn end_getting(&self) {
        Self::end_getting(self);
    }

    fn give_back(self: &Arc<Self>, lent: Lent<DB>) {
        let Some(Parts { conn, place, closes, runtime }) = lent.into_parts() else { return };
        // Where it has ended, what is spawned there is dropped at once, and that must not be outside of any.
        let _entered = runtime.enter();
        let Some(key) = self.left(conn, place) else { return };
        let book = Arc::clone(self);
        runtime.spawn(async move {
            let Some((mut conn, place)) = book.take_to_clean(key) else { return };
            let cleaned = match until_answered(&mut *conn).await {
                Ok(()) => DB::clean(&mut conn).await,
                failed => failed,
            };
            let Some((mut conn, place)) = book.cleaned(conn, place) else { return };
            if let Err(failure) = &cleaned {
                tracing::debug!(error = %failure, "a connection is not used again");
            }
            if !closes && cleaned.is_ok() {
                conn.return_to_pool().await;
            } else if let Err(failure) = conn.close().await {
                tracing::debug!(error = %failure, "a session could not say goodbye");
            }
            drop(place);
            if book.is_over() {
                // It may be in a pool that is closed, where nobody finds it but whoever closes that.
                book.pool.close().await;
            }
        });
    }
}

impl<DB: Backend> fmt::Debug for Sqlx<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the options: they have a password.
        f.debug_struct("Sqlx").field("name", &self.name).finish_non_exhaustive()
    }
}
