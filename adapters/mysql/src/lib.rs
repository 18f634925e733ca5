#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::adapter::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "buffer")]
mod abandon;
mod config;
mod connect;
mod error;
mod gauges;
mod goodbye;
mod home;
mod origin;
mod relay;
mod resource;
mod runtimes;
mod sessions;
#[cfg(feature = "buffer")]
mod sink;
mod watcher;
mod wrapped;

pub use deadpool;
pub use mysql_async;

#[cfg(feature = "buffer")]
pub use crate::sink::{Insert, LoadData, Parameters};
pub use crate::{
    config::{Config, URL_VARIABLE},
    connect::{Connection, Manager, Pool, Session},
    resource::Mysql,
    wrapped::Wrapped,
};
