//! The transaction of a batch, and the key in it.

use mysql_async::{Conn, Error as Failure, Transaction, TxOpts, prelude::Queryable as _};
use winddown_buffer::{
    BatchKey, WriteError,
    sql::{self, AT_ONCE, Table},
    uuid::Uuid,
};
use winddown_core::{Error, ErrorKind};

use super::{look, number, uncommitted, without_records};
use crate::watcher::rows;

/// How batches are remembered.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys {
    pub(super) common: sql::Keys,
}

impl Keys {
    /// Begins a batch's transaction; `None` if the batch has been written. Dropped, it is rolled back before anything else
    /// is said on this connection.
    pub(super) async fn begin<'a>(
        &self,
        conn: &'a mut Conn,
        at: &Table,
        key: BatchKey,
    ) -> Result<Option<Transaction<'a>>, WriteError> {
        let mut transaction = conn.start_transaction(TxOpts::default()).await.map_err(without_records)?;
        if !self.common.are_kept() {
            return Ok(Some(transaction));
        }
        match self.remember_key(&mut transaction, at, key).await {
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
        at: &Table,
        key: BatchKey,
    ) -> Result<bool, WriteError> {
        let table = at.beside(&self.common.table);
        let insert = format!("INSERT INTO {table}(`key`) VALUES ({})", literal(key));
        match transaction.query_drop(&insert).await {
            Err(Failure::Server(error)) if error.code == number::NO_SUCH_TABLE => {}
            result => return is_new(transaction, &table, result),
        }
        // Not within the transaction, which it would commit.
        transaction.query_drop("ROLLBACK").await.map_err(without_records)?;
        let create = creating(&table);
        transaction.query_drop(&create).await.map_err(|failure| match without_records(failure) {
            WriteError::Failed(error) => {
                WriteError::Failed(Error::new(ErrorKind::Write, missing(&create)).with_source(error))
            }
            error => error,
        })?;
        transaction.query_drop("START TRANSACTION").await.map_err(without_records)?;
        let result = transaction.query_drop(&insert).await;
        is_new(transaction, &table, result)
    }

    /// Whether the keys of batches can be remembered. The table may be missing where it can be created.
    pub(super) async fn check(&self, conn: &mut Conn, at: &Table) -> Result<(), Error> {
        if !self.common.are_kept() {
            return Ok(());
        }
        let (table, key) = (at.beside(&self.common.table), "x'00000000000000000000000000000000'");
        let create = creating(&table);
        let failure = match look::prepared(conn, &format!("INSERT INTO {table}(`key`) VALUES ({key})")).await {
            Ok(()) => return self.check_table(conn, at, &table).await,
            Err(failure) if look::passes(&failure) => return Err(look::unanswered(failure)),
            Err(failure) => failure,
        };
        let text = match &failure {
            Failure::Server(error) if error.code == number::NO_SUCH_TABLE => {
                match look::prepared(conn, &create).await {
                    Ok(()) => return Ok(()),
                    Err(failure) if look::passes(&failure) => return Err(look::unanswered(failure)),
                    Err(failure) => {
                        return Err(Error::new(ErrorKind::Config, missing(&create)).with_source(failure));
                    }
                }
            }
            Failure::Server(error) if number::DENIED.contains(&error.code) => {
                format!(
                    "the user may not write the keys of batches: GRANT INSERT ON {table}, and if it is not there, run: {create}"
                )
            }
            _ => format!("the keys of batches cannot be written into {table}: it must be as by {create}"),
        };
        Err(Error::new(ErrorKind::Config, text).with_source(failure))
    }

    /// Whether the table keeps keys as they are, each once, in the transaction of the rows.
    async fn check_table(&self, conn: &mut Conn, at: &Table, table: &str) -> Result<(), Error> {
        let (schema, name) = (look::schema(at), look::literal(&self.common.table));
        let of_table = format!("TABLE_SCHEMA = {schema} AND TABLE_NAME = {name}");
        let lengths = format!(
            "SELECT CAST(COALESCE(CHARACTER_OCTET_LENGTH, 0) AS UNSIGNED) FROM information_schema.COLUMNS \
             WHERE {of_table} AND COLUMN_NAME = 'key'"
        );
        let lengths: Vec<u64> = rows(conn, &lengths).await.map_err(look::unanswered)?;
        let unique = format!(
            "SELECT INDEX_NAME FROM information_schema.STATISTICS WHERE {of_table} GROUP BY INDEX_NAME \
             HAVING MAX(NON_UNIQUE) = 0 AND COUNT(*) = 1 AND MAX(COLUMN_NAME) = 'key'"
        );
        let unique: Vec<String> = rows(conn, &unique).await.map_err(look::unanswered)?;
        let engine = look::engine(conn, at, &self.common.table).await?;
        // What is not listed is no table, but a view of one.
        let is_too_short = lengths.first().is_some_and(|length| *length < 16);
        let is_good = engine.is_none_or(|engine| engine.has_transactions && !is_too_short && !unique.is_empty());
        if is_good {
            return Ok(());
        }
        let text = format!("the table {table} cannot tell batches apart: it must be as by {}", creating(table));
        Err(Error::new(ErrorKind::Config, text))
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

    /// Deletes old keys if that is due. What becomes of it is no batch's business.
    pub(super) async fn forget(&self, conn: &mut Conn, at: &Table) {
        let Some(first) = self.common.to_forget() else { return };
        let (table, first) = (at.beside(&self.common.table), literal(first));
        let delete = format!("DELETE FROM {table} WHERE `key` < {first} ORDER BY `key` LIMIT {AT_ONCE}");
        match conn.query_drop(delete).await {
            Ok(()) => self.common.have_deleted(conn.affected_rows()),
            Err(error) => tracing::warn!("the keys of old batches stay in {table}: {error}"),
        }
    }
}

fn creating(table: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {table}(`key` BINARY(16) NOT NULL PRIMARY KEY, \
         written_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP) ENGINE = InnoDB"
    )
}

fn missing(create: &str) -> String {
    format!("the table of the batches' keys is missing and cannot be created, run: {create}")
}

/// Whether the key is there now and was not before; it must be there as it is. What the server says of other keys, as one
/// that was cut short, is an error also where its SQL mode makes a warning of it.
fn is_new(transaction: &Transaction<'_>, table: &str, inserted: Result<(), Failure>) -> Result<bool, WriteError> {
    match inserted {
        Err(Failure::Server(error)) if error.code == number::DUP_ENTRY => Ok(false),
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
