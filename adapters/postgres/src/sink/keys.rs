//! The table that remembers which batches are written.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use deadpool_postgres::Client;
use tokio_postgres::{Statement, error::SqlState, types::Type};
use winddown_buffer::{BatchKey, Delivery, WriteError, uuid::Uuid};
use winddown_core::{Error, ErrorKind};

use super::{
    Table, forget_statement,
    transaction::{Key, is_written},
    verdict::{has_ended_the_session, is_of_the_server},
    without_records,
};

/// The keys of a sink's batches.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) delivery: Delivery,
    pub(super) table: String,
    pub(super) remember: Duration,
    /// When old ones are to be deleted next; at once if there is none. Clones share it.
    due: Arc<Mutex<Option<Instant>>>,
    /// Batches that were too large, with the error that ended their session: whether one is written already, over a connection
    /// that broke, could not be asked any more. Clones share it.
    unsettled: Arc<Mutex<HashMap<BatchKey, Error>>>,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            delivery: Delivery::ExactlyOnce,
            table: "winddown_batch".into(),
            remember: Duration::from_secs(7 * 24 * 60 * 60),
            due: Arc::default(),
            unsettled: Arc::default(),
        }
    }
}

impl Keys {
    /// How this key is written, if keys are. Makes the table if it is missing.
    pub(super) async fn prepare(
        &self,
        client: &Client,
        table: &Table,
        key: BatchKey,
    ) -> Result<Option<Key>, WriteError> {
        if self.delivery != Delivery::ExactlyOnce {
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
        let keys = table.beside(&self.table);
        format!(
            "CREATE TABLE IF NOT EXISTS {keys} (key uuid PRIMARY KEY, written_at timestamptz NOT NULL DEFAULT now())"
        )
    }

    pub(super) fn insert(&self, table: &Table) -> String {
        format!("INSERT INTO {} (key) VALUES ($1)", table.beside(&self.table))
    }

    /// Deletes old keys if that is due. What becomes of it is no batch's business.
    async fn forget(&self, client: &Client, table: &Table) {
        if !self.is_due() {
            return;
        }
        let Some(time) = SystemTime::now().checked_sub(self.remember) else { return };
        let before = Uuid::from(BatchKey::first_at(time));
        let keys = table.beside(&self.table);
        let delete = format!("DELETE FROM {keys} WHERE key IN (SELECT key FROM {keys} WHERE key < $1 LIMIT {AT_ONCE})");
        match client.execute_typed(&delete, &[(&before, Type::UUID)]).await {
            Ok(deleted) if deleted == AT_ONCE => *self.due.lock().unwrap_or_else(PoisonError::into_inner) = None,
            Ok(_) => {}
            Err(error) => tracing::warn!(table = keys, %error, "old keys of batches were not deleted"),
        }
    }

    fn is_due(&self) -> bool {
        let now = Instant::now();
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = due.is_none_or(|due| due <= now);
        if is_due {
            *due = Some(now + EVERY);
        }
        is_due
    }
}

const THERE_ALREADY: [SqlState; 3] =
    [SqlState::UNIQUE_VIOLATION, SqlState::DUPLICATE_TABLE, SqlState::DUPLICATE_OBJECT];

/// Seldom enough to cost nothing, and often enough for a process that lives long.
const EVERY: Duration = Duration::from_secs(60 * 60);

/// Far more than are written at once.
const MOST_UNSETTLED: usize = 1024;

/// Few enough not to hold up the batch that they are deleted behind, which may be a drain's; the rest goes behind the next.
const AT_ONCE: u64 = 1000;
