//! What the databases of sqlx differ in: how a session is known, and what its server can be asked about it.

#[cfg(feature = "sqlx-mysql")]
mod mysql;
#[cfg(feature = "sqlx-postgres")]
mod postgres;
#[cfg(feature = "sqlx-sqlite")]
mod sqlite;

#[cfg(feature = "sqlx-mysql")]
pub use self::mysql::MySqlSession;
#[cfg(feature = "sqlx-postgres")]
pub use self::postgres::PgSession;
#[cfg(feature = "sqlx-sqlite")]
pub use self::sqlite::Interrupt;

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::Hash,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sqlx::{Connection, Database, Error, SqlSafeStr as _};
use winddown_core::Capabilities;
use winddown_net::own_sockets::Peer;

/// A database of sqlx's whose pools can be drained: `sqlx::Postgres`, `sqlx::MySql` and `sqlx::Sqlite`, with the feature of each.
pub trait Backend: Database<Connection: Connection<Options: Clone + Send + Sync>> + Server {}

/// What a database's server is asked. For this crate alone.
#[doc(hidden)]
pub trait Server: Database + Sized {
    /// What a resource is called where nobody says.
    const RESOURCE: &'static str;
    /// The scheme of its URLs.
    const URL: &'static str;
    /// What the drain of its pools can do.
    const CAPABILITIES: Capabilities;
    /// Whether there is a server, which lists its sessions.
    const IS_SERVER: bool = true;
    /// Whether it has a session on its list until after its socket was closed.
    const UNLISTS_LATE: bool = false;
    /// Names one session for good: by its number alone another one may be known later.
    type Session: Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static;
    /// A statement as its connection keeps it.
    type Known: Send + Sync + 'static;

    /// Which session this is; asked of the server once for each, and known from then on. `None` where the server does not say.
    fn introduce(
        conn: &mut Self::Connection,
        known: &Known<Self>,
    ) -> impl Future<Output = Result<Option<Self::Session>, Error>> + Send;

    /// Where the server is by these options, if they have an address for it.
    fn address(options: &<Self::Connection as Connection>::Options) -> Option<SocketAddr> {
        let _ = options;
        None
    }

    /// Whom the server has at its other end, if there is a network between.
    fn peer_of(session: &Self::Session) -> Option<Peer> {
        let _ = session;
        None
    }

    /// Ends a transaction that its user has left open.
    fn clean(conn: &mut Self::Connection) -> impl Future<Output = Result<(), Error>> + Send;

    /// Those of these sessions that the server lists; all others of the same user where none are given.
    fn list(
        conn: &mut Self::Connection,
        sessions: Option<&[Self::Session]>,
    ) -> impl Future<Output = Result<Vec<Listed<Self::Session>>, Error>> + Send {
        let _ = (conn, sessions);
        std::future::ready(Ok(Vec::new()))
    }

    /// The same of this session's own.
    fn peer(conn: &mut Self::Connection) -> impl Future<Output = Result<Option<Peer>, Error>> + Send {
        let _ = conn;
        std::future::ready(Ok(None))
    }

    /// Has the server stop what these run; how many ran something then.
    fn cancel(
        conn: &mut Self::Connection,
        sessions: &[Self::Session],
    ) -> impl Future<Output = Result<usize, Error>> + Send {
        let _ = (conn, sessions);
        std::future::ready(Ok(0))
    }

    /// Stops what this one runs, where nobody needs to be asked for that.
    fn interrupt(session: &Self::Session) {
        let _ = session;
    }

    /// Whether that has stopped anything.
    fn has_stopped(session: &Self::Session) -> bool {
        let _ = session;
        false
    }
}

/// A session as its server lists it.
#[derive(Debug, Clone)]
#[doc(hidden)]
#[non_exhaustive]
pub struct Listed<S> {
    /// Which one.
    pub session: S,
    /// Whom the server has at its other end, if there is a network between.
    pub peer: Option<Peer>,
    /// It runs a statement.
    pub is_busy: bool,
    /// Tells that statement from the next, where the server can say that.
    pub statement: Option<i64>,
}

/// The sessions of a pool that somebody has asked who they are.
///
/// A connection of sqlx has nothing to know it by, but for its cache of statements: what that has of a statement stays where it is
/// in memory as long as the connection has it, and as long as it is kept here nothing else is there.
#[doc(hidden)]
pub struct Known<DB: Server> {
    sessions: Mutex<Sessions<DB>>,
    most: usize,
}

/// Each with the statement that it is known by, and by where that is.
type Sessions<DB> = HashMap<usize, (<DB as Server>::Known, <DB as Server>::Session)>;

impl<DB: Server> Known<DB> {
    /// As many are kept as a pool of this size has, and some that are gone.
    pub(crate) fn new(size: usize) -> Self {
        Self { sessions: Mutex::default(), most: size.saturating_mul(2).saturating_add(16) }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions<DB>> {
        // Each change is one call.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg_attr(not(any(feature = "sqlx-mysql", feature = "sqlx-postgres")), expect(dead_code, reason = "no server"))]
    fn get(&self, key: usize) -> Option<DB::Session> {
        Some(self.sessions().get(&key)?.1.clone())
    }

    #[cfg_attr(not(any(feature = "sqlx-mysql", feature = "sqlx-postgres")), expect(dead_code, reason = "no server"))]
    fn insert(&self, key: usize, known: DB::Known, session: DB::Session) {
        let mut sessions = self.sessions();
        if sessions.len() >= self.most {
            // Those that are gone tell nobody. The others are asked once more.
            sessions.clear();
        }
        sessions.insert(key, (known, session));
    }
}

impl<DB: Server> fmt::Debug for Known<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("most", &self.most).finish_non_exhaustive()
    }
}

/// Ends a transaction, if there is one, and leaves none open that was begun for finding that out.
#[cfg_attr(
    not(any(feature = "sqlx-mysql", feature = "sqlx-postgres", feature = "sqlx-sqlite")),
    expect(dead_code, reason = "no database")
)]
async fn roll_back<DB: Database>(conn: &mut DB::Connection) -> Result<(), Error> {
    if conn.is_in_transaction() {
        // One of sqlx's that was forgotten. Nobody but its owner can end it there.
        return Err(Error::Protocol("a transaction was neither ended nor dropped".to_owned()));
    }
    // Not by an own `BEGIN`: in a transaction that is a warning in the server's log, and so is `ROLLBACK` outside of one.
    match conn.begin_with("SELECT 1".into_sql_str()).await {
        Ok(transaction) => transaction.rollback().await,
        Err(Error::BeginFailed) => Ok(()),
        Err(failed) => Err(failed),
    }
}
