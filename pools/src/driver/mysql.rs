//! `mysql_async::Conn`.

use mysql_async::{Conn, Error, Row, prelude::Queryable as _};
use winddown_core::{BoxError, Capabilities};
use winddown_net::own_sockets::{Peer, client, listed_client};

use crate::{
    Driver,
    speaks::{Leaving, Speaks},
};

/// Asks which address the client of this session has, as far as the server says so. Where the server is, the driver was told.
///
/// By the statement, not the table `information_schema.processlist`: a question to that is error 3854 of MySQL's while a statement is to
/// be shown with bytes in it that are no text, whoever runs it.
async fn peer(connection: &mut Conn) -> Result<Option<Peer>, Error> {
    // That of the greeting is a proxy's, where there is one.
    let own: Option<u64> = connection.query_first("SELECT CONNECTION_ID()").await?;
    let listed: Vec<Row> = connection.query("/* winddown asks */ SHOW PROCESSLIST").await?;
    let host = listed.into_iter().find_map(|mut row| {
        let is_own = matches!(row.take_opt::<u64, _>("Id"), Some(Ok(id)) if Some(id) == own);
        is_own.then(|| row.take_opt::<String, _>("Host")?.ok()).flatten()
    });
    let server = client(connection.opts().ip_or_hostname(), connection.opts().tcp_port());
    Ok(host.as_deref().and_then(listed_client).map(|client| Peer::new(client, server)))
}

const ROLLBACK: &str = "ROLLBACK";

/// The number of a session is another's after a restart of the server, and nothing here proves whose it is: so nothing is stopped by it.
impl Speaks<Conn> for Driver {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE.with_goodbye().with_confirmed_end()
    }

    /// The driver says goodbye by value alone.
    fn is_in_place(&self) -> bool {
        false
    }

    fn resets(&self) -> bool {
        true
    }

    fn unlists_late(&self) -> bool {
        true
    }

    /// Ends a transaction.
    async fn reset(&self, connection: &mut Conn) {
        if let Err(Error::Server(_)) = connection.query_drop(ROLLBACK).await {
            // That was of what a caller has left of a result, and the driver has not asked.
            let _ = connection.query_drop(ROLLBACK).await;
        }
        // Who finds it broken asks the driver.
    }

    /// One whose statement was dropped by its caller, or has failed of the way to the server, is of no use to the driver.
    fn is_abandoned(&self, connection: &Conn) -> bool {
        connection.is_disconnected()
    }

    async fn settled(&self, connection: &mut Conn) -> Result<Option<Peer>, BoxError> {
        let answer = match peer(connection).await {
            // That was of what a caller has left, as in `reset`.
            Err(Error::Server(_)) => peer(connection).await,
            answer => answer,
        };
        match answer {
            Ok(peer) => Ok(peer),
            // It does not say.
            Err(Error::Server(_)) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn goodbye(&self, leaving: &mut Leaving<Conn>) -> bool {
        if let Some(connection) = leaving.take()
            && let Err(failure) = connection.disconnect().await
        {
            tracing::debug!(error = %failure, "a session could not say goodbye");
        }
        false
    }
}
