//! A real process with a pool that the application has built, told to stop many times.

use std::{env, process::ExitCode, time::Duration};

use mysql_async::prelude::Queryable as _;
use tokio::runtime::Builder;
use winddown_core::{BoxError, Lifecycle};
use winddown_mysql::{Config, Mysql, mysql_async};
use winddown_testkit::{
    Harness as _, InProcess as _, ServerUse, Trial,
    child::{self, Child},
    scene::{ENDLESS, until},
    soak::{self, rounds},
};

use crate::{
    server,
    wrapped_pool::{WrappedPool, from_env},
};

const PROGRAM: &str = "wrapped";
/// Whether there is a statement, and over what.
const RUNS: &str = "WINDDOWN_TEST_RUNS";
/// How many sessions the process has.
const SESSIONS: u64 = 10;
const BUDGET: Duration = Duration::from_secs(3);

pub(crate) fn program() -> Option<ExitCode> {
    child::role().filter(|role| role == PROGRAM)?;
    Some(child::run(Builder::new_multi_thread().worker_threads(2), works()))
}

/// Ten idle sessions, none of which the guard has seen, or nine and one with a statement.
async fn works() -> Result<(), BoxError> {
    let lifecycle = Lifecycle::detect()?;
    let (pool, opts) = from_env(Config::from_env()?);
    let db = lifecycle.guard_as("db", Mysql::wrap(pool.clone(), opts));
    let runs = env::var(RUNS)?;
    let mut by_guard = match runs.as_str() {
        "guard" => Some(db.get().await?),
        _ => None,
    };
    if let Some(conn) = &mut by_guard {
        conn.query_drop("SELECT 1").await?;
    }
    // One that comes back is reset first: meanwhile another one would be opened.
    let mut conns = Vec::new();
    for _ in u64::from(by_guard.is_some())..SESSIONS {
        let mut conn = pool.get_conn().await?;
        conn.query_drop("SELECT 1").await?;
        conns.push(conn);
    }
    if runs == "pool" {
        let mut conn = conns.pop().ok_or("there are some")?;
        tokio::spawn(async move { server::run(&mut conn, ENDLESS).await });
    }
    if let Some(mut conn) = by_guard {
        // It is stopped.
        tokio::spawn(async move { server::run(&mut conn, ENDLESS).await });
    }
    drop(conns);
    child::ready();
    Ok(child::until_stopped(&lifecycle).await?)
}

pub(crate) fn trial() -> Trial {
    let name = "a_process_with_ten_sessions_exits_with_0_and_the_server_has_seen_ten_goodbyes";
    soak::trial::<WrappedPool>(name, ServerUse::Shared, |harness| Box::pin(told_to_stop(harness)))
}

/// 200 times, or 8.
async fn told_to_stop(harness: &WrappedPool) -> Result<String, BoxError> {
    let rounds = rounds(200, 8);
    let (mut took, mut cancelled) = (Vec::new(), 0);
    for round in 0..rounds {
        let runs = ["", "guard", "", "pool"][round % 4];
        let busy = usize::from(!runs.is_empty());
        let mut variables = harness.environment();
        variables.push((RUNS, runs.to_owned()));
        variables.push(("WINDDOWN_BUDGET_MS", BUDGET.as_millis().to_string()));
        let child = Child::start_with(PROGRAM, &variables).ready();
        until("the server lists the statement", || async { harness.running().await.is_ok_and(|runs| runs == busy) })
            .await;
        let listed = harness.sessions().await?;
        let ended = child.terminate().end();
        let left = (harness.sessions().await?, harness.running().await?);
        let sessions = ended.report().resource("db").ok_or("it is not in the report")?.sessions;
        let counts = (sessions.closed, sessions.unconfirmed, sessions.cut, sessions.cancelled, sessions.left_behind);
        let expected = (SESSIONS, 0, 0, busy as u64, 0);
        if (ended.code, listed, left, counts) != (Some(0), SESSIONS as usize, (0, 0), expected) {
            return Err(format!("round {round} ({runs}): {listed} were listed, {left:?} are left\n{ended:?}").into());
        }
        cancelled += busy;
        if busy == 0 {
            took.push(ended.took);
        }
    }
    took.sort_unstable();
    let complaints = harness.complaints().await?;
    if !complaints.is_empty() {
        return Err(format!("the server complains: {complaints:?}").into());
    }
    match harness.rows().await? {
        0 => Ok(format!(
            "{rounds} of {rounds} processes exited with 0, with {SESSIONS} goodbyes each, and left none listed; {cancelled} statements \
             were cancelled; from SIGTERM to the exit of one that was idle: median {:.1?}, longest {:.1?}",
            took[took.len() / 2],
            took[took.len() - 1]
        )),
        rows => Err(format!("{rows} statements ran to their end").into()),
    }
}
