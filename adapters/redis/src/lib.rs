#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::adapter::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod cancel;
#[cfg(feature = "cluster")]
mod cluster;
mod config;
mod connect;
mod connection;
mod error;
mod handle;
mod identity;
mod ledger;
mod listening;
mod mailbox;
mod marks;
mod pool;
mod resource;
mod sentinel;
mod sessions;
#[cfg(feature = "buffer")]
mod sink;
mod stream;
mod tls;
mod together;
mod waits;
mod wrapped;

pub use deadpool;
#[cfg(feature = "deadpool")]
pub use deadpool_redis;
pub use redis;
#[cfg(feature = "tls")]
pub use rustls;
pub use winddown_core::{Credentials, CredentialsFuture, CredentialsProvider};

#[cfg(feature = "cluster")]
pub use crate::cluster::{ClusterConnection, Node, Nodes};
#[cfg(feature = "buffer")]
pub use crate::sink::{List, Stream};
pub use crate::{
    config::{Config, URL_VARIABLE},
    connection::Connection,
    pool::Pool,
    resource::Redis,
    tls::Roots,
    wrapped::Existing,
};
