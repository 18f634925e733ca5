//! What the server is asked about the sessions of a pool that the application built.
//!
//! In the simple protocol, whose answers are text, so that nothing is prepared, and one round trip is enough.

use std::{collections::HashSet, fmt::Display};

use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use winddown_net::own_sockets::{self, Peer};

/// Names one session for good: a process id is used again, and no session that has it later began at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SessionId {
    pub(super) pid: i32,
    /// When it began, in microseconds of the server's clock.
    began: i64,
}

/// A session as the server lists it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    pub(super) id: SessionId,
    /// Whom the server has at its other end. None over a Unix socket.
    pub(super) peer: Option<Peer>,
    pub(super) is_busy: bool,
    /// When its last statement began, which tells one from the next.
    pub(super) statement: Option<i64>,
}

/// A number that is the same in every time zone and date style of a session.
macro_rules! microseconds {
    ($column:literal) => {
        concat!("(extract(epoch FROM ", $column, ") * 1000000)::int8")
    };
}

const BEGAN: &str = microseconds!("backend_start");
/// What is asked by us is answered at once, and is nothing to be stopped.
const BUSY: &str = "state IN ('active', 'fastpath function call') AND query NOT LIKE '/* winddown %'";

fn select(condition: &str) -> String {
    let statement = microseconds!("query_start");
    format!(
        "/* winddown asks */ SELECT pid, {BEGAN}, host(client_addr), client_port, {BUSY}, {statement}, host(inet_server_addr()), \
         inet_server_port() FROM pg_stat_activity WHERE {condition}"
    )
}

/// Asks which session this is.
pub(super) fn own() -> String {
    select("pid = pg_backend_pid()")
}

/// Those with these process ids, and those whose client has one of these ports and is the same user of the same database.
pub(super) async fn list(
    client: &Client,
    pids: &HashSet<i32>,
    ports: &HashSet<u16>,
) -> Result<Vec<Listed>, tokio_postgres::Error> {
    let condition = format!(
        "pid = ANY('{{{}}}') OR (client_port = ANY('{{{}}}') AND usename = session_user AND datname = current_database())",
        joined(pids),
        joined(ports)
    );
    Ok(client.simple_query(&select(&condition)).await?.iter().filter_map(listed).collect())
}

/// Has the server stop what these run. Those that ran something then.
pub(super) async fn cancel(client: &Client, ids: &[SessionId]) -> Result<Vec<SessionId>, tokio_postgres::Error> {
    let pairs = joined(ids.iter().map(|id| format!("({},{})", id.pid, id.began)));
    let sql = format!(
        "SELECT pid, {BEGAN}, pg_cancel_backend(pid) FROM pg_stat_activity WHERE (pid, {BEGAN}) IN ({pairs}) AND {BUSY}"
    );
    let answer = client.simple_query(&sql).await?;
    let taken = rows(&answer).filter(|row| row.try_get(2).ok().flatten() == Some("t"));
    Ok(taken.filter_map(session_id).collect())
}

fn joined(items: impl IntoIterator<Item: Display>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(",")
}

fn rows(answer: &[SimpleQueryMessage]) -> impl Iterator<Item = &SimpleQueryRow> {
    answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

fn session_id(row: &SimpleQueryRow) -> Option<SessionId> {
    Some(SessionId { pid: column(row, 0)?, began: column(row, 1)? })
}

/// None where it is no row, or one of a session that this user is not shown.
pub(super) fn listed(message: &SimpleQueryMessage) -> Option<Listed> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    let address = |host, port| own_sockets::client(row.try_get(host).ok()??, column::<u16>(row, port)?);
    let peer = address(2, 3).map(|client| Peer::new(client, address(6, 7)));
    let is_busy = row.try_get(4).ok().flatten() == Some("t");
    Some(Listed { id: session_id(row)?, peer, is_busy, statement: column(row, 5) })
}

fn column<T: std::str::FromStr>(row: &SimpleQueryRow, index: usize) -> Option<T> {
    row.try_get(index).ok()??.parse().ok()
}
