//! What of that needs rustls.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_postgres::{
    config::SslNegotiation,
    tls::{MakeTlsConnect, TlsConnect as _},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use winddown_core::{Error, ErrorKind};
use winddown_net::{
    Socket, Transport,
    tls::{Check, Roots, client_config},
};

use super::{SslMode, Tls};
use crate::{config::Config, error::refused, stream::Encrypted};

/// What a client asks a server first that may or may not speak TLS: a length, and a number that is no version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

impl SslMode {
    fn check(self, roots: Option<&Roots>) -> Check {
        match self {
            Self::VerifyFull => Check::Name,
            Self::VerifyCa => Check::Roots,
            Self::Require if roots.is_some() => Check::Roots,
            Self::Disable | Self::Prefer | Self::Require => Check::Nothing,
        }
    }
}

impl Tls {
    pub(super) fn with(mode: SslMode, negotiation: SslNegotiation, config: &Config) -> Result<Self, Error> {
        let roots = config.roots.as_ref();
        let client = match (mode, &config.tls) {
            (SslMode::Disable, _) => None,
            (_, Some(own)) => Some(own.as_ref().clone()),
            (_, None) => Some(client_config(mode.check(roots), roots, "sslrootcert")?),
        };
        let connector = client.map(|mut client| {
            if negotiation == SslNegotiation::Direct {
                // The server refuses TLS from the first byte without it.
                client.alpn_protocols = vec![b"postgresql".to_vec()];
            }
            MakeRustlsConnect::new(client)
        });
        Ok(Self { mode, negotiation, connector })
    }

    /// What carries a session with this host over a connected socket. `host` is `None` for a Unix socket.
    pub(crate) async fn negotiate(&self, mut socket: Socket, host: Option<&str>) -> io::Result<Transport<Encrypted>> {
        let (Some(connector), Some(host)) = (&self.connector, host) else { return Ok(Transport::Plain(socket)) };
        if self.negotiation != SslNegotiation::Direct {
            socket.write_all(&SSL_REQUEST).await?;
            match (socket.read_u8().await?, self.mode) {
                (b'S', _) => {}
                (b'N', SslMode::Prefer) => return Ok(Transport::Plain(socket)),
                (b'N', _) => {
                    let text = "the server does not offer TLS: configure it there, or set sslmode to prefer or disable";
                    return Err(refused(Error::new(ErrorKind::Config, text)));
                }
                // Its message cannot be trusted: it is not encrypted.
                _ => {
                    let text = "the server answers the question for TLS with an error";
                    return Err(refused(Error::new(ErrorKind::Init, text).retryable()));
                }
            }
        }
        let mut connector = connector.clone();
        let Ok(connect) = MakeTlsConnect::<Socket>::make_tls_connect(&mut connector, host);
        connect.connect(socket).await.map(|stream| Transport::Tls(Box::new(stream))).map_err(|error| {
            match error.kind() {
                // What rustls says of a certificate or of the protocol.
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                    let text = "no TLS session: see the server's certificate, the root certificates and sslmode";
                    refused(Error::new(ErrorKind::Config, text).with_source(error))
                }
                _ => error,
            }
        })
    }
}

/// How a request is sent of which nobody checks whom it reaches: encrypted if the server offers it.
pub(crate) fn unchecked() -> Result<MakeRustlsConnect, Error> {
    Ok(MakeRustlsConnect::new(client_config(Check::Nothing, None, "sslrootcert")?))
}
