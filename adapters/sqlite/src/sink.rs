//! Buffered records go into a table.

mod verdict;

use std::{
    borrow::Cow,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use deadpool_sqlite::{
    InteractError,
    rusqlite::{self, Params, Transaction, TransactionBehavior},
};
use winddown_buffer::{Batch, BatchKey, Delivery, Sink, WriteError};
use winddown_core::{BoxError, Checkout, Error, ErrorKind};

use self::verdict::{uncommitted, unwritten, without_records};
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
    /// The table, with its schema where one is set, as it is told.
    target: String,
    columns: Vec<String>,
    or: &'static str,
    delivery: Delivery,
    key_table: Cow<'static, str>,
    remember: Duration,
}

impl Insert {
    /// Writes into these columns of this table. Names are taken as they are, and quoted.
    pub fn into(table: impl Into<String>, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let table = table.into();
        let settings = Settings {
            schema: None,
            target: table.clone(),
            table,
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
        let schema = schema.into();
        self.settings.target = format!("{schema}.{}", self.settings.table);
        self.settings.schema = Some(schema);
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
        Some(&self.settings.target)
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
        let remembers = self.settings.delivery == Delivery::ExactlyOnce;
        if remembers && !self.settings.remember_key(&transaction, batch.key()).map_err(without_records)? {
            return Ok(());
        }
        self.settings.fill(&transaction, batch, waits)?;
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
        let columns: Vec<_> = self.columns.iter().map(|column| quoted(column)).collect();
        let values = vec!["?"; columns.len()].join(", ");
        let (or, table, columns) = (self.or, self.named(&self.table), columns.join(", "));
        format!("INSERT {or}INTO {table}({columns}) VALUES ({values})")
    }

    fn insert_key(&self) -> String {
        format!("INSERT INTO {}(key) VALUES (?) ON CONFLICT (key) DO NOTHING", self.named(&self.key_table))
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
        connection.prepare(&self.insert()).map_err(|error| refused(&self.target, error, create))?;
        let schema = self.schema.as_deref().unwrap_or("main");
        let is_read_only = connection.is_readonly(schema).and_then(|is_read_only| {
            let queries_only: bool = connection.pragma_query_value(None, "query_only", |row| row.get(0))?;
            Ok(is_read_only || queries_only)
        });
        if is_read_only.map_err(|error| refused(&self.target, error, "see its database"))? {
            let text = format!(
                "{} cannot be written to, the database is read-only: make its file writable, and set no `query_only`",
                self.target
            );
            return Err(Error::new(ErrorKind::Config, text));
        }
        if self.delivery != Delivery::ExactlyOnce {
            return Ok(());
        }
        match connection.prepare(&self.insert_key()) {
            Ok(_) => Ok(()),
            // It is made with the first batch.
            Err(_) if !self.has_key_table(connection).unwrap_or(true) => Ok(()),
            Err(error) => {
                let advice = format!("it is for the keys of batches, make it by `{}`", self.create_keys());
                Err(refused(&self.key_table, error, &advice))
            }
        }
    }

    fn has_key_table(&self, connection: &rusqlite::Connection) -> rusqlite::Result<bool> {
        let sql = "SELECT count(*) FROM pragma_table_info(?1, ?2)";
        connection
            .query_row(sql, (&self.key_table, &self.schema), |row| row.get::<_, i64>(0))
            .map(|columns| columns > 0)
    }

    /// Of no cost where it exists: the statement is compiled, and has nothing to do.
    fn create_keys(&self) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {}(\
                 key BLOB NOT NULL PRIMARY KEY, written_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP\
             ) WITHOUT ROWID",
            self.named(&self.key_table)
        )
    }

    /// Whether the batch was not there before.
    fn remember_key(&self, transaction: &Transaction<'_>, key: BatchKey) -> rusqlite::Result<bool> {
        transaction.prepare_cached(&self.create_keys())?.execute([])?;
        let mut insert = transaction.prepare_cached(&self.insert_key())?;
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
