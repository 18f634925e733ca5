#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::adapter::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod config;
mod connect;
mod error;
mod pooled;
mod read_only;
mod resource;
mod sessions;
#[cfg(feature = "buffer")]
mod sink;
mod stream;
mod tls;
mod token;
mod wrapped;

pub use deadpool_postgres::{self, tokio_postgres};
#[cfg(feature = "tls")]
pub use rustls;
pub use winddown_core::{Credentials, CredentialsFuture, CredentialsProvider};

#[cfg(feature = "buffer")]
pub use crate::sink::{CopyIn, Insert, Parameters};
pub use crate::{
    config::{Config, URL_VARIABLE},
    resource::Postgres,
    tls::{Roots, SslMode},
};
