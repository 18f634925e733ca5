//! Claims that are about many times in a row. `cargo xtask soak` runs them full size, the tests in a smaller one.

use std::{process::ExitCode, sync::Arc, time::Duration};

use winddown_core::{BoxError, Error};
use winddown_sqlite::{Config, Insert, Sqlite, rusqlite};
use winddown_testkit::{
    CheckoutOf, InProcess, Trial,
    buffered::{self, Buffered},
    chaos::{self, Chaos, Trouble},
    slow,
    starved::{self, Starved},
};

use crate::server::{self, Embedded};

/// Runs the program that this process is, if it is one of these.
pub(crate) fn program() -> Option<ExitCode> {
    buffered::program::<Embedded>().or_else(chaos::program::<Embedded>).or_else(starved::program::<Embedded>)
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = buffered::trials::<Embedded>();
    trials.extend(slow::trials::<Embedded>());
    trials.extend(starved::trials::<Embedded>());
    trials.extend(chaos::trials::<Embedded>());
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

impl Chaos for Embedded {
    // Somebody else writes, and nobody can.
    const TROUBLES: &'static [Trouble] = &[Trouble::Pause];
    const ENDS_OTHERS: &'static [Trouble] = &[];

    async fn ask(connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        server::ask(connection).await
    }

    async fn statement(connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        server::run(connection, takes, &Arc::default()).await
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

impl Starved for Embedded {
    const MANY: usize = 100;
    const LISTS_RUNNING: bool = false;

    fn with_room(sessions: usize) -> Result<Sqlite, Error> {
        let mut config = Config::from_env()?;
        config.pool_size = Some(sessions);
        Ok(Sqlite::new(config))
    }

    async fn endless(connection: &mut CheckoutOf<Self>, begun: impl FnOnce() + Send + 'static) {
        let counts = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        let statement = |database: &mut rusqlite::Connection| {
            begun();
            database.query_row(counts, [], |_| Ok(()))
        };
        // It is stopped.
        let _ = connection.interact(statement).await;
    }
}
