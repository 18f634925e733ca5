//! What becomes of a batch that the server, or the driver, did not take.

use std::{error::Error as StdError, io, iter};

use tokio_postgres::{
    error::{DbError, Severity, SqlState},
    types::WrongType,
};
use winddown_buffer::WriteError;
use winddown_core::{Error, ErrorKind};
use winddown_sql::{Verdict, postgres};

use crate::error::error;

/// What the driver's error says of a batch that was not committed.
pub(super) fn write_error(source: tokio_postgres::Error) -> WriteError {
    let is = verdict(&source);
    let error = error(ErrorKind::Write, "a batch was not written", source.into());
    match is {
        Verdict::Passes => WriteError::Retry(error.retryable()),
        Verdict::MuchWork | Verdict::TooLarge => WriteError::TooLarge(error),
        Verdict::OfRecord => WriteError::Rejected(error),
        Verdict::Fails => WriteError::Failed(error),
    }
}

/// The same for a statement that had no record in it.
pub(super) fn without_records(source: tokio_postgres::Error) -> WriteError {
    match write_error(source) {
        WriteError::Rejected(error) => WriteError::Failed(error),
        // A smaller batch would not make it any smaller.
        WriteError::TooLarge(error) => WriteError::Retry(error.retryable()),
        other => other,
    }
}

/// Whether the server has ended the session with this error, so that nothing more can be asked over it.
pub(super) fn has_ended_the_session(error: &Error) -> bool {
    of_the_server(error).is_some_and(|error| error.parsed_severity() != Some(Severity::Error))
}

/// Whether the server has said this.
pub(super) fn is_of_the_server(error: &Error, code: &SqlState) -> bool {
    of_the_server(error).is_some_and(|error| error.code() == code)
}

/// The server's error behind one of ours.
fn of_the_server(error: &Error) -> Option<&DbError> {
    let chain = iter::successors(error.source(), |&error| error.source());
    chain.filter_map(|error| error.downcast_ref::<tokio_postgres::Error>()).find_map(|error| error.as_db_error())
}

fn verdict(error: &tokio_postgres::Error) -> Verdict {
    error.as_db_error().map_or_else(
        || verdict_of_client(error),
        |error| postgres::verdict(error.code().code(), error.message(), error.routine()),
    )
}

fn verdict_of_client(error: &tokio_postgres::Error) -> Verdict {
    let Some(source) = error.source() else {
        return if error.is_closed() { Verdict::Passes } else { Verdict::Fails };
    };
    match source.downcast_ref::<io::Error>() {
        // Larger than a message can be.
        Some(error) if error.kind() == io::ErrorKind::InvalidInput => Verdict::OfRecord,
        Some(_) => Verdict::Passes,
        None => verdict_of_value(source),
    }
}

/// What the error of a value that cannot be sent says: a column of another type is no record's fault.
pub(super) fn verdict_of_value(error: &(dyn StdError + 'static)) -> Verdict {
    if error.is::<WrongType>() { Verdict::Fails } else { Verdict::OfRecord }
}
