//! Which session this is.

use diesel::{QueryResult, RunQueryDsl as _, dsl::sql, sql_types::Text};
use winddown_net::own_sockets::{self, Peer};

use super::DieselPostgres;

/// A backend, when it was started in microseconds, and the addresses of its client and of the server, which a Unix socket has not. Behind
/// a pooler it may be another one each time.
const IDENTITY: &str = "/* winddown asks */ SELECT concat_ws(' ', pid, (extract(epoch FROM backend_start) * 1000000)::bigint, \
                        host(client_addr), client_port, host(inet_server_addr()), inet_server_port()) \
                        FROM pg_stat_activity WHERE pid = pg_backend_pid()";

/// What a server says of a session to itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    backend: Option<(i32, i64)>,
    peer: Option<Peer>,
}

/// One backend on one server. Its number alone is another's, once it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backend {
    pub(super) pid: i32,
    /// In microseconds since 1970.
    pub(super) started: i64,
    /// Whom the server has at its other end.
    pub(super) peer: Peer,
}

impl Identity {
    /// Asks the session.
    pub(super) fn of(connection: &mut impl DieselPostgres) -> QueryResult<Self> {
        sql::<Text>(IDENTITY).get_result::<String>(connection).map(|answer| Self::parse(&answer))
    }

    pub(super) fn parse(answer: &str) -> Self {
        let mut parts = answer.split(' ');
        let mut next = || parts.next().unwrap_or_default();
        let backend = next().parse().ok().zip(next().parse().ok());
        let mut address = || own_sockets::client(next(), next().parse::<u16>().ok()?);
        let (client, server) = (address(), address());
        Self { backend, peer: client.map(|client| Peer::new(client, server)) }
    }

    /// Whom the server has at its other end.
    pub(super) fn peer(&self) -> Option<Peer> {
        self.peer
    }

    /// What proves, with a look at the sockets of this process, that a backend is this session's.
    pub(super) fn backend(&self) -> Option<Backend> {
        let ((pid, started), peer) = self.backend.zip(self.peer)?;
        Some(Backend { pid, started, peer })
    }
}
