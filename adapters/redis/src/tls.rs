//! Which sessions are encrypted, and how the server is checked: what the scheme of the URL says, on rustls.

use std::{fmt, io, sync::Arc};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio_rustls::TlsConnector;
use winddown_core::{Error, ErrorKind};
pub use winddown_net::tls::Roots;
use winddown_net::{Socket, tls};

use crate::stream::Stream;

/// How the sessions of one pool are encrypted.
#[derive(Clone)]
pub(crate) struct Tls {
    /// `None` where they are not.
    connector: Option<TlsConnector>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("encrypts", &self.connector.is_some()).finish()
    }
}

impl Tls {
    /// Reads the root certificates. `own` takes the place of everything but whether to encrypt.
    pub(crate) fn new(
        check: Option<tls::Check>,
        roots: Option<&Roots>,
        own: Option<&Arc<ClientConfig>>,
    ) -> Result<Self, Error> {
        let config = match (check, own) {
            (None, _) => None,
            (Some(_), Some(own)) => Some(Arc::clone(own)),
            (Some(check), None) => Some(Arc::new(tls::client_config(check, roots, "Config::roots")?)),
        };
        Ok(Self { connector: config.map(TlsConnector::from) })
    }

    /// Makes the stream of a session of a connected socket. `host` is `None` for a Unix socket, which is never encrypted.
    pub(crate) async fn negotiate(&self, socket: Socket, host: Option<&str>) -> Result<Stream, Error> {
        let (Some(connector), Some(host)) = (&self.connector, host) else { return Ok(Stream::plain(socket)) };
        let name = ServerName::try_from(host.to_owned()).map_err(|source| {
            let text = format!("no certificate can be for the host {host}: give a name or an address");
            Error::new(ErrorKind::Config, text).with_source(source)
        })?;
        connector.connect(name, socket).await.map(Stream::tls).map_err(|error| match error.kind() {
            // What rustls says of a certificate or of the protocol.
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                let text = "no TLS session: see the server's certificate, the root certificates and its port for TLS";
                Error::new(ErrorKind::Config, text).with_source(error)
            }
            _ => Error::new(ErrorKind::Init, "no TLS session").with_source(error).retryable(),
        })
    }
}
