//! PostgreSQL, MySQL, Redis and SQLite in one Lambda function: one SIGTERM, four goodbyes at once, one report.
//!
//! `cargo run --example four_at_once --features buffer,lambda,mysql,postgres,redis,sim,sqlite`
//!
//! It starts the three servers in containers (`cargo xtask images` makes the images). The function (`function.rs`) is this
//! program again, started by the simulator: each invocation writes one order into each of the four. After SIGTERM each
//! server is asked what it lists and what it has.

mod function;
mod servers;

use std::{env, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::json;
use winddown::{
    Report,
    sim::{Config, Reason, Record, Sim},
};

use servers::{Backend, Left, Servers};

/// Set for the child: it is the function.
const ROLE: &str = "FOUR_AT_ONCE_ROLE";

/// By which the servers list its sessions.
const FUNCTION: &str = "four-at-once-example";

/// Runs a Lambda function with four backends through a whole life, and asks each of them what is left of it.
#[derive(Parser)]
struct Arguments {
    /// How many invocations.
    #[arg(long, default_value_t = 100)]
    invocations: u64,
    /// The time from SIGTERM to SIGKILL, in milliseconds; Lambda's own without it.
    #[arg(long)]
    budget_ms: Option<u64>,
    /// The size of the function's memory in MB, which limits its CPU too; all of this machine without it.
    #[arg(long)]
    memory_mb: Option<u32>,
}

fn main() -> ExitCode {
    let result = match env::var_os(ROLE) {
        Some(_) => function::main().map(|()| ExitCode::SUCCESS).map_err(Into::into),
        None => live(&Arguments::parse()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

#[tokio::main]
async fn live(arguments: &Arguments) -> Result<ExitCode> {
    eprintln!("starting PostgreSQL, MySQL and Redis in containers");
    let servers = Servers::start().await?;
    let function = Config::new(env::current_exe()?).function_name(FUNCTION).env(ROLE, "function").capture_output();
    let function = servers.variables().into_iter().fold(function, |function, (name, value)| function.env(name, value));

    eprintln!("cold start");
    let sim = Sim::start(limited(function, arguments)).await?;
    for order in 0..arguments.invocations {
        sim.invoke(json!({ "order": order })).await?;
    }
    let before = servers.left().await?;
    eprintln!("{} invocations, shutting down", arguments.invocations);
    let record = sim.shutdown(Reason::Spindown).await;
    let after = servers.left().await?;
    servers.remove().await?;

    let report: Option<Report> = record.output.iter().find_map(|output| serde_json::from_str(&output.line).ok());
    println!("{record}");
    if let Some(report) = &report {
        println!("{report}");
    }
    for (before, after) in before.iter().zip(&after) {
        let (Left { sessions: listed, .. }, Left { backend, sessions, orders }) = (before, after);
        println!(
            "{backend:<10}  sessions before SIGTERM: {listed}, when the process has ended: {sessions}; orders: {orders}"
        );
    }
    Ok(match promise(&record, report.as_ref(), &before, &after) {
        Ok(()) => {
            println!("The promise holds: no session is left anywhere, and every order is in every backend.");
            ExitCode::SUCCESS
        }
        Err(broken) => {
            println!("The promise does NOT hold: {broken}.");
            ExitCode::FAILURE
        }
    })
}

fn promise(record: &Record, report: Option<&Report>, before: &[Left], after: &[Left]) -> Result<()> {
    let accepted = record.invocations.iter().filter(|invocation| invocation.ok).count() as u64;
    ensure!(accepted > 0, "no invocation succeeded");
    ensure!(accepted == record.invocations.len() as u64, "only {accepted} invocations succeeded");
    for Left { backend, sessions, .. } in before {
        ensure!(*sessions > 0, "{backend} listed no session of the function while it ran");
    }
    for Left { backend, sessions, orders } in after {
        ensure!(*sessions == 0, "{backend} still lists {sessions} sessions");
        ensure!(*orders == accepted, "{accepted} orders were accepted, and {backend} has {orders}");
    }
    let report = report.context("there is no drain report")?;
    ensure!(report.is_clean(), "the report says that not everything was drained");
    for backend in Backend::ALL {
        let row = report.resource(backend.resource()).context("a backend is not in the report")?;
        ensure!(row.sessions.closed > 0, "the report says that {backend} closed no session");
    }
    let one_by_one: Duration = report.resources.iter().map(|row| row.took).sum();
    println!("all goodbyes took {:?}; one after the other they take {one_by_one:?}", report.took);
    ensure!(record.ended_by_itself(), "the function did not end by itself inside the budget");
    Ok(())
}

/// The function has what was asked for, and is told so by the simulator.
fn limited(mut function: Config, arguments: &Arguments) -> Config {
    if let Some(ms) = arguments.budget_ms {
        function = function.budget(Duration::from_millis(ms));
    }
    if let Some(size) = arguments.memory_mb {
        function = function.memory_mb(size);
    }
    function
}
