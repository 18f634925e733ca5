//! What tells a session from every other one, of other servers and of other times: its number does not.
//!
//! A server gives numbers anew when it is started again, several servers may be behind one address, and a proxy has numbers of
//! its own. So each session asks, when it is opened, with which run of which server it is, and where that sees its client. A
//! session that is listed later is ours only if all of that is as it was.

use mysql_async::Conn;

use crate::watcher::rows;

/// A server's name for itself; its `UUID_SHORT()`, which has the moment of its start in it, as it was by its clock then; and
/// where this session's client is. The names of the versions' own variables are in comments that only those read.
const INTRODUCTION: &str = "SELECT CONNECTION_ID(), \
     CONCAT_WS(':', @@hostname, @@port /*!50700 , @@server_uuid */ /*M!110502 , @@server_uid */), UUID_SHORT(), \
     (SELECT HOST FROM information_schema.PROCESSLIST WHERE ID = CONNECTION_ID()), @@max_allowed_packet";

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
    match rows::<Answer>(conn, INTRODUCTION).await {
        Ok(answer) => {
            let Some((id, server, uuid_short, client, max_packet)) = answer.into_iter().next() else {
                return Ok(Introduced::default());
            };
            let origin = match (server, uuid_short, client) {
                (Some(server), Some(uuid_short), Some(client)) if id == number => {
                    Some(Origin { run: Run::new(server, uuid_short), client: client.into() })
                }
                _ => None,
            };
            Ok(Introduced { origin, max_packet })
        }
        Err(mysql_async::Error::Server(_) | mysql_async::Error::Other(_)) => {
            let answer = match rows::<usize>(conn, LIMIT).await {
                Err(mysql_async::Error::Server(_) | mysql_async::Error::Other(_)) => Vec::new(),
                answer => answer?,
            };
            Ok(Introduced { origin: None, max_packet: answer.into_iter().next() })
        }
        Err(failure) => Err(failure),
    }
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
    fn a_client_is_known_by_its_host_and_port() {
        let origin = origin("db:3306", 1, 1_700_000_000, 0, "10.0.0.1:4000");
        assert!(origin.is_client("10.0.0.1:4000"));
        assert!(!origin.is_client("10.0.0.1:4001") && !origin.is_client("10.0.0.1"));
    }
}
