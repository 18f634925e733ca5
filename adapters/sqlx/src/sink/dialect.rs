//! What the databases differ in where rows are written.

use std::future::Future;

#[cfg(any(feature = "sqlx-mysql", feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use sqlx::{Database, Error as Failure, Transaction, error::DatabaseError};
use winddown_buffer::BatchKey;

use crate::backend::Server;

/// How rows are written into a database. For this crate alone.
#[doc(hidden)]
pub trait Dialect: Server {
    /// Around names.
    const QUOTE: char;
    /// In one statement.
    const MOST_PARAMETERS: usize;

    /// The parameter with this number, from one on.
    fn placeholder(number: usize) -> String {
        let _ = number;
        "?".to_owned()
    }

    /// A batch's key, as statements have it.
    fn literal(key: BatchKey) -> String {
        let bytes = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("x'{bytes}'")
    }

    /// What makes the table of keys.
    fn create_keys(table: &str) -> String;

    /// What deletes so many keys that are older than this.
    fn forget_keys(table: &str, first: BatchKey, most: u64) -> String;

    /// Whether a table is not there.
    fn is_missing_table(failed: &dyn DatabaseError) -> bool;

    /// Whether the server says that it takes no writes.
    fn is_read_only(failed: &dyn DatabaseError) -> bool;

    /// Whether this error of a commit says that nothing was committed.
    fn is_rolled_back(failed: &dyn DatabaseError) -> bool;

    /// Begins a transaction that writes.
    fn begin(conn: &mut Self::Connection) -> impl Future<Output = Result<Transaction<'_, Self>, Failure>> + Send
    where
        Self: Sized;

    /// Executes a statement: prepared where it has arguments, else as it is. How many rows it was about.
    fn execute(
        conn: &mut Self::Connection,
        sql: String,
        arguments: Option<<Self as Database>::Arguments>,
    ) -> impl Future<Output = Result<u64, Failure>> + Send;

    /// Has the server look at a statement.
    fn prepare(conn: &mut Self::Connection, sql: String) -> impl Future<Output = Result<(), Failure>> + Send;
}

#[cfg(any(feature = "sqlx-mysql", feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
macro_rules! statements {
    ($begin:expr) => {
        async fn begin(conn: &mut Self::Connection) -> Result<Transaction<'_, Self>, Failure> {
            let begin: Option<&'static str> = $begin;
            match begin {
                Some(begin) => conn.begin_with(AssertSqlSafe(begin)).await,
                None => conn.begin().await,
            }
        }

        async fn execute(
            conn: &mut Self::Connection,
            sql: String,
            arguments: Option<<Self as Database>::Arguments>,
        ) -> Result<u64, Failure> {
            let done = match arguments {
                Some(arguments) => sqlx::query_with(AssertSqlSafe(sql), arguments).execute(conn).await,
                None => conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await,
            };
            done.map(|done| done.rows_affected())
        }

        async fn prepare(conn: &mut Self::Connection, sql: String) -> Result<(), Failure> {
            conn.prepare(sqlx::SqlSafeStr::into_sql_str(AssertSqlSafe(sql))).await.map(drop)
        }
    };
}

#[cfg(feature = "sqlx-postgres")]
impl Dialect for sqlx::Postgres {
    const QUOTE: char = '"';
    const MOST_PARAMETERS: usize = u16::MAX as usize;

    fn placeholder(number: usize) -> String {
        format!("${number}")
    }

    fn literal(key: BatchKey) -> String {
        format!("'{key}'")
    }

    fn create_keys(table: &str) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {table} (key uuid PRIMARY KEY, written_at timestamptz NOT NULL DEFAULT now())"
        )
    }

    fn forget_keys(table: &str, first: BatchKey, most: u64) -> String {
        let first = Self::literal(first);
        format!("DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE key < {first} LIMIT {most})")
    }

    fn is_missing_table(failed: &dyn DatabaseError) -> bool {
        failed.code().as_deref() == Some("42P01")
    }

    fn is_read_only(failed: &dyn DatabaseError) -> bool {
        failed.code().as_deref() == Some("25006")
    }

    fn is_rolled_back(_: &dyn DatabaseError) -> bool {
        true
    }

    statements!(None);
}

#[cfg(feature = "sqlx-mysql")]
impl Dialect for sqlx::MySql {
    const QUOTE: char = '`';
    const MOST_PARAMETERS: usize = u16::MAX as usize;

    fn create_keys(table: &str) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {table} (`key` BINARY(16) NOT NULL PRIMARY KEY, \
             written_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP) ENGINE = InnoDB"
        )
    }

    fn forget_keys(table: &str, first: BatchKey, most: u64) -> String {
        let first = Self::literal(first);
        format!("DELETE FROM {table} WHERE `key` < {first} ORDER BY `key` LIMIT {most}")
    }

    fn is_missing_table(failed: &dyn DatabaseError) -> bool {
        const NO_SUCH_TABLE: u16 = 1146;
        number(failed) == Some(NO_SUCH_TABLE)
    }

    fn is_read_only(failed: &dyn DatabaseError) -> bool {
        number(failed).is_some_and(|number| winddown_sql::mysql::is_read_only(number, failed.message()))
    }

    fn is_rolled_back(failed: &dyn DatabaseError) -> bool {
        // For the sake of another transaction, and says so.
        failed.code().is_some_and(|code| code.starts_with("40"))
    }

    statements!(None);
}

#[cfg(feature = "sqlx-mysql")]
fn number(failed: &dyn DatabaseError) -> Option<u16> {
    Some(failed.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()?.number())
}

#[cfg(feature = "sqlx-sqlite")]
impl Dialect for sqlx::Sqlite {
    const QUOTE: char = '"';
    const MOST_PARAMETERS: usize = 32_766;

    fn create_keys(table: &str) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {table} (key BLOB NOT NULL PRIMARY KEY, \
             written_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID"
        )
    }

    fn forget_keys(table: &str, first: BatchKey, most: u64) -> String {
        let first = Self::literal(first);
        format!(
            "DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE key < {first} ORDER BY key LIMIT {most})"
        )
    }

    fn is_missing_table(failed: &dyn DatabaseError) -> bool {
        // It has no code of its own.
        failed.code().as_deref() == Some("1") && failed.message().starts_with("no such table")
    }

    fn is_read_only(_: &dyn DatabaseError) -> bool {
        false
    }

    fn is_rolled_back(failed: &dyn DatabaseError) -> bool {
        const IO_ERROR: i32 = 10;
        // What is in the log may count as committed by whoever reads it next.
        failed.code().and_then(|code| code.parse::<i32>().ok()).is_some_and(|code| code & 0xff != IO_ERROR)
    }

    // It waits for the lock here, and not after half of the records.
    statements!(Some("BEGIN IMMEDIATE"));
}
