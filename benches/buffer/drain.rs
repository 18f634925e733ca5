//! A drain that finds 10 000 records in the buffer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::runtime::Builder;
use winddown::{
    Lifecycle,
    buffer::{BatchWriter, Push},
    postgres::{Config, CopyIn, Postgres},
};

use crate::{COLUMNS, Size, median, records};

pub(crate) const BUDGET: Duration = Duration::from_millis(300);
const RECORDS: usize = 10_000;

/// Each is a commit, and a disk that others use too takes its time for one.
const BATCH: usize = 5_000;

pub(crate) async fn run(size: &Size, url: &str, print: impl Fn(String)) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..size.rounds {
        let (url, budget) = (url.to_owned(), size.budget);
        // A function has one thread.
        took.push(tokio::task::spawn_blocking(move || drain(&url, budget)).await??);
    }
    let (longest, took) = (took.iter().copied().max().context("there is a round")?, median(took));
    let share = |time: Duration| 100.0 * time.as_secs_f64() / BUDGET.as_secs_f64();
    print(format!(
        "drain: {RECORDS} buffered records are at PostgreSQL, and its sessions closed, after {took:.1?}: {:.0} % of {BUDGET:?}; \
         {:.0} % at the most (target: within it)",
        share(took),
        share(longest)
    ));
    Ok(())
}

fn drain(url: &str, budget: Duration) -> Result<Duration> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let lifecycle = Lifecycle::builder().signals(false).budget(budget).build()?;
    runtime.block_on(async {
        let db = lifecycle.guard(Postgres::new(url.parse::<Config>()?));
        let buffer = lifecycle.guard(BatchWriter::new(&db, CopyIn::into("audit", COLUMNS)).batch_size(BATCH));
        lifecycle.init().await?;
        for record in records(RECORDS) {
            // Nothing is written before the drain: this thread does not wait.
            buffer.try_push(record)?;
        }
        let began = Instant::now();
        let report = lifecycle.drain().await;
        let took = began.elapsed();
        let counts = report.resources.iter().find_map(|row| row.records).context("it was registered")?;
        ensure!(report.is_clean() && counts.written == RECORDS as u64, "{report}");
        Ok(took)
    })
}
