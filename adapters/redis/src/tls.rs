//! Which sessions are encrypted, and how the server is checked: what the scheme of the URL says, on rustls.

#[cfg(feature = "tls")]
mod encrypted;

use std::fmt;

use winddown_core::Error;
pub use winddown_net::tls::Roots;
#[cfg(not(feature = "tls"))]
use {
    crate::{config::Config, stream::Encrypted},
    winddown_core::ErrorKind,
    winddown_net::{Socket, Transport, tls::Check},
};

/// How the sessions of one pool are encrypted.
#[derive(Clone)]
pub(crate) struct Tls {
    /// `None` where they are not.
    #[cfg(feature = "tls")]
    connector: Option<tokio_rustls::TlsConnector>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Tls");
        #[cfg(feature = "tls")]
        debug.field("encrypts", &self.connector.is_some());
        debug.finish()
    }
}

#[cfg(not(feature = "tls"))]
impl Tls {
    pub(crate) fn new(check: Option<Check>, _: &Config) -> Result<Self, Error> {
        if check.is_some() { Err(missing()) } else { Ok(Self {}) }
    }

    /// What carries a session over a connected socket: that alone.
    pub(crate) async fn negotiate(&self, socket: Socket, _: Option<&str>) -> Result<Transport<Encrypted>, Error> {
        Ok(Transport::Plain(socket))
    }
}

/// Why sessions with the server of this URL cannot be: they are to be encrypted. The driver would not say so.
#[cfg(not(feature = "tls"))]
pub(crate) fn unusable(url: &str) -> Option<Error> {
    ["rediss:", "valkeys:"].iter().any(|scheme| url.starts_with(scheme)).then(missing)
}

#[cfg(feature = "tls")]
pub(crate) fn unusable(_: &str) -> Option<Error> {
    None
}

#[cfg(not(feature = "tls"))]
fn missing() -> Error {
    let text = "sessions are to be encrypted, and TLS is not compiled in: turn on the feature tls, or give a URL with redis://";
    Error::new(ErrorKind::Config, text)
}
