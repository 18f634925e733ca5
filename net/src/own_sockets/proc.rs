//! The files in which Linux lists sockets and who has them. Elsewhere there are none.

use std::{
    collections::HashSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    Connection,
    table::{Row, State},
};

/// The numbers of the sockets that this process has.
pub(super) fn own_sockets() -> HashSet<u64> {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return HashSet::new() };
    let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

/// The connections that are so far. All are read, and that takes the kernel some microseconds for each.
///
/// # Errors
/// Where the files cannot be read.
pub(super) fn rows(states: &[State]) -> io::Result<Vec<Row>> {
    let mut table = fs::read_to_string("/proc/self/net/tcp")?;
    match fs::read_to_string("/proc/self/net/tcp6") {
        Ok(more) => table.push_str(&more),
        // A kernel without it.
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => {}
        Err(failure) => return Err(failure),
    }
    // The lines that name the columns have none of an address.
    let listed = table.lines().filter_map(row);
    Ok(listed.filter_map(|(state, row)| states.contains(&state).then_some(row)).collect())
}

/// `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ...`
fn row(line: &str) -> Option<(State, Row)> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (local, remote) = (address(columns.next()?)?, address(columns.next()?)?);
    let state = State(u8::from_str_radix(columns.next()?, 16).ok()?);
    let inode = columns.nth(5)?.parse().ok()?;
    Some((state, Row { connection: Connection { local, remote }, inode }))
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
    use super::*;

    #[test]
    fn a_line_of_the_table_is_read() {
        let line =
            "   3: 0100007F:D431 0100007F:1538 01 00000000:00000000 00:00000000 00000000  1000        0 46210 1 0";
        let (state, Row { connection, inode }) = row(line).unwrap();
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
}
