//! Who a session is to its server, and how that is proven later: numbers begin again when a server is started again, and an
//! address may lead to another server.

use redis::{Cmd, Value, cmd, from_redis_value_ref};
#[cfg(feature = "deadpool")]
use winddown_net::own_sockets::Peer;

/// How a server knows a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its number. A server gives none twice while it runs.
    pub(crate) id: i64,
    /// What the server says of itself: another value each time it is started.
    run: Option<String>,
    /// Both ends of the connection, as the server sees them.
    ends: Option<Ends>,
}

type Ends = (String, Option<String>);

/// Whether a client that a server lists is the session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    Ours,
    /// It is not listed any more.
    Gone,
    /// Nothing proves it, and this is why.
    No(&'static str),
}

impl Identity {
    /// What is asked when a session is opened.
    pub(crate) fn questions() -> [Cmd; 2] {
        [cmd("INFO").arg("server").take(), cmd("CLIENT").arg("INFO").take()]
    }

    /// By the number, and the answers to the [`questions`](Self::questions).
    pub(crate) fn new(id: i64, answers: Option<&[Value]>) -> Self {
        let text = |at: usize| answers.and_then(|answers| answers.get(at)).map(text).unwrap_or_default();
        let run = text(0).lines().find_map(|line| line.strip_prefix("run_id:").map(|run| run.trim().to_owned()));
        Self { id, run: run.filter(|run| !run.is_empty()), ends: ends(&text(1)) }
    }

    /// The others of its user, of all whom its server lists. `listed` is what the server answered it to that.
    #[cfg(feature = "deadpool")]
    pub(crate) fn others(&self, listed: &Value) -> Vec<Self> {
        let of = |line: &str| {
            let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name)).map(ToOwned::to_owned);
            let client = Self { id: field("id=")?.parse().ok()?, run: self.run.clone(), ends: ends(line) };
            Some((client, field("user=")))
        };
        let listed = text(listed);
        let clients: Vec<_> = listed.lines().filter_map(of).collect();
        let user = clients.iter().find(|(client, _)| client.id == self.id).and_then(|(_, user)| user.clone());
        let others = clients.into_iter().filter(|(client, of)| client.id != self.id && *of == user);
        others.map(|(client, _)| client).collect()
    }

    /// Whom the server has at its other end.
    #[cfg(feature = "deadpool")]
    pub(crate) fn peer(&self) -> Option<Peer> {
        let (client, server) = self.ends.as_ref()?;
        Some(Peer::new(client.parse().ok()?, server.as_ref().and_then(|server| server.parse().ok())))
    }

    /// Whether the client that a server lists under its number is it. `asking` is who asked, on a session that is open.
    pub(crate) fn prove(&self, asking: &Self, listed: &Value) -> Proof {
        let (Some(run), Some(now)) = (&self.run, &asking.run) else {
            return Proof::No("the server does not say by INFO which one it is");
        };
        if run != now {
            return Proof::No("the server is not the one that it was opened with");
        }
        if matches!(listed, Value::ServerError(_)) {
            return Proof::No("the server does not say by CLIENT LIST whose number it is");
        }
        let line = text(listed);
        if line.trim().is_empty() {
            return Proof::Gone;
        }
        match (&self.ends, ends(&line)) {
            (Some(ends), Some(now)) if *ends == now => Proof::Ours,
            (Some(_), Some(_)) => Proof::No("the one that has its number there comes from another address"),
            _ => Proof::No("the server does not say by CLIENT INFO where it comes from"),
        }
    }
}

/// What a server answered, where that is a text.
pub(crate) fn text(value: &Value) -> String {
    from_redis_value_ref(value).unwrap_or_default()
}

/// What a line of the list of clients says. <https://redis.io/docs/latest/commands/client-list/>
fn ends(line: &str) -> Option<Ends> {
    let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name)).map(ToOwned::to_owned);
    Some((field("addr=")?, field("laddr=")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn identity(run: &str, ends: &str) -> Identity {
        let info = format!("# Server\r\nredis_version:8.0.2\r\nrun_id:{run}\r\ntcp_port:6379\r\n");
        Identity::new(7, Some(&[bulk(&info), bulk(&format!("id=7 {ends} name=x flags=N"))]))
    }

    #[test]
    fn s7_what_is_listed_is_ours_where_the_server_and_both_ends_are_the_same() {
        let ours = identity("a", "addr=1.2.3.4:5 laddr=1.2.3.5:6379");
        let listed = |ends: &str| bulk(&format!("id=7 {ends} name=y flags=b\n"));
        assert_eq!(
            ours.prove(&identity("a", "addr=other:1"), &listed("addr=1.2.3.4:5 laddr=1.2.3.5:6379")),
            Proof::Ours
        );
        assert_eq!(ours.prove(&ours, &bulk("")), Proof::Gone);
        for (asking, listed) in [
            (identity("b", "addr=1.2.3.4:5"), listed("addr=1.2.3.4:5 laddr=1.2.3.5:6379")),
            (identity("", "addr=1.2.3.4:5"), listed("addr=1.2.3.4:5 laddr=1.2.3.5:6379")),
            (ours.clone(), listed("addr=1.2.3.4:6 laddr=1.2.3.5:6379")),
            (ours.clone(), listed("addr=1.2.3.4:5 laddr=1.2.3.6:6379")),
            (ours.clone(), listed("no-addr=1.2.3.4:5")),
        ] {
            assert!(matches!(ours.prove(&asking, &listed), Proof::No(_)), "{listed:?}");
        }
    }

    #[cfg(feature = "deadpool")]
    #[test]
    fn a_list_of_clients_is_read() {
        let asking = identity("a", "id=7 addr=1.2.3.4:5");
        let listed = bulk(
            "id=7 addr=1.2.3.4:5 laddr=1.2.3.5:6379 name= user=a\nid=8 addr=[::1]:5 user=b\nid=9 addr=[::1]:6 laddr=[::1]:6379 \
             user=a\nid=x user=a\n",
        );
        let others = asking.others(&listed);
        assert_eq!(
            others.iter().map(|other| (other.id, other.peer())).collect::<Vec<_>>(),
            [(9, Some(Peer::new("[::1]:6".parse().unwrap(), "[::1]:6379".parse().ok())))]
        );
        assert_eq!(others[0].prove(&asking, &bulk("id=9 addr=[::1]:6 laddr=[::1]:6379")), Proof::Ours);
    }

    #[test]
    fn s7_what_a_server_does_not_say_proves_nothing() {
        let refused = redis::parse_redis_value(b"-NOPERM no\r\n").unwrap();
        let silent = Identity::new(7, Some(&[refused.clone(), bulk("id=7 addr=1.2.3.4:5")]));
        assert!(matches!(silent.prove(&silent, &bulk("id=7 addr=1.2.3.4:5")), Proof::No(_)));
        let ours = identity("a", "addr=1.2.3.4:5");
        assert!(matches!(ours.prove(&ours, &refused), Proof::No(_)));
        assert!(matches!(Identity::new(7, None).prove(&ours, &bulk("id=7 addr=1.2.3.4:5")), Proof::No(_)));
    }
}
