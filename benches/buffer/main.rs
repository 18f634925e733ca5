//! What does the buffer cost, and what does it gain?
//!
//! All targets are printed next to what was measured, in one run of `cargo xtask bench buffer`:
//! - PostgreSQL: a `BatchWriter` with `CopyIn` against one bare `COPY` of the same rows by the driver (at least 0.9 of its
//!   throughput), and against inserts of one row each (at least 20 times theirs);
//! - MySQL: a `BatchWriter` with `Insert` against hand-written inserts of many rows, with as many commits (at least 0.9);
//! - `push` on one thread: at most 150 ns for each record, and no allocation but the record's own;
//! - memory: at most 1.1 times the stated bound, while the target is slow;
//! - a drain of 10 000 records to PostgreSQL: within Lambda's 300 ms.

mod drain;
mod memory;
mod mysql;
mod postgres;
mod push;

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::runtime::Builder;
use winddown::{Lifecycle, Resource, ShutdownGuard, buffer::Push};
use winddown_testkit::containers::{self, Setup};

/// A line of an audit log: its number, when, who, what, and how long it took.
type Record = (i64, i64, String, String, i32);

const COLUMNS: [&str; 5] = ["id", "at", "who", "what", "took"];

/// Two batches are written while a third is collected.
const IN_FLIGHT: usize = 2;

/// Large, for each is a commit of its own.
const BATCH: usize = 20_000;
const BATCH_BYTES: usize = 4 << 20;

/// How much is measured.
struct Size {
    rounds: usize,
    rows: usize,
    /// Of inserts of one row each.
    single: usize,
    /// As many as whole inserts by hand have.
    mysql: usize,
    pushes: usize,
    memory: usize,
    /// What a drain has.
    budget: Duration,
}

const FULL: Size = Size {
    rounds: 15,
    rows: 400_000,
    single: 2_000,
    mysql: 200_000,
    pushes: 2_000_000,
    memory: 10_000_000,
    budget: drain::BUDGET,
};

/// Somebody only wants to know whether it runs.
const LEAST: Size = Size {
    rounds: 1,
    rows: 5_000,
    single: 50,
    mysql: 2_000,
    pushes: 50_000,
    memory: 100_000,
    budget: Duration::from_secs(30),
};

fn main() -> Result<()> {
    let measured = env::args().any(|argument| argument == "--bench");
    let size = if measured { FULL } else { LEAST };
    // What is printed without a measurement is no figure.
    let print = |line: String| {
        if measured {
            println!("{line}");
        }
    };
    push::run(&size, print)?;
    memory::run(&size, print)?;
    if let Some(reason) = containers::skipped() {
        println!("left out: {reason}");
        return Ok(());
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let container = Setup::postgres("17").env("POSTGRES_HOST_AUTH_METHOD", "trust").start().await?;
        let url = format!("postgres://postgres@{}/postgres?sslmode=disable", container.address(5432));
        postgres::run(&size, &url, print).await?;
        drain::run(&size, &url, print).await?;
        container.remove().await?;

        let container = Setup::mysql("9.7").env("MYSQL_ROOT_PASSWORD", "bench").start().await?;
        let url = format!("mysql://root:bench@{}/mysql", container.address(3306));
        mysql::run(&size, &url, print).await?;
        container.remove().await
    })
}

fn lifecycle() -> Result<Lifecycle> {
    Ok(Lifecycle::builder().signals(false).budget(Duration::from_secs(60)).build()?)
}

fn records(count: usize) -> Vec<Record> {
    (0..count as i64).map(record).collect()
}

fn record(id: i64) -> Record {
    let (who, what) = (format!("user-{}@example.com", id % 10_007), format!("GET /shop/orders/{id}?page={}", id % 977));
    (id, 1_700_000_000_000_000 + id, who, what, (id % 97) as i32)
}

/// From the first push until all is at the target.
async fn write<R: Resource>(buffer: &ShutdownGuard<R>, records: Vec<Record>) -> Result<Duration>
where
    ShutdownGuard<R>: Push<Record>,
{
    let began = Instant::now();
    for record in records {
        buffer.push(record).await?;
    }
    buffer.flush().await?;
    Ok(began.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// How much quicker the first is than the second: the median of the rounds, whose turns have had the same quiet or trouble.
fn quicker(ours: &[Duration], theirs: &[Duration]) -> f64 {
    let mut ratios: Vec<_> =
        ours.iter().zip(theirs).map(|(ours, theirs)| theirs.as_secs_f64() / ours.as_secs_f64()).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}
