//! The driver's errors as ours.

use std::{borrow::Cow, error::Error as StdError, io};

use deadpool_postgres::PoolError;
use tokio_postgres::{config::SslMode, error::SqlState};
use winddown_core::{BoxError, Error, ErrorKind};

use crate::stream::{Negotiated, Stream};

/// The error of this kind and message, with the driver's as its source. Worth another try where
/// the server is full, starts or stops, or cannot be reached.
pub(crate) fn error(kind: ErrorKind, message: impl Into<Cow<'static, str>>, source: Failure) -> Error {
    let passes = source.passes();
    let error = Error::new(kind, message).with_source(source.into_source());
    if passes { error.retryable() } else { error }
}

/// What the driver says, without the layers that the pool puts around it.
#[derive(Debug)]
pub(crate) enum Failure {
    Postgres(tokio_postgres::Error),
    /// One of ours, that was on its way through the driver's.
    Ours(Error),
    Other(BoxError),
}

impl Failure {
    fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(error) => error.code(),
            Self::Ours(_) | Self::Other(_) => None,
        }
    }

    /// Whether the server has looked at who wants in, and refused.
    fn is_refusal(&self) -> bool {
        let Self::Postgres(error) = self else { return false };
        error.as_db_error().is_some_and(|error| {
            let refused = [SqlState::INVALID_PASSWORD, SqlState::INVALID_AUTHORIZATION_SPECIFICATION];
            // PgBouncer has one code for all that it says of itself, and tells this by its words.
            let by_words =
                *error.code() == SqlState::PROTOCOL_VIOLATION && error.message().ends_with(AUTHENTICATION_FAILED);
            refused.contains(error.code()) || by_words
        })
    }

    /// Whether nobody listens there.
    pub(crate) fn is_refused_connection(&self) -> bool {
        let source: Option<&(dyn StdError + 'static)> = match self {
            Self::Postgres(error) => error.source(),
            Self::Ours(error) => Some(error),
            Self::Other(error) => Some(&**error),
        };
        let is_refused = |error: &io::Error| {
            // A socket file without a server, or none.
            matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
        };
        std::iter::successors(source, |error| (*error).source())
            .any(|error| error.downcast_ref::<io::Error>().is_some_and(is_refused))
    }

    fn passes(&self) -> bool {
        match self {
            Self::Postgres(_) if self.is_refusal() => false,
            Self::Postgres(error) => match error.code() {
                // Insufficient resources (full), operator intervention (starts, stops), connection exceptions, which
                // is also how poolers say that they are full.
                Some(code) => ["53", "57P", "08"].iter().any(|class| code.code().starts_with(class)),
                // It went away, or never answered.
                None => error.is_closed() || io_error(error).is_some(),
            },
            Self::Ours(error) => error.is_retryable(),
            Self::Other(_) => false,
        }
    }

    /// As the driver's pool wants it.
    pub(crate) async fn into_driver(self) -> tokio_postgres::Error {
        match self {
            Self::Postgres(error) => error,
            Self::Ours(error) => driver_error(refused(error)).await,
            Self::Other(error) => driver_error(io::Error::other(error)).await,
        }
    }

    fn into_source(self) -> BoxError {
        match self {
            Self::Postgres(error) => error.into(),
            Self::Ours(error) => error.into(),
            Self::Other(error) => error,
        }
    }
}

const AUTHENTICATION_FAILED: &str = "authentication failed";

fn io_error(error: &tokio_postgres::Error) -> Option<&io::Error> {
    error.source()?.downcast_ref()
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let ours = io_error(&error).and_then(|error| error.get_ref()?.downcast_ref::<Error>());
        match ours {
            Some(ours) => Self::Ours(ours.clone()),
            None => Self::Postgres(error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => error.into(),
            error => Self::Other(error.into()),
        }
    }
}

/// Why no session could be opened, and what to do about it.
pub(crate) fn open(failure: Failure) -> Error {
    let advice = match failure.code() {
        // Also where it has no entry for this user, database or address, or wants encryption.
        Some(_) if failure.is_refusal() => "the server does not let this user in: see user, password and sslmode",
        Some(code) if *code == SqlState::INVALID_CATALOG_NAME => "there is no such database, create it or name another",
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => "the user may not connect to this database",
        _ => match failure {
            Failure::Ours(error) => return error,
            failure => return error(ErrorKind::Init, "cannot open a session", failure),
        },
    };
    error(ErrorKind::Config, advice, failure)
}

/// The driver's error for one of ours: it can be had only by failing in the driver's hands.
pub(crate) async fn driver_error(error: io::Error) -> tokio_postgres::Error {
    let mut config = tokio_postgres::Config::new();
    config.user("nobody").ssl_mode(SslMode::Disable);
    let failed = config.connect_raw(Stream::failed(error), Negotiated).await;
    failed.err().expect("nobody can connect over a stream that fails")
}

/// One of our errors on its way through the driver's.
pub(crate) fn refused(error: Error) -> io::Error {
    io::Error::other(error)
}
