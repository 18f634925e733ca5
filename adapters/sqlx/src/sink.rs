//! Buffered records go into a table.

mod dialect;
mod values;
mod verdict;

use std::{fmt, marker::PhantomData};

use sqlx::Error as Failure;
use winddown_buffer::{
    Batch, BatchKey, Delivery, Sink, WriteError,
    sql::{AT_ONCE, Keys, Table},
};
use winddown_core::{Checkout, Error, ErrorKind};

use self::verdict::{uncommitted, unwritten, without_records};
pub use self::{
    dialect::Dialect,
    values::{Parameters, Values},
};
use crate::{Lent, Sqlx, backend::Backend};

/// Inserts records as rows, many by one statement, each batch in one transaction.
///
/// A record is whatever has [`Parameters`]: a tuple with one value for each column, or a type of the application that implements the
/// trait.
///
/// ```
/// # #[cfg(feature = "sqlx-postgres")] {
/// use winddown_sqlx::{Insert, sqlx::Postgres};
///
/// // for records of the type `(i64, String)`
/// let audit = Insert::<Postgres>::into("audit", ["id", "what"]).on_conflict("ON CONFLICT DO NOTHING");
/// # }
/// ```
///
/// In MySQL the table must be of an engine that has transactions, and its strict mode is what refuses values that do not fit.
///
/// # Exactly once
/// The key of each batch goes into a table of its own, in the transaction of the rows; a batch whose key is there is not written again.
/// It is the table that the sinks of `winddown-postgres`, `winddown-mysql` and `winddown-sqlite` have, and is created where it is
/// missing and the user may do that:
///
/// ```sql
/// -- PostgreSQL
/// CREATE TABLE winddown_batch (key uuid PRIMARY KEY, written_at timestamptz NOT NULL DEFAULT now());
/// -- MySQL and MariaDB
/// CREATE TABLE winddown_batch(
///     `key` BINARY(16) NOT NULL PRIMARY KEY, written_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
/// ) ENGINE = InnoDB;
/// -- SQLite
/// CREATE TABLE winddown_batch(
///     key BLOB NOT NULL PRIMARY KEY, written_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
/// ) WITHOUT ROWID;
/// ```
pub struct Insert<DB> {
    table: Table,
    keys: Keys,
    on_conflict: String,
    database: PhantomData<fn() -> DB>,
}

impl<DB: Dialect> Insert<DB> {
    /// Writes into these columns of this table. Names are taken as they are, and quoted.
    pub fn into(table: impl Into<String>, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            table: Table::new(DB::QUOTE, table, columns),
            keys: Keys::default(),
            on_conflict: String::new(),
            database: PhantomData,
        }
    }

    /// The table, and that of the keys, are in this schema: in MySQL and SQLite in this database. Defaults to that of the session.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.table.set_schema(schema.into());
        self
    }

    /// What is done where a row is there already, in the database's own words, which come behind the values:
    /// `ON CONFLICT DO NOTHING`, or `ON DUPLICATE KEY UPDATE n = VALUES(n)`. It is SQL, taken as it is. Defaults to refusing the
    /// record.
    #[must_use]
    pub fn on_conflict(mut self, clause: impl AsRef<str>) -> Self {
        self.on_conflict = format!(" {}", clause.as_ref());
        self
    }

    winddown_buffer::sql_settings!(keys);

    /// The statement for so many rows.
    fn sql(&self, rows: usize) -> String {
        let columns = self.table.columns().len();
        let row = |row| {
            let parameters: Vec<_> = (row * columns + 1..=(row + 1) * columns).map(DB::placeholder).collect();
            format!("({})", parameters.join(", "))
        };
        let rows = (0..rows).map(row).collect::<Vec<_>>().join(", ");
        let (table, columns) = (self.table.quoted(), self.table.quoted_columns());
        format!("INSERT INTO {table} ({columns}) VALUES {rows}{}", self.on_conflict)
    }

    /// How many rows each of the statements inserts that together insert so many: few sizes, which are prepared once.
    fn sizes(&self, rows: usize) -> impl Iterator<Item = usize> + use<DB> {
        let most = (DB::MOST_PARAMETERS / self.table.columns().len().max(1)).clamp(1, MOST_ROWS);
        let mut rest = rows;
        std::iter::from_fn(move || {
            let size = 1 << rest.min(most).checked_ilog2()?;
            rest -= size;
            Some(size)
        })
    }

    fn insert_key(&self, key: BatchKey) -> String {
        let (table, column) = (self.keys_are_in(), self.table.quote("key"));
        format!("INSERT INTO {table} ({column}) VALUES ({})", DB::literal(key))
    }

    fn keys_are_in(&self) -> String {
        self.table.beside(&self.keys.table)
    }

    async fn write_on<T: Parameters<DB>>(&self, conn: &mut DB::Connection, batch: &Batch<T>) -> Result<(), WriteError> {
        let mut is_created = false;
        let mut transaction = loop {
            let mut transaction = DB::begin(&mut *conn).await.map_err(without_records)?;
            if !self.keys.are_kept() {
                break transaction;
            }
            match DB::execute(&mut transaction, self.insert_key(batch.key()), None).await {
                Ok(_) => break transaction,
                // It is written.
                Err(Failure::Database(failed)) if failed.is_unique_violation() => {
                    return transaction.rollback().await.map_err(without_records);
                }
                Err(Failure::Database(failed)) if !is_created && DB::is_missing_table(&*failed) => {
                    transaction.rollback().await.map_err(without_records)?;
                }
                Err(failure) => return Err(without_records(failure)),
            }
            self.create_keys(conn).await?;
            is_created = true;
        };
        self.fill(&mut transaction, batch).await?;
        transaction.commit().await.map_err(uncommitted::<DB>)?;
        self.forget(conn).await;
        Ok(())
    }

    async fn fill<T: Parameters<DB>>(&self, conn: &mut DB::Connection, batch: &Batch<T>) -> Result<(), WriteError> {
        let mut rest = &batch[..];
        for rows in self.sizes(batch.len()) {
            let (records, others) = rest.split_at(rows);
            rest = others;
            let mut values = Values::new();
            for record in records {
                let before = values.len();
                record.parameters(&mut values);
                self.table.fits(values.len() - before).map_err(WriteError::Failed)?;
            }
            let arguments = values.into_arguments().map_err(|failure| {
                WriteError::Rejected(Error::new(ErrorKind::Write, "a value cannot be sent").with_source(failure))
            })?;
            let sql = self.sql(rows);
            // What is wrong with the table is no record's fault. Known to the connection it takes no round trip.
            DB::prepare(conn, sql.clone()).await.map_err(without_records)?;
            DB::execute(conn, sql, Some(arguments)).await.map_err(|failure| unwritten(failure, batch.len()))?;
        }
        Ok(())
    }

    async fn create_keys(&self, conn: &mut DB::Connection) -> Result<(), WriteError> {
        let create = DB::create_keys(&self.keys_are_in());
        match DB::execute(conn, create.clone(), None).await {
            Ok(_) => Ok(()),
            // Somebody else has made it at the same time.
            Err(Failure::Database(failed)) if failed.is_unique_violation() => Ok(()),
            Err(failure) => Err(match without_records(failure) {
                WriteError::Failed(error) => {
                    let text =
                        format!("there is no table for the keys of batches, and it cannot be created: run `{create}`");
                    WriteError::Failed(Error::new(ErrorKind::Write, text).with_source(error))
                }
                other => other,
            }),
        }
    }

    /// Deletes old keys if that is due. What becomes of it is no batch's business.
    async fn forget(&self, conn: &mut DB::Connection) {
        let Some(first) = self.keys.to_forget() else { return };
        let table = self.keys_are_in();
        match DB::execute(conn, DB::forget_keys(&table, first, AT_ONCE), None).await {
            Ok(deleted) => self.keys.have_deleted(deleted),
            Err(failure) => tracing::warn!(table, error = %failure, "old keys of batches were not deleted"),
        }
    }
}

/// Up to so many rows in a statement: more gain little, and a server may have a limit for how large one is.
const MOST_ROWS: usize = 256;

impl<DB: Backend + Dialect, T: Parameters<DB>> Sink<T> for Insert<DB> {
    type Target = Sqlx<DB>;

    fn delivery(&self) -> Delivery {
        self.keys.delivery
    }

    async fn write(&self, checkout: &mut Checkout<Sqlx<DB>>, batch: &Batch<T>) -> Result<(), WriteError> {
        let lent: &mut Lent<DB> = checkout;
        let written = self.write_on(lent.as_mut(), batch).await;
        if let Err(error) = &written
            && verdict::is_read_only::<DB>(error.error())
        {
            // A new session may be with the primary.
            lent.close_on_drop();
        }
        written
    }

    async fn check(&self, checkout: &mut Checkout<Sqlx<DB>>) -> Result<(), Error> {
        let lent: &mut Lent<DB> = checkout;
        let conn: &mut DB::Connection = lent.as_mut();
        let refused = |text: String, failure: Failure| match without_records(failure) {
            WriteError::Retry(source) => Error::new(ErrorKind::Init, text).with_source(source).retryable(),
            other => Error::new(ErrorKind::Config, text).with_source(Error::from(other)),
        };
        if self.table.columns().is_empty() {
            return Err(Error::new(ErrorKind::Config, "the sink has no columns: name those that the records go into"));
        }
        DB::prepare(conn, self.sql(1)).await.map_err(|failure| {
            let table = self.table.target();
            refused(
                format!("{table} cannot be written to: create it with these columns, or name others in the sink"),
                failure,
            )
        })?;
        if !self.keys.are_kept() {
            return Ok(());
        }
        match DB::prepare(conn, self.insert_key(BatchKey::first_at(std::time::SystemTime::UNIX_EPOCH))).await {
            Ok(()) => Ok(()),
            // It is made with the first batch.
            Err(Failure::Database(failed)) if DB::is_missing_table(&*failed) => Ok(()),
            Err(failure) => {
                let table = self.keys_are_in();
                let create = DB::create_keys(&table);
                Err(refused(format!("{table} is for the keys of batches, and must be as by `{create}`"), failure))
            }
        }
    }

    /// What it runs is stopped on the server over another session, where it is proven ours.
    async fn abandon(&self, mut checkout: Checkout<Sqlx<DB>>) {
        let lent: &mut Lent<DB> = &mut checkout;
        lent.close_on_drop();
        let stopping = lent.stop();
        stopping.await;
    }

    fn target(&self) -> Option<&str> {
        Some(self.table.target())
    }
}

impl<DB> Clone for Insert<DB> {
    fn clone(&self) -> Self {
        Self {
            table: self.table.clone(),
            keys: self.keys.clone(),
            on_conflict: self.on_conflict.clone(),
            database: PhantomData,
        }
    }
}

impl<DB> fmt::Debug for Insert<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Insert").field("table", &self.table).field("keys", &self.keys).finish_non_exhaustive()
    }
}
