//! Batches as `INSERT` statements.

use futures_util::future::try_join_all;
use winddown_buffer::{Batch, Delivery, Sink, WriteError};
use winddown_core::{Checkout, Error};

use super::{
    Parameters, Table,
    check::{Way, check},
    hung::Backends,
    keys::Keys,
    settings,
    transaction::{Transaction, send},
    without_records, write_error,
};
use crate::Postgres;

/// Writes each batch with `INSERT` statements of many rows, in one transaction, in two round trips.
///
/// A record is whatever has [`Parameters`]: a tuple, or a type of the application that implements the trait. [`CopyIn`] is
/// faster, but a row that is there already is an error to it.
///
/// ```
/// use winddown_postgres::Insert;
///
/// // for records of the type `(i64, String)`
/// let audit = Insert::into("audit", ["id", "what"]).on_conflict_do_nothing();
/// ```
///
/// # Exactly once
/// The key of each batch goes into a table of its own, in the transaction of the rows; a batch whose key is there is not written
/// again. The table is created where it is missing and the user may `CREATE` in its schema. Where somebody else makes it, the
/// user needs `INSERT` on it, and `SELECT` and `DELETE` for old keys to be deleted:
///
/// ```sql
/// CREATE TABLE winddown_batch (key uuid PRIMARY KEY, written_at timestamptz NOT NULL DEFAULT now())
/// ```
///
/// [`CopyIn`]: crate::CopyIn
#[derive(Debug, Clone)]
pub struct Insert {
    table: Table,
    keys: Keys,
    backends: Backends,
}

impl Insert {
    /// Inserts into this table, a record's values into these columns. The names are taken as they are: with upper case,
    /// and with quotes in them.
    pub fn into<C: Into<String>>(table: impl Into<String>, columns: impl IntoIterator<Item = C>) -> Self {
        Self { table: Table::new(table, columns), keys: Keys::default(), backends: Backends::default() }
    }

    settings!();

    /// `ON CONFLICT DO NOTHING`: a record whose row is there already counts as written, and changes nothing.
    #[must_use]
    pub fn on_conflict_do_nothing(mut self) -> Self {
        self.table.set_on_conflict(" ON CONFLICT DO NOTHING".into());
        self
    }

    /// `ON CONFLICT (...) DO UPDATE`: a record whose row is there already, by these columns, replaces what is in the other
    /// columns of the sink.
    ///
    /// The server refuses two such records in one statement. Their batch is divided until they are apart, and which of
    /// them is written last is not said.
    #[must_use]
    pub fn on_conflict_do_update<C: Into<String>>(mut self, columns: impl IntoIterator<Item = C>) -> Self {
        let unique: Vec<String> = columns.into_iter().map(Into::into).collect();
        let updates = self.table.at.columns().iter().filter(|column| !unique.contains(column)).map(|column| {
            let column = self.table.at.quote(column);
            format!("{column} = EXCLUDED.{column}")
        });
        let updates: Vec<_> = updates.collect();
        let unique: Vec<_> = unique.iter().map(|column| self.table.at.quote(column)).collect();
        let (unique, updates) = (unique.join(", "), updates.join(", "));
        self.table.set_on_conflict(format!(" ON CONFLICT ({unique}) DO UPDATE SET {updates}"));
        self
    }
}

impl<T: Parameters> Sink<T> for Insert {
    type Target = Postgres;

    fn delivery(&self) -> Delivery {
        self.keys.common.delivery
    }

    fn target(&self) -> Option<&str> {
        Some(self.table.at.target())
    }

    async fn check(&self, checkout: &mut Checkout<Postgres>) -> Result<(), Error> {
        check::<T>(checkout, &self.table, &self.keys, Way::Insert).await
    }

    async fn abandon(&self, checkout: Checkout<Postgres>) {
        self.backends.abandon(checkout).await;
    }

    async fn write(&self, checkout: &mut Checkout<Postgres>, batch: &Batch<T>) -> Result<(), WriteError> {
        let client = &**checkout;
        let mut values = Vec::with_capacity(batch.len() * self.table.at.columns().len());
        for record in batch {
            self.table.values(record, &mut values).map_err(WriteError::Failed)?;
        }
        let sizes = self.table.sizes(batch.len());
        let statements = try_join_all(sizes.map(|rows| client.prepare_cached(self.table.insert(rows))));
        let (key, statements, ()) =
            tokio::join!(self.keys.prepare(client, &self.table, batch.key()), statements, self.backends.learn(client));
        let (key, statements) = (key?, statements.map_err(without_records)?);
        if let Some(settled) = self.keys.settle_too_large(client, key.as_ref()).await {
            return settled;
        }

        let mut rest = &values[..];
        let inserts = statements.iter().map(|statement| {
            let (values, others) = rest.split_at(statement.params().len());
            rest = others;
            client.execute(statement, values)
        });
        let written = async {
            let transaction = Transaction::begin(client).await?;
            let inserted = send(inserts).map_err(write_error)?;
            transaction.commit(inserted, key.clone(), self.keys.common.delivery).await
        };
        self.keys.settle(written.await, client, &self.table, key).await
    }
}
