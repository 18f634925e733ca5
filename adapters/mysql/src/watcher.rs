//! The session that asks the server about the others, stops what they run, and leaves last.
//!
//! In MySQL and in MariaDB a session is on the server's list until after its socket was closed, so that the end of a
//! connection proves nothing: another session has to ask. It is opened when it is needed, on the drain's own runtime.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use mysql_async::{
    Conn, Opts, Row,
    prelude::{FromRow, Queryable},
};
use tokio::time::sleep;
use winddown_core::{Error, ErrorKind};

use crate::{
    connect::{Address, Limit},
    error::{self, error},
    relay::Relay,
};

/// By what name a server knows itself, in SQL.
pub(crate) const HOST: &str = "CONCAT(@@hostname, ':', @@port)";

/// What a server still does when it has closed the last session's socket, until it does not list that session any more, is
/// the work of microseconds; nobody is left to ask whether it is done. It is given twice as long as its goodbye took, within
/// these limits: a server that waits for a core does so here, too.
const UNLISTING: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// A session as the server lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: u32,
    /// It runs a statement.
    pub(crate) is_busy: bool,
    /// It waits for its client.
    pub(crate) rests: bool,
    /// Its client is on the host of the one who asks.
    pub(crate) is_from_here: bool,
}

/// What the server answers; the driver's own shorter ways panic where that is not what was expected.
pub(crate) async fn rows<T: FromRow + Send + 'static>(
    conn: &mut impl Queryable,
    sql: &str,
) -> Result<Vec<T>, mysql_async::Error> {
    let rows = conn.query_iter(sql).await?.try_collect_and_drop().await?;
    rows.into_iter().collect::<Result<_, _>>().map_err(|error| mysql_async::Error::Other(Box::new(error)))
}

/// Which of these sessions the server lists, of those that belong to the user who asks.
///
/// By the statement, not the table `information_schema.processlist`: for each question to that both servers make a temporary
/// table on disk (`Created_tmp_disk_tables` counts it), and a disk may be busy. Without a privilege it lists the user's own.
pub(crate) async fn listed(conn: &mut Conn, ids: &[u32]) -> Result<Vec<Listed>, mysql_async::Error> {
    let own = u64::from(conn.id());
    let ids: HashSet<u64> = ids.iter().map(|id| u64::from(*id)).collect();
    let mut rows: Vec<Row> = rows(conn, "SHOW PROCESSLIST").await?;
    let mut found: Vec<(u64, String, String, String)> = Vec::new();
    for row in &mut rows {
        // A server whose columns are others has answered nothing that is of use.
        let (Some(Ok(id)), Some(Ok(user)), Some(Ok(client)), Some(Ok(command))) =
            (row.take_opt("Id"), row.take_opt("User"), row.take_opt("Host"), row.take_opt("Command"))
        else {
            return Err(mysql_async::Error::Other("the server's process list is not as expected".into()));
        };
        found.push((id, user, client, command));
    }
    let own = found.iter().find(|(id, ..)| *id == own).map(|(_, user, client, _)| (user.clone(), client.clone()));
    let Some((user, here)) = own else { return Ok(Vec::new()) };
    let listed = found.into_iter().filter(|(id, by, ..)| ids.contains(id) && *by == user);
    Ok(listed
        .filter_map(|(id, _, client, command)| {
            Some(Listed {
                id: u32::try_from(id).ok()?,
                is_busy: matches!(command.as_str(), "Query" | "Execute" | "Fetch"),
                rests: command == "Sleep",
                is_from_here: without_port(&client) == without_port(&here),
            })
        })
        .collect())
}

/// The host of a client, without its port.
fn without_port(client: &str) -> &str {
    client.rsplit_once(':').map_or(client, |(host, _)| host)
}

/// What a server is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kill {
    /// A statement; the session goes on.
    Query,
    Session,
}

/// One session that watches the others.
pub(crate) struct Watcher {
    conn: Conn,
    relay: Relay,
    host: String,
}

impl Watcher {
    pub(crate) async fn open(
        address: &Address,
        opts: &Opts,
        limit: Option<Duration>,
    ) -> Result<Self, mysql_async::Error> {
        // What comes then has the limit of whoever asks, a drain for one: a server that is slow is worth the time that is there.
        let connecting = Limit::of(address, limit);
        let (builder, mut relay) = connecting.step("connecting", Relay::to(address, opts)).await?;
        let builder = builder.db_name(None::<String>).compression(None).max_allowed_packet(Some(16 * 1024 * 1024));
        let mut conn =
            Conn::new(builder).await.map_err(|failure| relay.failure().map_or(failure, mysql_async::Error::from))?;
        let host = rows(&mut conn, &format!("SELECT {HOST}")).await?.pop();
        Ok(Self { conn, relay, host: host.unwrap_or_default() })
    }

    /// By what name the server knows itself.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// For how many seconds the server has been running.
    #[cfg(feature = "buffer")]
    pub(crate) async fn uptime(&mut self) -> Result<u64, mysql_async::Error> {
        let status: Vec<(String, u64)> = rows(&mut self.conn, "SHOW GLOBAL STATUS LIKE 'Uptime'").await?;
        let uptime = status.into_iter().next().map(|(_, seconds)| seconds);
        uptime.ok_or_else(|| mysql_async::Error::Other("the server does not say how long it has been running".into()))
    }

    /// Which of these sessions the server lists.
    pub(crate) async fn listed(&mut self, ids: &[u32]) -> Result<Vec<Listed>, mysql_async::Error> {
        listed(&mut self.conn, ids).await
    }

    /// Tells the server to end these; which of them it has taken, the others being gone already.
    pub(crate) async fn kill(&mut self, kill: Kill, ids: &[u32]) -> Result<Vec<u32>, mysql_async::Error> {
        let verb = match kill {
            Kill::Query => "KILL QUERY",
            Kill::Session => "KILL",
        };
        let mut taken = Vec::new();
        let mut left = ids;
        while !left.is_empty() {
            // All of them in one round trip; an error is about the first that was not taken, and ends the rest.
            let sql = left.iter().map(|id| format!("{verb} {id}")).collect::<Vec<_>>().join(";");
            let mut done = 0;
            let failure = match self.conn.query_iter(sql).await {
                Ok(mut results) => loop {
                    done += 1;
                    if done == left.len() {
                        break results.drop_result().await.err();
                    }
                    // Goes on to the next result.
                    if let Err(failure) = results.try_collect::<Row>().await {
                        break Some(failure);
                    }
                },
                Err(failure) => Some(failure),
            };
            taken.extend(&left[..done]);
            left = &left[done..];
            match failure {
                None => {}
                Some(mysql_async::Error::Server(error)) if error.code == NO_SUCH_THREAD => {
                    left = left.get(1..).unwrap_or_default();
                }
                Some(failure) => return Err(failure),
            }
        }
        Ok(taken)
    }

    /// Says goodbye, and returns when the server has closed its side.
    pub(crate) async fn leave(self) -> Result<(), Error> {
        let Self { conn, mut relay, .. } = self;
        let began = Instant::now();
        let failed = |failure| {
            error(ErrorKind::Incomplete, "the session that asked about the others could not say goodbye", failure)
        };
        conn.disconnect().await.map_err(failed)?;
        let Some(ended) = relay.ended().await else {
            return Err(Error::new(
                ErrorKind::Incomplete,
                "the session that asked about the others was not seen to end",
            ));
        };
        let (least, most) = UNLISTING;
        sleep((ended.saturating_duration_since(began) * 2).clamp(least, most)).await;
        Ok(())
    }
}

/// "Unknown thread id".
const NO_SUCH_THREAD: u16 = 1094;

/// Why nobody can ask about the sessions of a server.
pub(crate) fn cannot_watch(address: &Address, failure: mysql_async::Error) -> Error {
    let text = format!("cannot ask {address} which sessions it lists");
    Error::new(ErrorKind::Incomplete, text).with_source(error::open(failure))
}

/// Why nobody asks about some of its sessions, although there is a server.
pub(crate) fn another_server(address: &Address) -> Error {
    let text = format!(
        "sessions are with another server than the one that answers at {address}, or with a proxy: whether they have ended is \
         not known"
    );
    Error::new(ErrorKind::Incomplete, text)
}
