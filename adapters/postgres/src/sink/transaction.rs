//! The transaction that a batch is written in.

use std::{
    future::{Future, ready},
    pin::Pin,
};

use futures_util::{
    FutureExt as _,
    future::{MaybeDone, join_all, maybe_done},
};
use tokio_postgres::{
    Client, Statement,
    error::{Severity, SqlState},
};
use winddown_buffer::{BatchKey, Delivery, WriteError, uuid::Uuid};
use winddown_core::{Error, ErrorKind};

use super::verdict::{without_records, write_error};

/// A batch's key, and the statement that writes it.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) statement: Statement,
    pub(super) key: BatchKey,
}

/// What is open on a connection. Dropped before it is committed, it is rolled back.
pub(super) struct Transaction<'a> {
    client: &'a Client,
    over: bool,
}

impl<'a> Transaction<'a> {
    /// Begins. What is sent behind that without waiting would be executed by itself, and not be rolled back, if the server refused to
    /// begin: it may be slower than its own `statement_timeout`. So nothing that writes may be.
    pub(super) async fn begin(client: &'a Client) -> Result<Self, WriteError> {
        let (transaction, ()) = Self::begin_with(client, ready(())).await?;
        Ok(transaction)
    }

    /// Begins, with what `first` sends right behind, which [writes nothing](Self::begin), and returns what came of that.
    pub(super) async fn begin_with<T>(
        client: &'a Client,
        first: impl Future<Output = T>,
    ) -> Result<(Self, T), WriteError> {
        let transaction = Self { client, over: false };
        // In this order: each is sent when it is polled first.
        let (begun, first) = tokio::join!(biased; client.batch_execute("BEGIN"), first);
        begun.map_err(without_records)?;
        Ok((transaction, first))
    }

    /// Commits behind `last` and the batch's key, without waiting for the answers to them in between, but where what is in doubt is
    /// not written again: there only the commit is to be. What was written before, says the table of keys, is rolled back, and that is
    /// as good.
    pub(super) async fn commit<T>(
        self,
        last: impl Future<Output = Result<T, tokio_postgres::Error>>,
        key: Option<Key>,
        delivery: Delivery,
    ) -> Result<(), WriteError> {
        if delivery == Delivery::AtMostOnce {
            last.await.map_err(write_error)?;
            return self.commit_behind(ready(Ok(())), key).await;
        }
        self.commit_behind(last, key).await
    }

    async fn commit_behind<T>(
        mut self,
        last: impl Future<Output = Result<T, tokio_postgres::Error>>,
        key: Option<Key>,
    ) -> Result<(), WriteError> {
        if self.client.is_closed() {
            let text = "the connection broke before the commit";
            return Err(WriteError::Retry(Error::new(ErrorKind::Write, text).retryable()));
        }
        let remember = remember(self.client, key.as_ref());
        let (last, remembered, committed) = tokio::join!(biased; last, remember, self.client.batch_execute("COMMIT"));
        self.over = true;
        last.map_err(before_the_commit)?;
        match remembered {
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => return Ok(()),
            // It was there when the statement was prepared.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                return Err(WriteError::Retry(Error::from(write_error(error)).retryable()));
            }
            // What ends the wait for another session that writes this key is no limit of the batch.
            remembered => remembered.map_err(|error| match before_the_commit(error) {
                WriteError::TooLarge(error) => WriteError::Retry(error.retryable()),
                other => other,
            })?,
        };
        committed.map_err(not_committed)
    }

    /// Leaves it to the end of the connection, which may carry nothing more.
    pub(super) fn abandon(mut self) {
        self.over = true;
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.over {
            // Sent by being polled once. Nobody needs the answer: what comes next on the connection comes behind it.
            let _ = self.client.batch_execute("ROLLBACK").now_or_never();
        }
    }
}

/// Whether the batch is written: then its rows may be refused for being there.
pub(super) async fn is_written(client: &Client, key: &Key) -> Result<bool, WriteError> {
    let _rolled_back = Transaction::begin(client).await?;
    match remember(client, Some(key)).await {
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => Ok(true),
        remembered => remembered.map(|_| false).map_err(without_records),
    }
}

/// Sends statements one behind the other. What comes of them is the error of the first that failed: those behind it have failed for
/// that alone, and say so, perhaps to somebody who has not heard of the first yet.
///
/// # Errors
/// That of a statement that the driver has not sent: those before it were, so nothing may be committed.
pub(super) fn send<T, E>(
    statements: impl Iterator<Item = impl Future<Output = Result<T, E>>>,
) -> Result<impl Future<Output = Result<(), E>>, E> {
    let mut sent = Vec::new();
    for statement in statements {
        let mut statement = Box::pin(maybe_done(statement));
        if let Some(error) = failed(&mut statement) {
            // It may have been answered by then, behind those before it.
            return Err(sent.iter_mut().find_map(failed).unwrap_or(error));
        }
        sent.push(statement);
    }
    Ok(async move {
        join_all(&mut sent).await;
        sent.iter_mut().find_map(failed).map_or(Ok(()), Err)
    })
}

/// The error of a statement, if it has come. Sent by being polled once.
fn failed<T, E>(statement: &mut Pin<Box<MaybeDone<impl Future<Output = Result<T, E>>>>>) -> Option<E> {
    let _ = statement.as_mut().now_or_never();
    match statement.as_mut().output_mut() {
        Some(Err(_)) => statement.as_mut().take_output()?.err(),
        _ => None,
    }
}

async fn remember(client: &Client, key: Option<&Key>) -> Result<u64, tokio_postgres::Error> {
    let Some(Key { statement, key }) = key else { return Ok(0) };
    client.execute(statement, &[&Uuid::from(*key)]).await
}

/// What the error of a statement says that goes before a commit, which was sent too.
fn before_the_commit(source: tokio_postgres::Error) -> WriteError {
    // The server has ended the session because the transaction, or a pause in it, took too long. It answers in order, so it
    // has not come to the commit. PostgreSQL documentation, "Message Flow", "Pipelining".
    let has_timed_out = source.code().is_some_and(|code| ["25P03", "25P04"].contains(&code.code()));
    if has_timed_out { write_error(source) } else { not_committed(source) }
}

/// What an error says once a commit was sent.
fn not_committed(source: tokio_postgres::Error) -> WriteError {
    // The last words of a session that ends, and those of a pooler that has lost the server, say nothing of the commit.
    let is_rolled_back = source.as_db_error().is_some_and(|error| {
        let is_unknown =
            error.code().code().starts_with("08") || *error.code() == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN;
        error.parsed_severity() == Some(Severity::Error) && !is_unknown
    });
    if is_rolled_back {
        return write_error(source);
    }
    let text = "the connection broke during the commit: whether the batch was written is not known";
    WriteError::Unknown(Error::new(ErrorKind::Write, text).with_source(source))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::{future::BoxFuture, poll};
    use tokio::{sync::oneshot, task::yield_now};

    use super::*;

    #[tokio::test]
    async fn the_error_is_that_of_the_first_that_failed_whichever_is_heard_first() {
        let (mut tell, told): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel::<Result<(), &str>>()).unzip();
        let statements = told.into_iter().map(async |told| told.await.unwrap());
        let mut inserted = Box::pin(send(statements).unwrap());
        assert!(poll!(&mut inserted).is_pending());
        tell.pop().unwrap().send(Err("the transaction is aborted")).unwrap();
        assert!(poll!(&mut inserted).is_pending(), "the first may have failed");
        tell.pop().unwrap().send(Err("there already")).unwrap();
        tell.pop().unwrap().send(Ok(())).unwrap();
        assert_eq!(inserted.await, Err("there already"));
    }

    /// Nobody may commit what was sent before it.
    #[tokio::test]
    async fn what_could_not_be_sent_is_known_before_anything_is_committed() {
        let statements = [pending().boxed(), ready(Err("no such value")).boxed(), pending::<Result<(), _>>().boxed()];
        assert_eq!(send(statements.into_iter()).map(drop), Err("no such value"));
    }

    /// The answer to the first comes while the second is being sent, and that to the second with it.
    #[tokio::test]
    async fn what_is_refused_as_it_is_sent_does_not_hide_what_was_refused_before() {
        let (tell, told) = oneshot::channel();
        let first = told.map(Result::unwrap).boxed();
        let second = async move {
            tell.send(Err("there already")).unwrap();
            Err("the transaction is aborted")
        };
        let statements: [BoxFuture<'_, Result<(), &str>>; 2] = [first, second.boxed()];
        assert_eq!(send(statements.into_iter()).map(drop), Err("there already"));
    }

    #[tokio::test]
    async fn what_is_answered_at_once_is_answered() {
        let statements = [ready(Ok::<_, &str>(())).boxed(), yield_now().map(Ok).boxed()];
        assert_eq!(send(statements.into_iter()).unwrap().await, Ok(()));
    }
}
