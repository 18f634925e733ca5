//! Buffered records go into a table.

mod check;
mod copy;
mod hung;
mod insert;
mod keys;
mod transaction;
mod verdict;

use std::{iter, sync::OnceLock};

use deadpool_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use winddown_buffer::{sql, sql_tuples};
use winddown_core::Error;

use self::verdict::{without_records, write_error};
pub use self::{copy::CopyIn, insert::Insert};

/// A record as a row: a tuple of values that the driver can send, or a type of the application.
///
/// ```
/// use winddown_postgres::{Parameters, tokio_postgres::types::ToSql};
///
/// struct Visit {
///     page: String,
///     took_ms: Option<i64>,
/// }
///
/// impl Parameters for Visit {
///     fn parameters<'a>(&'a self, values: &mut Vec<&'a (dyn ToSql + Sync)>) {
///         values.extend([&self.page as &(dyn ToSql + Sync), &self.took_ms]);
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
    fn parameters<'a>(&'a self, values: &mut Vec<&'a (dyn ToSql + Sync)>);

    /// Whether each of the values can be sent to a column of the type at its place, for a sink to find out before there is a
    /// record. There are as many as values, whatever the number of types.
    ///
    /// Defaults to `None`: that is not known before. Tuples know it.
    fn accepts(types: &[Type]) -> Option<Vec<bool>>
    where
        Self: Sized,
    {
        let _ = types;
        None
    }
}

macro_rules! tuple {
    ($($value:ident)+) => {
        impl<$($value: ToSql + Send + Sync + 'static),+> Parameters for ($($value,)+) {
            fn parameters<'a>(&'a self, values: &mut Vec<&'a (dyn ToSql + Sync)>) {
                let ($($value,)+) = self;
                $(values.push($value);)+
            }

            fn accepts(types: &[Type]) -> Option<Vec<bool>> {
                let mut types = types.iter();
                Some(vec![$(types.next().is_some_and(<$value as ToSql>::accepts)),+])
            }
        }
    };
}

sql_tuples!(tuple);

/// The table that rows go to, and what inserts them.
#[derive(Debug, Clone)]
struct Table {
    at: sql::Table,
    on_conflict: String,
    /// What inserts one row, two, four, and so on: few that are prepared once, for batches of any size.
    inserts: Box<[OnceLock<String>; SIZES]>,
}

impl Table {
    fn new<C: Into<String>>(name: impl Into<String>, columns: impl IntoIterator<Item = C>) -> Self {
        Self { at: sql::Table::new('"', name, columns), on_conflict: String::new(), inserts: Box::default() }
    }

    fn set_schema(&mut self, schema: String) {
        self.at.set_schema(schema);
        *self.inserts = Default::default();
    }

    fn set_on_conflict(&mut self, on_conflict: String) {
        self.on_conflict = on_conflict;
        *self.inserts = Default::default();
    }

    /// Inserts so many rows, each value a parameter. The number is a power of two.
    fn insert(&self, rows: usize) -> &str {
        self.inserts[rows.ilog2() as usize].get_or_init(|| {
            let columns = self.at.columns().len();
            let row = |row| {
                let parameters: Vec<_> = (row * columns + 1..=(row + 1) * columns).map(|n| format!("${n}")).collect();
                format!("({})", parameters.join(", "))
            };
            let rows = (0..rows).map(row).collect::<Vec<_>>().join(", ");
            format!("INSERT INTO {} ({}) VALUES {rows}{}", self.at.quoted(), self.at.quoted_columns(), self.on_conflict)
        })
    }

    /// How many rows each of the statements inserts that together insert so many.
    fn sizes(&self, rows: usize) -> impl Iterator<Item = usize> + use<> {
        let most = (MOST_PARAMETERS / self.at.columns().len().max(1)).clamp(1, 1 << (SIZES - 1));
        let mut rest = rows;
        iter::from_fn(move || {
            let size = 1 << rest.min(most).checked_ilog2()?;
            rest -= size;
            Some(size)
        })
    }

    /// Adds the values of a record, which must be as many as there are columns.
    fn values<'a>(&self, record: &'a impl Parameters, values: &mut Vec<&'a (dyn ToSql + Sync)>) -> Result<(), Error> {
        let before = values.len();
        record.parameters(values);
        self.at.fits(values.len() - before)
    }
}

/// Prepares this statement anew when it is needed next, on every connection.
fn forget_statement(client: &Client, sql: &str) {
    if let Some(pool) = Client::pool(client) {
        pool.manager().statement_caches.remove(sql, &[]);
    }
}

/// What both sinks can be told.
macro_rules! settings {
    () => {
        /// The schema of the table, and of the table of keys.
        ///
        /// Defaults to what the session's `search_path` says.
        #[must_use]
        pub fn schema(mut self, schema: impl Into<String>) -> Self {
            self.table.set_schema(schema.into());
            self
        }

        winddown_buffer::sql_settings!(keys.common);
    };
}
use settings;

/// What the protocol can count.
const MOST_PARAMETERS: usize = u16::MAX as usize;

/// Up to 1024 rows in a statement: more gain nothing.
const SIZES: usize = 11;
