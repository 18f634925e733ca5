//! A Lambda function with PostgreSQL, from cold start to SIGTERM, on this machine.
//!
//! `DATABASE_URL=postgres://... cargo run --example postgres_lambda --features postgres,buffer,lambda,sim`
//!
//! Without the variable it starts PostgreSQL in a container (`cargo xtask images` makes the image). The function
//! (`function.rs`) is this program again, started by the simulator: invocations with a query and three buffered audit
//! records each, a freeze in the middle, SIGTERM while records are still buffered. Then the server is asked what it lists,
//! and what it has.

mod function;

use std::{env, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::json;
use winddown::{
    Report,
    postgres::tokio_postgres::{self, Client, NoTls},
    sim::{Config, Reason, Record, Sim},
};
use winddown_testkit::containers::{self, Container};

/// What each invocation writes to the audit log.
const RECORDS: [&str; 3] = ["began", "looked at the event", "ended"];

/// Set for the child: it is the function.
const ROLE: &str = "POSTGRES_LAMBDA_ROLE";

/// By which the server lists its sessions.
const FUNCTION: &str = "postgres-lambda-example";

const DATABASE_URL: &str = "DATABASE_URL";

/// Runs a Lambda function with PostgreSQL through a whole life, and asks the server what is left of it.
#[derive(Parser)]
struct Arguments {
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
    let (url, container) = server().await?;
    let server = connect(&url).await?;
    server
        .batch_execute(
            "DROP TABLE IF EXISTS audit, visits; \
             CREATE TABLE audit(invocation bigint, what text); \
             CREATE TABLE visits(id bigint GENERATED ALWAYS AS IDENTITY)",
        )
        .await?;

    let function = Config::new(env::current_exe()?).function_name(FUNCTION);
    let function = function.env(ROLE, "function").env(DATABASE_URL, &url).capture_output();
    eprintln!("cold start");
    let sim = Sim::start(with_budget(function, arguments.budget_ms)).await?;
    let half = arguments.invocations / 2;
    for invocation in 0..arguments.invocations {
        if invocation == half {
            eprintln!("frozen for {} ms", arguments.freeze_ms);
            sim.freeze().await?;
            tokio::time::sleep(Duration::from_millis(arguments.freeze_ms)).await;
            sim.thaw();
        }
        sim.invoke(json!({ "invocation": invocation })).await?;
    }
    let before = listed(&server).await?;
    eprintln!("{} invocations, shutting down", arguments.invocations);
    let record = sim.shutdown(Reason::Spindown).await;
    let after = listed(&server).await?;

    let accepted: u64 = record.invocations.iter().filter_map(|i| i.payload.get("accepted")?.as_u64()).sum();
    let rows = u64::try_from(server.query_one("SELECT count(*) FROM audit", &[]).await?.get::<_, i64>(0))?;
    let report: Option<Report> = record.output.iter().find_map(|output| serde_json::from_str(&output.line).ok());
    println!("{record}");
    if let Some(report) = &report {
        println!("{report}");
    }
    println!("the server lists {before} sessions of the function before SIGTERM, {after} when its process has ended");
    println!("{accepted} records accepted, {rows} rows in the database");

    drop(server);
    if let Some(container) = container {
        container.remove().await?;
    }
    let kept = promise(&record, report.as_ref(), (before, after), (accepted, rows));
    Ok(match kept {
        Ok(()) => {
            println!("The promise holds: no session is left, and every accepted record is in the database.");
            ExitCode::SUCCESS
        }
        Err(broken) => {
            println!("The promise does NOT hold: {broken}.");
            ExitCode::FAILURE
        }
    })
}

fn promise(record: &Record, report: Option<&Report>, sessions: (i64, i64), records: (u64, u64)) -> Result<()> {
    let failed = record.invocations.iter().filter(|invocation| !invocation.ok).count();
    ensure!(failed == 0, "{failed} invocations failed");
    ensure!(sessions.0 > 0, "the server listed no session of the function while it ran");
    ensure!(sessions.1 == 0, "the server still lists {} sessions", sessions.1);
    let (accepted, rows) = records;
    ensure!(accepted > 0 && accepted == rows, "{accepted} records were accepted, and there are {rows} rows");
    let report = report.context("there is no drain report")?;
    ensure!(report.is_clean(), "the report says that not everything was drained");
    ensure!(record.ended_by_itself(), "the function did not end by itself inside the budget");
    Ok(())
}

/// The database of the environment, or one in a container.
async fn server() -> Result<(String, Option<Container>)> {
    if let Ok(url) = env::var(DATABASE_URL) {
        return Ok((url, None));
    }
    eprintln!("{DATABASE_URL} is not set: starting PostgreSQL in a container");
    let container = containers::Setup::postgres("17").env("POSTGRES_PASSWORD", "example").start().await?;
    let address = container.address(5432);
    Ok((format!("postgres://postgres:example@{address}/postgres"), Some(container)))
}

async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("cannot connect")?;
    tokio::spawn(connection);
    Ok(client)
}

async fn listed(server: &Client) -> Result<i64> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
    Ok(server.query_one(sql, &[&FUNCTION]).await?.get(0))
}

/// The function is killed after so long, and is told so, instead of after Lambda's own time.
fn with_budget(function: Config, budget_ms: Option<u64>) -> Config {
    match budget_ms {
        Some(ms) => function.budget(Duration::from_millis(ms)).env("WINDDOWN_BUDGET_MS", ms.to_string()),
        None => function,
    }
}
