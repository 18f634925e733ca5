//! A real process with a pool that the application has built, told to stop many times.

use std::{env, future::Future, process::ExitCode, time::Duration};

use libtest_mimic::Trial;
use tokio::runtime::Builder;
use winddown_core::BoxError;

use super::{Claim, rounds};
use crate::{
    InProcess, ServerUse,
    child::{self, Child},
    scene::until,
};

const PROGRAM: &str = "wrapped";
/// Whether there is a statement, and over what.
const RUNS: &str = "WINDDOWN_TEST_RUNS";

/// How many sessions the process has.
pub const SESSIONS: u64 = 10;

/// Over what the process runs a statement that does not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a program does each of them")]
pub enum Runs {
    /// All its sessions are idle, and the guard has seen none of them.
    Nothing,
    /// A checkout of the guard.
    Guard,
    /// What the application has taken from its own clone of the pool.
    Pool,
}

impl Runs {
    fn from_env() -> Result<Self, BoxError> {
        match env::var(RUNS)?.as_str() {
            "" => Ok(Self::Nothing),
            "guard" => Ok(Self::Guard),
            "pool" => Ok(Self::Pool),
            other => Err(format!("{RUNS} is {other}: nothing, guard or pool is known").into()),
        }
    }
}

/// Runs the program that this process is, if it is this one: `works` has [`SESSIONS`] sessions, one with a statement or none, says
/// [`ready`](child::ready), and goes on [until it is stopped](child::until_stopped).
pub fn program<F: Future<Output = Result<(), BoxError>>>(works: impl FnOnce(Runs) -> F) -> Option<ExitCode> {
    child::role().filter(|role| role == PROGRAM)?;
    Some(child::run(Builder::new_multi_thread().worker_threads(2), async { works(Runs::from_env()?).await }))
}

/// The trial of a harness of such a pool.
#[must_use]
pub fn trial<H: InProcess>(claim: Claim<H>) -> Trial {
    let name = "a_process_with_ten_sessions_exits_with_0_and_the_server_has_seen_ten_goodbyes";
    super::trial::<H>(name, ServerUse::Shared, claim)
}

/// Its claim, with this budget: 200 times, or 8.
///
/// # Errors
/// What was not so.
pub async fn told_to_stop<H: InProcess>(harness: &H, budget: Duration) -> Result<String, BoxError> {
    let rounds = rounds(200, 8);
    let (mut took, mut cancelled) = (Vec::new(), 0);
    for round in 0..rounds {
        let runs = ["", "guard", "", "pool"][round % 4];
        let busy = usize::from(!runs.is_empty());
        let mut variables = harness.environment();
        variables.push((RUNS, runs.to_owned()));
        variables.push(("WINDDOWN_BUDGET_MS", budget.as_millis().to_string()));
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
