//! Lists, checks and writes back spilled records: into a PostgreSQL table, whose URL is in `DATABASE_URL`.

use std::{error::Error as StdError, process::ExitCode};

use bytes::BytesMut;
use clap::Args;
use winddown_buffer::cli::{self, Json, Made, Table, Target};
use winddown_core::Error;
use winddown_postgres::{
    Insert, Parameters, Postgres,
    tokio_postgres::types::{Format, IsNull, ToSql, Type},
};

/// The table; its server is named by `DATABASE_URL`.
#[derive(Debug, Args)]
struct Place {
    #[command(flatten)]
    into: Table,
    /// The schema of the table
    #[arg(long)]
    schema: Option<String>,
}

/// A value that the server reads as what its column is.
#[derive(Debug)]
struct Text(Option<String>);

impl ToSql for Text {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        let Some(text) = &self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    winddown_postgres::tokio_postgres::types::to_sql_checked!();
}

#[derive(Debug)]
struct Row(Vec<Text>);

impl Row {
    fn from_json(record: &Json, columns: &[String]) -> Result<Self, String> {
        Ok(Self(record.values(columns)?.iter().map(|value| Text(cli::text(value))).collect()))
    }
}

impl Parameters for Row {
    fn parameters<'a>(&'a self, values: &mut Vec<&'a (dyn ToSql + Sync)>) {
        values.extend(self.0.iter().map(|value| value as &(dyn ToSql + Sync)));
    }
}

impl Target for Place {
    type Resource = Postgres;
    type Sink = Made<Insert, Row>;

    fn open(self) -> Result<(Postgres, Self::Sink), Error> {
        let Table { table, columns, delivery, key_table } = self.into;
        let mut insert = Insert::into(table, columns.clone()).delivery(delivery.into());
        if let Some(schema) = self.schema {
            insert = insert.schema(schema);
        }
        if let Some(key_table) = key_table {
            insert = insert.key_table(key_table);
        }
        Ok((Postgres::from_env()?, Made::new(insert, columns, Row::from_json)))
    }
}

fn main() -> ExitCode {
    cli::main::<Place>()
}
