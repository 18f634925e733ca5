//! Diesel's connections to PostgreSQL.
//!
//! `PgConnection` is libpq's, which says Terminate when it is dropped: `PQfinish`, PostgreSQL documentation, "libpq", "Database Connection
//! Control Functions". Its secret, by which a statement is cancelled, Diesel shows to nobody: so that is asked of the server on a session
//! of its own.

mod asker;
mod identity;

use std::sync::{Arc, atomic::AtomicBool};

use diesel::{
    QueryResult,
    connection::{AnsiTransactionManager, LoadConnection, TransactionManager as _},
    pg::Pg,
    r2d2::R2D2Connection,
};
use r2d2::{Builder, ManageConnection};
use winddown_core::{BoxError, Capabilities};
use winddown_pools::{Canceller, Driver, Leaving, Peer, Speaks};

use self::{asker::Asker, identity::Identity};
use crate::{
    manager::{Manager, Notes},
    pool::Pool,
    session::Session,
};

/// A connection of Diesel's to PostgreSQL: `PgConnection`, or one that is made of it.
pub trait DieselPostgres:
    R2D2Connection + LoadConnection<Backend = Pg, TransactionManager = AnsiTransactionManager> + Send + 'static
{
}

impl<C> DieselPostgres for C where
    C: R2D2Connection + LoadConnection<Backend = Pg, TransactionManager = AnsiTransactionManager> + Send + 'static
{
}

/// What is known of a session since it was opened.
struct Known {
    identity: Identity,
    /// None where nothing would prove that a session is this one.
    canceller: Option<Canceller>,
}

impl<M: ManageConnection<Connection: DieselPostgres>> Pool<M> {
    /// A pool of Diesel's on PostgreSQL, with the `ConnectionManager` that it would have otherwise. Each session is asked once, when it is
    /// opened, which one it is.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn diesel_postgres(settings: Builder<Manager<M>>, manager: M) -> Self {
        let inner = Arc::new(manager);
        let opens = Arc::clone(&inner);
        // What r2d2 says of an error, too, is its text.
        let asker = Asker::new(move || opens.connect().map_err(|error| error.to_string().into()));
        let asks = Arc::clone(&asker);
        let notes: Notes<M::Connection> =
            Box::new(move |connection, nothing_runs| Box::new(Known::of(connection, nothing_runs, &asks)));
        let mut pool = Self::build(settings, inner, Some(notes));
        pool.stopped = Some(Arc::new(move || Box::pin(Arc::clone(&asker).over())));
        pool
    }
}

impl Known {
    /// One that does not say which it is ends unconfirmed, and nothing of it is cancelled.
    fn of<C: DieselPostgres>(connection: &mut C, nothing_runs: &Arc<AtomicBool>, asker: &Arc<Asker<C>>) -> Self {
        let identity = Identity::of(connection).unwrap_or_default();
        let canceller = identity.backend().map(|backend| {
            let (asker, nothing_runs) = (Arc::clone(asker), Arc::clone(nothing_runs));
            Canceller::new(move || Arc::clone(&asker).stop(backend, Arc::clone(&nothing_runs)))
        });
        Self { identity, canceller }
    }
}

/// Ends a transaction, whoever began it.
fn roll_back(connection: &mut impl DieselPostgres) -> QueryResult<()> {
    // Begun first, which is refused or a warning only where there is one: a server writes to its log that it was told to end none.
    let _ = connection.batch_execute("BEGIN");
    connection.batch_execute("ROLLBACK")?;
    *connection.transaction_state() = AnsiTransactionManager::default();
    Ok(())
}

/// Whether it is in a transaction of [`begin_test_transaction`](diesel::Connection::begin_test_transaction), which a pool of tests has on
/// each of its connections, for good. Any other one that Diesel knows of is broken for it.
fn is_test(connection: &mut impl DieselPostgres) -> bool {
    let depth = AnsiTransactionManager::transaction_manager_status_mut(connection).transaction_depth();
    matches!(depth, Ok(Some(_))) && !connection.is_broken()
}

/// Of the sessions of [`Pool::diesel_postgres`].
impl<C: DieselPostgres> Speaks<Session<C>> for Driver {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL.without_all_sessions()
    }

    fn canceller(&self, session: &mut Session<C>) -> Option<Canceller> {
        let canceller = session.note::<Known>()?.canceller.clone()?;
        Some(session.lent(canceller))
    }

    fn resets(&self) -> bool {
        true
    }

    async fn reset(&self, session: &mut Session<C>) {
        session.ours().await;
        let ended = session.run(|connection| match is_test(connection) {
            true => Ok(()),
            false => roll_back(connection),
        });
        if let Err(failure) = ended.await {
            // The pool finds out that it is of no use.
            tracing::debug!(error = %failure, "a session was not reset");
        }
    }

    async fn settled(&self, session: &mut Session<C>) -> Result<Option<Peer>, BoxError> {
        session.ours().await;
        let asking = session.run(|connection| match Identity::of(connection) {
            Ok(identity) => Ok(identity),
            // A transaction that has failed answers nothing, and a request to stop may have come late.
            Err(_) => roll_back(connection).and_then(|()| Identity::of(connection)),
        });
        let identity = match asking.await {
            Ok(Ok(identity)) => identity,
            failed => {
                // It is of no use to anybody.
                session.end(drop).await;
                return Err(failed.map_or_else(Into::into, |failed| {
                    failed.map_or_else(Into::into, |_| "the session does not say which one it is".into())
                }));
            }
        };
        let Some(known) = session.note::<Known>() else { return Ok(None) };
        // The end of another one is no goodbye.
        Ok(if identity == known.identity { identity.peer() } else { None })
    }

    async fn goodbye(&self, leaving: &mut Leaving<Session<C>>) -> bool {
        if let Some(session) = leaving.get() {
            session.end(drop).await;
        }
        false
    }

    fn cut(&self, session: &mut Session<C>) {
        drop(Session::take(session));
    }
}
