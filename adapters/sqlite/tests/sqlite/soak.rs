//! Claims that are about many times in a row. `cargo xtask soak` runs them full size, the tests in a smaller one.

use std::process::ExitCode;

use winddown_core::{BoxError, Error};
use winddown_sqlite::{Insert, Sqlite, rusqlite};
use winddown_testkit::{
    InProcess, Trial,
    buffered::{self, Buffered},
    slow,
};

use crate::server::Embedded;

/// Runs the program that this process is, if it is one of these.
pub(crate) fn program() -> Option<ExitCode> {
    buffered::program::<Embedded>()
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = buffered::trials::<Embedded>();
    trials.extend(slow::trials::<Embedded>());
    trials
}

impl Buffered for Embedded {
    type Sink = Insert;

    const REPLAY: (&'static str, &'static [&'static str]) =
        (env!("CARGO_BIN_EXE_winddown-replay-sqlite"), &["--columns", "number,text", "--table"]);

    fn sink(table: &str) -> Insert {
        Insert::into(table, ["number", "text"])
    }

    async fn create(&self, table: &str) -> Result<(), BoxError> {
        let database = rusqlite::Connection::open(&self.path)?;
        Ok(database.execute_batch(&format!("CREATE TABLE {table}(number, text)"))?)
    }

    async fn numbers(&self, table: &str) -> Result<Vec<i64>, BoxError> {
        let database = rusqlite::Connection::open(&self.path)?;
        let mut numbers = database.prepare(&format!("SELECT number FROM {table}"))?;
        let numbers = numbers.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(numbers)
    }

    async fn away(&self) -> Result<(), BoxError> {
        self.lock()
    }

    async fn back(&self) -> Result<(), BoxError> {
        self.unlock()
    }
}

impl InProcess for Embedded {
    fn environment(&self) -> Vec<(&'static str, String)> {
        let path = self.path.to_str().expect("the directory's name is text");
        vec![(winddown_sqlite::PATH_VARIABLE, path.to_owned())]
    }

    fn from_env() -> Result<Sqlite, Error> {
        Sqlite::from_env()
    }
}
