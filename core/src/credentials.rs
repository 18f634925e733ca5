//! Who logs in, where that changes: credentials that are fetched anew for each session.

use std::{fmt, future::Future, pin::Pin};

use crate::{BoxError, Error, ErrorKind};

/// A user, or the configured one, and a password. `Debug` leaves the password out.
#[derive(Clone)]
pub struct Credentials {
    user: Option<String>,
    password: String,
}

impl Credentials {
    /// The configured user with this password.
    pub fn password(password: impl Into<String>) -> Self {
        Self { user: None, password: password.into() }
    }

    /// This user with this password.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: Some(user.into()), password: password.into() }
    }

    /// The user, if it is another than the configured one, and the password; for an adapter.
    pub fn into_parts(self) -> (Option<String>, String) {
        let Self { user, password } = self;
        (user, password)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Gives the credentials of one new session. Implemented by every async function that returns them.
pub trait CredentialsProvider: Send + Sync + 'static {
    /// The credentials for one session.
    ///
    /// # Cancel safety
    /// Must be cancel safe: it is dropped with the caller that wanted the session.
    ///
    /// # Errors
    /// Anything; it becomes the source of the checkout's error, so it must not hold a secret.
    fn credentials(&self) -> CredentialsFuture<'_>;
}

/// Asks for the credentials of a new session, where somebody is to be asked.
///
/// # Cancel safety
/// That of the provider.
///
/// # Errors
/// [`ErrorKind::Init`], [`retryable`](Error::retryable), with the provider's error as the source.
pub async fn credentials(provider: Option<&dyn CredentialsProvider>) -> Result<Option<Credentials>, Error> {
    let Some(provider) = provider else { return Ok(None) };
    let failed =
        |source| Error::new(ErrorKind::Init, "the credentials provider has none").with_source(source).retryable();
    provider.credentials().await.map(Some).map_err(failed)
}

/// What [`CredentialsProvider::credentials`] returns.
pub type CredentialsFuture<'a> = Pin<Box<dyn Future<Output = Result<Credentials, BoxError>> + Send + 'a>>;

impl<F, Fut> CredentialsProvider for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Credentials, BoxError>> + Send + 'static,
{
    fn credentials(&self) -> CredentialsFuture<'_> {
        Box::pin(self())
    }
}
