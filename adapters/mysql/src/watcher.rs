//! The session that asks the server about the others, stops what they run, and leaves last.
//!
//! In MySQL and in MariaDB a session is on the server's list until after its socket was closed, so that the end of a
//! connection proves nothing: another session has to ask. It is opened when it is needed, on the drain's own runtime.

use std::time::{Duration, Instant};

use mysql_async::{
    Conn, Opts, Row,
    prelude::{FromRow, Queryable},
};
use tokio::time::sleep;
use winddown_core::{Error, ErrorKind, adapter::Opening};
use winddown_net::{
    Address,
    own_sockets::{Peer, listed_client, unlisting},
};

use crate::{
    connect::in_time,
    error::{self, error},
    origin::{Origin, Relation, introduce},
    relay::Relay,
    sessions::{Asked, Key, read_out},
};

/// A session as the server lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed {
    /// It runs a statement.
    pub(crate) is_busy: bool,
    /// It waits for its client.
    pub(crate) rests: bool,
}

/// A session that is proven ours: only such a one can be told to end. Made where that is proven, and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ours {
    key: Key,
    pub(crate) listed: Listed,
}

/// What was found out about a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Its server lists it.
    Ours(Ours),
    /// Its server does not list it, or was started again since.
    Gone,
    /// Nobody can tell it from others: another server has answered, or none that says which one it is.
    Unproven,
}

/// What the server answers; the driver's own shorter ways panic where that is not what was expected.
pub(crate) async fn rows<T: FromRow + Send + 'static>(
    conn: &mut impl Queryable,
    sql: &str,
) -> Result<Vec<T>, mysql_async::Error> {
    let rows = conn.query_iter(sql).await?.try_collect_and_drop().await?;
    rows.into_iter().collect::<Result<_, _>>().map_err(|error| mysql_async::Error::Other(Box::new(error)))
}

/// What the server of this session, which is from there, knows of those: the one place where is decided which are ours.
///
/// A server gives a number to one session at a time, and begins anew only when it is started again. So what the same run of the
/// same server lists under a number, for the same user and the same client's address, is that session.
///
/// By the statement, not the table `information_schema.processlist`: for each question to that both servers make a temporary
/// table on disk (`Created_tmp_disk_tables` counts it), and a disk may be busy. Without a privilege it lists the user's own.
pub(crate) async fn look(
    conn: &mut Conn,
    origin: Option<&Origin>,
    asked: &[Asked],
) -> Result<Vec<Sight>, mysql_async::Error> {
    let relation = |asked: &Asked| origin.map_or(Relation::Unknown, |here| here.relation(asked.origin.as_deref()));
    let relations: Vec<_> = asked.iter().map(relation).collect();
    let is_known = |relation: &Relation| *relation != Relation::Unknown;
    let listed = if relations.iter().any(is_known) { list(conn).await? } else { Vec::new() };
    let own = u64::from(conn.id());
    let user = listed.iter().find(|row| row.id == own).map(|row| row.user.clone());
    let sight = |(asked, relation): (&Asked, &Relation)| {
        let row = listed.iter().find(|row| row.id == u64::from(asked.key.id));
        let is_client = |row: &Line| asked.origin.as_ref().is_some_and(|origin| origin.is_client(&row.client));
        match (relation, row) {
            (Relation::Unknown, _) => Sight::Unproven,
            // Some servers are started again under their sessions, as Aurora is.
            (Relation::Over, Some(row)) if is_client(row) => Sight::Unproven,
            (Relation::Over, _) => Sight::Gone,
            // Others cannot be told to end, and may not be shown.
            (Relation::Same, _) if user.is_none() => Sight::Unproven,
            (Relation::Same, None) => Sight::Gone,
            (Relation::Same, Some(row)) if is_client(row) && Some(&row.user) == user.as_ref() => {
                Sight::Ours(Ours { key: asked.key, listed: row.listed })
            }
            (Relation::Same, Some(_)) => Sight::Unproven,
        }
    };
    Ok(asked.iter().zip(&relations).map(sight).collect())
}

/// A session that nobody knew of.
pub(crate) struct Found {
    pub(crate) id: u32,
    pub(crate) origin: Origin,
    pub(crate) listed: Listed,
}

/// A line of the server's list.
pub(crate) struct Line {
    pub(crate) id: u64,
    user: String,
    pub(crate) client: String,
    listed: Listed,
}

/// The sessions that the server shows this one.
pub(crate) async fn list(conn: &mut Conn) -> Result<Vec<Line>, mysql_async::Error> {
    let rows: Vec<Row> = rows(conn, "SHOW PROCESSLIST").await?;
    let line = |mut row: Row| {
        // A server whose columns are others has answered nothing that is of use.
        let (Some(Ok(id)), Some(Ok(user)), Some(Ok(client)), Some(Ok(command))) =
            (row.take_opt("Id"), row.take_opt("User"), row.take_opt("Host"), row.take_opt::<String, _>("Command"))
        else {
            return Err(mysql_async::Error::Other("the server's process list is not as expected".into()));
        };
        let is_busy = matches!(command.as_str(), "Query" | "Execute" | "Fetch");
        Ok(Line { id, user, client, listed: Listed { is_busy, rests: command == "Sleep" } })
    };
    rows.into_iter().map(line).collect()
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
    /// On which its own end is seen.
    relay: Option<Relay>,
    origin: Option<Origin>,
}

impl Watcher {
    pub(crate) async fn open(address: &Address, opts: &Opts, limit: Duration) -> Result<Self, mysql_async::Error> {
        // What comes then has the limit of whoever asks, a drain for one: a server that is slow is worth the time that is there.
        let connecting = Opening::of(address, limit);
        let (builder, mut relay) = in_time(&connecting, "connecting", Relay::to(address, opts)).await?;
        let builder = builder.db_name(None::<String>).compression(None).max_allowed_packet(Some(16 * 1024 * 1024));
        let mut conn =
            Conn::new(builder).await.map_err(|failure| relay.failure().map_or(failure, mysql_async::Error::from))?;
        let origin = introduce(&mut conn).await?.origin;
        Ok(Self { conn, relay: Some(relay), origin })
    }

    /// Asks over a connection that is there already.
    pub(crate) async fn over(mut conn: Conn) -> Result<Self, mysql_async::Error> {
        read_out(&mut conn).await;
        let origin = introduce(&mut conn).await?.origin;
        Ok(Self { conn, relay: None, origin })
    }

    pub(crate) fn into_conn(self) -> Conn {
        self.conn
    }

    /// What the server knows of these sessions.
    pub(crate) async fn look(&mut self, asked: &[Asked]) -> Result<Vec<Sight>, mysql_async::Error> {
        look(&mut self.conn, self.origin.as_ref(), asked).await
    }

    /// What the server lists of this user's besides those that are `known`, and whom it has at their other end. `None` where nobody can say
    /// which they are: the server does not say which one it is, or some that are known are with another one.
    pub(crate) async fn others(
        &mut self,
        known: &[Asked],
        address: &Address,
    ) -> Result<Option<Vec<(Found, Peer)>>, mysql_async::Error> {
        let Some(here) = self.origin.as_ref() else { return Ok(None) };
        if known.iter().any(|known| here.relation(known.origin.as_deref()) != Relation::Same) {
            return Ok(None);
        }
        let own = u64::from(self.conn.id());
        let lines = list(&mut self.conn).await?;
        let Some(user) = lines.iter().find(|line| line.id == own).map(|line| line.user.clone()) else {
            return Ok(None);
        };
        let is_known = |line: &Line| known.iter().any(|known| u64::from(known.key.id) == line.id);
        let others = lines.into_iter().filter(|line| line.id != own && line.user == user && !is_known(line));
        let server = match address {
            Address::Tcp(server) => Some(*server),
            Address::Unix(_) => None,
        };
        let found = |line: Line| {
            let (id, origin) = (u32::try_from(line.id).ok()?, here.of_client(&line.client));
            Some((Found { id, origin, listed: line.listed }, Peer::new(listed_client(&line.client)?, server)))
        };
        Ok(Some(others.filter_map(found).collect()))
    }

    /// Tells the server to end these; which of them it has taken, the others being gone already.
    pub(crate) async fn kill(&mut self, kill: Kill, ours: &[Ours]) -> Result<Vec<Key>, mysql_async::Error> {
        let verb = match kill {
            Kill::Query => "KILL QUERY",
            Kill::Session => "KILL",
        };
        let mut taken = Vec::new();
        let mut left = ours;
        while !left.is_empty() {
            // All of them in one round trip; an error is about the first that was not taken, and ends the rest.
            let sql = left.iter().map(|ours| format!("{verb} {}", ours.key.id)).collect::<Vec<_>>().join(";");
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
            taken.extend(left[..done].iter().map(|ours| ours.key));
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
        let Self { conn, relay, .. } = self;
        let began = Instant::now();
        let failed = |failure| {
            error(ErrorKind::Incomplete, "the session that asked about the others could not say goodbye", failure)
        };
        conn.disconnect().await.map_err(failed)?;
        let ended = match relay {
            Some(mut relay) => relay.ended().await,
            None => None,
        };
        let Some(ended) = ended else {
            return Err(Error::new(
                ErrorKind::Incomplete,
                "the session that asked about the others was not seen to end",
            ));
        };
        sleep(unlisting(ended.saturating_duration_since(began))).await;
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
pub(crate) fn unproven(address: &Address) -> Error {
    let text = format!(
        "sessions are not proven to be with the server that answers at {address}: it is another server, a proxy, or does not \
         say. None of them was told to end there, and whether they have ended is not known"
    );
    Error::new(ErrorKind::Incomplete, text)
}
