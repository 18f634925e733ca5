//! The transaction of a batch, and the key in it.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use mysql_async::{Conn, Error as Failure, Transaction, TxOpts, prelude::Queryable as _};
use winddown_buffer::{BatchKey, Delivery, WriteError, uuid::Uuid};
use winddown_core::{Error, ErrorKind};

use super::{Place, code, uncommitted, without_records};

const TABLE: &str = "winddown_batch";

const REMEMBER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Old keys are deleted after the first batch, and then after every so many; at most twice as many at a time, so that
/// it takes milliseconds, and they are deleted more quickly than they come.
const FORGET_EVERY: u64 = 1000;

/// How batches are remembered.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) delivery: Delivery,
    pub(super) table: Cow<'static, str>,
    pub(super) remember: Duration,
    written: Arc<AtomicU64>,
}

impl Default for Keys {
    fn default() -> Self {
        Self { delivery: Delivery::ExactlyOnce, table: TABLE.into(), remember: REMEMBER, written: Arc::default() }
    }
}

impl Keys {
    /// Begins a batch's transaction; `None` if the batch has been written. Dropped, it is rolled back before anything else
    /// is said on this connection.
    pub(super) async fn begin<'a>(
        &self,
        conn: &'a mut Conn,
        place: &Place,
        key: BatchKey,
    ) -> Result<Option<Transaction<'a>>, WriteError> {
        let mut transaction = conn.start_transaction(TxOpts::default()).await.map_err(without_records)?;
        if self.delivery != Delivery::ExactlyOnce {
            return Ok(Some(transaction));
        }
        match self.remember_key(&mut transaction, place, key).await {
            Ok(true) => Ok(Some(transaction)),
            Ok(false) => {
                transaction.rollback().await.map_err(without_records)?;
                Ok(None)
            }
            Err(error) => {
                roll_back(transaction).await;
                Err(error)
            }
        }
    }

    /// Whether the batch was not there before.
    async fn remember_key(
        &self,
        transaction: &mut Transaction<'_>,
        place: &Place,
        key: BatchKey,
    ) -> Result<bool, WriteError> {
        let table = place.beside(&self.table);
        let insert = format!("INSERT INTO {table}(`key`) VALUES ({})", literal(key));
        match transaction.query_drop(&insert).await {
            Err(Failure::Server(error)) if error.code == code::NO_SUCH_TABLE => {}
            result => return is_new(transaction, &table, result),
        }
        // Not within the transaction, which it would commit.
        transaction.query_drop("ROLLBACK").await.map_err(without_records)?;
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {table}(`key` BINARY(16) NOT NULL PRIMARY KEY, \
             written_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP) ENGINE = InnoDB"
        );
        transaction.query_drop(&create).await.map_err(|failure| match without_records(failure) {
            WriteError::Failed(error) => {
                let text = format!("the table of the batches' keys is missing and cannot be created, run: {create}");
                WriteError::Failed(Error::new(ErrorKind::Write, text).with_source(error))
            }
            error => error,
        })?;
        transaction.query_drop("START TRANSACTION").await.map_err(without_records)?;
        let result = transaction.query_drop(&insert).await;
        is_new(transaction, &table, result)
    }

    /// Ends a batch's transaction: a commit if everything is in it.
    pub(super) async fn end(
        &self,
        transaction: Transaction<'_>,
        filled: Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        if let Err(error) = filled {
            roll_back(transaction).await;
            return Err(error);
        }
        transaction.commit().await.map_err(uncommitted)
    }

    /// Deletes old keys now and then.
    pub(super) async fn tidy(&self, conn: &mut Conn, place: &Place) {
        if self.delivery != Delivery::ExactlyOnce
            || !self.written.fetch_add(1, Ordering::Relaxed).is_multiple_of(FORGET_EVERY)
        {
            return;
        }
        let Some(since) = SystemTime::now().checked_sub(self.remember) else { return };
        let (table, first) = (place.beside(&self.table), literal(BatchKey::first_at(since)));
        let delete = format!("DELETE FROM {table} WHERE `key` < {first} ORDER BY `key` LIMIT {}", 2 * FORGET_EVERY);
        if let Err(error) = conn.query_drop(delete).await {
            tracing::warn!("the keys of old batches stay in {table}: {error}");
        }
    }
}

/// Whether the key is there now and was not before; it must be there as it is. What the server says of other keys, as one
/// that was cut short, is an error also where its SQL mode makes a warning of it.
fn is_new(transaction: &Transaction<'_>, table: &str, inserted: Result<(), Failure>) -> Result<bool, WriteError> {
    match inserted {
        Err(Failure::Server(error)) if error.code == code::DUP_ENTRY => Ok(false),
        Ok(()) if transaction.get_warnings() > 0 => {
            let text = format!("the keys of batches do not fit into {table}: its `key` must be BINARY(16)");
            Err(WriteError::Failed(Error::new(ErrorKind::Write, text)))
        }
        result => result.map(|()| true).map_err(without_records),
    }
}

/// At once, for the locks' sake. If that fails, the connection is broken or will do it before anything else.
async fn roll_back(transaction: Transaction<'_>) {
    if let Err(error) = transaction.rollback().await {
        tracing::debug!("a batch's transaction ends with its connection: {error}");
    }
}

fn literal(key: BatchKey) -> String {
    format!("x'{}'", Uuid::from(key).simple())
}
