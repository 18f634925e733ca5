//! Which sessions are encrypted, and how the server is checked: libpq's `sslmode`, on rustls.
//!
//! <https://www.postgresql.org/docs/current/libpq-ssl.html>

use std::{fmt, io, path::PathBuf, str::FromStr, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::{
    config::SslNegotiation,
    tls::{MakeTlsConnect, TlsConnect},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use winddown_core::{Error, ErrorKind};

use crate::{socket::Socket, stream::Stream};

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

/// The certificates that a server's own must come from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Roots {
    /// Those that the system trusts.
    System,
    /// Those in this PEM file, such as the bundle that a cloud provider offers for its databases.
    File(PathBuf),
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
            (_, None) => Some(client_config(mode, roots)?),
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

fn client_config(mode: SslMode, roots: Option<&Roots>) -> Result<ClientConfig, Error> {
    let failed = |error: rustls::Error| Error::new(ErrorKind::Config, "cannot set up TLS").with_source(error);
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(failed)?;

    let checks_name = mode == SslMode::VerifyFull;
    let checks = checks_name || mode == SslMode::VerifyCa || (mode == SslMode::Require && roots.is_some());
    let verifier: Arc<dyn ServerCertVerifier> = if checks {
        let store = Arc::new(store(roots.unwrap_or(&Roots::System))?);
        let verifier = WebPkiServerVerifier::builder_with_provider(store, provider).build();
        let error = |error| Error::new(ErrorKind::Config, "cannot use the root certificates").with_source(error);
        let inner = verifier.map_err(|source: rustls::client::VerifierBuilderError| error(source))?;
        if checks_name { inner } else { Arc::new(AnyName { inner }) }
    } else {
        Arc::new(Anybody { provider })
    };
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn store(roots: &Roots) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::System => {
            let found = rustls_native_certs::load_native_certs();
            // Some systems carry certificates that nobody can use; what matters is that there are others.
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                let text = "the system has no root certificates: install them, or name a file with sslrootcert";
                return Err(Error::new(ErrorKind::Config, text));
            }
        }
        Roots::File(path) => {
            let shown = path.display();
            let bad = |error: rustls::pki_types::pem::Error| {
                let text = format!("cannot read the root certificates in {shown}: give a PEM file as sslrootcert");
                Error::new(ErrorKind::Config, text).with_source(PemError(error))
            };
            for certificate in CertificateDer::pem_file_iter(path).map_err(bad)? {
                let added = store.add(certificate.map_err(bad)?);
                added.map_err(|error| {
                    let text = format!("cannot use a root certificate in {shown}");
                    Error::new(ErrorKind::Config, text).with_source(error)
                })?;
            }
            if store.is_empty() {
                let text = format!("there is no certificate in {shown}: give a PEM file as sslrootcert");
                return Err(Error::new(ErrorKind::Config, text));
            }
        }
    }
    Ok(store)
}

/// The library's own error has no text of its own in builds without debug information about it.
#[derive(Debug)]
struct PemError(rustls::pki_types::pem::Error);

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            rustls::pki_types::pem::Error::Io(error) => fmt::Display::fmt(error, f),
            error => fmt::Display::fmt(error, f),
        }
    }
}

impl std::error::Error for PemError {}

/// Takes any certificate: the session is encrypted, and nobody knows to whom.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes a certificate from one of the roots, for whatever name.
#[derive(Debug)]
struct AnyName {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name is what it looks at last.
        match self.inner.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
