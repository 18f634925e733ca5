//! The TCP connections of the machine, as the kernel lists them.

use std::io;

use super::Connection;

/// A connection in the kernel's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) connection: Connection,
    /// The number of the socket; 0 where nobody has it.
    pub(super) inode: u64,
}

/// How far a connection is, as `include/net/tcp_states.h` of Linux numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State(pub(super) u8);

impl State {
    const ESTABLISHED: Self = Self(1);
    const SYN_SENT: Self = Self(2);
    const SYN_RECV: Self = Self(3);
    const FIN_WAIT1: Self = Self(4);
    const FIN_WAIT2: Self = Self(5);
    const CLOSE_WAIT: Self = Self(8);
    const LAST_ACK: Self = Self(9);
    const CLOSING: Self = Self(11);

    /// Open, or closed by us alone.
    pub(super) const OPEN: [Self; 3] = [Self::ESTABLISHED, Self::FIN_WAIT1, Self::FIN_WAIT2];

    /// Somebody may have the socket.
    pub(super) const HELD: [Self; 8] = [
        Self::ESTABLISHED,
        Self::SYN_SENT,
        Self::SYN_RECV,
        Self::FIN_WAIT1,
        Self::FIN_WAIT2,
        Self::CLOSE_WAIT,
        Self::LAST_ACK,
        Self::CLOSING,
    ];
}

/// Those that are so far. A machine may have tens of thousands that are closed, and that the kernel keeps for a minute: it is asked for
/// what is wanted where that can be said, by netlink. A sandbox that has no such socket has the files at least.
///
/// # Errors
/// Where neither can be read.
pub(super) fn rows(states: &[State]) -> io::Result<Vec<Row>> {
    #[cfg(target_os = "linux")]
    if let Ok(rows) = super::netlink::rows(states) {
        return Ok(rows);
    }
    super::proc::rows(states)
}
