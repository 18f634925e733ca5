#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::adapter::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod config;
mod error;
mod resource;
mod sessions;
#[cfg(feature = "buffer")]
mod sink;

pub use deadpool_sqlite::{self, rusqlite};

#[cfg(feature = "buffer")]
pub use crate::sink::Insert;
pub use crate::{
    config::{Config, PATH_VARIABLE},
    resource::{Connection, Sqlite},
};
