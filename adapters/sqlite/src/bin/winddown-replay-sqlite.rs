//! Lists, checks and writes back spilled records: into a table of an SQLite file.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use winddown_buffer::cli::{self, Deliver, Json, Made, Target};
use winddown_core::Error;
use winddown_sqlite::{
    Config, Insert, Sqlite,
    rusqlite::{ParamsFromIter, params_from_iter, types::Value},
};

/// The file, and the table in it.
#[derive(Debug, Args)]
struct Table {
    /// The database [default: that in SQLITE_PATH]
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
    /// The table
    #[arg(long)]
    table: String,
    /// The columns, named as the fields of the records or in the order of their values
    #[arg(long, value_delimiter = ',', required = true)]
    columns: Vec<String>,
    /// How often a record may be written
    #[arg(long, value_enum, default_value_t)]
    delivery: Deliver,
    /// The table that remembers written batches, if it is another one than the application's by default
    #[arg(long)]
    key_table: Option<String>,
}

type Row = ParamsFromIter<Vec<Value>>;

fn row(record: &Json, columns: &[String]) -> Result<Row, String> {
    let value = |value: &serde_json::Value| match value {
        serde_json::Value::Bool(yes) => Value::from(*yes),
        serde_json::Value::Number(number) if number.is_i64() => number.as_i64().map_or(Value::Null, Value::from),
        serde_json::Value::Number(number) if number.is_f64() => number.as_f64().map_or(Value::Null, Value::from),
        // The column's affinity makes of a text what it is.
        other => cli::text(other).map_or(Value::Null, Value::from),
    };
    Ok(params_from_iter(record.values(columns)?.iter().map(value).collect()))
}

impl Target for Table {
    type Resource = Sqlite;
    type Sink = Made<Insert, Row>;

    fn open(self) -> Result<(Sqlite, Self::Sink), Error> {
        let mut insert = Insert::into(self.table, self.columns.clone()).delivery(self.delivery.into());
        if let Some(key_table) = self.key_table {
            insert = insert.key_table(key_table);
        }
        let database = match self.database {
            Some(path) => Sqlite::new(Config::new(path)),
            None => Sqlite::from_env()?,
        };
        Ok((database, Made::new(insert, self.columns, row)))
    }
}

fn main() -> ExitCode {
    cli::main::<Table>()
}
