//! Which sessions are encrypted, and how the server is checked: libpq's `sslmode`, on rustls.
//!
//! <https://www.postgresql.org/docs/current/libpq-ssl.html>

#[cfg(feature = "tls")]
mod encrypted;

use std::{fmt, str::FromStr};

use tokio_postgres::config::SslNegotiation;
use winddown_core::{Error, ErrorKind};
pub use winddown_net::tls::Roots;

#[cfg(feature = "tls")]
pub(crate) use self::encrypted::unchecked;
use crate::config::Config;
#[cfg(not(feature = "tls"))]
use {
    crate::stream::Encrypted,
    std::io,
    winddown_net::{Socket, Transport},
};

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
    /// Whether a session that is not encrypted is none.
    fn always_encrypts(self) -> bool {
        match self {
            Self::Disable | Self::Prefer => false,
            Self::Require | Self::VerifyCa | Self::VerifyFull => true,
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
    #[cfg(feature = "tls")]
    negotiation: SslNegotiation,
    /// `None` where the mode is never to encrypt.
    #[cfg(feature = "tls")]
    connector: Option<tokio_postgres_rustls::MakeRustlsConnect>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the root certificates. A configuration of the application's own takes the place of everything but whether to
    /// encrypt.
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let (mode, negotiation) = (config.ssl_mode, config.driver.get_ssl_negotiation());
        if negotiation == SslNegotiation::Direct && !mode.always_encrypts() {
            let text =
                "sslnegotiation=direct needs an sslmode that always encrypts: set require, verify-ca or verify-full";
            return Err(Error::new(ErrorKind::Config, text));
        }
        Self::with(mode, negotiation, config)
    }

    #[cfg(not(feature = "tls"))]
    fn with(mode: SslMode, _: SslNegotiation, _: &Config) -> Result<Self, Error> {
        if mode.always_encrypts() {
            let text = "this sslmode encrypts, and TLS is not compiled in: turn on the feature tls, or set sslmode to prefer or \
                        disable";
            return Err(Error::new(ErrorKind::Config, text));
        }
        Ok(Self { mode })
    }

    /// What carries a session over a connected socket: that alone.
    #[cfg(not(feature = "tls"))]
    pub(crate) async fn negotiate(&self, socket: Socket, _: Option<&str>) -> io::Result<Transport<Encrypted>> {
        Ok(Transport::Plain(socket))
    }
}

/// How a request is sent of which nobody checks whom it reaches.
#[cfg(not(feature = "tls"))]
pub(crate) fn unchecked() -> Result<tokio_postgres::NoTls, Error> {
    Ok(tokio_postgres::NoTls)
}

#[cfg(all(test, not(feature = "tls")))]
mod tests {
    use super::*;

    #[test]
    fn without_tls_a_mode_that_always_encrypts_says_which_feature_to_turn_on() {
        let of = |mode: &str| Tls::new(&format!("postgres://app@one/orders?sslmode={mode}").parse().unwrap());
        for mode in ["require", "verify-ca", "verify-full"] {
            let error = of(mode).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("turn on the feature tls"), "{error}");
        }
        for mode in ["disable", "prefer"] {
            assert!(of(mode).is_ok());
        }
    }
}
