//! TLS by rustls: who may be at the other end.

#[cfg(feature = "tls")]
mod client;

use std::path::PathBuf;

#[cfg(feature = "tls")]
pub use self::client::client_config;

/// How a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "an adapter decides for each of them")]
pub enum Check {
    /// Not at all: the session is encrypted, and nobody knows to whom.
    Nothing,
    /// It must come from one of the roots, for whatever name.
    Roots,
    /// The same, and it must be for the host that was asked for.
    Name,
}

/// The certificates that a server's own must come from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Roots {
    /// Those that the system trusts.
    System,
    /// Those in this PEM file, such as the bundle that a cloud provider offers for its databases.
    File(PathBuf),
}
