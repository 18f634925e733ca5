//! The TCP sockets of this process, as Linux lists them. Elsewhere there are none to be seen.
//!
//! A driver has the socket of a session, and shows it to nobody. The kernel does: so a server's session is known by the address that
//! its client has there, and its end is seen though somebody else has the socket.

#[cfg(target_os = "linux")]
mod netlink;
mod proc;
mod table;

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use self::table::{Row, State};

/// A connection: our end and the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Connection {
    /// Our end.
    pub local: SocketAddr,
    /// The other one.
    pub remote: SocketAddr,
}

/// Whom a server has at the other end of a session.
///
/// A process may have the same end of its own in several connections, to one server each: so both ends are looked for, where the
/// server's is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Peer {
    /// Where the server sees its client.
    pub address: SocketAddr,
    /// Where it has reached the server, if anybody says so. What translates addresses has another one for the client.
    pub server: Option<SocketAddr>,
}

impl Peer {
    /// The client at this address, of the server at that one.
    #[must_use]
    pub fn new(address: SocketAddr, server: Option<SocketAddr>) -> Self {
        Self { address: canonical(address), server: server.map(canonical) }
    }

    /// The same, of the server at this address where that is not known.
    #[must_use]
    pub fn or_of(self, server: Option<SocketAddr>) -> Self {
        Self { server: self.server.or_else(|| server.map(canonical)), ..self }
    }

    fn connection(&self) -> Option<Connection> {
        Some(Connection { local: self.address, remote: self.server? })
    }
}

/// The connections that this process has, at one moment.
#[derive(Debug, Default)]
pub struct OwnSockets {
    connections: HashSet<Connection>,
    /// The ends that connections of other processes have here.
    others: HashSet<SocketAddr>,
}

impl OwnSockets {
    /// Those of this moment; none where they cannot be read, as in a process that has no descriptor left. Reading them takes the kernel
    /// a moment, and milliseconds with thousands of sockets, in which the thread does nothing else.
    #[must_use]
    pub fn now() -> Self {
        let mut sockets = Self::default();
        let Ok(rows) = table::rows(&State::HELD) else { return sockets };
        // Read last: what is opened meanwhile is not taken for another process's.
        let inodes = proc::own_sockets();
        // What nobody has any more has no number.
        for Row { connection, inode } in rows.into_iter().filter(|row| row.inode != 0) {
            if inodes.contains(&inode) {
                sockets.connections.insert(connection);
            } else {
                sockets.others.insert(connection.local);
            }
        }
        sockets
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.connections.iter()
    }

    /// The sessions of a driver's pool that nobody else knows of: those that a server lists with one of our ends for their client, if
    /// they are exactly as many as the pool has out. Where it lists more, some are others', and nobody knows which.
    ///
    /// # Errors
    /// How many could be these, where that is another number.
    pub fn exactly<S>(&self, expected: usize, listed: impl IntoIterator<Item = (S, Peer)>) -> Result<Vec<S>, usize> {
        let could_be: Vec<_> =
            listed.into_iter().filter_map(|(session, peer)| self.has(&peer).then_some(session)).collect();
        if could_be.len() == expected { Ok(could_be) } else { Err(could_be.len()) }
    }

    /// Whether this is this process, and no other one.
    #[must_use]
    pub fn has(&self, peer: &Peer) -> bool {
        self.exact(peer).is_some()
            || !self.others.contains(&peer.address) && self.with_end(peer.address).next().is_some()
    }

    /// The connection that this is of this process. None where it is none, or nobody can say which one it is.
    #[must_use]
    pub fn of(&self, peer: &Peer) -> Option<Connection> {
        self.exact(peer).or_else(|| {
            let mut found = self.with_end(peer.address);
            let only = *found.next()?;
            (found.next().is_none() && !self.others.contains(&peer.address)).then_some(only)
        })
    }

    fn exact(&self, peer: &Peer) -> Option<Connection> {
        peer.connection().filter(|connection| self.connections.contains(connection))
    }

    fn with_end(&self, local: SocketAddr) -> impl Iterator<Item = &Connection> {
        self.connections.iter().filter(move |connection| connection.local == local)
    }
}

/// As the kernel's tables are read.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Where a client is that a server names by an address and a port; none where it has another name.
#[must_use]
pub fn client(host: &str, port: impl TryInto<u16>) -> Option<SocketAddr> {
    let host: IpAddr = host.parse().ok()?;
    Some(canonical(SocketAddr::new(host, port.try_into().ok()?)))
}

/// The same of one that is listed as `host:port`, without brackets around the host.
#[must_use]
pub fn listed_client(listed: &str) -> Option<SocketAddr> {
    let (host, port) = listed.rsplit_once(':')?;
    client(host, port.parse::<u16>().ok()?)
}

/// How long a session may still be listed whose socket its server has closed, where a server does it in this order, as MySQL does.
///
/// What it does until then is the work of microseconds, and nobody is left to ask whether it is done. It is given twice as long as the
/// goodbye took, from 1 to 100 ms: a server that waits for a core does so there, too.
#[must_use]
pub fn unlisting(goodbye_took: Duration) -> Duration {
    (goodbye_took * 2).clamp(Duration::from_millis(1), Duration::from_millis(100))
}

/// The connections of the machine whose other end has not closed its side, or had not before ours did, at one moment.
#[derive(Debug)]
pub struct Open {
    /// None where they could not be read.
    connections: Option<HashSet<Connection>>,
    took: Duration,
}

impl Open {
    /// Those of this moment. Reading them takes the kernel a moment, and milliseconds with thousands of sockets, in which the thread does
    /// nothing else.
    #[must_use]
    pub fn now() -> Self {
        let began = Instant::now();
        let rows = table::rows(&State::OPEN);
        let connections = rows.ok().map(|rows| rows.into_iter().map(|row| row.connection).collect());
        Self { connections, took: began.elapsed() }
    }

    /// Whether this is one of them, or may be: nothing has ended because nobody could look.
    #[must_use]
    pub fn contains(&self, connection: &Connection) -> bool {
        self.connections.as_ref().is_none_or(|connections| connections.contains(connection))
    }

    /// How long to wait at the least before looking again, by what this look has taken: no more than a fifth of the time goes into
    /// looking, where there are many sockets or the machine is busy.
    #[must_use]
    pub fn rest(&self) -> Duration {
        self.took * 4
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_client_is_an_address_or_not_known() {
        for (listed, address) in [
            ("10.0.0.1:4000", Some("10.0.0.1:4000")),
            ("::1:4000", Some("[::1]:4000")),
            ("::ffff:10.0.0.1:4000", Some("10.0.0.1:4000")),
            ("localhost", None),
            ("db.example:4000", None),
            ("", None),
        ] {
            assert_eq!(listed_client(listed), address.map(|address| address.parse().unwrap()), "{listed}");
        }
        assert_eq!(client("10.0.0.1", 70_000_i32), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_connection_has_ended_when_both_sides_have_closed_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        let peer = Peer::new(ours.local_addr().unwrap(), None);
        let connection = OwnSockets::now().of(&peer).unwrap();
        assert!(Open::now().contains(&connection));
        drop(ours);
        assert!(Open::now().contains(&connection), "the other side is open");
        assert!(OwnSockets::now().of(&peer).is_none());
        drop(theirs);
        assert!(!Open::now().contains(&connection));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn sessions_are_ours_where_as_many_are_listed_as_there_have_to_be() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = [(), ()].map(|()| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let ends = ours.each_ref().map(|ours| ours.local_addr().unwrap());
        let ends = [ends[0], ends[1], "192.0.2.1:4000".parse().unwrap()];
        let listed = || ends.map(|end| (end, Peer::new(end, None)));
        let own = OwnSockets::now();
        assert_eq!(own.exactly(2, listed()), Ok(vec![ends[0], ends[1]]));
        assert_eq!((own.exactly(1, listed()), own.exactly(3, listed())), (Err(2), Err(2)));
    }
    /// The kernel gives a port to several connections, if their other ends are not the same.
    #[test]
    #[cfg(target_os = "linux")]
    fn of_connections_with_the_same_end_here_it_is_the_one_to_its_server() {
        let listeners = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let servers = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connect = |local: SocketAddr, server| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(local).unwrap();
            runtime.block_on(socket.connect(server)).unwrap()
        };
        let first = connect("127.0.0.1:0".parse().unwrap(), servers[0]);
        let local = first.local_addr().unwrap();
        let alone = OwnSockets::now();
        let second = connect(local, servers[1]);
        let both = OwnSockets::now();

        let unknown = Peer::new(local, None);
        assert_eq!(alone.of(&unknown), Some(Connection { local, remote: servers[0] }));
        assert_eq!((both.of(&unknown), both.has(&unknown)), (None, true));
        for remote in servers {
            assert_eq!(both.of(&Peer::new(local, Some(remote))), Some(Connection { local, remote }));
        }
        // It has another address for us.
        let translated = Peer::new(local, Some("192.0.2.1:5432".parse().unwrap()));
        assert_eq!(alone.of(&translated), alone.of(&unknown));
        assert_eq!(both.of(&translated), None);
        drop((first, second));
    }

    #[test]
    fn what_others_have_too_is_ours_only_at_both_ends() {
        let local = "10.0.0.1:40000".parse().unwrap();
        let [ours, theirs] = ["10.0.0.2:5432", "10.0.0.3:5432"].map(|remote| remote.parse().unwrap());
        let own = OwnSockets {
            connections: HashSet::from([Connection { local, remote: ours }]),
            others: HashSet::from([local]),
        };
        for (server, is_ours) in [(None, false), (Some(theirs), false), (Some(ours), true)] {
            let peer = Peer::new(local, server);
            assert_eq!((own.has(&peer), own.of(&peer).is_some()), (is_ours, is_ours), "{server:?}");
            assert_eq!(own.exactly(1, [((), peer)]).is_ok(), is_ours, "{server:?}");
        }
    }
}
