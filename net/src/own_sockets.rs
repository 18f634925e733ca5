//! The TCP sockets of this process, as Linux lists them. Elsewhere there are none to be seen.
//!
//! A driver has the socket of a session, and shows it to nobody. The kernel does: so a server's session is known by the address that
//! its client has there, and its end is seen though somebody else has the socket.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// A connection: our end and the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Connection {
    /// Our end.
    pub local: SocketAddr,
    /// The other one.
    pub remote: SocketAddr,
}

/// The connections that this process has, at one moment.
#[derive(Debug)]
pub struct OwnSockets(HashSet<Connection>);

impl OwnSockets {
    /// Those of this moment. Reading them takes the kernel some milliseconds, in which the thread does nothing else.
    #[must_use]
    pub fn now() -> Self {
        let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return Self(HashSet::new()) };
        let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let inodes: HashSet<u64> =
            links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect();
        let ours = |row: &Row| row.inode != 0 && inodes.contains(&row.inode);
        Self(rows().into_iter().filter(ours).map(|row| row.connection).collect())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.0.iter()
    }

    /// The sessions of a driver's pool that nobody else knows of: those that a server lists with one of our ends for their client, if
    /// they are exactly as many as the pool has out. Where it lists more, some are others', and nobody knows which.
    ///
    /// # Errors
    /// How many could be these, where that is another number.
    pub fn exactly<S>(
        &self,
        expected: usize,
        listed: impl IntoIterator<Item = (S, SocketAddr)>,
    ) -> Result<Vec<S>, usize> {
        let ends: HashSet<_> = self.iter().map(|connection| connection.local).collect();
        let ours = listed.into_iter().filter(|(_, client)| ends.contains(client));
        let could_be: Vec<_> = ours.map(|(session, _)| session).collect();
        if could_be.len() == expected { Ok(could_be) } else { Err(could_be.len()) }
    }

    /// The one whose own end this is. None where there is not exactly one.
    #[must_use]
    pub fn from(&self, local: SocketAddr) -> Option<Connection> {
        let mut found = self.0.iter().filter(|connection| connection.local == local);
        let connection = *found.next()?;
        found.next().is_none().then_some(connection)
    }
}

/// All connections whose other end has not closed its side, or had not before ours did.
#[must_use]
pub fn open() -> HashSet<Connection> {
    rows().into_iter().filter(|row| row.state.waits_for_the_other_end()).map(|row| row.connection).collect()
}

struct Row {
    connection: Connection,
    state: State,
    inode: u64,
}

/// As `include/net/tcp_states.h` of Linux numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State(u8);

impl State {
    /// Open, or closed by us alone.
    fn waits_for_the_other_end(self) -> bool {
        const ESTABLISHED: u8 = 1;
        const FIN_WAIT1: u8 = 4;
        const FIN_WAIT2: u8 = 5;
        matches!(self.0, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2)
    }
}

fn rows() -> Vec<Row> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let mut rows = Vec::new();
    for table in tables.iter().filter_map(|path| fs::read_to_string(path).ok()) {
        // The first line names the columns.
        rows.extend(table.lines().skip(1).filter_map(row));
    }
    rows
}

/// `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ...`
fn row(line: &str) -> Option<Row> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (local, remote) = (address(columns.next()?)?, address(columns.next()?)?);
    let state = State(u8::from_str_radix(columns.next()?, 16).ok()?);
    let inode = columns.nth(5)?.parse().ok()?;
    Some(Row { connection: Connection { local, remote }, state, inode })
}

/// Words of 32 bits in the machine's order, each of four bytes of the address, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let mut bytes = [0; 16];
    let words = host.len() / 8;
    for (word, bytes) in bytes.chunks_exact_mut(4).enumerate().take(words) {
        let word = u32::from_str_radix(host.get(word * 8..word * 8 + 8)?, 16).ok()?;
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let host = match words {
        1 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        // One that stands for an address of the older kind is that.
        4 => Ipv6Addr::from(bytes).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(host, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_line_of_the_table_is_read() {
        let line =
            "   3: 0100007F:D431 0100007F:1538 01 00000000:00000000 00:00000000 00000000  1000        0 46210 1 0";
        let Row { connection, state, inode } = row(line).unwrap();
        assert_eq!((state, inode), (State(1), 46210));
        if cfg!(target_endian = "little") {
            assert_eq!(connection.local, "127.0.0.1:54321".parse().unwrap());
            assert_eq!(connection.remote, "127.0.0.1:5432".parse().unwrap());
            let mapped = address("0000000000000000FFFF00000100007F:1538").unwrap();
            assert_eq!(mapped, "127.0.0.1:5432".parse().unwrap());
        }
        for line in ["", "sl local", "0: 01:02 03:04 01 0 0 0 0 0 1", "0: 0100007F:D431 0100007F:1538 01"] {
            assert!(row(line).is_none(), "{line}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_connection_has_ended_when_both_sides_have_closed_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        let connection = OwnSockets::now().from(ours.local_addr().unwrap()).unwrap();
        assert!(open().contains(&connection));
        drop(ours);
        assert!(open().contains(&connection), "the other side is open");
        assert!(OwnSockets::now().from(connection.local).is_none());
        drop(theirs);
        assert!(!open().contains(&connection));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn sessions_are_ours_where_as_many_are_listed_as_there_have_to_be() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = [(), ()].map(|()| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let ends = ours.each_ref().map(|ours| ours.local_addr().unwrap());
        let listed = || [(1, ends[0]), (2, ends[1]), (3, "192.0.2.1:4000".parse().unwrap())];
        let own = OwnSockets::now();
        assert_eq!(own.exactly(2, listed()), Ok(vec![1, 2]));
        assert_eq!((own.exactly(1, listed()), own.exactly(3, listed())), (Err(2), Err(2)));
    }
}
