//! Bulk loads.

use std::{
    mem,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use mysql_async::{
    Column, Conn, Error as Failure, Transaction, Value,
    consts::{ColumnFlags, ColumnType},
    prelude::Queryable as _,
};
use winddown_buffer::{Batch, Delivery, Sink, WriteError, sql::Table};
use winddown_core::{Checkout, Error, ErrorKind};

use super::{Parameters, keys::Keys, look, number, rolled_back, seen, unwritten, warnings, without_records};
use crate::{Mysql, abandon};

/// How large the pieces are in which the rows go to the server: each is one packet.
const PIECE: usize = 1 << 18;

/// The number of the character set of columns that have none.
const BINARY: u16 = 63;

/// Loads records as rows by `LOAD DATA LOCAL INFILE` from memory, each batch in one transaction: for large batches, quicker
/// than [`Insert`](super::Insert).
///
/// A record is whatever has [`Parameters`]: a tuple with one value for each column, or a type of the application that
/// implements the trait.
///
/// ```
/// # use winddown_mysql::LoadData;
/// // for records of the type `(i64, String)`
/// let audit = LoadData::into("audit", ["id", "what"]);
/// ```
///
/// The server must allow it (`local_infile=ON`, which MySQL does not by default), the user needs `SELECT` on the table,
/// which is asked for the types of its columns, and texts must be in UTF-8. The table must be of an engine that has
/// transactions.
///
/// Loading makes values fit and leaves out rows that are there already, whatever the SQL mode; a batch for which the server
/// has warned of any of that is rolled back, and the record is refused. So is a record with a `NULL` for a column that
/// cannot be null, also where a trigger would replace it.
///
/// # Exactly once
/// As with [`Insert`](super::Insert).
#[derive(Debug, Clone)]
pub struct LoadData {
    table: Table,
    keys: Keys,
    /// Known once the server was asked.
    plan: Arc<OnceLock<Plan>>,
}

#[derive(Debug)]
struct Plan {
    sql: String,
    columns: Vec<Kind>,
}

/// What is to be known of a column.
#[derive(Debug, Clone, Copy)]
struct Kind {
    form: Form,
    is_required: bool,
}

impl Kind {
    fn of(column: &Column) -> Self {
        let flags = column.flags();
        let is_generated = flags.contains(ColumnFlags::AUTO_INCREMENT_FLAG);
        let is_required = flags.contains(ColumnFlags::NOT_NULL_FLAG) && !is_generated;
        Self { form: Form::of(column), is_required }
    }
}

/// How the values of a column are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    /// In hexadecimal digits: bytes are not to be taken for text.
    Hex,
    /// As a number: a text would be taken for its bytes.
    Bits,
}

impl Form {
    fn of(column: &Column) -> Self {
        use ColumnType::*;
        match column.column_type() {
            MYSQL_TYPE_BIT => Self::Bits,
            MYSQL_TYPE_GEOMETRY | MYSQL_TYPE_VECTOR => Self::Hex,
            MYSQL_TYPE_TINY_BLOB
            | MYSQL_TYPE_MEDIUM_BLOB
            | MYSQL_TYPE_LONG_BLOB
            | MYSQL_TYPE_BLOB
            | MYSQL_TYPE_VARCHAR
            | MYSQL_TYPE_VAR_STRING
            | MYSQL_TYPE_STRING
                if column.character_set() == BINARY =>
            {
                Self::Hex
            }
            _ => Self::Text,
        }
    }
}

impl LoadData {
    /// Writes into these columns of this table. Names are taken as they are, and quoted.
    pub fn into(table: impl Into<String>, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { table: Table::new('`', table, columns), keys: Keys::default(), plan: Arc::default() }
    }

    /// The table, and that of the keys, are in this database. Defaults to that of the connection.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.table.set_schema(schema.into());
        self.plan = Arc::default();
        self
    }

    winddown_buffer::sql_settings!(keys.common);

    async fn plan(&self, conn: &mut Conn) -> Result<&Plan, WriteError> {
        if let Some(plan) = self.plan.get() {
            return Ok(plan);
        }
        let (table, columns) = (self.table.quoted(), self.table.quoted_columns());
        // Not prepared: the server has a limit for prepared statements.
        let select = format!("SELECT {columns} FROM {table} LIMIT 0");
        let answer = conn.query_iter(select).await.map_err(without_records)?;
        let columns: Vec<_> = answer.columns_ref().iter().map(Kind::of).collect();
        answer.drop_result().await.map_err(without_records)?;
        Ok(self.plan.get_or_init(|| Plan { sql: self.sql(&columns), columns }))
    }

    fn sql(&self, kinds: &[Kind]) -> String {
        let (mut into, mut set) = (Vec::new(), Vec::new());
        for (index, (column, kind)) in self.table.columns().iter().zip(kinds).enumerate() {
            let (column, variable) = (self.table.quote(column), format!("@winddown_{index}"));
            let set_by = match kind.form {
                Form::Text => {
                    into.push(column);
                    continue;
                }
                Form::Hex => format!("{column} = UNHEX({variable})"),
                Form::Bits => format!("{column} = CAST({variable} AS UNSIGNED)"),
            };
            into.push(variable);
            set.push(set_by);
        }
        let (table, into) = (self.table.quoted(), into.join(", "));
        let set = if set.is_empty() { String::new() } else { format!(" SET {}", set.join(", ")) };
        // In hexadecimal, since what a backslash in quotes means depends on the SQL mode.
        format!(
            "LOAD DATA LOCAL INFILE 'winddown' INTO TABLE {table} CHARACTER SET utf8mb4 \
             FIELDS TERMINATED BY x'09' ESCAPED BY x'5c' LINES TERMINATED BY x'0a' ({into}){set}"
        )
    }

    async fn load(&self, transaction: &mut Transaction<'_>, plan: &Plan, records: usize) -> Result<(), WriteError> {
        transaction.query_drop(&plan.sql).await.map_err(|failure| {
            if matches!(&failure, Failure::Server(error) if number::LOCAL_NOT_ALLOWED.contains(&error.code)) {
                let text = "the server does not allow LOAD DATA LOCAL: set local_infile=ON there, or use Insert";
                return WriteError::Failed(Error::new(ErrorKind::Write, text).with_source(failure));
            }
            unwritten(failure, records)
        })?;
        let loaded = transaction.affected_rows();
        warnings::look(transaction, records).await?;
        if loaded == records as u64 {
            return Ok(());
        }
        let text = format!("the server has loaded {loaded} of {records} records");
        Err(WriteError::Rejected(rolled_back(text)))
    }

    fn pieces<T: Parameters>(&self, plan: &Plan, batch: &Batch<T>) -> Result<Vec<Bytes>, WriteError> {
        let (mut pieces, mut piece, mut row) = (Vec::new(), Vec::new(), Vec::new());
        for record in batch {
            row.clear();
            super::values(&self.table, record, &mut row)?;
            for (index, (value, kind)) in row.iter().zip(&plan.columns).enumerate() {
                if kind.is_required && *value == Value::NULL {
                    // Not left to the server: of a table with triggers MySQL makes an empty value of it, without a warning.
                    let text = format!("the column {} cannot be null", self.table.columns()[index]);
                    return Err(WriteError::Rejected(Error::new(ErrorKind::Write, text)));
                }
                if index > 0 {
                    piece.push(b'\t');
                }
                put(value, kind.form, &mut piece);
            }
            piece.push(b'\n');
            while piece.len() >= PIECE {
                let rest = piece.split_off(PIECE);
                pieces.push(mem::replace(&mut piece, rest).into());
            }
        }
        pieces.push(piece.into());
        Ok(pieces)
    }
}

fn put(value: &Value, form: Form, out: &mut Vec<u8>) {
    let text: Vec<u8>;
    let bytes = match value {
        Value::NULL => return out.extend_from_slice(b"\\N"),
        Value::Bytes(bytes) if form == Form::Bits => {
            text = number(bytes).into_bytes();
            &text
        }
        Value::Bytes(bytes) => bytes,
        // A number of this type is sent as one of the other, too.
        Value::Float(number) => {
            text = f64::from(*number).to_string().into_bytes();
            &text
        }
        other => {
            // Dates come in quotes.
            text = other.as_sql(true).trim_matches('\'').into();
            &text
        }
    };
    match form {
        Form::Hex => {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            out.extend(bytes.iter().flat_map(|byte| [byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)])));
        }
        Form::Text | Form::Bits => {
            for &byte in bytes {
                match byte {
                    b'\\' => out.extend_from_slice(b"\\\\"),
                    b'\t' => out.extend_from_slice(b"\\t"),
                    b'\n' => out.extend_from_slice(b"\\n"),
                    0 => out.extend_from_slice(b"\\0"),
                    _ => out.push(byte),
                }
            }
        }
    }
}

/// Bits as a number; more than a column can have become one that no column can have.
fn number(bytes: &[u8]) -> String {
    let is_zero = |byte: &u8| *byte == 0;
    let significant = &bytes[bytes.iter().take_while(|byte| is_zero(byte)).count()..];
    if significant.len() > 8 {
        return u128::MAX.to_string();
    }
    significant.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)).to_string()
}

impl<T: Parameters> Sink<T> for LoadData {
    type Target = Mysql;

    fn delivery(&self) -> Delivery {
        self.keys.common.delivery
    }

    /// Tried again, and of unknown outcome, where an insert is.
    async fn write(&self, checkout: &mut Checkout<Mysql>, batch: &Batch<T>) -> Result<(), WriteError> {
        let conn: &mut Conn = checkout;
        let plan = self.plan(conn).await?;
        let offer = Offer::new(self.pieces(plan, batch)?);
        offer.make(conn);
        let written = self.write_offered(conn, plan, batch).await;
        offer.withdraw(conn).await;
        if written.is_ok() {
            self.keys.forget(conn, &self.table).await;
        }
        seen(checkout, written)
    }

    async fn check(&self, checkout: &mut Checkout<Mysql>) -> Result<(), Error> {
        let conn: &mut Conn = checkout;
        look::at_loading(conn).await?;
        let (table, columns) = (self.table.quoted(), self.table.quoted_columns());
        look::at_target(conn, &self.table, &format!("SELECT {columns} FROM {table}")).await?;
        let values = vec!["?"; self.table.columns().len()].join(",");
        look::at_target(conn, &self.table, &format!("INSERT INTO {table}({columns}) VALUES ({values})")).await?;
        self.keys.check(conn, &self.table).await
    }

    /// As an insert's.
    async fn abandon(&self, checkout: Checkout<Mysql>) {
        abandon::session(checkout).await;
    }

    fn target(&self) -> Option<&str> {
        Some(self.table.target())
    }
}

impl LoadData {
    async fn write_offered<T: Parameters>(
        &self,
        conn: &mut Conn,
        plan: &Plan,
        batch: &Batch<T>,
    ) -> Result<(), WriteError> {
        let Some(mut transaction) = self.keys.begin(conn, &self.table, batch.key()).await? else { return Ok(()) };
        let loaded = self.load(&mut transaction, plan, batch.len()).await;
        self.keys.end(transaction, loaded).await
    }
}

/// What the server gets when it asks for the file.
struct Offer(Arc<Mutex<Option<Vec<Bytes>>>>);

impl Offer {
    fn new(pieces: Vec<Bytes>) -> Self {
        Self(Arc::new(Mutex::new(Some(pieces))))
    }

    fn take(&self) -> Option<Vec<Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn make(&self, conn: &mut Conn) {
        let offer = Self(Arc::clone(&self.0));
        conn.set_infile_handler(async move {
            let pieces = offer.take().unwrap_or_default();
            Ok(stream::iter(pieces.into_iter().map(Ok)).boxed())
        });
    }

    /// What nobody has asked for is not to be had by the next statement of this kind on the connection.
    async fn withdraw(&self, conn: &mut Conn) {
        if self.take().is_some()
            && let Err(error) = conn.reset().await
        {
            tracing::debug!("a connection could not be reset: {error}");
        }
    }
}

/// Whoever gives up on the write takes the records along; the connection, which may be used again, has none then.
impl Drop for Offer {
    fn drop(&mut self) {
        drop(self.take());
    }
}
