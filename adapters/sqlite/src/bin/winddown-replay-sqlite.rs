//! Lists, checks and writes back spilled records: into a table of an SQLite file.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use winddown_buffer::cli::{self, Json, Made, Table, Target};
use winddown_core::Error;
use winddown_sqlite::{
    Config, Insert, Sqlite,
    rusqlite::{ParamsFromIter, params_from_iter, types::Value},
};

/// The file, and the table in it.
#[derive(Debug, Args)]
struct Place {
    /// The database [default: that in SQLITE_PATH]
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
    #[command(flatten)]
    into: Table,
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

impl Target for Place {
    type Resource = Sqlite;
    type Sink = Made<Insert, Row>;

    fn open(self) -> Result<(Sqlite, Self::Sink), Error> {
        let Table { table, columns, delivery, key_table } = self.into;
        let mut insert = Insert::into(table, columns.clone()).delivery(delivery.into());
        if let Some(key_table) = key_table {
            insert = insert.key_table(key_table);
        }
        let database = match self.database {
            Some(path) => Sqlite::new(Config::new(path)),
            None => Sqlite::from_env()?,
        };
        Ok((database, Made::new(insert, columns, row)))
    }
}

fn main() -> ExitCode {
    cli::main::<Place>()
}
