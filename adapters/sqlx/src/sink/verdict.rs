//! What becomes of a batch that the database, or the driver, did not take.

use std::error::Error as StdError;

use sqlx::{Error as Failure, error::DatabaseError};
use winddown_buffer::WriteError;
use winddown_core::{BoxError, Error, ErrorKind};
use winddown_sql::Verdict;

use super::Dialect;
use crate::error::verdict;

/// Of an error before the commit, of a statement with so many records in it.
pub(super) fn unwritten(failure: Failure, records: usize) -> WriteError {
    let verdict = match &failure {
        Failure::Database(failed) => verdict(&**failed),
        // It went away; whatever it had of the transaction went with it.
        Failure::Io(_) | Failure::Tls(_) | Failure::Protocol(_) | Failure::WorkerCrashed | Failure::PoolTimedOut => {
            Verdict::Passes
        }
        // A value that is too large for the protocol, or of a type that the column is not of.
        Failure::Encode(_) => Verdict::OfRecord,
        _ => Verdict::Fails,
    };
    match verdict {
        Verdict::Passes => WriteError::Retry(rolled_back(failure).retryable()),
        Verdict::MuchWork => WriteError::TooLarge(rolled_back(failure)),
        Verdict::TooLarge if records > 1 => WriteError::TooLarge(rolled_back(failure)),
        Verdict::TooLarge | Verdict::OfRecord => WriteError::Rejected(refused(&failure)),
        Verdict::Fails => WriteError::Failed(rolled_back(failure)),
    }
}

/// The same of a statement that had no record in it.
pub(super) fn without_records(failure: Failure) -> WriteError {
    match &failure {
        Failure::Database(failed) if verdict(&**failed) == Verdict::OfRecord => {
            WriteError::Failed(rolled_back(failure))
        }
        _ => match unwritten(failure, 0) {
            WriteError::Rejected(error) => WriteError::Failed(error),
            // It has waited for another's.
            WriteError::TooLarge(error) => WriteError::Retry(error.retryable()),
            other => other,
        },
    }
}

/// Of an error of the commit.
pub(super) fn uncommitted<DB: Dialect>(failure: Failure) -> WriteError {
    match &failure {
        Failure::Database(failed) if DB::is_rolled_back(&**failed) => unwritten(failure, 1),
        _ => {
            let text = "the commit was not confirmed: whether the batch was written is not known";
            WriteError::Unknown(Error::new(ErrorKind::Write, text).with_source(failure))
        }
    }
}

/// Whether the server says that it takes no writes.
pub(super) fn is_read_only<DB: Dialect>(error: &Error) -> bool {
    let chain = std::iter::successors(Some(error as &(dyn StdError + 'static)), |&error| error.source());
    let said = chain.filter_map(|error| error.downcast_ref::<Failure>()).find_map(Failure::as_database_error);
    said.is_some_and(DB::is_read_only)
}

fn rolled_back(source: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::Write, "a batch was rolled back").with_source(source)
}

/// The server's words may quote what is in the record.
fn refused(failure: &Failure) -> Error {
    let said = failure.as_database_error().map(|failed: &dyn DatabaseError| {
        let code = failed.code().unwrap_or_default().into_owned();
        match failed.constraint() {
            Some(constraint) => format!("code {code}, constraint {constraint}"),
            None => format!("code {code}"),
        }
    });
    let why = said.unwrap_or_else(|| "it cannot be sent".to_owned());
    Error::new(ErrorKind::Write, format!("a record was refused: {why}"))
}
