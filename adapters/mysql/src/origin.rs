//! What tells a session from every other one, of other servers and of other times: its number does not.
//!
//! A server gives numbers anew when it is started again, several servers may be behind one address, and a proxy has numbers of
//! its own. So each session asks, when it is opened, with which run of which server it is, and where that sees its client. A
//! session that is listed later is ours only if all of that is as it was.

use mysql_async::Conn;

use crate::watcher::{list, rows};

/// A server's name for itself; its `UUID_SHORT()`, which has the moment of its start in it, as it was by its clock then; and
/// where this session's client is. The names of the versions' own variables are in comments that only those read.
fn introduction(client: &str) -> String {
    format!(
        "SELECT CONNECTION_ID(), \
         CONCAT_WS(':', @@hostname, @@port /*!50700 , @@server_uuid */ /*M!110502 , @@server_uid */), UUID_SHORT(), \
         {client}, @@max_allowed_packet"
    )
}

/// Where a session's client is, in SQL for a server of this version.
///
/// In MySQL a question to the table of `information_schema` is an error (3854) while another session of the same user runs a
/// statement with bytes in it that are no text. The other table shows it nevertheless, but is empty where the performance schema
/// is off.
const fn client(version: (u16, u16, u16)) -> &'static str {
    // MariaDB begins with 10, and has only the first.
    match version {
        (8, 0, 22..) | (8, 1.., _) | (9, ..) => {
            "(SELECT HOST FROM performance_schema.processlist WHERE ID = CONNECTION_ID())"
        }
        _ => "(SELECT HOST FROM information_schema.PROCESSLIST WHERE ID = CONNECTION_ID())",
    }
}

/// Servers that know less of themselves know this.
const LIMIT: &str = "SELECT @@max_allowed_packet";

/// One run of a server, from a start to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    server: Box<str>,
    /// In seconds, with the server's short id above them.
    started: u64,
}

impl Run {
    fn new(server: String, uuid_short: u64) -> Self {
        // What it counts is below.
        Self { server: server.into(), started: uuid_short >> 24 }
    }

    /// Whether it is of the same server as the other, which was over before.
    fn is_later_than(&self, other: &Self) -> bool {
        const SHORT_ID: u32 = 32;
        self.server == other.server
            && self.started >> SHORT_ID == other.started >> SHORT_ID
            && self.started > other.started
    }
}

/// Where a session is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    run: Run,
    /// The host and the port of its client, as the server sees them.
    client: Box<str>,
}

/// What a session that looks at the others can say of one, by its origin and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// It is with the same run of the same server.
    Same,
    /// Its server was started again since, so that it is over.
    Over,
    /// With another server, or nobody knows.
    Unknown,
}

impl Origin {
    pub(crate) fn relation(&self, of: Option<&Self>) -> Relation {
        match of {
            Some(of) if of.run == self.run => Relation::Same,
            Some(of) if self.run.is_later_than(&of.run) => Relation::Over,
            _ => Relation::Unknown,
        }
    }

    /// That of another session with the same run of the server.
    pub(crate) fn of_client(&self, listed: &str) -> Self {
        Self { run: self.run.clone(), client: listed.into() }
    }

    pub(crate) fn is_client(&self, listed: &str) -> bool {
        *self.client == *listed
    }
}

/// What a session has learnt of itself.
#[derive(Debug, Default)]
pub(crate) struct Introduced {
    /// `None` where the server does not say, or has another number for the session than its handshake: a proxy, or numbers
    /// that do not fit there.
    pub(crate) origin: Option<Origin>,
    pub(crate) max_packet: Option<usize>,
}

/// Asks a session who it is.
pub(crate) async fn introduce(conn: &mut Conn) -> Result<Introduced, mysql_async::Error> {
    type Answer = (u64, Option<String>, Option<u64>, Option<String>, Option<usize>);
    let number = u64::from(conn.id());
    let mut answer = rows::<Answer>(conn, &introduction(client(conn.server_version()))).await;
    if answer.as_ref().is_err_and(is_refusal) {
        answer = rows(conn, &introduction("NULL")).await;
    }
    match answer {
        Ok(answer) => {
            let Some((id, server, uuid_short, client, max_packet)) = answer.into_iter().next() else {
                return Ok(Introduced::default());
            };
            let (Some(server), Some(uuid_short), true) = (server, uuid_short, id == number) else {
                return Ok(Introduced { origin: None, max_packet });
            };
            let client = match client {
                None => listed_client(conn).await?,
                client => client,
            };
            let origin = client.map(|client| Origin { run: Run::new(server, uuid_short), client: client.into() });
            Ok(Introduced { origin, max_packet })
        }
        Err(failure) if is_refusal(&failure) => {
            let answer = match rows::<usize>(conn, LIMIT).await {
                Err(failure) if is_refusal(&failure) => Vec::new(),
                answer => answer?,
            };
            Ok(Introduced { origin: None, max_packet: answer.into_iter().next() })
        }
        Err(failure) => Err(failure),
    }
}

/// Where the session's client is by the statement that lists all of the user's sessions.
async fn listed_client(conn: &mut Conn) -> Result<Option<String>, mysql_async::Error> {
    let own = u64::from(conn.id());
    match list(conn).await {
        Ok(lines) => Ok(lines.into_iter().find(|line| line.id == own).map(|line| line.client)),
        Err(failure) if is_refusal(&failure) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Whether the server has answered, but nothing that is of use.
fn is_refusal(failure: &mysql_async::Error) -> bool {
    matches!(failure, mysql_async::Error::Server(_) | mysql_async::Error::Other(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(server: &str, short_id: u64, started: u64, counted: u64, client: &str) -> Origin {
        let run = Run::new(server.to_owned(), (short_id << 56) + (started << 24) + counted);
        Origin { run, client: client.into() }
    }

    #[test]
    fn a_run_of_a_server_is_known_by_its_start() {
        let now = origin("db:3306", 1, 1_700_000_000, 7, "10.0.0.1:4000");
        let of = |server, short_id, started| {
            let then = origin(server, short_id, started, 900, "10.0.0.1:4001");
            now.relation(Some(&then))
        };
        assert_eq!(of("db:3306", 1, 1_700_000_000), Relation::Same);
        assert_eq!(of("db:3306", 1, 1_699_999_999), Relation::Over);
        // Its clock was set back, or it is not what its name says.
        assert_eq!(of("db:3306", 1, 1_700_000_001), Relation::Unknown);
        assert_eq!(of("db:3306", 2, 1_700_000_000), Relation::Unknown);
        assert_eq!(of("db:3306", 0, 1_700_000_000), Relation::Unknown);
        assert_eq!(of("other:3306", 1, 1_699_999_999), Relation::Unknown);
        assert_eq!(now.relation(None), Relation::Unknown);
    }

    #[test]
    fn the_table_that_has_no_error_is_asked_where_it_is() {
        for (version, is_there) in [
            ((5, 7, 44), false),
            ((8, 0, 21), false),
            ((8, 0, 22), true),
            ((8, 4, 0), true),
            ((9, 7, 4), true),
            ((10, 6, 22), false),
            ((11, 8, 3), false),
        ] {
            assert_eq!(client(version).contains("performance_schema"), is_there, "{version:?}");
        }
    }

    #[test]
    fn a_client_is_known_by_its_host_and_port() {
        let origin = origin("db:3306", 1, 1_700_000_000, 0, "10.0.0.1:4000");
        assert!(origin.is_client("10.0.0.1:4000"));
        assert!(!origin.is_client("10.0.0.1:4001") && !origin.is_client("10.0.0.1"));
    }
}
