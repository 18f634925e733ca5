//! The same by netlink, as `ss` asks for it: the kernel goes through its table, and tells what was asked for alone. Manual page
//! sock_diag(7).

use std::{io, net::SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use super::{
    Connection, canonical,
    table::{Row, State},
};

/// The most that the kernel puts into one datagram.
const DATAGRAM: usize = 32 * 1024;

/// The connections that are so far.
///
/// # Errors
/// Where there are no such sockets, or nobody answers as expected.
pub(super) fn rows(states: &[State]) -> io::Result<Vec<Row>> {
    let mut rows = listed(AF_INET, SocketId::new_v4(), states)?;
    rows.extend(listed(AF_INET6, SocketId::new_v6(), states)?);
    Ok(rows)
}

fn listed(family: u8, socket_id: SocketId, states: &[State]) -> io::Result<Vec<Row>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.send(&request(family, socket_id, states), 0)?;
    let (mut rows, mut datagram) = (Vec::new(), Vec::with_capacity(DATAGRAM));
    loop {
        datagram.clear();
        // The kernel has written it by then.
        socket.recv(&mut datagram, 0)?;
        let mut rest = &datagram[..];
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(message.header.length).map_err(io::Error::other)?.next_multiple_of(4);
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => rows.push(row(&response)),
                NetlinkPayload::Done(_) => return Ok(rows),
                NetlinkPayload::Error(failure) => return Err(failure.to_io()),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn request(family: u8, socket_id: SocketId, states: &[State]) -> Vec<u8> {
    let states = states.iter().map(|state| StateFlags::from_bits_truncate(1 << state.0)).collect();
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn row(response: &InetResponse) -> Row {
    let id = &response.header.socket_id;
    let local = canonical(SocketAddr::new(id.source_address, id.source_port));
    let remote = canonical(SocketAddr::new(id.destination_address, id.destination_port));
    Row { connection: Connection { local, remote }, inode: response.header.inode.into() }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::own_sockets::proc;

    #[test]
    fn what_is_told_is_what_the_files_say() {
        let listeners = ["127.0.0.1:0", "[::1]:0"].map(|at| TcpListener::bind(at).unwrap());
        for listener in &listeners {
            let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (theirs, _) = listener.accept().unwrap();
            let connection = Connection { local: ours.local_addr().unwrap(), remote: ours.peer_addr().unwrap() };
            let of_it = |rows: Vec<Row>| rows.into_iter().find(|row| row.connection == connection);
            let both = |states: &[State]| (of_it(rows(states).unwrap()), of_it(proc::rows(states).unwrap()));

            let (told, read) = both(&State::HELD);
            assert_eq!(told, read);
            assert!(proc::own_sockets().contains(&told.unwrap().inode));
            assert_eq!(both(&State::OPEN), (told, read));
            drop(ours);
            // Nobody has it any more.
            let (told, read) = both(&State::OPEN);
            assert_eq!((told, told.unwrap().inode), (read, 0));
            drop(theirs);
            assert_eq!(both(&State::OPEN), (None, None));
        }
    }
}
