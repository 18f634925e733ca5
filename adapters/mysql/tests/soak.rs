//! Claims that are about many times in a row. `cargo xtask soak` runs them full size, the tests in a smaller one.

#[path = "conformance/server.rs"]
mod server;

use std::{
    collections::BTreeMap,
    env, fs,
    future::Future,
    pin::Pin,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Trial};
use tokio::runtime::{Builder, Handle};
use winddown_core::{BoxError, Lifecycle, Report, ShutdownGuard};
use winddown_mysql::{Mysql, mysql_async::prelude::Queryable as _};
use winddown_testkit::{Harness, ServerUse, Setup, containers};

use crate::server::{MariaDb, MySql, Tenancy, Version, run};

type Case<V> = for<'a> fn(&'a Tenancy<V>) -> Figures<'a>;
type Figures<'a> = Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send + 'a>>;

fn main() -> ExitCode {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    if let Some(reason) = containers::skipped() {
        println!("left out: {reason}");
    }
    let trials = trials::<MySql>().into_iter().chain(trials::<MariaDb>()).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let stopped = Builder::new_current_thread().enable_all().build().map_err(BoxError::from);
    let stopped = stopped.and_then(|runtime| {
        runtime.block_on(async {
            Tenancy::<MySql>::stop_shared().await?;
            Tenancy::<MariaDb>::stop_shared().await
        })
    });
    if let Err(error) = stopped {
        eprintln!("a server was not stopped: {error}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn trials<V: Version>() -> Vec<Trial> {
    let cases: [(&str, ServerUse, Case<V>); 5] = [
        ("s6_nothing_is_listed_when_a_drain_of_idle_sessions_returns", ServerUse::Shared, |s| Box::pin(idle(s))),
        ("s6_nor_where_other_work_keeps_every_core_busy", ServerUse::Shared, |s| Box::pin(idle_while_busy(s))),
        ("no_row_appears_after_a_drain_under_a_running_insert", ServerUse::Shared, |s| Box::pin(insert(s))),
        ("l1_a_drain_behind_a_cut_network_ends_by_its_deadline", ServerUse::Own, |s| Box::pin(cut_off(s))),
        ("a_drained_lifecycle_leaves_no_task_thread_or_socket", ServerUse::Own, |s| Box::pin(leaves(s))),
    ];
    let trials = cases.into_iter().map(|(name, server, case)| {
        let name = format!("soak_{}_{name}", V::NAME);
        let trial = Trial::test(name.clone(), move || {
            let began = Instant::now();
            let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let outcome: Result<String, BoxError> = runtime.block_on(async {
                let harness = Tenancy::<V>::start(server).await?;
                let figures = case(&harness).await;
                harness.end().await?;
                figures
            });
            println!("{name}: {}; {:.0?} in all", outcome.map_err(|error| error.to_string())?, began.elapsed());
            Ok(())
        });
        trial.with_ignored_flag(containers::skipped().is_some())
    });
    trials.collect()
}

fn rounds(full: usize, small: usize) -> usize {
    if env::var_os("WINDDOWN_SOAK").is_some() { full } else { small }
}

/// A lifecycle with so many sessions, each of which was used.
async fn living<V: Version>(
    server: &Tenancy<V>,
    budget: Duration,
    sessions: usize,
) -> Result<(Lifecycle, ShutdownGuard<Mysql>), BoxError> {
    let lifecycle = Lifecycle::builder().signals(false).budget(budget).build()?;
    let mut setup = Setup::default();
    setup.size = sessions;
    let db = lifecycle.guard(server.resource(&setup));
    let mut out = Vec::new();
    for _ in 0..sessions {
        let mut connection = db.get().await?;
        connection.query_drop("SELECT 1").await?;
        out.push(connection);
    }
    Ok((lifecycle, db))
}

fn sessions(report: &Report) -> (u64, u64, u64) {
    let sessions = report.resource("mysql").expect("it was registered").sessions;
    (sessions.closed, sessions.cut, sessions.cancelled)
}

/// 20 idle sessions: what the server lists when drain returns.
async fn idle<V: Version>(server: &Tenancy<V>) -> Result<String, BoxError> {
    let rounds = rounds(200, 20);
    let mut took = Vec::new();
    let aborted = server.aborted_clients().await?;
    for round in 0..rounds {
        let (lifecycle, _db) = living(server, Duration::from_secs(10), 20).await?;
        let listed = server.sessions().await?;
        if listed != 20 {
            return Err(format!("round {round}: the server lists {listed} of 20 before the drain").into());
        }
        let began = Instant::now();
        let report = lifecycle.drain().await;
        took.push(began.elapsed());
        let listed = server.sessions().await?;
        if listed != 0 || sessions(&report) != (20, 0, 0) || !report.is_clean() {
            return Err(format!("round {round}: the server lists {listed} after\n{report}").into());
        }
    }
    took.sort_unstable();
    let aborted = server.aborted_clients().await? - aborted;
    if aborted != 0 {
        return Err(format!("the server counts {aborted} more clients that it has lost").into());
    }
    let complaints = server.complaints().await?;
    if !complaints.is_empty() {
        return Err(format!("the server complains: {complaints:?}").into());
    }
    Ok(format!(
        "{rounds} of {rounds} drains of 20 sessions left none listed; median {:?}, longest {:?}",
        took[rounds / 2],
        took[rounds - 1]
    ))
}

/// The same on a machine that does other work besides.
async fn idle_while_busy<V: Version>(server: &Tenancy<V>) -> Result<String, BoxError> {
    let is_over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..thread::available_parallelism()?.get() * 2)
        .map(|_| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || while !is_over.load(Ordering::Relaxed) {})
        })
        .collect();
    let figures = idle(server).await;
    is_over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().map_err(|_| "a worker panicked")?;
    }
    figures
}

/// An INSERT that would end after the drain, its future held or dropped in turns.
async fn insert<V: Version>(server: &Tenancy<V>) -> Result<String, BoxError> {
    const TAKES: Duration = Duration::from_millis(1500);
    let rounds = rounds(200, 20);
    for round in 0..rounds {
        let (lifecycle, db) = living(server, Duration::from_millis(500), 1).await?;
        let mut connection = db.get().await?;
        let running = tokio::spawn(async move { run(&mut connection, TAKES).await.is_err() });
        while server.running().await? == 0 {
            // The server has no event for a statement that begins.
            tokio::task::yield_now().await;
        }
        let is_held = round % 2 == 0;
        if !is_held {
            running.abort();
        }
        let report = lifecycle.drain().await;
        let listed = server.sessions().await?;
        if listed != 0 || sessions(&report) != (1, 0, 1) || !report.is_clean() {
            return Err(format!("round {round}: the server lists {listed} after\n{report}").into());
        }
        if is_held && !running.await? {
            return Err(format!("round {round}: the statement succeeded").into());
        }
    }
    // Until the last of them would have ended.
    tokio::time::sleep(TAKES).await;
    match server.rows().await? {
        0 => Ok(format!("{rounds} of {rounds} drains under a running INSERT: no row appeared")),
        rows => Err(format!("{rows} rows appeared").into()),
    }
}

/// 10 idle sessions and 2 busy ones, and the network is cut without FIN or RST.
async fn cut_off<V: Version>(server: &Tenancy<V>) -> Result<String, BoxError> {
    const BUDGET: Duration = Duration::from_millis(1500);
    let rounds = rounds(50, 3);
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let (lifecycle, db) = living(server, BUDGET, 12).await?;
        let mut busy = Vec::new();
        for _ in 0..2 {
            let mut connection = db.get().await?;
            busy.push(tokio::spawn(async move { run(&mut connection, Duration::from_secs(60)).await.is_err() }));
        }
        while server.running().await? < 2 {
            tokio::task::yield_now().await;
        }
        server.partition().await?;
        let began = Instant::now();
        let report = lifecycle.drain().await;
        let took = began.elapsed();
        longest = longest.max(took);
        server.heal().await?;
        if took > BUDGET || sessions(&report).0 != 0 || sessions(&report).1 != 12 {
            return Err(format!("round {round}: {took:?}\n{report}").into());
        }
        let sites = &report.resource("mysql").expect("it was registered").stragglers;
        if sites.iter().map(|site| site.count).sum::<usize>() != 2 {
            return Err(format!("round {round}: the two that were busy are not named\n{report}").into());
        }
        // Whom nobody told of the end: the statements would run on for a minute, on connections that are their callers'.
        server.end_all().await?;
        for statement in busy {
            if !statement.await? {
                return Err(format!("round {round}: a statement succeeded").into());
            }
        }
    }
    Ok(format!("{rounds} of {rounds} drains ended by the deadline of {BUDGET:?}, 12 sessions cut; longest {longest:?}"))
}

/// What this process has, after each of many lives.
async fn leaves<V: Version>(server: &Tenancy<V>) -> Result<String, BoxError> {
    const LIVES: usize = 1000;
    let mut before = None;
    for life in 0..LIVES {
        let (lifecycle, db) = living(server, Duration::from_secs(10), 1).await?;
        let report = lifecycle.drain().await;
        if sessions(&report) != (1, 0, 0) {
            return Err(format!("life {life}\n{report}").into());
        }
        drop((lifecycle, db));
        // The first lives start what stays: threads of the runtime, a thread that counts the time.
        if life == 10 {
            before = Some(possessions());
        }
    }
    // What was told to end has a moment to do so.
    let began = Instant::now();
    let before = before.expect("there were more lives");
    loop {
        let after = possessions();
        if after.iter().all(|(what, count)| count <= &before[what]) {
            return Ok(format!("{LIVES} lives of a session: {after:?}, and {before:?} after the first ten"));
        }
        if began.elapsed() > Duration::from_secs(5) {
            return Err(format!("{after:?}, and {before:?} after the first ten lives").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn possessions() -> BTreeMap<&'static str, usize> {
    let count = |folder| fs::read_dir(folder).map_or(0, Iterator::count);
    BTreeMap::from([
        ("tasks", Handle::current().metrics().num_alive_tasks()),
        ("threads", count("/proc/self/task")),
        ("files", count("/proc/self/fd")),
    ])
}
