//! Buffered records go into a table.

mod verdict;

use std::sync::{Arc, Weak};

use deadpool_sqlite::{
    InteractError,
    rusqlite::{self, Params, Transaction, TransactionBehavior},
};
use winddown_buffer::{
    Batch, BatchKey, Delivery, Sink, WriteError,
    sql::{AT_ONCE, Keys, Table},
};
use winddown_core::{BoxError, Checkout, Error, ErrorKind};

use self::verdict::{uncommitted, unwritten, without_records};
use crate::Sqlite;

/// Inserts records as rows, each batch in one transaction.
///
/// A record is whatever can be the [parameters](rusqlite::Params) of a statement, one for each column in their order: a
/// tuple, an array, a type of the application that implements the trait.
///
/// ```
/// # use winddown_sqlite::Insert;
/// // for records of the type `(i64, String)`
/// let audit = Insert::into("audit", ["id", "what"]);
/// ```
///
/// # Exactly once
/// The key of each batch goes into a table of its own, in the transaction of the rows; a batch whose key is there is
/// not written again. The table is created where it is missing:
///
/// ```sql
/// CREATE TABLE winddown_batch(
///     key BLOB NOT NULL PRIMARY KEY, written_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
/// ) WITHOUT ROWID
/// ```
#[derive(Debug, Clone)]
pub struct Insert {
    settings: Settings,
}

/// Where the rows go, and the keys.
#[derive(Debug, Clone)]
struct Settings {
    table: Table,
    or: &'static str,
    keys: Keys,
}

impl Insert {
    /// Writes into these columns of this table. Names are taken as they are, and quoted.
    pub fn into(table: impl Into<String>, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { settings: Settings { table: Table::new('"', table, columns), or: "", keys: Keys::default() } }
    }

    /// The table, and that of the keys, are in this attached database. Defaults to the first that has one of that name.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.settings.table.set_schema(schema.into());
        self
    }

    /// Leaves out rows that a constraint of the table is against: `INSERT OR IGNORE`. They count as written. Defaults to
    /// refusing the record.
    #[must_use]
    pub fn or_ignore(mut self) -> Self {
        self.settings.or = "OR IGNORE ";
        self
    }

    winddown_buffer::sql_settings!(settings.keys);
}

impl<T: Params + Clone + Send + Sync + 'static> Sink<T> for Insert {
    type Target = Sqlite;

    fn delivery(&self) -> Delivery {
        self.settings.keys.delivery
    }

    /// Tried again while another connection has the lock, while the disk is full, and where the drain interrupted it.
    async fn write(&self, checkout: &mut Checkout<Sqlite>, batch: &Batch<T>) -> Result<(), WriteError> {
        let (insert, batch) = (self.clone(), batch.clone());
        // Gone with this future, and so the closure knows that nobody waits for it any more.
        let waiting = Arc::new(());
        let waits = Arc::downgrade(&waiting);
        let written = checkout.interact(move |connection| insert.write(connection, &batch, &waits)).await;
        drop(waiting);
        written.map_err(|error| match error {
            // Before it began: the runtime has ended.
            InteractError::Cancelled => WriteError::Retry(failed(error.to_string())),
            InteractError::Panic(_) => WriteError::Failed(failed(error.to_string())),
        })?
    }

    async fn check(&self, checkout: &mut Checkout<Sqlite>) -> Result<(), Error> {
        let settings = self.settings.clone();
        let checked = checkout.interact(move |connection| settings.check(connection)).await;
        checked.map_err(|error| {
            Error::new(ErrorKind::Init, "the table was not looked at").with_source(error.to_string())
        })?
    }

    async fn abandon(&self, mut checkout: Checkout<Sqlite>) {
        checkout.abandon().await;
    }

    fn target(&self) -> Option<&str> {
        Some(self.settings.table.target())
    }
}

impl Insert {
    fn write<T: Params + Clone>(
        &self,
        connection: &mut rusqlite::Connection,
        batch: &Batch<T>,
        waits: &Weak<()>,
    ) -> Result<(), WriteError> {
        if !connection.is_autocommit() {
            // Whoever had the connection before has left a transaction open; it is not to swallow this one.
            connection.execute_batch("ROLLBACK").map_err(unwritten)?;
        }
        // Immediate: it waits for the lock here, and not after half of the records.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(unwritten)?;
        if self.settings.keys.are_kept()
            && !self.settings.remember_key(&transaction, batch.key()).map_err(without_records)?
        {
            return Ok(());
        }
        self.settings.fill(&transaction, batch, waits)?;
        transaction.commit().map_err(uncommitted)?;
        self.settings.forget(connection);
        Ok(())
    }
}

impl Settings {
    fn fill<T: Params + Clone>(
        &self,
        transaction: &Transaction<'_>,
        batch: &Batch<T>,
        waits: &Weak<()>,
    ) -> Result<(), WriteError> {
        let mut statement = transaction.prepare_cached(&self.insert()).map_err(without_records)?;
        let still_wanted = || match waits.strong_count() {
            0 => Err(WriteError::Retry(failed("nobody waits for it any more").retryable())),
            _ => Ok(()),
        };
        for record in batch {
            still_wanted()?;
            statement.execute(record.clone()).map_err(unwritten)?;
        }
        still_wanted()
    }

    fn insert(&self) -> String {
        let values = vec!["?"; self.table.columns().len()].join(", ");
        let (or, table, columns) = (self.or, self.table.quoted(), self.table.quoted_columns());
        format!("INSERT {or}INTO {table}({columns}) VALUES ({values})")
    }

    fn insert_key(&self) -> String {
        format!("INSERT INTO {}(key) VALUES (?) ON CONFLICT (key) DO NOTHING", self.table.beside(&self.keys.table))
    }

    /// Compiles what a batch is written with. Changes nothing.
    fn check(&self, connection: &rusqlite::Connection) -> Result<(), Error> {
        let refused = |table: &str, error: rusqlite::Error, advice: &str| {
            let text = format!("{table} cannot be written to: {error}: {advice}");
            match without_records(error) {
                WriteError::Retry(source) => Error::new(ErrorKind::Init, text).with_source(source).retryable(),
                other => Error::new(ErrorKind::Config, text).with_source(Error::from(other)),
            }
        };
        let create = "create the table with these columns, or name others in the sink";
        connection.prepare(&self.insert()).map_err(|error| refused(self.table.target(), error, create))?;
        let schema = self.table.schema().unwrap_or("main");
        let is_read_only = connection.is_readonly(schema).and_then(|is_read_only| {
            let queries_only: bool = connection.pragma_query_value(None, "query_only", |row| row.get(0))?;
            Ok(is_read_only || queries_only)
        });
        if is_read_only.map_err(|error| refused(self.table.target(), error, "see its database"))? {
            let text = format!(
                "{} cannot be written to, the database is read-only: make its file writable, and set no `query_only`",
                self.table.target()
            );
            return Err(Error::new(ErrorKind::Config, text));
        }
        if !self.keys.are_kept() {
            return Ok(());
        }
        match connection.prepare(&self.insert_key()) {
            Ok(_) => Ok(()),
            // It is made with the first batch.
            Err(_) if !self.has_key_table(connection).unwrap_or(true) => Ok(()),
            Err(error) => {
                let advice = format!("it is for the keys of batches, make it by `{}`", self.create_keys());
                Err(refused(&self.keys.table, error, &advice))
            }
        }
    }

    fn has_key_table(&self, connection: &rusqlite::Connection) -> rusqlite::Result<bool> {
        let sql = "SELECT count(*) FROM pragma_table_info(?1, ?2)";
        connection
            .query_row(sql, (&self.keys.table, self.table.schema()), |row| row.get::<_, i64>(0))
            .map(|columns| columns > 0)
    }

    /// Of no cost where it exists: the statement is compiled, and has nothing to do.
    fn create_keys(&self) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {}(\
                 key BLOB NOT NULL PRIMARY KEY, written_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP\
             ) WITHOUT ROWID",
            self.table.beside(&self.keys.table)
        )
    }

    /// Whether the batch was not there before.
    fn remember_key(&self, transaction: &Transaction<'_>, key: BatchKey) -> rusqlite::Result<bool> {
        transaction.prepare_cached(&self.create_keys())?.execute([])?;
        let mut insert = transaction.prepare_cached(&self.insert_key())?;
        Ok(insert.execute([key.as_bytes()])? == 1)
    }

    /// Deletes old keys if that is due. What becomes of it is no batch's business.
    fn forget(&self, connection: &rusqlite::Connection) {
        let Some(first) = self.keys.to_forget() else { return };
        let table = self.table.beside(&self.keys.table);
        let old = format!("SELECT key FROM {table} WHERE key < ?1 ORDER BY key LIMIT {AT_ONCE}");
        match connection.execute(&format!("DELETE FROM {table} WHERE key IN ({old})"), [first.as_bytes()]) {
            Ok(deleted) => self.keys.have_deleted(deleted as u64),
            Err(error) => tracing::warn!("the keys of old batches stay in {table}: {error}"),
        }
    }
}

fn failed(source: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::Write, "a batch was rolled back").with_source(source)
}
