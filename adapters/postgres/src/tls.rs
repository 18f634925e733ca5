//! Which sessions are encrypted, and how the server is checked: libpq's `sslmode`, on rustls.
//!
//! <https://www.postgresql.org/docs/current/libpq-ssl.html>

use std::{fmt, io, str::FromStr, sync::Arc};

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::{
    config::SslNegotiation,
    tls::{MakeTlsConnect, TlsConnect},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use winddown_core::{Error, ErrorKind};
pub use winddown_net::tls::Roots;
use winddown_net::{Socket, tls};

use crate::stream::Stream;

/// Whether a session is encrypted and how its server is checked, as libpq's `sslmode` has it. Unix sockets are never
/// encrypted, whatever the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted if the server offers it. Nobody checks who the server is.
    #[default]
    Prefer,
    /// Always encrypted. Who the server is, is checked as in [`VerifyCa`](Self::VerifyCa) if root certificates are
    /// given, and not at all otherwise.
    Require,
    /// Always encrypted, and the server's certificate must come from one of the root certificates, for whatever name.
    VerifyCa,
    /// The same, and it must be for the host that was asked for. What RDS and other cloud databases want.
    VerifyFull,
}

impl SslMode {
    fn check(self, roots: Option<&Roots>) -> tls::Check {
        match self {
            Self::VerifyFull => tls::Check::Name,
            Self::VerifyCa => tls::Check::Roots,
            Self::Require if roots.is_some() => tls::Check::Roots,
            Self::Disable | Self::Prefer | Self::Require => tls::Check::Nothing,
        }
    }
}

impl FromStr for SslMode {
    type Err = Error;

    fn from_str(mode: &str) -> Result<Self, Error> {
        Ok(match mode {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("sslmode={mode} is not known: give disable, prefer, require, verify-ca or verify-full"),
                ));
            }
        })
    }
}

impl From<tokio_postgres::config::SslMode> for SslMode {
    fn from(mode: tokio_postgres::config::SslMode) -> Self {
        use tokio_postgres::config::SslMode as Driver;
        match mode {
            Driver::Disable => Self::Disable,
            Driver::Require => Self::Require,
            // The driver's enum may grow: its default is ours.
            _ => Self::Prefer,
        }
    }
}

/// How the sessions of one pool are encrypted.
#[derive(Clone)]
pub(crate) struct Tls {
    mode: SslMode,
    negotiation: SslNegotiation,
    /// `None` where the mode is never to encrypt.
    connector: Option<MakeRustlsConnect>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// What a client asks a server first that may or may not speak TLS: a length, and a number that is no version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

impl Tls {
    /// Reads the root certificates. `own` takes the place of everything but whether to encrypt.
    pub(crate) fn new(
        mode: SslMode,
        negotiation: SslNegotiation,
        roots: Option<&Roots>,
        own: Option<&Arc<ClientConfig>>,
    ) -> Result<Self, Error> {
        let direct = negotiation == SslNegotiation::Direct;
        if direct && matches!(mode, SslMode::Disable | SslMode::Prefer) {
            let text =
                "sslnegotiation=direct needs an sslmode that always encrypts: set require, verify-ca or verify-full";
            return Err(Error::new(ErrorKind::Config, text));
        }
        let config = match (mode, own) {
            (SslMode::Disable, _) => None,
            (_, Some(own)) => Some(own.as_ref().clone()),
            (_, None) => Some(tls::client_config(mode.check(roots), roots, "sslrootcert")?),
        };
        let connector = config.map(|mut config| {
            if direct {
                // The server refuses TLS from the first byte without it.
                config.alpn_protocols = vec![b"postgresql".to_vec()];
            }
            MakeRustlsConnect::new(config)
        });
        Ok(Self { mode, negotiation, connector })
    }

    pub(crate) fn connector(&self) -> Option<&MakeRustlsConnect> {
        self.connector.as_ref()
    }

    /// Makes the stream of a session of a connected socket. `host` is `None` for a Unix socket.
    pub(crate) async fn negotiate(&self, mut socket: Socket, host: Option<&str>) -> io::Result<Stream> {
        let (Some(connector), Some(host)) = (&self.connector, host) else { return Ok(Stream::plain(socket)) };
        if self.negotiation != SslNegotiation::Direct {
            socket.write_all(&SSL_REQUEST).await?;
            match (socket.read_u8().await?, self.mode) {
                (b'S', _) => {}
                (b'N', SslMode::Prefer) => return Ok(Stream::plain(socket)),
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
        connect.connect(socket).await.map(Stream::tls).map_err(|error| match error.kind() {
            // What rustls says of a certificate or of the protocol.
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                let text = "no TLS session: see the server's certificate, the root certificates and sslmode";
                refused(Error::new(ErrorKind::Config, text).with_source(error))
            }
            _ => error,
        })
    }
}

/// One of our errors on its way through the driver's.
pub(crate) fn refused(error: Error) -> io::Error {
    io::Error::other(error)
}
