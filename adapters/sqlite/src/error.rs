//! The driver's errors as ours.

use std::{borrow::Cow, path::Path};

use deadpool_sqlite::{
    HookError, InteractError, PoolError,
    rusqlite::{self, ErrorCode},
};
use winddown_core::{BoxError, Error, ErrorKind};

/// The error of this kind and message, with the driver's as its source. Worth another try where
/// another connection has a lock, or the disk is full.
pub(crate) fn error(kind: ErrorKind, message: impl Into<Cow<'static, str>>, source: Failure) -> Error {
    let error = Error::new(kind, message);
    match source {
        Failure::Sqlite(source) => {
            let passes = matches!(
                source.sqlite_error_code(),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull)
            );
            let error = error.with_source(source);
            if passes { error.retryable() } else { error }
        }
        Failure::Other(source) => error.with_source(source),
    }
}

/// What the driver says, without the layers that the pool puts around it.
#[derive(Debug)]
pub(crate) enum Failure {
    Sqlite(rusqlite::Error),
    Other(BoxError),
}

impl Failure {
    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Sqlite(error) => error.sqlite_error_code(),
            Self::Other(_) => None,
        }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => Self::Sqlite(error),
            // The pool's own words for this end with a line break.
            PoolError::PostCreateHook(error) => Self::Other(error.into()),
            error => Self::Other(error.into()),
        }
    }
}

impl From<InteractError> for Failure {
    fn from(error: InteractError) -> Self {
        Self::Other(error.to_string().into())
    }
}

/// Why a database could not be opened, and what to do about it.
pub(crate) fn open(path: &Path, failure: Failure) -> Error {
    let shown = path.display();
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let advice = match failure.code() {
        Some(ErrorCode::CannotOpen) if path.is_dir() => "it is a directory, give the path of a file".to_owned(),
        Some(ErrorCode::CannotOpen) if !directory.is_dir() => {
            format!("there is no directory {}, create it or give another path", directory.display())
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            format!(
                "make the file and its directory {} readable and writable for this process; to read a database that nobody \
                 changes, open a pool on `file:{shown}?immutable=1` and give it to `Sqlite::wrap`",
                directory.display()
            )
        }
        Some(ErrorCode::NotADatabase) => {
            "it is not an SQLite database, give another path or move the file away".to_owned()
        }
        _ => return error(ErrorKind::Init, format!("cannot open {shown}"), failure),
    };
    error(ErrorKind::Config, format!("cannot open {shown}: {advice}"), failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_database_is_told_how_it_can_be_read() {
        for code in [rusqlite::ffi::SQLITE_READONLY, rusqlite::ffi::SQLITE_CANTOPEN, rusqlite::ffi::SQLITE_PERM] {
            let failure = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
            let error = open(Path::new("/tmp/app.db"), failure.into());
            assert_eq!(error.kind(), ErrorKind::Config);
            let text = error.to_string();
            assert!(text.contains("`file:/tmp/app.db?immutable=1`") && text.contains("`Sqlite::wrap`"), "{text}");
        }
    }
}
