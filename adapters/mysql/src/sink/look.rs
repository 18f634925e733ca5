//! Whether the server would take what a sink writes: it is asked to prepare the statements, which looks at tables, columns and
//! privileges, and changes nothing.

use mysql_async::{Conn, Error as Failure, prelude::Queryable as _};
use winddown_buffer::sql::Table;
use winddown_core::{Error, ErrorKind};
use winddown_sql::{Verdict, mysql};

use super::number;
use crate::{error, watcher::rows};

/// Whether this statement, with a value for each column, would find what it needs.
pub(super) async fn at_target(conn: &mut Conn, at: &Table, sql: &str) -> Result<(), Error> {
    if at.columns().is_empty() {
        return Err(Error::new(ErrorKind::Config, "the sink has no columns: name those that the records go into"));
    }
    let table = at.quoted();
    prepared(conn, sql).await.map_err(|failure| bad(failure, &table, sql))?;
    let Some(found) = engine(conn, at, at.name()).await? else { return Ok(()) };
    if found.has_transactions {
        return Ok(());
    }
    let text = format!(
        "the table {table} is of the engine {}, which has no transactions: a batch could be written by half; \
         run: ALTER TABLE {table} ENGINE = InnoDB",
        found.name
    );
    Err(Error::new(ErrorKind::Config, text))
}

/// Whether the server, and the driver, load local files.
pub(super) async fn at_loading(conn: &mut Conn) -> Result<(), Error> {
    let allowed: Vec<Option<bool>> = rows(conn, "SELECT @@local_infile").await.map_err(unanswered)?;
    if allowed.into_iter().next().flatten() == Some(false) {
        let text = "the server does not allow LOAD DATA LOCAL: set local_infile=ON there, or use Insert";
        return Err(Error::new(ErrorKind::Config, text));
    }
    Ok(())
}

/// Has the server look at a statement.
pub(super) async fn prepared(conn: &mut Conn, sql: &str) -> Result<(), Failure> {
    let statement = conn.prep(sql).await?;
    conn.close(statement).await
}

/// The error of a question about the target.
pub(super) fn unanswered(failure: Failure) -> Error {
    let kind = if passes(&failure) { ErrorKind::Init } else { ErrorKind::Config };
    error::error(kind, "cannot look at the table that is written to", failure)
}

pub(super) fn passes(failure: &Failure) -> bool {
    match failure {
        Failure::Server(error) => mysql::verdict(error.code, &error.state) == Verdict::Passes,
        failure => error::is_connection(failure),
    }
}

/// Why this statement cannot be executed, and what to do about it.
fn bad(failure: Failure, table: &str, sql: &str) -> Error {
    let verb = sql.split(' ').next().unwrap_or_default();
    let text = match &failure {
        Failure::Server(error) => match error.code {
            number::NO_SUCH_TABLE | number::UNKNOWN_DATABASE | number::NO_DATABASE => {
                format!("there is no table {table}: create it, or name another")
            }
            number::UNKNOWN_COLUMN => {
                format!("the table {table} does not have the columns that the sink writes: add them, or name others")
            }
            code if number::DENIED.contains(&code) => {
                let preposition = if verb == "SELECT" { "from" } else { "into" };
                format!("the user may not {verb} {preposition} {table}, or there is none: GRANT {verb} ON {table}")
            }
            _ => return unanswered(failure),
        },
        _ => return unanswered(failure),
    };
    Error::new(ErrorKind::Config, text).with_source(failure)
}

/// The engine of a table.
pub(super) struct Engine {
    name: String,
    pub(super) has_transactions: bool,
}

/// That of this table beside the target; `None` where the server does not say: of a view, for one.
pub(super) async fn engine(conn: &mut Conn, at: &Table, table: &str) -> Result<Option<Engine>, Error> {
    let schema = schema(at);
    let sql = format!(
        "SELECT t.ENGINE, e.TRANSACTIONS FROM information_schema.TABLES AS t \
         JOIN information_schema.ENGINES AS e ON e.ENGINE = t.ENGINE \
         WHERE t.TABLE_SCHEMA = {schema} AND t.TABLE_NAME = {}",
        literal(table)
    );
    let found: Vec<(Option<String>, Option<String>)> = rows(conn, &sql).await.map_err(unanswered)?;
    Ok(match found.into_iter().next() {
        Some((Some(name), Some(transactions))) => Some(Engine { name, has_transactions: transactions == "YES" }),
        _ => None,
    })
}

/// A text in SQL, whatever the SQL mode says of backslashes.
pub(super) fn literal(text: &str) -> String {
    let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("CONVERT(x'{digits}' USING utf8mb4)")
}

/// The database of the target, as an expression.
pub(super) fn schema(at: &Table) -> String {
    at.schema().map_or_else(|| "DATABASE()".to_owned(), literal)
}
