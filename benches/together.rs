//! Do four backends drained together take as long as the slowest of them alone? (C3)
//!
//! PostgreSQL, MySQL, Redis and SQLite with ten idle sessions each. Target: at most 1.3 times the slowest alone. All are
//! measured in turns in one run; `cargo xtask bench together` prints the medians and the ratio.

use std::{
    env,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::runtime::{Builder, Runtime};
use winddown::{
    Checkouts, Lifecycle, ShutdownGuard,
    mysql::{self, Mysql},
    postgres::{self, Postgres},
    redis::{self, Redis},
    sqlite::{self, Sqlite},
};
use winddown_testkit::containers::{self, Setup};

const SESSIONS: usize = 10;
const ROUNDS: usize = 41;

/// What the servers are still busy with after so many logins must not be measured.
const REST: Duration = Duration::from_millis(100);

/// In the order of the names.
const BACKENDS: [&str; 4] = ["postgres", "mysql", "redis", "sqlite"];

/// Where they are.
struct Servers {
    postgres: String,
    mysql: String,
    redis: String,
    sqlite: std::path::PathBuf,
}

fn main() -> Result<()> {
    if let Some(reason) = containers::skipped() {
        println!("left out: {reason}");
        return Ok(());
    }
    // Without it, somebody only wants to know whether it runs.
    let rounds = if env::args().any(|argument| argument == "--bench") { ROUNDS } else { 1 };
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let setups = async {
        let postgres = Setup::postgres("17").env("POSTGRES_HOST_AUTH_METHOD", "trust").start();
        let mysql = Setup::mysql("9.7").env("MYSQL_ROOT_PASSWORD", "bench").start();
        tokio::try_join!(postgres, mysql, Setup::redis("8").start())
    };
    let (postgres, mysql, redis) = runtime.block_on(setups)?;
    let folder = tempfile::tempdir()?;
    let servers = Servers {
        postgres: format!("postgres://postgres@{}/postgres?sslmode=disable", postgres.address(5432)),
        mysql: format!("mysql://root:bench@{}/mysql", mysql.address(3306)),
        redis: format!("redis://{}", redis.address(6379)),
        sqlite: folder.path().join("bench.db"),
    };

    // One list for each backend alone, the last for all.
    let mut took: [Vec<Duration>; BACKENDS.len() + 1] = Default::default();
    for _ in 0..rounds {
        for (which, took) in took.iter_mut().enumerate() {
            let chosen = |backend: usize| which == backend || which == BACKENDS.len();
            took.push(drain(&runtime, &servers, chosen)?);
        }
    }
    let [.., together] = took.each_mut().map(|took| median(took));
    let alone = took[..BACKENDS.len()].iter_mut().map(|took| median(took)).zip(BACKENDS);
    let alone: Vec<_> = alone.collect();
    let (slowest, name) = alone.iter().max().context("there are four")?;
    if rounds > 1 {
        for (took, name) in &alone {
            println!("{name:>8} alone: {took:.1?}");
        }
        let ratio = together.as_secs_f64() / slowest.as_secs_f64();
        println!("together: {together:.1?}, {ratio:.2} times {name} alone (target: at most 1.3)");
    }
    runtime.block_on(async { tokio::try_join!(postgres.remove(), mysql.remove(), redis.remove()) })?;
    Ok(())
}

/// How long a drain of the chosen ones takes.
fn drain(runtime: &Runtime, servers: &Servers, chosen: impl Fn(usize) -> bool) -> Result<Duration> {
    let lifecycle = Lifecycle::builder().signals(false).build()?;
    runtime.block_on(async {
        if chosen(0) {
            let mut config: postgres::Config = servers.postgres.parse()?;
            config.pool.max_size = SESSIONS;
            open(&lifecycle.guard(Postgres::new(config))).await?;
        }
        if chosen(1) {
            let mut config: mysql::Config = servers.mysql.parse()?;
            config.pool.max_size = SESSIONS;
            open(&lifecycle.guard(Mysql::new(config))).await?;
        }
        if chosen(2) {
            let config: redis::Config = servers.redis.parse()?;
            open(&lifecycle.guard(Redis::new(config.pooled(SESSIONS)))).await?;
        }
        if chosen(3) {
            let mut config = sqlite::Config::new(&servers.sqlite);
            config.pool_size = Some(SESSIONS);
            open(&lifecycle.guard(Sqlite::new(config))).await?;
        }
        sleep(REST);
        let began = Instant::now();
        let report = lifecycle.drain().await;
        let took = began.elapsed();
        for (_, name) in BACKENDS.iter().enumerate().filter(|(backend, _)| chosen(*backend)) {
            let closed = report.resource(name).context("it was registered")?.sessions.closed;
            ensure!(closed == SESSIONS as u64, "{report}");
        }
        Ok(took)
    })
}

/// All sessions at once, so that each is opened.
async fn open<R: Checkouts>(guard: &ShutdownGuard<R>) -> Result<()> {
    let mut out = Vec::new();
    for _ in 0..SESSIONS {
        out.push(guard.get().await?);
    }
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
