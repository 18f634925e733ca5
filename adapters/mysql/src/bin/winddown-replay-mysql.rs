//! Lists, checks and writes back spilled records: into a MySQL or MariaDB table, whose URL is in `MYSQL_URL`.

use std::process::ExitCode;

use clap::Args;
use winddown_buffer::cli::{self, Json, Made, Table, Target};
use winddown_core::Error;
use winddown_mysql::{Insert, Mysql, Parameters, mysql_async::Value};

/// The table; its server is named by `MYSQL_URL`.
#[derive(Debug, Args)]
struct Place {
    #[command(flatten)]
    into: Table,
    /// The database of the table, if it is not that of the URL
    #[arg(long)]
    schema: Option<String>,
}

#[derive(Debug)]
struct Row(Vec<Value>);

impl Row {
    fn from_json(record: &Json, columns: &[String]) -> Result<Self, String> {
        let value = |value| match (value, cli::text(value)) {
            (serde_json::Value::Bool(yes), _) => Value::from(*yes),
            // The server reads it as what its column is.
            (_, Some(text)) => Value::from(text),
            (_, None) => Value::NULL,
        };
        Ok(Self(record.values(columns)?.iter().map(value).collect()))
    }
}

impl Parameters for Row {
    fn parameters(&self, values: &mut Vec<Value>) {
        values.extend(self.0.iter().cloned());
    }
}

impl Target for Place {
    type Resource = Mysql;
    type Sink = Made<Insert, Row>;

    fn open(self) -> Result<(Mysql, Self::Sink), Error> {
        let Table { table, columns, delivery, key_table } = self.into;
        let mut insert = Insert::into(table, columns.clone()).delivery(delivery.into());
        if let Some(schema) = self.schema {
            insert = insert.schema(schema);
        }
        if let Some(key_table) = key_table {
            insert = insert.key_table(key_table);
        }
        Ok((Mysql::from_env()?, Made::new(insert, columns, Row::from_json)))
    }
}

fn main() -> ExitCode {
    cli::main::<Place>()
}
