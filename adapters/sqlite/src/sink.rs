//! Buffered records go into a table.

use std::sync::Arc;

use deadpool_sqlite::rusqlite::{self, Params, TransactionBehavior};
use winddown_buffer::{Batch, Delivery, Sink, WriteError};
use winddown_core::{Checkout, ErrorKind};

use crate::{Sqlite, error::error};

/// Writes each record with one statement, and each batch in one transaction.
///
/// A record is whatever can be the [parameters](rusqlite::Params) of the statement: a tuple, an array, a type of the
/// application that implements the trait.
///
/// ```
/// # use winddown_sqlite::Insert;
/// // for records of the type `(i64, String)`
/// let audit = Insert::new("INSERT INTO audit(id, what) VALUES (?1, ?2)");
/// ```
#[derive(Debug, Clone)]
pub struct Insert {
    sql: Arc<str>,
}

impl Insert {
    /// Writes with this statement. It is executed once for each record, and must not return rows.
    pub fn new(sql: impl Into<Arc<str>>) -> Self {
        Self { sql: sql.into() }
    }
}

impl<T: Params + Clone + Send + Sync + 'static> Sink<T> for Insert {
    type Target = Sqlite;

    fn delivery(&self) -> Delivery {
        Delivery::AtMostOnce
    }

    /// Retryable while another connection has the lock, or the disk is full.
    async fn write(&self, checkout: &mut Checkout<Sqlite>, batch: &Batch<T>) -> Result<(), WriteError> {
        let (sql, batch) = (Arc::clone(&self.sql), batch.clone());
        let written = checkout.interact(move |connection| insert(connection, &sql, &batch)).await;
        let failed = |failure| error(ErrorKind::Write, "a batch was rolled back", failure);
        Ok(written.map_err(|panic| failed(panic.into()))?.map_err(|error| failed(error.into()))?)
    }
}

fn insert<T: Params + Clone>(connection: &mut rusqlite::Connection, sql: &str, records: &[T]) -> rusqlite::Result<()> {
    if !connection.is_autocommit() {
        // Whoever had the connection before has left a transaction open; it is not to swallow this one.
        connection.execute_batch("ROLLBACK")?;
    }
    // Immediate: it waits for the lock here, and not after half of the records.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut statement = transaction.prepare_cached(sql)?;
        for record in records {
            statement.execute(record.clone())?;
        }
    }
    transaction.commit()
}
