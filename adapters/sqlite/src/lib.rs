#![doc = include_str!("../README.md")]

mod config;
mod error;
mod manager;
mod sessions;
#[cfg(feature = "buffer")]
mod sink;

pub use deadpool_sqlite::{self, rusqlite};

#[cfg(feature = "buffer")]
pub use crate::sink::Insert;
pub use crate::{
    config::{Config, PATH_VARIABLE},
    manager::{Connection, Sqlite},
};
