//! Lists, checks and writes back spilled records: into a MySQL or MariaDB table, whose URL is in `MYSQL_URL`.

use std::process::ExitCode;

use clap::Args;
use winddown_buffer::cli::{self, Deliver, Json, Made, Target};
use winddown_core::Error;
use winddown_mysql::{Insert, Mysql, Parameters, mysql_async::Value};

/// The table; its server is named by `MYSQL_URL`.
#[derive(Debug, Args)]
struct Table {
    /// The table
    #[arg(long)]
    table: String,
    /// The database of the table, if it is not that of the URL
    #[arg(long)]
    schema: Option<String>,
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

impl Target for Table {
    type Resource = Mysql;
    type Sink = Made<Insert, Row>;

    fn open(self) -> Result<(Mysql, Self::Sink), Error> {
        let mut insert = Insert::into(self.table, self.columns.clone()).delivery(self.delivery.into());
        if let Some(schema) = self.schema {
            insert = insert.schema(schema);
        }
        if let Some(key_table) = self.key_table {
            insert = insert.key_table(key_table);
        }
        Ok((Mysql::from_env()?, Made::new(insert, self.columns, Row::from_json)))
    }
}

fn main() -> ExitCode {
    cli::main::<Table>()
}
