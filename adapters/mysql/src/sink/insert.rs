//! Multi-row inserts.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use mysql_async::{Conn, Params, Transaction, Value, prelude::Queryable as _};
use winddown_buffer::{Batch, Delivery, Sink, WriteError, sql::Table};
use winddown_core::{Checkout, Error, ErrorKind};

use super::{Parameters, keys::Keys, look, seen, unwritten, warnings};
use crate::{Mysql, abandon};

/// How many parameters a statement may have.
const MOST_PARAMETERS: usize = u16::MAX as usize;

/// How many rows a statement has at most, and about how many bytes, whatever one row has: well within what servers take
/// by default, and larger ones are not quicker.
const MOST_ROWS: usize = 500;
const MOST_BYTES: usize = 1 << 20;

/// Inserts records as rows, many by one statement, each batch in one transaction.
///
/// A record is whatever has [`Parameters`]: a tuple with one value for each column, or a type of the application that
/// implements the trait.
///
/// ```
/// # use winddown_mysql::Insert;
/// // for records of the type `(i64, String)`
/// let audit = Insert::into("audit", ["id", "what"]);
/// ```
///
/// The table must be of an engine that has transactions.
///
/// # Exactly once
/// The key of each batch goes into a table of its own, in the transaction of the rows; a batch whose key is there is not
/// written again. The table is created where it is missing. Where the user may not do that, somebody else does it:
///
/// ```sql
/// CREATE TABLE winddown_batch(
///     `key` BINARY(16) NOT NULL PRIMARY KEY, written_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
/// ) ENGINE = InnoDB
/// ```
///
/// The user needs `INSERT` on it, and `SELECT` and `DELETE` for old keys to be forgotten.
#[derive(Debug, Clone)]
pub struct Insert {
    table: Table,
    keys: Keys,
    ignore: &'static str,
    on_duplicate: String,
    /// The most rows that one statement has had.
    most: Arc<AtomicUsize>,
}

impl Insert {
    /// Writes into these columns of this table. Names are taken as they are, and quoted.
    pub fn into(table: impl Into<String>, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            table: Table::new('`', table, columns),
            keys: Keys::default(),
            ignore: "",
            on_duplicate: String::new(),
            most: Arc::default(),
        }
    }

    /// The table, and that of the keys, are in this database. Defaults to that of the connection.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.table.set_schema(schema.into());
        self
    }

    /// Leaves out rows that are there already, and makes others fit: `INSERT IGNORE`, which turns the errors of values
    /// into warnings. They count as written. Defaults to refusing the record.
    #[must_use]
    pub fn ignore(mut self) -> Self {
        self.ignore = "IGNORE ";
        self
    }

    /// What is done instead where a row is there already: this after `ON DUPLICATE KEY UPDATE`, such as
    /// `n = n + VALUES(n)`. It is SQL, taken as it is. Defaults to refusing the record.
    #[must_use]
    pub fn on_duplicate_key_update(mut self, assignments: impl AsRef<str>) -> Self {
        self.on_duplicate = format!(" ON DUPLICATE KEY UPDATE {}", assignments.as_ref());
        self
    }

    winddown_buffer::sql_settings!(keys.common);

    /// The statement for so many rows.
    fn sql(&self, rows: usize) -> String {
        let Self { table, ignore, on_duplicate, .. } = self;
        let row = format!("({})", vec!["?"; table.columns().len()].join(","));
        let (into, columns, values) = (table.quoted(), table.quoted_columns(), vec![&*row; rows].join(","));
        format!("INSERT {ignore}INTO {into}({columns}) VALUES {values}{on_duplicate}")
    }

    async fn fill<T: Parameters>(
        &self,
        transaction: &mut Transaction<'_>,
        max_packet: usize,
        batch: &Batch<T>,
    ) -> Result<(), WriteError> {
        // With some room for what is not a value.
        let most_bytes = MOST_BYTES.min(max_packet / 8 * 7);
        let columns = self.table.columns().len();
        let most = (MOST_PARAMETERS / columns.max(1)).clamp(1, MOST_ROWS);
        let mut values = Vec::with_capacity(most.min(batch.len()) * columns);
        let (mut rows, mut bytes) = (0, 0);
        for record in batch {
            let before = values.len();
            super::values(&self.table, record, &mut values)?;
            let row: usize = values[before..].iter().map(size).sum();
            if row > most_bytes {
                check_size(transaction, max_packet, row).await?;
            }
            if rows == most || rows > 0 && bytes + row > most_bytes {
                let next = values.split_off(before);
                self.execute(transaction, batch.len(), rows, mem::replace(&mut values, next)).await?;
                (rows, bytes) = (0, 0);
            }
            (rows, bytes) = (rows + 1, bytes + row);
        }
        self.execute(transaction, batch.len(), rows, values).await
    }

    async fn write_on<T: Parameters>(
        &self,
        conn: &mut Conn,
        max_packet: usize,
        batch: &Batch<T>,
    ) -> Result<(), WriteError> {
        let Some(mut transaction) = self.keys.begin(conn, &self.table, batch.key()).await? else { return Ok(()) };
        let filled = self.fill(&mut transaction, max_packet, batch).await;
        self.keys.end(transaction, filled).await?;
        self.keys.forget(conn, &self.table).await;
        Ok(())
    }

    /// Inserts so many rows of a batch of so many records.
    async fn execute(
        &self,
        transaction: &mut Transaction<'_>,
        records: usize,
        rows: usize,
        values: Vec<Value>,
    ) -> Result<(), WriteError> {
        let failed = |failure| unwritten(failure, records);
        let statement = transaction.prep(self.sql(rows)).await.map_err(failed)?;
        transaction.exec_drop(&statement, Params::Positional(values)).await.map_err(failed)?;
        // Before the next statement, which has warnings of its own.
        if self.ignore.is_empty() {
            warnings::look(transaction, records).await?;
        }
        // The connection keeps a statement of the size that comes most often, and is spared those of all others.
        if rows < self.most.fetch_max(rows, Ordering::Relaxed) {
            transaction.close(statement).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// Refuses a record that is larger than the server takes. The server may say so by ending the session, or with an error
/// that says nothing; the driver, which knows a limit, too, ends it as well.
async fn check_size(transaction: &mut Transaction<'_>, max_packet: usize, bytes: usize) -> Result<(), WriteError> {
    let said: Option<usize> =
        transaction.query_first("SELECT @@max_allowed_packet").await.map_err(|failure| unwritten(failure, 1))?;
    let limit = said.map_or(max_packet, |said| said.min(max_packet));
    if bytes <= limit {
        return Ok(());
    }
    let text = format!("a record of {bytes} bytes is more than the max_allowed_packet of {limit}");
    Err(WriteError::Rejected(Error::new(ErrorKind::Write, text)))
}

/// About how many bytes it takes on the way.
fn size(value: &Value) -> usize {
    match value {
        Value::Bytes(bytes) => bytes.len() + 9,
        _ => 16,
    }
}

impl<T: Parameters> Sink<T> for Insert {
    type Target = Mysql;

    fn delivery(&self) -> Delivery {
        self.keys.common.delivery
    }

    /// Tried again while the server cannot be reached, is full, starts up or is no primary, and where the batch was rolled
    /// back for the sake of another transaction. The outcome is unknown where the commit was not confirmed.
    async fn write(&self, checkout: &mut Checkout<Mysql>, batch: &Batch<T>) -> Result<(), WriteError> {
        let max_packet = checkout.max_packet().unwrap_or(usize::MAX);
        let written = self.write_on(checkout, max_packet, batch).await;
        seen(checkout, written)
    }

    async fn check(&self, checkout: &mut Checkout<Mysql>) -> Result<(), Error> {
        let conn: &mut Conn = checkout;
        look::at_target(conn, &self.table, &self.sql(1)).await?;
        self.keys.check(conn, &self.table).await
    }

    /// The session is ended on the server over another one: that gives up the locks which the batch would wait for.
    async fn abandon(&self, checkout: Checkout<Mysql>) {
        abandon::session(checkout).await;
    }

    fn target(&self) -> Option<&str> {
        Some(self.table.target())
    }
}
