//! Batches as `COPY`.

use std::pin::{Pin, pin};

use bytes::{BufMut as _, Bytes, BytesMut};
use deadpool_postgres::Client;
use futures_util::SinkExt as _;
use tokio_postgres::{
    CopyInSink, Statement,
    types::{IsNull, ToSql, Type},
};
use winddown_buffer::{Batch, Delivery, Sink, WriteError};
use winddown_core::{Checkout, Error, ErrorKind};
use winddown_sql::Verdict;

use super::{
    Parameters, Table,
    check::{Way, check},
    forget_statement,
    hung::Backends,
    keys::Keys,
    settings,
    transaction::{Key, Transaction},
    verdict::verdict_of_value,
    without_records, write_error,
};
use crate::Postgres;

/// Writes each batch with one `COPY ... FROM STDIN (FORMAT binary)`, in a transaction, in two round trips. Nothing is
/// faster: with some ten thousand records [a batch](winddown_buffer::BatchWriter::batch_size), and two
/// [in flight](winddown_buffer::BatchWriter::in_flight), it keeps up with one bare `COPY` of all rows. With fewer each commit counts.
///
/// A record is whatever has [`Parameters`]: a tuple, or a type of the application that implements the trait. The types
/// of its values must be those of the columns. A row that is there already is an error; to [`Insert`] it need not be.
///
/// ```no_run
/// use winddown_buffer::{BatchWriter, Push};
/// use winddown_core::Lifecycle;
/// use winddown_postgres::{CopyIn, Postgres};
///
/// # async fn audited() -> Result<(), winddown_core::Error> {
/// let lifecycle = Lifecycle::detect()?;
/// let db = lifecycle.guard(Postgres::from_env()?);
/// let audit = lifecycle.guard(BatchWriter::new(&db, CopyIn::into("audit", ["id", "what"])));
/// audit.push((1_i64, "signed in".to_owned())).await?;
/// # Ok(())
/// # }
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
/// [`Insert`]: crate::Insert
#[derive(Debug, Clone)]
pub struct CopyIn {
    table: Table,
    keys: Keys,
    backends: Backends,
}

impl CopyIn {
    /// Copies into this table, a record's values into these columns. The names are taken as they are: with upper case,
    /// and with quotes in them.
    pub fn into<C: Into<String>>(table: impl Into<String>, columns: impl IntoIterator<Item = C>) -> Self {
        Self { table: Table::new(table, columns), keys: Keys::default(), backends: Backends::default() }
    }

    settings!();

    async fn copy<T: Parameters>(
        &self,
        client: &mut Client,
        batch: &Batch<T>,
        types: &[Type],
        copy: &Statement,
        key: Option<Key>,
    ) -> Result<(), WriteError> {
        let (transaction, rows) = Transaction::begin_with(client, client.copy_in(copy)).await?;
        let mut rows = match rows {
            Ok(rows) => pin!(rows),
            Err(error) => {
                transaction.abandon();
                // The driver has ended the COPY as if it had begun. The server's answer to that is one too many, and the
                // next request would take it for its own: nothing more may go over this connection.
                // <https://github.com/rust-postgres/rust-postgres/issues/789>
                client.__private_api_close();
                return Err(without_records(error));
            }
        };
        self.send(&mut rows, batch, types).await?;
        transaction.commit(rows.finish(), key, self.keys.common.delivery).await
    }

    async fn send<T: Parameters>(
        &self,
        rows: &mut Pin<&mut CopyInSink<Bytes>>,
        batch: &Batch<T>,
        types: &[Type],
    ) -> Result<(), WriteError> {
        let mut buffer = BytesMut::with_capacity(CHUNK + CHUNK / 4);
        buffer.put_slice(HEADER);
        let mut values = Vec::with_capacity(types.len());
        for record in batch {
            values.clear();
            self.table.values(record, &mut values).map_err(WriteError::Failed)?;
            put_row(&values, types, &mut buffer)?;
            if buffer.len() >= CHUNK {
                rows.feed(buffer.split().freeze()).await.map_err(write_error)?;
                buffer.reserve(CHUNK + CHUNK / 4);
            }
        }
        buffer.put_i16(TRAILER);
        rows.feed(buffer.freeze()).await.map_err(write_error)
    }
}

impl<T: Parameters> Sink<T> for CopyIn {
    type Target = Postgres;

    fn delivery(&self) -> Delivery {
        self.keys.common.delivery
    }

    fn target(&self) -> Option<&str> {
        Some(self.table.at.target())
    }

    async fn check(&self, checkout: &mut Checkout<Postgres>) -> Result<(), Error> {
        check::<T>(checkout, &self.table, &self.keys, Way::CopyIn).await
    }

    async fn abandon(&self, checkout: Checkout<Postgres>) {
        self.backends.abandon(checkout).await;
    }

    async fn write(&self, checkout: &mut Checkout<Postgres>, batch: &Batch<T>) -> Result<(), WriteError> {
        let copy =
            format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.table.at.quoted(), self.table.at.quoted_columns());
        let client = &mut **checkout;
        // A statement's parameters have the types of the columns that they go to; this one is not executed.
        let (key, columns, copy, ()) = tokio::join!(
            self.keys.prepare(client, &self.table, batch.key()),
            client.prepare_cached(self.table.insert(1)),
            client.prepare_cached(&copy),
            self.backends.learn(client),
        );
        let (key, columns, copy) = (key?, columns.map_err(without_records)?, copy.map_err(without_records)?);
        if let Some(settled) = self.keys.settle_too_large(client, key.as_ref()).await {
            return settled;
        }
        let written = self.copy(client, batch, columns.params(), &copy, key.clone()).await;
        if written.is_err() {
            // The table may have been altered since its columns' types were asked for.
            forget_statement(client, self.table.insert(1));
        }
        self.keys.settle(written, client, &self.table, key).await
    }
}

fn put_row(values: &[&(dyn ToSql + Sync)], types: &[Type], buffer: &mut BytesMut) -> Result<(), WriteError> {
    // A table has at most 1600 columns.
    buffer.put_i16(types.len() as i16);
    for (value, r#type) in values.iter().zip(types) {
        let start = buffer.len();
        buffer.put_i32(NULL);
        let text = "a record cannot be sent";
        let failed = |source| Error::new(ErrorKind::Write, text).with_source(source);
        let is_null = value.to_sql_checked(r#type, buffer).map_err(|source| match verdict_of_value(&*source) {
            Verdict::Fails => WriteError::Failed(failed(source)),
            _ => WriteError::Rejected(failed(source)),
        })?;
        if matches!(is_null, IsNull::No) {
            let length = i32::try_from(buffer.len() - start - 4);
            let length = length.map_err(|source| WriteError::Rejected(failed(source.into())))?;
            buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
        }
    }
    Ok(())
}

/// The signature, no flags, and an empty extension.
/// <https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS>
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Instead of a row's number of values.
const TRAILER: i16 = -1;

/// Instead of a value's length.
const NULL: i32 = -1;

/// How much goes to the driver at once: its own writer's 4 KiB cost more in passing them on than in copying.
const CHUNK: usize = 64 * 1024;
