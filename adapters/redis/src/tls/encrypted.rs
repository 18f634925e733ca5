//! What of that needs rustls.

use std::{io, sync::Arc};

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use winddown_core::{Error, ErrorKind};
use winddown_net::{
    Socket, Transport,
    tls::{Check, client_config},
};

use super::Tls;
use crate::{config::Config, stream::Encrypted};

impl Tls {
    /// Reads the root certificates. A configuration of the application's own takes the place of everything but whether to
    /// encrypt.
    pub(crate) fn new(check: Option<Check>, config: &Config) -> Result<Self, Error> {
        let client = match (check, &config.tls) {
            (None, _) => None,
            (Some(_), Some(own)) => Some(Arc::clone(own)),
            (Some(check), None) => Some(Arc::new(client_config(check, config.roots.as_ref(), "Config::roots")?)),
        };
        Ok(Self { connector: client.map(TlsConnector::from) })
    }

    /// What carries a session with this host over a connected socket. `host` is `None` for a Unix socket, which is never encrypted.
    pub(crate) async fn negotiate(&self, socket: Socket, host: Option<&str>) -> Result<Transport<Encrypted>, Error> {
        let (Some(connector), Some(host)) = (&self.connector, host) else { return Ok(Transport::Plain(socket)) };
        let name = ServerName::try_from(host.to_owned()).map_err(|source| {
            let text = format!("no certificate can be for the host {host}: give a name or an address");
            Error::new(ErrorKind::Config, text).with_source(source)
        })?;
        connector.connect(name, socket).await.map(|stream| Transport::Tls(Box::new(stream))).map_err(
            |error| match error.kind() {
                // What rustls says of a certificate or of the protocol.
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                    let text =
                        "no TLS session: see the server's certificate, the root certificates and its port for TLS";
                    Error::new(ErrorKind::Config, text).with_source(error)
                }
                _ => Error::new(ErrorKind::Init, "no TLS session").with_source(error).retryable(),
            },
        )
    }
}
