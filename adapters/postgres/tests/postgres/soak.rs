//! Claims that are about many times in a row. `cargo xtask soak` runs them full size, the tests in a smaller one.

use std::{process::ExitCode, time::Duration};

use winddown_core::{BoxError, Error};
use winddown_postgres::{Config, CopyIn, Postgres};
use winddown_testkit::{
    CheckoutOf, InProcess, Trial,
    buffered::{self, Buffered},
    chaos::{self, Chaos},
    frozen::{self, Frozen},
    scene::ENDLESS,
    soak,
    starved::{self, Starved},
};

use crate::server::{self, PostgreSql, Seventeen, Tenant};

type Server = PostgreSql<Seventeen>;

/// Runs the program that this process is, if it is one of these.
pub(crate) fn program() -> Option<ExitCode> {
    soak::program::<Server>()
        .or_else(buffered::program::<Server>)
        .or_else(chaos::program::<Server>)
        .or_else(frozen::program::<Server>)
        .or_else(starved::program::<Server>)
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = soak::trials::<Server>();
    trials.extend(buffered::trials::<Server>());
    trials.extend([frozen::thawing::<Server>(), frozen::warm::<Server>()]);
    trials.extend(starved::trials::<Server>());
    trials.extend(chaos::trials::<Server>());
    trials
}

impl Buffered for Server {
    type Sink = CopyIn;

    const REPLAY: (&'static str, &'static [&'static str]) =
        (env!("CARGO_BIN_EXE_winddown-replay-postgres"), &["--columns", "number,text", "--table"]);

    fn sink(table: &str) -> CopyIn {
        CopyIn::into(table, ["number", "text"])
    }

    async fn create(&self, table: &str) -> Result<(), BoxError> {
        let Tenant { name, password } = &self.tenant;
        let client = server::connect(self.server.address, name, password, name).await?;
        Ok(client.batch_execute(&format!("CREATE TABLE {table}(number int8, text text)")).await?)
    }

    async fn numbers(&self, table: &str) -> Result<Vec<i64>, BoxError> {
        let client = self.server.superuser(&self.tenant.name).await?;
        let rows = client.query(&format!("SELECT number FROM {table}"), &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

impl Chaos for Server {
    async fn ask(client: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        client.query_one("SELECT 1", &[]).await?;
        Ok(())
    }

    async fn statement(client: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        server::run(client, takes).await
    }

    async fn read_only(&self, read_only: bool) -> Result<(), BoxError> {
        self.server.read_only(read_only).await
    }
}

impl InProcess for Server {
    fn environment(&self) -> Vec<(&'static str, String)> {
        let (tenant, address) = (&self.tenant, self.address());
        let (user, password) = (&tenant.name, &tenant.password);
        let url = format!("postgres://{user}:{password}@{address}/{user}?sslmode=disable");
        vec![(winddown_postgres::URL_VARIABLE, url)]
    }

    fn from_env() -> Result<Postgres, Error> {
        Postgres::from_env()
    }
}

impl Frozen for Server {
    async fn query(client: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        client.query_one("SELECT 1", &[]).await?;
        Ok(())
    }

    async fn idle_timeout(&self, timeout: Duration) -> Result<(), BoxError> {
        let sql = format!("ALTER ROLE {} SET idle_session_timeout = '{}s'", self.tenant.name, timeout.as_secs());
        self.execute(&sql).await
    }
}

impl Starved for Server {
    const MANY: usize = 200;

    fn with_room(sessions: usize) -> Result<Postgres, Error> {
        let mut config = Config::from_env()?;
        config.pool.max_size = sessions;
        Ok(Postgres::new(config))
    }

    async fn endless(client: &mut CheckoutOf<Self>, begun: impl FnOnce() + Send + 'static) {
        begun();
        // It is stopped.
        let _ = server::run(client, ENDLESS).await;
    }
}
