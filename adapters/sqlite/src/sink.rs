//! Buffered records go into a table.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use deadpool_sqlite::{
    InteractError,
    rusqlite::{self, ErrorCode, Params, Transaction, TransactionBehavior},
};
use winddown_buffer::{Batch, BatchKey, Delivery, Sink, WriteError};
use winddown_core::{BoxError, Checkout, Error, ErrorKind};

use crate::Sqlite;

const KEY_TABLE: &str = "winddown_batch";

const REMEMBER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Old keys are deleted after the first batch, and then after every so many; at most twice as many at a time, so that
/// it takes milliseconds, and they are deleted more quickly than they come.
const FORGET_EVERY: u64 = 1000;

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
    written: Arc<AtomicU64>,
}

/// Where the rows go, and the keys.
#[derive(Debug, Clone)]
struct Settings {
    schema: Option<String>,
    table: String,
    columns: Vec<String>,
    or: &'static str,
    delivery: Delivery,
    key_table: Cow<'static, str>,
    remember: Duration,
}

impl Insert {
    /// Writes into these columns of this table. Names are taken as they are, and quoted.
    pub fn into(table: impl Into<String>, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let settings = Settings {
            schema: None,
            table: table.into(),
            columns: columns.into_iter().map(Into::into).collect(),
            or: "",
            delivery: Delivery::ExactlyOnce,
            key_table: KEY_TABLE.into(),
            remember: REMEMBER,
        };
        Self { settings, written: Arc::default() }
    }

    /// The table, and that of the keys, are in this attached database. Defaults to the first that has one of that name.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.settings.schema = Some(schema.into());
        self
    }

    /// Leaves out rows that a constraint of the table is against: `INSERT OR IGNORE`. They count as written. Defaults to
    /// refusing the record.
    #[must_use]
    pub fn or_ignore(mut self) -> Self {
        self.settings.or = "OR IGNORE ";
        self
    }

    /// What becomes of a batch whose outcome is unknown. Defaults to [`Delivery::ExactlyOnce`]; the others need no table
    /// of keys.
    #[must_use]
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.settings.delivery = delivery;
        self
    }

    /// The table that remembers the keys of written batches. Sinks may share it. Defaults to `winddown_batch`.
    #[must_use]
    pub fn key_table(mut self, table: impl Into<String>) -> Self {
        self.settings.key_table = table.into().into();
        self
    }

    /// For how long keys are remembered: a batch that is replayed later may be written twice. Defaults to 7 days.
    ///
    /// Older ones are deleted after the first batch, and after every thousandth.
    #[must_use]
    pub fn remember(mut self, remember: Duration) -> Self {
        self.settings.remember = remember;
        self
    }
}

impl<T: Params + Clone + Send + Sync + 'static> Sink<T> for Insert {
    type Target = Sqlite;

    fn delivery(&self) -> Delivery {
        self.settings.delivery
    }

    /// Tried again while another connection has the lock, while the disk is full, and where the drain interrupted it.
    async fn write(&self, checkout: &mut Checkout<Sqlite>, batch: &Batch<T>) -> Result<(), WriteError> {
        let (insert, batch) = (self.clone(), batch.clone());
        let written = checkout.interact(move |connection| insert.write(connection, &batch)).await;
        written.map_err(|error| match error {
            // Before it began: the runtime has ended.
            InteractError::Cancelled => WriteError::Retry(failed(error.to_string())),
            InteractError::Panic(_) => WriteError::Failed(failed(error.to_string())),
        })?
    }
}

impl Insert {
    fn write<T: Params + Clone>(
        &self,
        connection: &mut rusqlite::Connection,
        batch: &Batch<T>,
    ) -> Result<(), WriteError> {
        if !connection.is_autocommit() {
            // Whoever had the connection before has left a transaction open; it is not to swallow this one.
            connection.execute_batch("ROLLBACK").map_err(unwritten)?;
        }
        // Immediate: it waits for the lock here, and not after half of the records.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(unwritten)?;
        let remembers = self.settings.delivery == Delivery::ExactlyOnce;
        if remembers && !self.settings.remember_key(&transaction, batch.key()).map_err(without_records)? {
            return Ok(());
        }
        self.settings.fill(&transaction, batch).map_err(unwritten)?;
        transaction.commit().map_err(uncommitted)?;
        if remembers
            && self.written.fetch_add(1, Ordering::Relaxed).is_multiple_of(FORGET_EVERY)
            && let Err(error) = self.settings.forget(connection)
        {
            tracing::warn!("the keys of old batches stay in {}: {error}", self.settings.key_table);
        }
        Ok(())
    }
}

impl Settings {
    fn fill<T: Params + Clone>(&self, transaction: &Transaction<'_>, batch: &Batch<T>) -> rusqlite::Result<()> {
        let columns: Vec<_> = self.columns.iter().map(|column| quoted(column)).collect();
        let values = vec!["?"; columns.len()].join(", ");
        let (or, table, columns) = (self.or, self.named(&self.table), columns.join(", "));
        let mut statement =
            transaction.prepare_cached(&format!("INSERT {or}INTO {table}({columns}) VALUES ({values})"))?;
        for record in batch {
            statement.execute(record.clone())?;
        }
        Ok(())
    }

    /// Whether the batch was not there before.
    fn remember_key(&self, transaction: &Transaction<'_>, key: BatchKey) -> rusqlite::Result<bool> {
        let table = self.named(&self.key_table);
        // Of no cost where it exists: the statement is compiled, and has nothing to do.
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {table}(\
                 key BLOB NOT NULL PRIMARY KEY, written_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP\
             ) WITHOUT ROWID"
        );
        transaction.prepare_cached(&create)?.execute([])?;
        let mut insert =
            transaction.prepare_cached(&format!("INSERT INTO {table}(key) VALUES (?) ON CONFLICT (key) DO NOTHING"))?;
        Ok(insert.execute([key.as_bytes()])? == 1)
    }

    /// One that is not old is never deleted, whatever the clock says.
    fn forget(&self, connection: &rusqlite::Connection) -> rusqlite::Result<usize> {
        let Some(since) = SystemTime::now().checked_sub(self.remember) else { return Ok(0) };
        let table = self.named(&self.key_table);
        let old = format!("SELECT key FROM {table} WHERE key < ?1 ORDER BY key LIMIT {}", 2 * FORGET_EVERY);
        let mut delete = connection.prepare(&format!("DELETE FROM {table} WHERE key IN ({old})"))?;
        delete.execute([BatchKey::first_at(since).as_bytes()])
    }

    fn named(&self, table: &str) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(table)),
            None => quoted(table),
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn failed(source: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::Write, "a batch was rolled back").with_source(source)
}

/// Of an error before the commit.
fn unwritten(error: rusqlite::Error) -> WriteError {
    use ErrorCode::*;
    let converts = matches!(error, rusqlite::Error::ToSqlConversionFailure(_));
    match error.sqlite_error_code() {
        Some(DatabaseBusy | DatabaseLocked | DiskFull | OperationInterrupted | OutOfMemory) => {
            WriteError::Retry(failed(error))
        }
        // A trigger that raises an error counts as a constraint.
        Some(ConstraintViolation | TypeMismatch | TooBig) => WriteError::Rejected(failed(error)),
        _ if converts => WriteError::Rejected(failed(error)),
        _ => WriteError::Failed(failed(error)),
    }
}

/// The same of a statement that had no record in it.
fn without_records(error: rusqlite::Error) -> WriteError {
    match unwritten(error) {
        WriteError::Rejected(error) => WriteError::Failed(error),
        other => other,
    }
}

/// Of an error of the commit.
fn uncommitted(error: rusqlite::Error) -> WriteError {
    if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) {
        // What is in the log may count as committed by whoever reads it next.
        let text = "the disk failed during the commit: whether the batch was written is not known";
        return WriteError::Unknown(Error::new(ErrorKind::Write, text).with_source(error));
    }
    unwritten(error)
}
