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
use winddown_core::{Error, ErrorKind};

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
                #[expect(non_snake_case, reason = "one name for a type and for its value")]
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

tuple!(A);
tuple!(A B);
tuple!(A B C);
tuple!(A B C D);
tuple!(A B C D E);
tuple!(A B C D E F);
tuple!(A B C D E F G);
tuple!(A B C D E F G H);
tuple!(A B C D E F G H I);
tuple!(A B C D E F G H I J);
tuple!(A B C D E F G H I J K);
tuple!(A B C D E F G H I J K L);

/// The table that rows go to, and those of its columns that a record has values for.
#[derive(Debug, Clone)]
struct Table {
    schema: Option<String>,
    name: String,
    /// The table, with its schema where one is set, as it is told.
    target: String,
    columns: Vec<String>,
    on_conflict: String,
    /// What inserts one row, two, four, and so on: few that are prepared once, for batches of any size.
    inserts: Box<[OnceLock<String>; SIZES]>,
}

impl Table {
    fn new<C: Into<String>>(name: impl Into<String>, columns: impl IntoIterator<Item = C>) -> Self {
        let columns = columns.into_iter().map(Into::into).collect();
        let name = name.into();
        let target = name.clone();
        Self { schema: None, name, target, columns, on_conflict: String::new(), inserts: Box::default() }
    }

    fn set_schema(&mut self, schema: String) {
        self.target = format!("{schema}.{}", self.name);
        self.schema = Some(schema);
        *self.inserts = Default::default();
    }

    fn set_on_conflict(&mut self, on_conflict: String) {
        self.on_conflict = on_conflict;
        *self.inserts = Default::default();
    }

    /// The table, as statements name it.
    fn quoted(&self) -> String {
        self.beside(&self.name)
    }

    fn target(&self) -> &str {
        &self.target
    }

    /// Another table in the same schema.
    fn beside(&self, name: &str) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(name)),
            None => quoted(name),
        }
    }

    fn quoted_columns(&self) -> String {
        self.columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ")
    }

    /// Inserts so many rows, each value a parameter. The number is a power of two.
    fn insert(&self, rows: usize) -> &str {
        self.inserts[rows.ilog2() as usize].get_or_init(|| {
            let columns = self.columns.len();
            let row = |row| {
                let parameters: Vec<_> = (row * columns + 1..=(row + 1) * columns).map(|n| format!("${n}")).collect();
                format!("({})", parameters.join(", "))
            };
            let rows = (0..rows).map(row).collect::<Vec<_>>().join(", ");
            format!("INSERT INTO {} ({}) VALUES {rows}{}", self.quoted(), self.quoted_columns(), self.on_conflict)
        })
    }

    /// How many rows each of the statements inserts that together insert so many.
    fn sizes(&self, rows: usize) -> impl Iterator<Item = usize> + use<> {
        let most = (MOST_PARAMETERS / self.columns.len().max(1)).clamp(1, 1 << (SIZES - 1));
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
        let (given, columns) = (values.len() - before, self.columns.len());
        if given == columns {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Write, format!("a record has {given} values, and the sink {columns} columns")))
    }
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
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

        /// How often a record is in the table if the connection breaks while its batch is committed.
        ///
        /// Defaults to [`Delivery::ExactlyOnce`], for which the batches' keys are written too, in the same transaction.
        /// The others write none.
        #[must_use]
        pub fn delivery(mut self, delivery: Delivery) -> Self {
            self.keys.delivery = delivery;
            self
        }

        /// The table that remembers which batches are written. Sinks may share one.
        ///
        /// It is made if it is missing, for which the user must be allowed to `CREATE` in its schema. Where somebody else
        /// makes it, the user needs `INSERT` on it, and `SELECT` and `DELETE` for old keys to be deleted:
        ///
        /// ```sql
        /// CREATE TABLE winddown_batch (key uuid PRIMARY KEY, written_at timestamptz NOT NULL DEFAULT now())
        /// ```
        ///
        /// Defaults to `winddown_batch`.
        #[must_use]
        pub fn key_table(mut self, name: impl Into<String>) -> Self {
            self.keys.table = name.into();
            self
        }

        /// How long keys are kept: longer than anything keeps a batch that is written again, a file of a replay say. Older
        /// ones are deleted behind the first batch that is written, and then once an hour.
        ///
        /// Defaults to 7 days.
        #[must_use]
        pub fn remember(mut self, time: Duration) -> Self {
            self.keys.remember = time;
            self
        }
    };
}
use settings;

/// What the protocol can count.
const MOST_PARAMETERS: usize = u16::MAX as usize;

/// Up to 1024 rows in a statement: more gain nothing.
const SIZES: usize = 11;
