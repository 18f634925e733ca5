//! PostgreSQL: a session is known by its process id and by when it began.

use std::hash::{Hash, Hasher};

use sqlx::{
    Connection as _, Error, Executor as _, PgConnection, Postgres, Row as _, SqlSafeStr as _, Statement as _,
    postgres::PgStatement,
};
use winddown_core::Capabilities;
use winddown_net::own_sockets::{self, Peer};

use super::{Backend, Known, Listed, Server, roll_back};

impl Backend for Postgres {}

/// Names one session for good: a process id is used again, and no session that has it later began at the same time.
#[derive(Debug, Clone, Copy)]
#[doc(hidden)]
pub struct PgSession {
    pid: i32,
    /// In microseconds of the server's clock.
    began: i64,
    /// No part of the name: who asks may have reached the server at another of its addresses.
    peer: Option<Peer>,
}

impl PgSession {
    fn name(&self) -> (i32, i64) {
        (self.pid, self.began)
    }
}

impl PartialEq for PgSession {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for PgSession {}

impl Hash for PgSession {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

/// A number that is the same in every time zone and date style of a session.
macro_rules! microseconds {
    ($column:literal) => {
        concat!("(extract(epoch FROM ", $column, ") * 1000000)::int8")
    };
}

const OWN: &str = concat!(
    "/* winddown asks */ SELECT pid, ",
    microseconds!("backend_start"),
    ", host(client_addr), client_port, host(inet_server_addr()), inet_server_port() FROM pg_stat_activity \
     WHERE pid = pg_backend_pid()"
);

/// What is asked by us is answered at once, and is nothing to be stopped.
macro_rules! busy {
    () => {
        "coalesce(state IN ('active', 'fastpath function call') AND query NOT LIKE '/* winddown %', false)"
    };
}

const LIST: &str = concat!(
    "/* winddown asks */ SELECT pid, ",
    microseconds!("backend_start"),
    ", host(client_addr), client_port, ",
    busy!(),
    ", ",
    microseconds!("query_start"),
    ", host(inet_server_addr()), inet_server_port() FROM pg_stat_activity \
     WHERE pid = ANY($1) OR ($2 AND usename = session_user AND datname = current_database() AND pid <> pg_backend_pid())"
);

const CANCEL: &str = concat!(
    "/* winddown asks */ SELECT count(*) FILTER (WHERE pg_cancel_backend(listed.pid)) FROM pg_stat_activity AS listed \
     JOIN unnest($1::int4[], $2::int8[]) AS ours(pid, began) ON listed.pid = ours.pid AND ",
    microseconds!("backend_start"),
    " = ours.began WHERE ",
    busy!()
);

/// A host and a port.
type Host = Option<String>;
type Port = Option<i32>;
type Own = (i32, Option<i64>, Host, Port, Host, Port);
type Row = (i32, Option<i64>, Host, Port, bool, Option<i64>, Host, Port);

impl Server for Postgres {
    const RESOURCE: &'static str = "postgres";
    const URL: &'static str = "postgres://";
    const CAPABILITIES: Capabilities = Capabilities::ALL.without_all_sessions();
    type Session = PgSession;
    type Known = PgStatement;

    async fn introduce(conn: &mut PgConnection, known: &Known<Self>) -> Result<Option<PgSession>, Error> {
        let statement = conn.prepare(OWN.into_sql_str()).await?;
        let key = statement.columns().as_ptr().addr();
        if let Some(session) = known.get(key) {
            return Ok(Some(session));
        }
        let row: Option<Own> = statement.query_as().fetch_optional(&mut *conn).await?;
        let Some((pid, Some(began), host, port, server, at)) = row else { return Ok(None) };
        let session = PgSession { pid, began, peer: peer((host, port), (server, at)) };
        // Without a cache each statement is where it is for a moment.
        if conn.cached_statements_size() > 0 {
            known.insert(key, statement, session);
        }
        Ok(Some(session))
    }

    fn peer_of(session: &PgSession) -> Option<Peer> {
        session.peer
    }

    async fn clean(conn: &mut PgConnection) -> Result<(), Error> {
        match roll_back::<Self>(conn).await {
            // One that has failed takes nothing else.
            Err(Error::Database(failed)) if failed.code().as_deref() == Some(IN_FAILED_TRANSACTION) => {
                conn.execute("ROLLBACK").await.map(drop)
            }
            rolled_back => rolled_back,
        }
    }

    async fn list(conn: &mut PgConnection, sessions: Option<&[PgSession]>) -> Result<Vec<Listed<PgSession>>, Error> {
        let pids: Vec<_> = sessions.unwrap_or_default().iter().map(|session| session.pid).collect();
        let rows: Vec<Row> = sqlx::query_as(LIST).bind(pids).bind(sessions.is_none()).fetch_all(conn).await?;
        let listed = rows.into_iter().filter_map(|(pid, began, host, port, is_busy, statement, server, at)| {
            let peer = peer((host, port), (server, at));
            let session = PgSession { pid, began: began?, peer };
            let is_meant = sessions.is_none_or(|sessions| sessions.contains(&session));
            is_meant.then_some(Listed { session, peer, is_busy, statement })
        });
        Ok(listed.collect())
    }

    async fn peer(conn: &mut PgConnection) -> Result<Option<Peer>, Error> {
        // In one round trip, unlike what is prepared.
        let row = conn.fetch_one(sqlx::raw_sql(ENDS)).await?;
        Ok(peer((row.try_get(0)?, row.try_get(1)?), (row.try_get(2)?, row.try_get(3)?)))
    }

    async fn cancel(conn: &mut PgConnection, sessions: &[PgSession]) -> Result<usize, Error> {
        let (pids, began): (Vec<_>, Vec<_>) = sessions.iter().map(|session| (session.pid, session.began)).unzip();
        let cancelled: i64 =
            sqlx::query_scalar(CANCEL).bind(pids).bind(began).persistent(false).fetch_one(conn).await?;
        Ok(usize::try_from(cancelled).unwrap_or_default())
    }
}

const IN_FAILED_TRANSACTION: &str = "25P02";

const ENDS: &str = "SELECT host(inet_client_addr()), inet_client_port(), host(inet_server_addr()), inet_server_port()";

fn peer(client: (Host, Port), server: (Host, Port)) -> Option<Peer> {
    let address = |(host, port): (Host, Port)| own_sockets::client(&host?, port?);
    Some(Peer::new(address(client)?, address(server)))
}
