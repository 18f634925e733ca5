//! Whether the table takes a sink's records, asked without writing one.

use std::time::Duration;

use deadpool_postgres::Client;
use tokio::time::timeout;
use tokio_postgres::{
    error::SqlState,
    types::{ToSql, Type},
};
use winddown_buffer::{Delivery, WriteError};
use winddown_core::{Error, ErrorKind};

use super::{Parameters, Table, keys::Keys, without_records};

/// How a sink writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Insert,
    CopyIn,
}

/// Finds out what would keep every record of this type from being written. Changes nothing; has a limit.
pub(super) async fn check<T: Parameters>(client: &Client, table: &Table, keys: &Keys, way: Way) -> Result<(), Error> {
    let checked = async {
        can_be_written_to(client).await?;
        let types = columns(client, table).await?;
        fit::<T>(table, &types)?;
        can_insert(client, table).await?;
        if way == Way::CopyIn {
            can_copy(client, table).await?;
        }
        if keys.common.delivery == Delivery::ExactlyOnce {
            can_remember(client, table, keys).await?;
        }
        Ok(())
    };
    timeout(PATIENCE, checked).await.unwrap_or_else(|_| {
        let text =
            format!("whether {} can be written to was not answered in {} s", table.at.target(), PATIENCE.as_secs());
        Err(Error::new(ErrorKind::Timeout, text).retryable())
    })
}

/// Longer than a healthy server takes, also under load; as long as a function on Lambda has for its initialisation.
const PATIENCE: Duration = Duration::from_secs(10);

async fn can_be_written_to(client: &Client) -> Result<(), Error> {
    let sql = "SELECT current_setting('transaction_read_only') = 'on'";
    match ask(client, sql, &[]).await?.first() {
        Some(row) if row.try_get(0).unwrap_or(false) => {
            let text = "the database is read-only: it is a standby, or `default_transaction_read_only` is on";
            Err(Error::new(ErrorKind::Init, text).retryable())
        }
        _ => Ok(()),
    }
}

/// The types of the columns, by the very statement that rows are inserted with.
async fn columns(client: &Client, table: &Table) -> Result<Vec<Type>, Error> {
    let insert = table.insert(1);
    // Not a cached one: the table may have been another when that was prepared.
    match client.prepare(insert).await {
        Ok(statement) => Ok(statement.params().to_vec()),
        Err(error) => Err(refused(table.at.target(), &table.at.quoted(), error)),
    }
}

fn fit<T: Parameters>(table: &Table, types: &[Type]) -> Result<(), Error> {
    let Some(accepts) = T::accepts(types) else { return Ok(()) };
    let bad = |text| Err(Error::new(ErrorKind::Config, text));
    if accepts.len() != types.len() {
        let (given, columns) = (accepts.len(), types.len());
        return bad(format!("a record has {given} values, and the sink for {} {columns} columns", table.at.target()));
    }
    let misfit = table.at.columns().iter().zip(types).zip(accepts).find(|(_, accepts)| !accepts);
    match misfit {
        Some(((column, r#type), _)) => bad(format!(
            "the column {column} of {} is of type {type}, and the records' values for it are of another: change one of them",
            table.at.target()
        )),
        None => Ok(()),
    }
}

/// Plans the statement, for which the server looks at the permissions, what a view allows, and what a conflict is found by.
async fn can_insert(client: &Client, table: &Table) -> Result<(), Error> {
    let nothing = vec!["NULL"; table.at.columns().len()].join(", ");
    let (name, columns) = (table.at.quoted(), table.at.quoted_columns());
    let explain = format!("EXPLAIN INSERT INTO {name} ({columns}) VALUES ({nothing}){}", table.on_conflict);
    client.batch_execute(&explain).await.map_err(|error| refused(table.at.target(), &name, error))
}

/// What `COPY` cannot do though `INSERT` can. PostgreSQL documentation, "COPY", "Notes".
async fn can_copy(client: &Client, table: &Table) -> Result<(), Error> {
    let sql = "SELECT c.relkind = 'v' AND NOT EXISTS (
                   SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgtype & 68 = 68 -- INSTEAD OF INSERT
               ), row_security_active(c.oid)
               FROM pg_class c WHERE c.oid = to_regclass($1)";
    let rows = ask(client, sql, &[(&table.at.quoted(), Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let target = table.at.target();
    let why = match (row.try_get(0), row.try_get(1)) {
        (Ok(true), _) => "is a view without an INSTEAD OF INSERT trigger",
        (_, Ok(true)) => "has policies for its rows",
        _ => return Ok(()),
    };
    let text = format!("{target} {why}, which the server does not copy into: use the sink `Insert`");
    Err(Error::new(ErrorKind::Config, text))
}

/// The table of keys: it is there and refuses a key that it has, or can be made.
async fn can_remember(client: &Client, table: &Table, keys: &Keys) -> Result<(), Error> {
    let (insert, name) = (keys.insert(table), table.at.beside(&keys.common.table));
    let statement = match client.prepare(&insert).await {
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => return can_create(client, table, keys).await,
        prepared => prepared.map_err(|error| refused(&keys.common.table, &name, error))?,
    };
    let bad = |what: &str| {
        let create = keys.create(table);
        let text = format!("the table {} for the keys of batches {what}: make it by `{create}`", keys.common.table);
        Err(Error::new(ErrorKind::Config, text))
    };
    if statement.params() != [Type::UUID] {
        return bad("has a key that is no uuid");
    }
    let explain = format!("EXPLAIN INSERT INTO {name} (key) VALUES (NULL)");
    client.batch_execute(&explain).await.map_err(|error| refused(&keys.common.table, &name, error))?;
    let sql = "SELECT EXISTS (
                   SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                   WHERE i.indrelid = to_regclass($1) AND a.attname = 'key' AND i.indnkeyatts = 1
                       AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL
               )";
    match ask(client, sql, &[(&name, Type::TEXT)]).await?.first() {
        Some(row) if !row.try_get(0).unwrap_or(true) => bad("takes the same key twice"),
        _ => Ok(()),
    }
}

async fn can_create(client: &Client, table: &Table, keys: &Keys) -> Result<(), Error> {
    let sql = "SELECT coalesce(has_schema_privilege(coalesce($1, current_schema()), 'CREATE'), false)";
    match ask(client, sql, &[(&table.at.schema(), Type::TEXT)]).await?.first() {
        Some(row) if !row.try_get(0).unwrap_or(true) => Err(Error::new(ErrorKind::Config, keys.no_table(table))),
        _ => Ok(()),
    }
}

async fn ask(
    client: &Client,
    sql: &str,
    values: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Vec<tokio_postgres::Row>, Error> {
    client.query_typed(sql, values).await.map_err(|error| {
        let error = Error::from(without_records(error));
        let text = "whether the table can be written to cannot be asked";
        let is_retryable = error.is_retryable();
        let error = Error::new(ErrorKind::Init, text).with_source(error);
        if is_retryable { error.retryable() } else { error }
    })
}

/// What the server has against the table, and what to do about it.
fn refused(target: &str, name: &str, source: tokio_postgres::Error) -> Error {
    let Some(server) = source.as_db_error() else {
        let text = format!("whether {target} can be written to was not answered");
        let error = Error::new(ErrorKind::Init, text).with_source(source);
        return error.retryable();
    };
    let advice = match *server.code() {
        SqlState::UNDEFINED_TABLE => "create it, name another, or set the sink's schema".to_owned(),
        SqlState::INVALID_SCHEMA_NAME => "create the schema, or set another".to_owned(),
        SqlState::UNDEFINED_COLUMN => "add the column, or name others in the sink".to_owned(),
        SqlState::INSUFFICIENT_PRIVILEGE => {
            format!("give the user the permission, as by `GRANT INSERT ON {name}`, or `GRANT USAGE` on its schema")
        }
        SqlState::INVALID_COLUMN_REFERENCE => {
            "make a unique index on the columns of `on_conflict_do_update`, or name others".to_owned()
        }
        _ => "see what the server says".to_owned(),
    };
    // The statement has no record in it, so neither has this.
    let text = format!("{target} cannot be written to: {}: {advice}", server.message());
    match without_records(source) {
        WriteError::Retry(source) => Error::new(ErrorKind::Init, text).with_source(source).retryable(),
        other => Error::new(ErrorKind::Config, text).with_source(Error::from(other)),
    }
}
