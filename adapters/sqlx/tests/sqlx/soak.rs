//! A real process with a pool of sqlx, told to stop many times; and the same that closes its pool as sqlx does.

use std::{env, process::ExitCode, time::Duration};

use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use winddown_core::{BoxError, Error, ErrorKind, Lifecycle};
use winddown_sqlx::{
    Sqlx,
    sqlx::{self, PgPool, Postgres},
};
use winddown_testkit::{
    CheckoutOf, Harness as _, InProcess as _, ServerUse, Trial,
    child::{self, Child, Ended},
    gone,
    scene::{ENDLESS, until},
    soak::{self, rounds},
    starved::{self, Starved},
};

use crate::{
    postgres::{SqlxPostgres, from_env},
    scene::{SLEEP, sleep_over},
};

/// Says goodbye by the guard.
const GUARDED: &str = "sqlx_guarded";
/// The same with the statement over the pool itself.
const BEHIND: &str = "sqlx_behind";
/// Closes its pool, for as long as there is time.
const CLOSES: &str = "sqlx_closes";

const IDLE: usize = 10;
const BUDGET: &str = "WINDDOWN_BUDGET_MS";

impl Starved for SqlxPostgres {
    const MANY: usize = 100;

    fn with_room(sessions: usize) -> Result<Sqlx<Postgres>, Error> {
        let none = |error: BoxError| Error::new(ErrorKind::Config, "no server was named").with_source(error);
        let (options, connect) = from_env().map_err(none)?;
        Ok(Sqlx::new(options.max_connections(u32::try_from(sessions).unwrap_or(u32::MAX)), connect))
    }

    async fn endless(connection: &mut CheckoutOf<Self>, begun: impl FnOnce() + Send + 'static) {
        begun();
        // It is stopped.
        let _ = sqlx::query(SLEEP).bind(ENDLESS.as_secs_f64()).execute(connection.as_mut()).await;
    }
}

pub(crate) fn program() -> Option<ExitCode> {
    if let Some(ended) = starved::program::<SqlxPostgres>() {
        return Some(ended);
    }
    let role = child::role().filter(|role| [GUARDED, BEHIND, CLOSES].contains(&role.as_str()))?;
    Some(child::run(Builder::new_multi_thread().worker_threads(2), works(role)))
}

/// Ten idle sessions, and one with a statement that does not end.
async fn works(role: String) -> Result<(), BoxError> {
    let (options, connect) = from_env()?;
    let pool = options.connect_lazy_with(connect);
    let mut connections = Vec::new();
    for _ in 0..=IDLE {
        let mut connection = pool.acquire().await?;
        sqlx::query("SELECT 1").execute(&mut *connection).await?;
        connections.push(connection);
    }
    for mut connection in connections {
        // As its drop does, but so that it is known when it is over.
        connection.return_to_pool().await;
    }
    if role == CLOSES {
        tokio::spawn(sleep_over(pool.clone()));
        return closes(pool).await;
    }
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard_as("db", Sqlx::wrap(pool.clone()));
    if role == GUARDED {
        let mut connection = db.get().await?;
        // It is stopped.
        tokio::spawn(async move {
            let _ = sqlx::query(SLEEP).bind(ENDLESS.as_secs_f64()).execute(connection.as_mut()).await;
        });
    } else {
        tokio::spawn(sleep_over(pool.clone()));
    }
    child::ready();
    Ok(child::until_stopped(&lifecycle).await?)
}

async fn closes(pool: PgPool) -> Result<(), BoxError> {
    let budget = Duration::from_millis(env::var(BUDGET)?.parse()?);
    let mut told = signal(SignalKind::terminate())?;
    child::ready();
    told.recv().await;
    let closed = timeout(budget, pool.close()).await.is_ok();
    println!("closed: {closed}");
    std::process::exit(0)
}

/// Runs it until the server lists the statement, and ends it.
async fn ended(harness: &SqlxPostgres, role: &str, budget: Duration) -> Result<Ended, BoxError> {
    let mut variables = harness.environment();
    variables.push((BUDGET, budget.as_millis().to_string()));
    let child = Child::start_with(role, &variables).ready();
    until("the server lists the statement", || async { harness.running().await.is_ok_and(|runs| runs == 1) }).await;
    match harness.sessions().await? {
        listed if listed == IDLE + 1 => Ok(child.terminate().end()),
        listed => Err(format!("{listed} sessions were listed").into()),
    }
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = starved::trials::<SqlxPostgres>();
    let name = "a_process_with_a_statement_and_ten_idle_sessions_exits_with_0_and_the_server_has_seen_each_goodbye";
    trials.extend([
        soak::trial::<SqlxPostgres>(name, ServerUse::Shared, |harness| Box::pin(told_to_stop(harness))),
        soak::trial::<SqlxPostgres>(
            "s6_nothing_is_listed_when_a_drain_of_idle_sessions_returns",
            ServerUse::Shared,
            |harness| Box::pin(soak::idle(harness)),
        ),
    ]);
    trials
}

/// 200 times within the 300 ms of a function with an extension, or 6 within seconds.
async fn told_to_stop(harness: &SqlxPostgres) -> Result<String, BoxError> {
    let budget = Duration::from_millis(rounds(300, 8_000) as u64);
    let rounds_of_ours = rounds(200, 6);
    let mut took = Vec::new();
    for round in 0..rounds_of_ours {
        let role = [GUARDED, BEHIND][round % 2];
        let ended = ended(harness, role, budget).await?;
        let left = (harness.sessions().await?, harness.running().await?);
        let sessions = ended.report().resource("db").ok_or("it is not in the report")?.sessions;
        let counts = (sessions.closed, sessions.unconfirmed, sessions.cut, sessions.cancelled, sessions.left_behind);
        let expected = (IDLE as u64 + 1, 0, 0, 1, 0);
        if (ended.code, left, counts) != (Some(0), (0, 0), expected) {
            return Err(format!("round {round} ({role}): {left:?} are left\n{ended:?}").into());
        }
        took.push(ended.took);
    }
    let complaints = harness.complaints().await?;
    if !complaints.is_empty() {
        return Err(format!("the server complains: {complaints:?}").into());
    }
    if harness.rows().await? != 0 {
        return Err("a statement ran to its end".into());
    }
    took.sort_unstable();
    let budget_of_theirs = budget.min(Duration::from_secs(1));
    let rounds_of_theirs = rounds(20, 2);
    let (mut listed, mut said) = (0, 0);
    for _ in 0..rounds_of_theirs {
        let ended = ended(harness, CLOSES, budget_of_theirs).await?;
        said += usize::from(ended.stdout.contains("closed: true"));
        listed += harness.running().await?;
        harness.0.end_all().await?;
        if gone(|| harness.sessions()).await? != 0 {
            return Err("what it has left does not end".into());
        }
    }
    let complaints = harness.complaints().await?.len();
    Ok(format!(
        "{rounds_of_ours} of {rounds_of_ours} processes exited with 0 within {budget:?}, with {} goodbyes each, their statement cancelled, \
         and left none listed: median {:.1?}, longest {:.1?}. sqlx's own close, with {budget_of_theirs:?}, in {rounds_of_theirs} \
         processes: over in time in {said}, {listed} statements ran on at the server, which logged {complaints} connections that \
         ended without a goodbye",
        IDLE + 1,
        took[took.len() / 2],
        took[took.len() - 1],
    ))
}
