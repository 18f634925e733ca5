//! The driver's errors as ours.

use std::borrow::Cow;

use sqlx::error::DatabaseError;
use winddown_core::{Error, ErrorKind};
use winddown_sql::Verdict;
#[cfg(feature = "sqlx-mysql")]
use winddown_sql::mysql;
#[cfg(feature = "sqlx-postgres")]
use winddown_sql::postgres;
#[cfg(feature = "sqlx-sqlite")]
use winddown_sql::sqlite;

/// The error of this kind and message, with the driver's as its source. Worth another try where the server is full, starts or stops,
/// or cannot be reached.
pub(crate) fn error(kind: ErrorKind, message: impl Into<Cow<'static, str>>, source: sqlx::Error) -> Error {
    let (passes, is_closed) = (passes(&source), matches!(source, sqlx::Error::PoolClosed));
    // Closed by a drain, or by the application.
    let kind = if is_closed { ErrorKind::ShuttingDown } else { kind };
    let error = Error::new(kind, message).with_source(source);
    if passes { error.retryable() } else { error }
}

fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(failed) => verdict(&**failed) == Verdict::Passes,
        _ => false,
    }
}

/// What a database's own error says.
pub(crate) fn verdict(failed: &dyn DatabaseError) -> Verdict {
    #[cfg(feature = "sqlx-postgres")]
    if let Some(failed) = failed.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
        return postgres::verdict(failed.code(), failed.message(), failed.routine());
    }
    #[cfg(feature = "sqlx-mysql")]
    if let Some(failed) = failed.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return mysql::verdict(failed.number(), failed.code().unwrap_or_default());
    }
    #[cfg(feature = "sqlx-sqlite")]
    if let Some(code) =
        failed.try_downcast_ref::<sqlx::sqlite::SqliteError>().and_then(|failed| failed.code()?.parse().ok())
    {
        return sqlite::verdict(code);
    }
    let _ = failed;
    Verdict::Fails
}
