//! Certificates for servers under test, and who signs them.

use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SigningKey as _, date_time_ymd,
};

/// The name that the servers' certificates are for. Nobody looks it up: its address is given.
pub const NAME: &str = "db.winddown.test";

/// Who signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// One of this name.
    ///
    /// # Panics
    /// When no key can be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key can be made");
        let pem = params.self_signed(&key).expect("it signs itself").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// The one that has signed what the servers have.
    #[must_use]
    pub fn ours() -> &'static Self {
        static OURS: OnceLock<Authority> = OnceLock::new();
        OURS.get_or_init(|| Self::new("winddown's tests"))
    }

    /// Its own certificate: what clients are given as root.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for [`NAME`] and 127.0.0.1, valid now or once, and its key.
    ///
    /// # Panics
    /// When no key can be made.
    #[must_use]
    pub fn certify(&self, expired: bool) -> (String, String) {
        let names = [NAME.to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("these are names");
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().expect("a key can be made");
        let signed = params.signed_by(&key, &self.issuer).expect("it signs others");
        (signed.pem(), key.serialize_pem())
    }

    /// A certificate of X.509's first version, which has no names but that of its subject, and its key.
    ///
    /// # Panics
    /// When no key can be made.
    #[must_use]
    pub fn certify_v1(&self) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, NAME);
        let key = KeyPair::generate().expect("a key can be made");
        let signed = params.signed_by(&key, &self.issuer).expect("it signs others");
        // What is signed, the algorithm, and the signature.
        let [content, algorithm, _] = &values(inside(signed.der()))[..] else { panic!("it is a certificate") };
        // Neither the version, which is the first unless it is there, nor what later ones have added.
        let kept = values(inside(content)).into_iter().filter(|value| ![0xa0, 0xa3].contains(&value[0]));
        let content = value(0x30, &kept.collect::<Vec<_>>().concat());
        let signature = self.issuer.key().sign(&content).expect("it signs others");
        let signature = value(0x03, &[&[0], &signature[..]].concat());
        let certificate = value(0x30, &[&content, *algorithm, &signature[..]].concat());
        (pem(&certificate), key.serialize_pem())
    }

    /// A certificate for a client of this name, and its key.
    ///
    /// # Panics
    /// When no key can be made.
    #[must_use]
    pub fn certify_client(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key can be made");
        let signed = params.signed_by(&key, &self.issuer).expect("it signs others");
        (signed.pem(), key.serialize_pem())
    }
}

/// How much of it are the type and the length of the DER value that it begins with, and how much that value.
fn lengths(der: &[u8]) -> (usize, usize) {
    match der[1] {
        short @ 0..0x80 => (2, short.into()),
        long => {
            let digits = &der[2..][..usize::from(long & 0x7f)];
            (2 + digits.len(), digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)))
        }
    }
}

fn inside(der: &[u8]) -> &[u8] {
    let (header, content) = lengths(der);
    &der[header..][..content]
}

fn values(mut der: &[u8]) -> Vec<&[u8]> {
    let mut values = Vec::new();
    while !der.is_empty() {
        let (header, content) = lengths(der);
        let (value, rest) = der.split_at(header + content);
        values.push(value);
        der = rest;
    }
    values
}

fn value(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("it is short").to_be_bytes();
    // The shortest form that there is for so much.
    let header = match content.len() {
        0..0x80 => vec![kind, length[1]],
        0x80..0x100 => vec![kind, 0x81, length[1]],
        _ => vec![kind, 0x82, length[0], length[1]],
    };
    [&header, content].concat()
}

fn pem(certificate: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in certificate.chunks(3) {
        let bits = part.iter().fold(0, |bits, &byte| bits << 8 | usize::from(byte)) << (8 * (3 - part.len()));
        let digits = (0..=part.len()).map(|at| char::from(DIGITS[bits >> (18 - 6 * at) & 63]));
        text.extend(digits.chain(['='; 2]).take(4));
    }
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}
