#![doc = include_str!("../README.md")]

mod cancel;
mod config;
mod connect;
mod connection;
mod error;
mod ledger;
mod manager;
mod pool;
mod sessions;
mod stream;
mod tls;

pub use deadpool;
pub use redis;
pub use rustls;
pub use winddown_core::{Credentials, CredentialsFuture, CredentialsProvider};

pub use crate::{
    config::{Config, URL_VARIABLE},
    connection::Connection,
    manager::Redis,
    pool::Pool,
    tls::Roots,
};
