//! What tells our lines from forged ones.

use std::{env, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;
use winddown_core::{Error, ErrorKind};

/// The variable that has the key.
const VARIABLE: &str = "WINDDOWN_SPILL_KEY";

/// Shorter ones can be guessed.
const SHORTEST: usize = 16;

/// A secret that spilled records are authenticated with (HMAC-SHA-256, RFC 2104): who can write into the log, but does not have
/// the key, cannot make a replay write a record.
///
/// [`Spill`](crate::Spill) and [`Replay`](crate::Replay) take it from the environment variable `WINDDOWN_SPILL_KEY` by
/// themselves: at least 16 bytes. With a key a replay takes no line that is without its authenticator. Without one it takes
/// every line, so then whoever can write a whole line into a log that is replayed can add records.
#[derive(Clone)]
pub struct SpillKey(Hmac<Sha256>);

impl SpillKey {
    /// This key.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config) when it has less than 16 bytes.
    pub fn new(key: impl AsRef<[u8]>) -> Result<Self, Error> {
        let key = key.as_ref();
        if key.len() < SHORTEST {
            let text =
                format!("the key for spilled records ({VARIABLE}) has {} bytes: give it {SHORTEST} or more", key.len());
            return Err(Error::new(ErrorKind::Config, text));
        }
        let unusable =
            |error| Error::new(ErrorKind::Config, "the key for spilled records cannot be used").with_source(error);
        Ok(Self(Hmac::new_from_slice(key).map_err(unusable)?))
    }

    /// The key in the environment, if there is one.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_env() -> Result<Option<Self>, Error> {
        use std::os::unix::ffi::OsStrExt as _;
        env::var_os(VARIABLE).map(|key| Self::new(key.as_bytes())).transpose()
    }

    /// The authenticator of these parts, none of which can be taken for a piece of another.
    pub(crate) fn sign(&self, parts: &[&[u8]]) -> String {
        BASE64.encode(self.over(parts).finalize().into_bytes())
    }

    /// Whether that is the authenticator of these parts. Takes the same time whatever it is.
    pub(crate) fn verify(&self, parts: &[&[u8]], authenticator: &str) -> bool {
        BASE64.decode(authenticator).is_ok_and(|code| self.over(parts).verify_slice(&code).is_ok())
    }

    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut hmac = self.0.clone();
        for part in parts {
            hmac.update(&(part.len() as u64).to_le_bytes());
            hmac.update(part);
        }
        hmac
    }
}

impl fmt::Debug for SpillKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpillKey").finish_non_exhaustive()
    }
}
