//! The transaction that a batch is written in.

use std::future::Future;

use futures_util::FutureExt as _;
use tokio_postgres::{
    Client, Statement,
    error::{Severity, SqlState},
};
use winddown_buffer::{BatchKey, WriteError, uuid::Uuid};
use winddown_core::{Error, ErrorKind};

use super::{without_records, write_error};

/// What is open on a connection. Dropped before it is committed, it is rolled back.
pub(super) struct Transaction<'a> {
    client: &'a Client,
    over: bool,
}

impl<'a> Transaction<'a> {
    /// Begins with the batch's key, and with what `rows` sends; nobody waits for an answer before all of it is on its way.
    /// Returns nothing if the table of keys has the key: this batch is written.
    pub(super) async fn begin(
        client: &'a Client,
        key: Option<(Statement, BatchKey)>,
        rows: impl Future<Output = Result<(), WriteError>>,
    ) -> Result<Option<Self>, WriteError> {
        let transaction = Self { client, over: false };
        let key = async {
            let Some((statement, key)) = key else { return Ok(0) };
            client.execute(&statement, &[&Uuid::from(key)]).await
        };
        // In this order, each is sent when it is polled first.
        let (begun, key, rows) = tokio::join!(biased; client.batch_execute("BEGIN"), key, rows);
        begun.map_err(without_records)?;
        match key {
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => return Ok(None),
            // It was there when the statement was prepared.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                return Err(WriteError::Retry(Error::from(write_error(error)).retryable()));
            }
            key => key.map_err(without_records)?,
        };
        rows?;
        Ok(Some(transaction))
    }

    /// Leaves it to the end of the connection, which may carry nothing more.
    pub(super) fn abandon(mut self) {
        self.over = true;
    }

    /// Commits.
    pub(super) async fn commit(mut self) -> Result<(), WriteError> {
        if self.client.is_closed() {
            let text = "the connection broke before the commit";
            return Err(WriteError::Retry(Error::new(ErrorKind::Write, text).retryable()));
        }
        let committed = self.client.batch_execute("COMMIT").await;
        self.over = true;
        committed.map_err(|source| {
            if is_rolled_back(&source) {
                return write_error(source);
            }
            let text = "the connection broke during the commit: whether the batch was written is not known";
            WriteError::Unknown(Error::new(ErrorKind::Write, text).with_source(source))
        })
    }
}

/// Whether the server has answered, and itself: the last words of a session that ends, and those of a pooler that has lost
/// the server, say nothing of the commit.
fn is_rolled_back(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        let unknown =
            error.code().code().starts_with("08") || *error.code() == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN;
        error.parsed_severity() == Some(Severity::Error) && !unknown
    })
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.over {
            // Sent by being polled once. Nobody needs the answer: what comes next on the connection comes behind it.
            let _ = self.client.batch_execute("ROLLBACK").now_or_never();
        }
    }
}
