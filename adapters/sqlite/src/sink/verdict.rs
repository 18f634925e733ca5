//! What becomes of a batch that SQLite did not take.

use deadpool_sqlite::rusqlite::{self, ErrorCode};
use winddown_buffer::WriteError;
use winddown_core::{Error, ErrorKind};
use winddown_sql::{Verdict, sqlite};

use super::failed;

fn verdict(error: &rusqlite::Error) -> Verdict {
    match error {
        rusqlite::Error::ToSqlConversionFailure(_) => Verdict::OfRecord,
        error => error.sqlite_error().map_or(Verdict::Fails, |error| sqlite::verdict(error.extended_code)),
    }
}

/// Of an error before the commit, of a statement with a record in it.
pub(super) fn unwritten(error: rusqlite::Error) -> WriteError {
    match verdict(&error) {
        Verdict::Passes => WriteError::Retry(failed(error)),
        Verdict::MuchWork | Verdict::TooLarge => WriteError::TooLarge(failed(error)),
        Verdict::OfRecord => WriteError::Rejected(failed(error)),
        Verdict::Fails => WriteError::Failed(failed(error)),
    }
}

/// The same of a statement that had no record in it.
pub(super) fn without_records(error: rusqlite::Error) -> WriteError {
    match unwritten(error) {
        WriteError::Rejected(error) => WriteError::Failed(error),
        // A smaller batch would not make it any smaller.
        WriteError::TooLarge(error) => WriteError::Retry(error),
        other => other,
    }
}

/// Of an error of the commit.
pub(super) fn uncommitted(error: rusqlite::Error) -> WriteError {
    if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) {
        // What is in the log may count as committed by whoever reads it next.
        let text = "the disk failed during the commit: whether the batch was written is not known";
        return WriteError::Unknown(Error::new(ErrorKind::Write, text).with_source(error));
    }
    unwritten(error)
}
