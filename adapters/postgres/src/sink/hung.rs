//! Writes that hang: what the server still does for them is ended, over another connection.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use deadpool_postgres::{Client, Pool, StatementCache};
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use winddown_core::Checkout;

use crate::{Postgres, resource, token::CancelKey};

/// The server's sessions that a sink writes over. Clones share it.
///
/// A session that hangs cannot be asked who it is, so it is asked before it is written over for the first time.
#[derive(Debug, Clone, Default)]
pub(super) struct Backends(Arc<Mutex<Vec<Known>>>);

#[derive(Debug)]
struct Known {
    /// Each connection has one of its own.
    connection: Weak<StatementCache>,
    /// None where it is not proven which session it is.
    backend: Option<Backend>,
}

/// One session of the server. Its process id may be another's one day, but not with the same start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Backend {
    pid: i32,
    started: SystemTime,
}

impl Backends {
    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the session who it is, if it was not asked yet. What cannot be found out costs no batch.
    pub(super) async fn learn(&self, client: &Client) {
        let connection = Arc::downgrade(&client.statement_cache);
        if self.known().iter().any(|known| known.connection.ptr_eq(&connection)) {
            return;
        }
        let sql = "SELECT pg_backend_pid(), backend_start FROM pg_stat_get_activity(pg_backend_pid())";
        let Ok(rows) = client.query_typed(sql, &[]).await else { return };
        let backend = rows.first().and_then(|row| {
            let (pid, started) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
            Some(Backend { pid, started })
        });
        // Behind a pooler the next transaction may be in another session, and this one somebody else's.
        let given = CancelKey::of(&client.cancel_token()).map(CancelKey::process_id);
        let backend = backend.filter(|backend| given == Some(backend.pid));
        let mut known = self.known();
        known.retain(|known| known.connection.strong_count() > 0);
        known.push(Known { connection, backend });
    }

    fn of(&self, client: &Client) -> Option<Backend> {
        let connection = Arc::downgrade(&client.statement_cache);
        self.known().iter().find(|known| known.connection.ptr_eq(&connection))?.backend
    }

    /// Cuts the connection, and ends its session on the server where it is proven which one that is.
    pub(super) async fn abandon(&self, checkout: Checkout<Postgres>) {
        let (pool, backend) = (Client::pool(&checkout), self.of(&checkout));
        resource::abandon(checkout);
        let (Some(pool), Some(backend)) = (pool, backend) else { return };
        if timeout(PATIENCE, end(&pool, backend)).await.is_err() {
            tracing::warn!(
                pid = backend.pid,
                "whether the server has ended the session of a write that hung is not known"
            );
        }
    }
}

/// Ends this session of the server, over whichever connection of the pool answers.
async fn end(pool: &Pool, Backend { pid, started }: Backend) {
    loop {
        let client = match pool.get().await {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!(pid, %error, "no connection to end the session of a write that hung");
                return;
            }
        };
        let which: [(&(dyn ToSql + Sync), Type); 2] = [(&pid, Type::INT4), (&started, Type::TIMESTAMPTZ)];
        match timeout(ANSWER, client.query_typed(TERMINATE, &which)).await {
            Ok(Ok(rows)) => {
                if rows.iter().any(|row| !row.try_get(0).unwrap_or(false)) {
                    tracing::warn!(pid, "the session of a write that hung does not end");
                }
                return;
            }
            Ok(Err(error)) if !client.is_closed() && error.as_db_error().is_some() => {
                tracing::warn!(pid, %error, "the session of a write that hung cannot be ended");
                return;
            }
            // This connection is no better than the other.
            _ => drop(Client::take(client)),
        }
    }
}

/// Waits until the session has ended, so that nothing of it is in the way of the same batch any more. No row says that it
/// has ended already. PostgreSQL documentation, "Server Signaling Functions".
const TERMINATE: &str =
    "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2";

/// How long a connection may take to answer that, which takes 2 s at most, until another is asked.
const ANSWER: Duration = Duration::from_secs(3);

/// How long all of it may take: two connections that do not answer, and one that does.
const PATIENCE: Duration = Duration::from_secs(8);
