//! What is needed of a certificate where nobody asks who the server is: its key, whatever its version and extensions.
//!
//! RFC 5280, section 4.1.

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
/// What is not there in a certificate of the first version.
const VERSION: u8 = 0xa0;

/// The `SubjectPublicKeyInfo` of a certificate, as it stands there.
pub(crate) fn public_key_info(certificate: &[u8]) -> Option<&[u8]> {
    let mut certificate = Reader(certificate).inside(SEQUENCE)?;
    let mut signed = certificate.inside(SEQUENCE)?;
    if signed.0.first() == Some(&VERSION) {
        signed.inside(VERSION)?;
    }
    signed.inside(INTEGER)?;
    // The signature's algorithm, the issuer, the validity, the subject.
    for _ in 0..4 {
        signed.inside(SEQUENCE)?;
    }
    let before = signed.0;
    signed.inside(SEQUENCE)?;
    before.get(..before.len() - signed.0.len())
}

/// The algorithm and the key of a `SubjectPublicKeyInfo`.
pub(crate) fn public_key(info: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut info = Reader(info).inside(SEQUENCE)?;
    let algorithm = info.inside(SEQUENCE)?.0;
    // A key has no unused bits.
    let key = info.inside(BIT_STRING)?.0.strip_prefix(&[0])?;
    Some((algorithm, key))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads the next value, which must be of this type.
    fn inside(&mut self, kind: u8) -> Option<Self> {
        let (&[found, first], mut rest) = self.0.split_first_chunk()?;
        if found != kind {
            return None;
        }
        let mut length = usize::from(first);
        if first & 0x80 != 0 {
            let bytes = usize::from(first & 0x7f);
            // None has four gigabytes.
            let (digits, after) = rest.split_at_checked(bytes).filter(|_| (1..=4).contains(&bytes))?;
            length = digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit));
            rest = after;
        }
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(Self(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        match content.len() {
            0..0x80 => [&[kind, length[1]], content].concat(),
            _ => [&[kind, 0x82, length[0], length[1]], content].concat(),
        }
    }

    fn certificate(version: bool) -> (Vec<u8>, Vec<u8>) {
        let algorithm = value(SEQUENCE, b"algorithm");
        let key = value(SEQUENCE, &[algorithm.clone(), value(BIT_STRING, &[&[0], &[7; 300][..]].concat())].concat());
        let version = if version { value(VERSION, &value(INTEGER, &[2])) } else { Vec::new() };
        let names = [value(SEQUENCE, b"issuer"), value(SEQUENCE, b"validity"), value(SEQUENCE, &[b's'; 200])].concat();
        let signed = [version, value(INTEGER, &[1]), algorithm.clone(), names, key.clone()].concat();
        let all = [value(SEQUENCE, &signed), algorithm, value(BIT_STRING, &[0, 1])].concat();
        (value(SEQUENCE, &all), key)
    }

    #[test]
    fn the_key_is_found_whatever_the_version() {
        for version in [false, true] {
            let (certificate, key) = certificate(version);
            let info = public_key_info(&certificate).unwrap();
            assert_eq!(info, key);
            assert_eq!(public_key(info).unwrap(), (&b"algorithm"[..], &[7; 300][..]));
        }
    }

    #[test]
    fn what_is_cut_off_or_no_certificate_has_none() {
        let (certificate, _) = certificate(true);
        for length in 0..certificate.len() {
            assert_eq!(public_key_info(&certificate[..length]), None, "{length}");
        }
        for length in [[0x30, 0x80, 0, 0], [0x30, 0x85, 255, 255], [0x30, 0x82, 255, 255]] {
            assert_eq!(public_key_info(&length), None);
        }
    }
}
