//! A Lambda function from cold start to SIGTERM, with winddown and without, on this machine.
//!
//! `cargo run --example quickstart --features sqlite,buffer,lambda,sim`
//!
//! The function (`function.rs`) and its twin without winddown (`bare.rs`) are this program again, started by the
//! simulator: 200 invocations with three audit records each, a freeze in the middle, SIGTERM while records are still
//! buffered. Then the database file is opened and counted: rows must be the records that the function accepted.

mod bare;
mod function;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;
use serde_json::json;
use winddown::{
    Report,
    sim::{Config, Reason, Record, Sim},
    sqlite::rusqlite::Connection,
};

/// What each invocation writes to the audit log.
const RECORDS: [&str; 3] = ["began", "looked at the event", "ended"];

/// Set for the child: which of the two functions it is.
const ROLE: &str = "QUICKSTART_ROLE";

/// Runs the same Lambda function with and without winddown, and shows what is left of each.
#[derive(Parser)]
struct Arguments {
    /// Write what was seen, both runs, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many invocations.
    #[arg(long, default_value_t = 200)]
    invocations: u32,
    /// How long the function is frozen after half of them, in milliseconds.
    #[arg(long, default_value_t = 1500)]
    freeze_ms: u64,
    /// The time from SIGTERM to SIGKILL, in milliseconds; Lambda's own without it.
    #[arg(long)]
    budget_ms: Option<u64>,
}

fn main() -> ExitCode {
    let result = match env::var(ROLE).as_deref() {
        Ok("function") => function::main().map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Ok("bare") => bare::main().map(|()| ExitCode::SUCCESS).map_err(|error| anyhow::anyhow!(error)),
        _ => compare(&Arguments::parse()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

#[tokio::main]
async fn compare(arguments: &Arguments) -> Result<ExitCode> {
    let with = live("function", arguments).await?;
    println!("── with winddown ──\n{}", with.record);
    if let Some(report) = &with.report {
        println!("{report}");
    }
    println!("{with}\n");

    let without = live("bare", arguments).await?;
    println!("── the same function without winddown ──\n{}\n{without}\n", without.record);

    if let Some(file) = &arguments.json {
        let both = json!({ "with": with, "without": without });
        fs::write(file, serde_json::to_vec_pretty(&both)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(match with.broken_promise() {
        None => {
            println!(
                "The promise holds: every accepted record is in the database, which was closed inside the budget."
            );
            ExitCode::SUCCESS
        }
        Some(broken) => {
            println!("The promise does NOT hold: {broken}.");
            ExitCode::FAILURE
        }
    })
}

/// One life of a function, and what is left of it.
#[derive(Serialize)]
struct Life {
    accepted: u64,
    rows: u64,
    /// Files that SQLite leaves when nobody closes it, with their sizes.
    left_behind: Vec<(String, u64)>,
    report: Option<Report>,
    record: Record,
}

async fn live(role: &str, arguments: &Arguments) -> Result<Life> {
    let folder = tempfile::tempdir()?;
    let database = folder.path().join("audit.db");
    Connection::open(&database)?.execute_batch("CREATE TABLE audit(invocation INTEGER, what TEXT)")?;

    let function = Config::new(env::current_exe()?).env(ROLE, role).env("SQLITE_PATH", &database).capture_output();
    eprintln!("{role}: cold start");
    let sim = Sim::start(with_budget(function, arguments.budget_ms)).await?;
    let half = arguments.invocations / 2;
    for invocation in 0..arguments.invocations {
        if invocation == half {
            eprintln!("{role}: frozen for {} ms", arguments.freeze_ms);
            sim.freeze().await?;
            tokio::time::sleep(Duration::from_millis(arguments.freeze_ms)).await;
            sim.thaw();
        }
        sim.invoke(json!({ "invocation": invocation })).await?;
    }
    eprintln!("{role}: {} invocations, shutting down", arguments.invocations);
    let record = sim.shutdown(Reason::Spindown).await;

    let accepted = record.invocations.iter().filter_map(|i| i.payload.get("accepted")?.as_u64()).sum();
    let report = record.output.iter().find_map(|output| serde_json::from_str(&output.line).ok());
    // Before the file is opened again: that would tidy up.
    let left_behind = left_behind(&database);
    let count = Connection::open(&database)?.query_row("SELECT count(*) FROM audit", [], |row| row.get::<_, i64>(0))?;
    let rows = count.unsigned_abs();
    Ok(Life { accepted, rows, left_behind, report, record })
}

fn left_behind(database: &Path) -> Vec<(String, u64)> {
    let beside = |suffix: &str| {
        let size = fs::metadata(format!("{}{suffix}", database.display())).ok()?.len();
        Some((format!("audit.db{suffix}"), size))
    };
    ["-wal", "-shm"].into_iter().filter_map(beside).collect()
}

impl Life {
    fn broken_promise(&self) -> Option<String> {
        let invocations = self.record.invocations.iter();
        let failed = invocations.filter(|invocation| !invocation.ok).count();
        let Some(report) = &self.report else { return Some("there is no drain report".into()) };
        let Some(records) = report.resource("audit").and_then(|audit| audit.records) else {
            return Some("the report does not mention the audit records".into());
        };
        [
            (failed > 0, format!("{failed} invocations failed")),
            (self.accepted == 0, "no record was accepted".into()),
            (self.rows != self.accepted, format!("{} records accepted, {} rows", self.accepted, self.rows)),
            (records.accepted != self.accepted, format!("the report says {} were accepted", records.accepted)),
            (records.written != self.rows, format!("the report says {} were written", records.written)),
            (!report.is_clean(), "the report says that not everything was drained".into()),
            (!self.left_behind.is_empty(), "the database was not closed".into()),
            (!self.record.ended_by_itself(), "the function did not end by itself inside the budget".into()),
        ]
        .into_iter()
        .find_map(|(broken, what)| broken.then_some(what))
    }
}

impl std::fmt::Display for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { accepted, rows, left_behind, .. } = self;
        write!(f, "{accepted} records accepted, {rows} rows in the database: {} lost", accepted.saturating_sub(*rows))?;
        for (file, size) in left_behind {
            write!(f, "; left behind: {file} ({size} bytes)")?;
        }
        Ok(())
    }
}

/// The function is killed after so long, and is told so, instead of after Lambda's own time.
fn with_budget(function: Config, budget_ms: Option<u64>) -> Config {
    match budget_ms {
        Some(ms) => function.budget(Duration::from_millis(ms)).env("WINDDOWN_BUDGET_MS", ms.to_string()),
        None => function,
    }
}
