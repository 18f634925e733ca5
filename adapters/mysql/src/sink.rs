//! Buffered records go into a table.

mod insert;
mod keys;
mod load;
mod look;
mod warnings;

use std::error::Error as StdError;

use mysql_async::{DriverError, Error as Failure, Value, prelude::ToValue};
use winddown_buffer::{WriteError, sql::Table, sql_tuples};
use winddown_core::{BoxError, Error, ErrorKind};
use winddown_sql::{Verdict, mysql};

pub use self::{insert::Insert, load::LoadData};
use crate::{Session, error};

/// A record as a row: a tuple of values that the driver can send, or a type of the application.
///
/// ```
/// use winddown_mysql::{Parameters, mysql_async::Value};
///
/// struct Visit {
///     page: String,
///     took_ms: Option<i64>,
/// }
///
/// impl Parameters for Visit {
///     fn parameters(&self, values: &mut Vec<Value>) {
///         values.extend([Value::from(&self.page), self.took_ms.into()]);
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no record of this sink: it has no values for the columns",
    note = "a record is a tuple of values that the driver can send, one for each column: `(7_i64, \"signed in\".to_owned())`",
    note = "a type of your own implements `Parameters`"
)]
pub trait Parameters: Send + Sync + 'static {
    /// Adds the record's values, one for each column of the sink, in their order.
    fn parameters(&self, values: &mut Vec<Value>);
}

macro_rules! tuple {
    ($($value:ident)+) => {
        impl<$($value: ToValue + Send + Sync + 'static),+> Parameters for ($($value,)+) {
            fn parameters(&self, values: &mut Vec<Value>) {
                let ($($value,)+) = self;
                $(values.push($value.to_value());)+
            }
        }
    };
}

sql_tuples!(tuple);

/// Adds the values of a record, which must be as many as there are columns.
fn values(table: &Table, record: &impl Parameters, values: &mut Vec<Value>) -> Result<(), WriteError> {
    let before = values.len();
    record.parameters(values);
    table.fits(values.len() - before).map_err(WriteError::Failed)
}

/// The server's numbers of errors that the sinks know by themselves; names in the servers' own words.
mod number {
    pub(super) const DUP_ENTRY: u16 = 1062;
    pub(super) const NO_DATABASE: u16 = 1046;
    pub(super) const UNKNOWN_DATABASE: u16 = 1049;
    pub(super) const UNKNOWN_COLUMN: u16 = 1054;
    pub(super) const NO_SUCH_TABLE: u16 = 1146;

    // To the database, to a table, to a column.
    pub(super) const DENIED: &[u16] = &[1044, 1142, 1143];

    // LOAD DATA LOCAL: by MySQL 5 and older MariaDB, MariaDB, MySQL 8 and later.
    pub(super) const LOCAL_NOT_ALLOWED: &[u16] = &[1148, 4166, 3948];
}

/// Of an error before the commit of a batch of so many records.
fn unwritten(failure: Failure, records: usize) -> WriteError {
    let verdict = match &failure {
        Failure::Server(error) => mysql::verdict(error.code, &error.state),
        failure if error::is_too_large(failure) => Verdict::TooLarge,
        // It went away; whatever it had of the transaction went with it.
        Failure::Io(_)
        | Failure::Driver(
            DriverError::ConnectionClosed | DriverError::PacketOutOfOrder | DriverError::UnexpectedPacket { .. },
        ) => Verdict::Passes,
        _ => Verdict::Fails,
    };
    let kind = match verdict {
        Verdict::Passes => WriteError::Retry,
        Verdict::MuchWork => WriteError::TooLarge,
        Verdict::TooLarge if records > 1 => WriteError::TooLarge,
        Verdict::TooLarge | Verdict::OfRecord => WriteError::Rejected,
        Verdict::Fails => WriteError::Failed,
    };
    kind(rolled_back(failure))
}

/// The same of a statement that had no record in it.
fn without_records(failure: Failure) -> WriteError {
    match unwritten(failure, 0) {
        WriteError::Rejected(error) => WriteError::Failed(error),
        // It has waited for another's.
        WriteError::TooLarge(error) => WriteError::Retry(error),
        other => other,
    }
}

/// Where the server takes no writes any more, no session with it is used again: a new one may be with another server.
fn seen(checkout: &Session, written: Result<(), WriteError>) -> Result<(), WriteError> {
    if let Err(error) = &written
        && let Some(Failure::Server(said)) = cause(error.error())
        && mysql::is_read_only(said.code, &said.message)
    {
        checkout.takes_no_writes();
    }
    written
}

/// The driver's error behind one of ours.
fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Failure> {
    std::iter::successors(Some(error), |error| (*error).source()).find_map(|error| error.downcast_ref())
}

fn rolled_back(source: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::Write, "a batch was rolled back").with_source(source)
}

/// Of an error of the commit.
fn uncommitted(failure: Failure) -> WriteError {
    match &failure {
        // Those it is rolled back for, and says so.
        Failure::Server(error) if error.state.starts_with("40") => without_records(failure),
        _ => {
            let text = "the commit was not confirmed: whether the batch was written is not known";
            WriteError::Unknown(Error::new(ErrorKind::Write, text).with_source(failure))
        }
    }
}
