//! Records as the values of a statement.

use std::fmt;

use sqlx::{Arguments as _, Database, Encode, Type, error::BoxDynError};
use winddown_buffer::sql_tuples;

/// A record as a row: a tuple of values that the driver can send, or a type of the application.
///
/// ```
/// use winddown_sqlx::{Parameters, Values, sqlx::{Database, Encode, Type}};
///
/// struct Visit {
///     page: String,
///     took_ms: Option<i64>,
/// }
///
/// impl<DB: Database> Parameters<DB> for Visit
/// where
///     String: for<'q> Encode<'q, DB> + Type<DB>,
///     Option<i64>: for<'q> Encode<'q, DB> + Type<DB>,
/// {
///     fn parameters(&self, values: &mut Values<DB>) {
///         values.push(&self.page);
///         values.push(&self.took_ms);
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no record of this sink: it has no values for the columns",
    note = "a record is a tuple of values that the driver can send, one for each column: `(7_i64, \"signed in\".to_owned())`",
    note = "a type of your own implements `Parameters`"
)]
pub trait Parameters<DB: Database>: Send + Sync + 'static {
    /// Adds the record's values, one for each column of the sink, in their order.
    fn parameters(&self, values: &mut Values<DB>);
}

/// The values of some records.
pub struct Values<DB: Database> {
    arguments: DB::Arguments,
    added: usize,
    /// Of the first that could not be.
    failed: Option<BoxDynError>,
}

impl<DB: Database> Values<DB> {
    pub(super) fn new() -> Self {
        Self { arguments: DB::Arguments::default(), added: 0, failed: None }
    }

    pub(super) fn len(&self) -> usize {
        self.added
    }

    pub(super) fn into_arguments(self) -> Result<DB::Arguments, BoxDynError> {
        self.failed.map_or(Ok(self.arguments), Err)
    }

    /// Adds one. A value that the driver cannot send has its record refused.
    pub fn push<'q>(&mut self, value: impl Encode<'q, DB> + Type<DB>) {
        self.added += 1;
        if let Err(failure) = self.arguments.add(value) {
            self.failed.get_or_insert(failure);
        }
    }
}

impl<DB: Database> fmt::Debug for Values<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the values: they are the application's data.
        f.debug_struct("Values").field("added", &self.added).finish_non_exhaustive()
    }
}

macro_rules! tuple {
    ($($value:ident)+) => {
        impl<DB: Database, $($value),+> Parameters<DB> for ($($value,)+)
        where
            $($value: for<'q> Encode<'q, DB> + Type<DB> + Send + Sync + 'static),+
        {
            fn parameters(&self, values: &mut Values<DB>) {
                let ($($value,)+) = self;
                $(values.push($value);)+
            }
        }
    };
}

sql_tuples!(tuple);
