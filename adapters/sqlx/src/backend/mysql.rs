//! MySQL and MariaDB: a session is known by its number and by where the server sees its client.

use std::{net::SocketAddr, sync::Arc};

use sqlx::{
    AssertSqlSafe, Connection as _, Error, Executor as _, MySql, MySqlConnection, Row as _, SqlSafeStr as _,
    Statement as _,
    error::DatabaseError,
    mysql::{MySqlConnectOptions, MySqlDatabaseError, MySqlRow, MySqlStatement},
};
use winddown_core::Capabilities;
use winddown_net::own_sockets::{self, Peer, listed_client};

use super::{Backend, Known, Listed, Server, roll_back};

impl Backend for MySql {}

/// Names one session for good: a number is used again when the server is started again, and no session that has it then has the same
/// client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub struct MySqlSession {
    id: u64,
    /// The host and the port of its client, as the server sees them.
    client: Arc<str>,
}

/// A line of the server's process list. By the statement, not the table of `information_schema`: a question to that makes a
/// temporary table on disk, and is an error in MySQL where somebody runs a statement that has bytes in it which are no text.
struct Line {
    id: u64,
    user: String,
    client: String,
    command: String,
}

impl Line {
    fn of(row: &MySqlRow) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get_unchecked("Id")?,
            user: row.try_get_unchecked("User")?,
            client: row.try_get_unchecked("Host")?,
            command: row.try_get_unchecked("Command")?,
        })
    }
}

/// What the statement lists without a privilege: the user's own.
async fn list(conn: &mut MySqlConnection) -> Result<Vec<Line>, Error> {
    conn.fetch_all(sqlx::raw_sql("SHOW PROCESSLIST")).await?.iter().map(Line::of).collect()
}

/// The same, and where in it this session is.
async fn own(conn: &mut MySqlConnection) -> Result<(Option<usize>, Vec<Line>), Error> {
    // In one round trip.
    let rows = conn.fetch_all(sqlx::raw_sql("SELECT CONNECTION_ID() AS own; SHOW PROCESSLIST")).await?;
    let (own, lines) = rows.split_first().ok_or(Error::RowNotFound)?;
    let own: u64 = own.try_get_unchecked("own")?;
    let lines: Vec<_> = lines.iter().map(Line::of).collect::<Result<_, _>>()?;
    Ok((lines.iter().position(|line| line.id == own), lines))
}

const OWN: &str = "/* winddown asks */ SELECT CONNECTION_ID()";

impl Server for MySql {
    const RESOURCE: &'static str = "mysql";
    const URL: &'static str = "mysql://";
    const CAPABILITIES: Capabilities = Capabilities::ALL.without_all_sessions();
    const UNLISTS_LATE: bool = true;
    type Session = MySqlSession;
    type Known = MySqlStatement;

    async fn introduce(conn: &mut MySqlConnection, known: &Known<Self>) -> Result<Option<MySqlSession>, Error> {
        let statement = conn.prepare(OWN.into_sql_str()).await?;
        let key = statement.columns().as_ptr().addr();
        if let Some(session) = known.get(key) {
            return Ok(Some(session));
        }
        let (own, mut lines) = own(conn).await?;
        let Some(own) = own else { return Ok(None) };
        let line = lines.swap_remove(own);
        let session = MySqlSession { id: line.id, client: line.client.into() };
        // Without a cache each statement is where it is for a moment.
        if conn.cached_statements_size() > 0 {
            known.insert(key, statement, session.clone());
        }
        Ok(Some(session))
    }

    fn address(options: &MySqlConnectOptions) -> Option<SocketAddr> {
        own_sockets::client(options.get_host(), options.get_port())
    }

    fn peer_of(session: &MySqlSession) -> Option<Peer> {
        peer(&session.client)
    }

    async fn clean(conn: &mut MySqlConnection) -> Result<(), Error> {
        roll_back::<Self>(conn).await
    }

    async fn list(
        conn: &mut MySqlConnection,
        sessions: Option<&[MySqlSession]>,
    ) -> Result<Vec<Listed<MySqlSession>>, Error> {
        let lines = match sessions {
            Some(sessions) => {
                let is_meant = |line: &Line| sessions.iter().any(|of| of.id == line.id && *of.client == *line.client);
                list(conn).await?.into_iter().filter(is_meant).collect()
            }
            None => {
                let (own, mut lines) = own(conn).await?;
                let user = own.map(|own| lines.swap_remove(own).user);
                lines.retain(|line| user.as_ref() == Some(&line.user));
                lines
            }
        };
        let listed = lines.into_iter().map(|line| Listed {
            peer: peer(&line.client),
            is_busy: matches!(line.command.as_str(), "Query" | "Execute" | "Fetch"),
            session: MySqlSession { id: line.id, client: line.client.into() },
            statement: None,
        });
        Ok(listed.collect())
    }

    async fn peer(conn: &mut MySqlConnection) -> Result<Option<Peer>, Error> {
        let (own, lines) = own(conn).await?;
        Ok(own.and_then(|own| peer(&lines[own].client)))
    }

    async fn cancel(conn: &mut MySqlConnection, sessions: &[MySqlSession]) -> Result<usize, Error> {
        let mut cancelled = 0;
        for session in sessions {
            match conn.execute(AssertSqlSafe(format!("KILL QUERY {}", session.id))).await {
                Ok(_) => cancelled += 1,
                // It has left meanwhile.
                Err(Error::Database(failed)) if is_unknown_thread(&*failed) => {}
                Err(failed) => return Err(failed),
            }
        }
        Ok(cancelled)
    }
}

/// The server does not say where it is itself.
fn peer(client: &str) -> Option<Peer> {
    Some(Peer::new(listed_client(client)?, None))
}

fn is_unknown_thread(failed: &dyn DatabaseError) -> bool {
    const UNKNOWN_THREAD: u16 = 1094;
    failed.try_downcast_ref::<MySqlDatabaseError>().is_some_and(|failed| failed.number() == UNKNOWN_THREAD)
}
