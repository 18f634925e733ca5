//! The client's side of TLS, by rustls.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, PeerMisbehaved, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime, pem::PemObject},
};
use winddown_core::{Error, ErrorKind};

use super::{Check, Roots};
use crate::der;

/// The configuration of a client that checks its server so, against these roots, or the system's. `setting` is what the
/// adapter calls the roots, for the texts of errors. The cryptography is that which the process has installed as its default
/// ([`CryptoProvider::install_default`]), and ring's where it has none; nothing is installed here.
///
/// # Errors
/// [`ErrorKind::Config`] when the roots cannot be read or used.
pub fn client_config(check: Check, roots: Option<&Roots>, setting: &str) -> Result<ClientConfig, Error> {
    let failed = |error: rustls::Error| Error::new(ErrorKind::Config, "cannot set up TLS").with_source(error);
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(failed)?;

    let verifier: Arc<dyn ServerCertVerifier> = if check == Check::Nothing {
        Arc::new(Anybody { provider })
    } else {
        let store = Arc::new(store(roots.unwrap_or(&Roots::System), setting)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(store, provider).build();
        let error = |error| Error::new(ErrorKind::Config, "cannot use the root certificates").with_source(error);
        let inner = verifier.map_err(|source: rustls::client::VerifierBuilderError| error(source))?;
        if check == Check::Name { inner } else { Arc::new(AnyName { inner }) }
    };
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// The process's own, if it has one.
fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()))
}

fn store(roots: &Roots, setting: &str) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::System => {
            let found = rustls_native_certs::load_native_certs();
            // Some systems carry certificates that nobody can use; what matters is that there are others.
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                let text = format!("the system has no root certificates: install them, or name a file with {setting}");
                return Err(Error::new(ErrorKind::Config, text));
            }
        }
        Roots::File(path) => {
            let shown = path.display();
            let bad = |error: rustls::pki_types::pem::Error| {
                let text = format!("cannot read the root certificates in {shown}: give a PEM file as {setting}");
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
                let text = format!("there is no certificate in {shown}: give a PEM file as {setting}");
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

/// Takes any certificate: the session is encrypted, and nobody knows to whom. Of a certificate it reads the key alone, so that
/// those are taken too that nobody could check: of the first version, or with extensions that are not known. That the server
/// has the key is checked all the same, since a login that is bound to the certificate relies on it.
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
        let unknown = || rustls::Error::from(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme);
        let bad = rustls::Error::InvalidCertificate;
        let info = key_of(certificate)?;
        let (algorithm, key) = der::public_key(&info).ok_or_else(|| bad(CertificateError::BadEncoding))?;
        let mut mapping = self.provider.signature_verification_algorithms.mapping.iter();
        let (_, candidates) = mapping.find(|(scheme, _)| *scheme == signature.scheme).ok_or_else(unknown)?;
        let verifies = candidates.iter().find(|candidate| candidate.public_key_alg_id().as_ref() == algorithm);
        let verified = verifies.ok_or_else(unknown)?.verify_signature(key, message, signature.signature());
        verified.map(|()| HandshakeSignatureValid::assertion()).map_err(|_| bad(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key_of(certificate)?, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The public key of a certificate.
fn key_of<'a>(certificate: &'a CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'a>, rustls::Error> {
    let info = der::public_key_info(certificate);
    let info = info.ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
    Ok(SubjectPublicKeyInfoDer::from(info))
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
