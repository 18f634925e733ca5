//! An adapter for memcached, as a newcomer writes one: `docs/adapter-guide.md` leads through it.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use winddown_core::Lifecycle;
//! use winddown_memcached_adapter::Memcached;
//!
//! let lifecycle = Lifecycle::detect()?;
//! let cache = lifecycle.guard(Memcached::new("cache.internal:11211"));
//! cache.get().await?.set("greeting", b"good morning").await?;
//! # Ok(())
//! # }
//! ```

mod book;
mod session;

use std::{io, sync::Arc, time::Duration};

use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, RecycleResult};
use tokio::time::timeout;
use winddown_core::{
    Error, ErrorKind,
    adapter::{Capabilities, Checkouts, Drain, News, Resource, Size, Source},
};

use crate::book::Book;
pub use crate::session::Session;

/// How long a server may take to answer, and to take what was sent.
const PATIENCE: Duration = Duration::from_secs(5);

/// A memcached server, and how many sessions there are at most.
#[derive(Debug, Clone)]
pub struct Memcached {
    address: String,
    size: usize,
}

impl Memcached {
    /// A pool of up to ten sessions with this server, `cache.internal:11211`. Nothing is opened yet.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), size: 10 }
    }

    /// The same with another number of sessions at most.
    #[must_use]
    pub fn size(mut self, sessions: usize) -> Self {
        self.size = sessions;
        self
    }
}

/// Opens sessions for the pool, and knows all of them.
#[derive(Debug)]
pub struct Sessions {
    address: Arc<str>,
    book: Arc<Book>,
}

impl Manager for Sessions {
    type Type = Session;
    type Error = io::Error;

    async fn create(&self) -> io::Result<Session> {
        for left in self.book.returned() {
            tokio::spawn(left.goodbye());
        }
        // In the book at once: a drain that begins before the task does waits for it.
        let (address, entry) = (Arc::clone(&self.address), self.book.enter());
        // In a task: who gives up while it connects drops a session that is open, and not half of one.
        tokio::spawn(async move { Session::open(&address, entry).await }).await?
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<io::Error> {
        // One round trip before each checkout: a session that does not answer in time is replaced.
        timeout(PATIENCE, session.version()).await.map_err(io::Error::from)??;
        Ok(())
    }
}

impl Resource for Memcached {
    type Pool = Pool<Sessions>;

    fn name(&self) -> &str {
        "memcached"
    }

    async fn init(&self) -> Result<Self::Pool, Error> {
        let manager = Sessions { address: self.address.as_str().into(), book: Arc::default() };
        let pool = Pool::builder(manager).max_size(self.size).build();
        let pool = pool.map_err(|error| Error::new(ErrorKind::Config, "no such pool").with_source(error))?;
        // The pool connects lazily: the first session proves that somebody is there.
        drop(pool.get().await.map_err(|error| failed(ErrorKind::Init, error))?);
        Ok(pool)
    }

    async fn goodbye(&self, pool: &Self::Pool, drain: &Drain) -> Result<(), Error> {
        // From now on the pool drops what it has and what comes back.
        pool.close();
        // Ends each session when nobody has it any more, until all are over or the time is.
        drain.sessions(&Draining(pool)).await?;
        drain.count(pool.manager().book.close(), 0);
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        // Memcached answers at once: there is nothing to cancel.
        Capabilities::ALL.without_cancel()
    }

    fn address(&self) -> Option<String> {
        Some(self.address.clone())
    }

    fn size(&self, pool: &Self::Pool) -> Option<Size> {
        let status = pool.status();
        Some(Size { open: status.size, idle: Some(status.available) })
    }
}

impl Checkouts for Memcached {
    type Checkout = Object<Sessions>;

    async fn checkout(&self, pool: &Self::Pool) -> Result<Self::Checkout, Error> {
        pool.get().await.map_err(|error| failed(ErrorKind::Checkout, error))
    }
}

/// The driver's error as ours. A server that is not there may be there the next time.
fn failed(kind: ErrorKind, error: PoolError<io::Error>) -> Error {
    let is_passing = matches!(&error, PoolError::Backend(error) if error.kind() != io::ErrorKind::InvalidData);
    let failed = Error::new(kind, "cannot get a session").with_source(error);
    if is_passing { failed.retryable() } else { failed }
}

/// The sessions of a pool, as a drain ends them.
struct Draining<'a>(&'a Pool<Sessions>);

impl Draining<'_> {
    fn book(&self) -> &Book {
        &self.0.manager().book
    }
}

impl Source for Draining<'_> {
    type Session = Session;

    fn news(&self, _: &Drain) -> News<Session> {
        self.book().news()
    }

    async fn changed(&self) {
        self.book().changed.notified().await;
    }

    fn close(&self, session: Session) -> impl Future<Output = ()> + Send + 'static {
        session.goodbye()
    }

    fn all_returned(&self) {
        // A caller that gave up while it waited may have left a session in the closed pool.
        drop(self.0.retain(|_, _| false));
    }
}
