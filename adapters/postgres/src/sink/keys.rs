//! The table that remembers which batches are written.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use deadpool_postgres::Client;
use tokio_postgres::{Statement, error::SqlState, types::Type};
use winddown_buffer::{
    BatchKey, WriteError,
    sql::{self, AT_ONCE},
    uuid::Uuid,
};
use winddown_core::{Error, ErrorKind};

use super::{
    Table, forget_statement,
    transaction::{Key, is_written},
    verdict::{has_ended_the_session, is_of_the_server},
    without_records,
};

/// The keys of a sink's batches.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys {
    pub(super) common: sql::Keys,
    /// Batches that were too large, with the error that ended their session: whether one is written already, over a connection
    /// that broke, could not be asked any more. Clones share it.
    unsettled: Arc<Mutex<HashMap<BatchKey, Error>>>,
}

impl Keys {
    /// How this key is written, if keys are. Makes the table if it is missing.
    pub(super) async fn prepare(
        &self,
        client: &Client,
        table: &Table,
        key: BatchKey,
    ) -> Result<Option<Key>, WriteError> {
        if !self.common.are_kept() {
            return Ok(None);
        }
        let statement = self.statement(client, table).await?;
        Ok(Some(Key { statement, key }))
    }

    async fn statement(&self, client: &Client, table: &Table) -> Result<Statement, WriteError> {
        let insert = self.insert(table);
        match client.prepare_cached(&insert).await {
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {}
            prepared => return prepared.map_err(without_records),
        }
        match client.batch_execute(&self.create(table)).await {
            // Who makes the same table at the same time may be told that it, its type or its entry is there already.
            Err(error) if !error.code().is_some_and(|code| THERE_ALREADY.contains(code)) => {
                return Err(self.cannot_create(table, error));
            }
            _ => {}
        }
        client.prepare_cached(&insert).await.map_err(without_records)
    }

    /// What is to be said of a batch that was too large for the session that it was written in: its keys know now. None for
    /// any other.
    pub(super) async fn settle_too_large(&self, client: &Client, key: Option<&Key>) -> Option<Result<(), WriteError>> {
        let key = key?;
        let error = self.unsettled().get(&key.key).cloned()?;
        let settled = match is_written(client, key).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(WriteError::TooLarge(error)),
            Err(error) => return Some(Err(error)),
        };
        self.unsettled().remove(&key.key);
        Some(settled)
    }

    fn unsettled(&self) -> MutexGuard<'_, HashMap<BatchKey, Error>> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What follows from how a batch was written.
    pub(super) async fn settle(
        &self,
        written: Result<(), WriteError>,
        client: &Client,
        table: &Table,
        key: Option<Key>,
    ) -> Result<(), WriteError> {
        if let Err(WriteError::Retry(error)) = &written
            && is_of_the_server(error, &SqlState::INVALID_SQL_STATEMENT_NAME)
        {
            // It has forgotten what was prepared.
            client.statement_cache.clear();
        }
        match (&written, key) {
            (Ok(()), Some(_)) => self.forget(client, table).await,
            // Its halves have keys of their own, so it must not be divided where it is written.
            (Err(WriteError::TooLarge(error)), Some(key)) if has_ended_the_session(error) => {
                let mut unsettled = self.unsettled();
                if unsettled.len() >= MOST_UNSETTLED {
                    // Nobody has come back for them.
                    unsettled.clear();
                }
                unsettled.insert(key.key, error.clone());
                return Err(WriteError::Retry(error.clone().retryable()));
            }
            (Err(WriteError::Rejected(_) | WriteError::TooLarge(_)), Some(key)) if is_written(client, &key).await? => {
                return Ok(());
            }
            // The table may have been dropped.
            (Err(WriteError::Retry(_)), Some(_)) => forget_statement(client, &self.insert(table)),
            _ => {}
        }
        written
    }

    fn cannot_create(&self, table: &Table, source: tokio_postgres::Error) -> WriteError {
        let error = match without_records(source) {
            WriteError::Retry(error) => return WriteError::Retry(error),
            other => Error::from(other),
        };
        WriteError::Failed(Error::new(ErrorKind::Write, self.no_table(table)).with_source(error))
    }

    /// That there is none, and what to do about it.
    pub(super) fn no_table(&self, table: &Table) -> String {
        let create = self.create(table);
        format!("there is no table for the keys of batches, and it cannot be created: run `{create}`")
    }

    /// What makes the table.
    pub(super) fn create(&self, table: &Table) -> String {
        let keys = table.at.beside(&self.common.table);
        format!(
            "CREATE TABLE IF NOT EXISTS {keys} (key uuid PRIMARY KEY, written_at timestamptz NOT NULL DEFAULT now())"
        )
    }

    pub(super) fn insert(&self, table: &Table) -> String {
        format!("INSERT INTO {} (key) VALUES ($1)", table.at.beside(&self.common.table))
    }

    /// Deletes old keys if that is due. What becomes of it is no batch's business.
    async fn forget(&self, client: &Client, table: &Table) {
        let Some(before) = self.common.to_forget() else { return };
        let before = Uuid::from(before);
        let keys = table.at.beside(&self.common.table);
        let delete = format!("DELETE FROM {keys} WHERE key IN (SELECT key FROM {keys} WHERE key < $1 LIMIT {AT_ONCE})");
        match client.execute_typed(&delete, &[(&before, Type::UUID)]).await {
            Ok(deleted) => self.common.have_deleted(deleted),
            Err(error) => tracing::warn!(table = keys, %error, "old keys of batches were not deleted"),
        }
    }
}

const THERE_ALREADY: [SqlState; 3] =
    [SqlState::UNIQUE_VIOLATION, SqlState::DUPLICATE_TABLE, SqlState::DUPLICATE_OBJECT];

/// Far more than are written at once.
const MOST_UNSETTLED: usize = 1024;
