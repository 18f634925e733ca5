//! Claims that are about many times in a row. `cargo xtask soak` runs them full size, the tests in a smaller one.

use std::{process::ExitCode, time::Duration};

use mysql_async::prelude::Queryable as _;
use winddown_core::{BoxError, Error};
use winddown_mysql::{Config, Insert, Mysql, mysql_async};
use winddown_testkit::{
    CheckoutOf, Harness as _, InProcess, ServerUse, Setup, Trial,
    buffered::{self, Buffered},
    chaos::{self, Chaos},
    frozen::{self, Frozen},
    scene::{ENDLESS, lifecycle},
    soak,
    starved::{self, Starved},
};

use crate::server::{self, MariaDb, MySql, Tenancy, Version};

/// Runs the program that this process is, if it is one of these. Both servers are spoken to in the same way.
pub(crate) fn program() -> Option<ExitCode> {
    soak::program::<Tenancy<MySql>>()
        .or_else(buffered::program::<Tenancy<MySql>>)
        .or_else(chaos::program::<Tenancy<MySql>>)
        .or_else(frozen::program::<Tenancy<MySql>>)
        .or_else(starved::program::<Tenancy<MySql>>)
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = soak::trials::<Tenancy<MySql>>();
    trials.extend(soak::trials::<Tenancy<MariaDb>>());
    trials.extend(buffered::trials::<Tenancy<MySql>>());
    trials.push(frozen::thawing::<Tenancy<MySql>>());
    trials.extend(buffered::trials::<Tenancy<MariaDb>>());
    trials.push(frozen::thawing::<Tenancy<MariaDb>>());
    trials.extend(starved::trials::<Tenancy<MySql>>());
    trials.extend(starved::trials::<Tenancy<MariaDb>>());
    trials.extend(chaos::trials::<Tenancy<MySql>>());
    trials.extend(chaos::trials::<Tenancy<MariaDb>>());
    const WARM: &str = "checkouts_within_a_second_cost_what_those_of_the_drivers_pool_cost";
    trials.push(soak::trial::<Tenancy<MySql>>(WARM, ServerUse::Own, |server| Box::pin(warm(server))));
    const NAME: &str = "aborted_clients_does_not_rise_by_drains_of_idle_sessions";
    trials.push(soak::trial::<Tenancy<MySql>>(NAME, ServerUse::Own, |server| Box::pin(not_one_is_lost(server))));
    trials.push(soak::trial::<Tenancy<MariaDb>>(NAME, ServerUse::Own, |server| Box::pin(not_one_is_lost(server))));
    trials
}

/// Idle sessions, and what the server counts of clients that went away without a goodbye.
async fn not_one_is_lost<V: Version>(server: &Tenancy<V>) -> Result<String, BoxError> {
    let before = server.aborted_clients().await?;
    let figures = soak::idle(server).await?;
    match server.aborted_clients().await? - before {
        0 => Ok(format!("{figures}; Aborted_clients is still {before}")),
        lost => Err(format!("the server counts {lost} more clients that it has lost").into()),
    }
}

/// The driver resets each session that is given back, which is a round trip: its own pool does so, too. Added is one more
/// in the background, for what a reset leaves as it was.
async fn warm<V: Version>(server: &Tenancy<V>) -> Result<String, BoxError> {
    const CHECKOUTS: u64 = 50;
    let proxy = server.proxy().ok_or("nothing counts between this resource and its server")?;
    let lifecycle = lifecycle(Duration::from_secs(10));
    let db = lifecycle.guard_as("db", server.resource(&Setup::default()));
    db.get().await?.query_drop("DO 1").await?;
    let before = proxy.round_trips();
    for _ in 0..CHECKOUTS {
        db.get().await?.query_drop("DO 1").await?;
    }
    let ours = proxy.round_trips() - before;
    lifecycle.drain().await;

    let [(_, url)] = &server.environment()[..] else { return Err("one variable says all".into()) };
    let bare = mysql_async::Pool::from_url(url)?;
    bare.get_conn().await?.query_drop("DO 1").await?;
    let before = proxy.round_trips();
    for _ in 0..CHECKOUTS {
        bare.get_conn().await?.query_drop("DO 1").await?;
    }
    let theirs = proxy.round_trips() - before;
    bare.disconnect().await?;
    // An answer that arrives in pieces may be counted as more. A check at each checkout would add as many as there are.
    if ours > theirs + CHECKOUTS + CHECKOUTS / 5 || ours < CHECKOUTS {
        return Err(format!("{ours} round trips for {CHECKOUTS} checkouts, {theirs} by the driver's own pool").into());
    }
    Ok(format!("{CHECKOUTS} checkouts with a query each: {ours} round trips, {theirs} by the driver's own pool"))
}

impl<V: Version> Buffered for Tenancy<V> {
    type Sink = Insert;

    const REPLAY: (&'static str, &'static [&'static str]) =
        (env!("CARGO_BIN_EXE_winddown-replay-mysql"), &["--columns", "number,text", "--table"]);

    fn sink(table: &str) -> Insert {
        Insert::into(table, ["number", "text"])
    }

    async fn create(&self, table: &str) -> Result<(), BoxError> {
        self.execute(&format!("CREATE TABLE {}.{table}(number BIGINT, text TEXT)", self.tenant.name)).await
    }

    async fn numbers(&self, table: &str) -> Result<Vec<i64>, BoxError> {
        let mut superuser = self.server.superuser().await?;
        let numbers = superuser.query(format!("SELECT number FROM {}.{table}", self.tenant.name)).await?;
        superuser.disconnect().await?;
        Ok(numbers)
    }
}

impl<V: Version> Chaos for Tenancy<V> {
    async fn ask(connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        Ok(connection.query_drop("SELECT 1").await?)
    }

    async fn statement(connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        server::run(connection, takes).await
    }

    async fn read_only(&self, read_only: bool) -> Result<(), BoxError> {
        // Returns when what writes is done.
        self.execute(&format!("SET GLOBAL read_only = {}", u8::from(read_only))).await
    }
}

impl<V: Version> InProcess for Tenancy<V> {
    fn environment(&self) -> Vec<(&'static str, String)> {
        let (tenant, address) = (&self.tenant, self.address());
        let (user, password) = (&tenant.name, &tenant.password);
        vec![(winddown_mysql::URL_VARIABLE, format!("mysql://{user}:{password}@{address}/{user}"))]
    }

    fn from_env() -> Result<Mysql, Error> {
        Mysql::from_env()
    }
}

impl<V: Version> Frozen for Tenancy<V> {
    async fn query(connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        Ok(connection.query_drop("SELECT 1").await?)
    }

    async fn idle_timeout(&self, timeout: Duration) -> Result<(), BoxError> {
        self.execute(&format!("SET GLOBAL wait_timeout = {}", timeout.as_secs())).await
    }
}

impl<V: Version> Starved for Tenancy<V> {
    const MANY: usize = 100;

    // While it sleeps MySQL looks every five seconds whether its client is there.
    const OUTLIVES_ITS_CLIENT: bool = false;

    fn with_room(sessions: usize) -> Result<Mysql, Error> {
        let mut config = Config::from_env()?;
        config.pool.max_size = sessions;
        Ok(Mysql::new(config))
    }

    async fn endless(connection: &mut CheckoutOf<Self>, begun: impl FnOnce() + Send + 'static) {
        begun();
        // It is stopped.
        let _ = server::run(connection, ENDLESS).await;
    }
}
