#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::adapter::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "tls")]
mod der;
mod endpoint;
mod handover;
mod orphans;
pub mod own_sockets;
pub mod sessions;
mod socket;
mod spare;
pub mod tls;
mod transport;

#[cfg(feature = "tls")]
pub use rustls;

pub use crate::{
    endpoint::{Connector, Endpoint, Server},
    orphans::{run_apart, runtime_is_ending},
    sessions::{Draining, Driver, Held, Session, Sessions, Stop},
    socket::{Address, Link, Options, Socket, dial},
    transport::Transport,
};
