//! Programs that send commands without waiting for their answers, and are ended by a signal; and what the server has then.

use std::{env, future::poll_fn, pin::pin, process::ExitCode, task::Poll, time::Duration};

use redis::{AsyncCommands as _, cmd, pipe};
use tokio::runtime::Builder;
use winddown_core::{BoxError, Lifecycle, Records, Report};
use winddown_redis::{Redis, redis};
use winddown_testkit::{
    Harness as _,
    child::{self, Child, Ended},
    soak::rounds,
};

use crate::scene::Server;

/// The key that a child counts with.
const KEY: &str = "WINDDOWN_TEST_KEY";

const COMMANDS: u64 = 100_000;

/// Not used up by any machine. How often Lambda's 300 ms would have done is counted.
const BUDGET: Duration = Duration::from_secs(30);

/// Longer than a caller waits for a server that does not answer.
const LONG_BUDGET: Duration = Duration::from_millis(1000);

/// Runs the program that this process is, if it is one of these.
pub(crate) fn program() -> Option<ExitCode> {
    let program = child::role()?;
    let mut runtime = match program.as_str() {
        "one_thread" => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    Some(child::run(runtime.worker_threads(2), async {
        match program.as_str() {
            "abandons" => abandons().await,
            _ => counts().await,
        }
    }))
}

/// Sends commands that want no answer, as fast as they are accepted, and says how many were.
async fn counts() -> Result<(), BoxError> {
    let key = env::var(KEY)?;
    let lifecycle = Lifecycle::detect()?;
    let cache = lifecycle.guard(Redis::from_env()?);
    let counting = tokio::spawn({
        async move {
            let mut accepted = 0_u64;
            child::ready();
            let mut increment = cmd("INCR");
            increment.arg(key).set_no_response(true);
            for _ in 0..COMMANDS {
                let Ok(mut connection) = cache.get().await else { break };
                if increment.exec_async(&mut *connection).await.is_err() {
                    break;
                }
                accepted += 1;
            }
            // Nothing is taken any more, whatever becomes of the drain.
            println!("sent\naccepted {accepted}");
        }
    });
    // Whether it is clean is for the case to say.
    let _ = child::until_stopped(&lifecycle).await;
    // Whoever is refused stops.
    Ok(counting.await?)
}

/// Begins commands and pipelines, and gives up on each as soon as it is on its way.
async fn abandons() -> Result<(), BoxError> {
    let key = env::var(KEY)?;
    let lifecycle = Lifecycle::detect()?;
    let cache = lifecycle.guard(Redis::from_env()?);
    drop(cache.get().await?);
    let mut begun = 0_u64;
    for round in 0..200 {
        let mut connection = cache.get().await?;
        if round % 2 == 0 {
            begin(connection.incr::<_, _, i64>(&key, 1)).await;
            begun += 1;
        } else {
            let mut pipeline = pipe();
            for _ in 0..10 {
                pipeline.cmd("INCR").arg(&key);
            }
            begin(pipeline.exec_async(&mut *connection)).await;
            begun += 10;
        }
    }
    child::ready();
    println!("sent\naccepted {begun}");
    Ok(child::until_stopped(&lifecycle).await?)
}

/// Polls once, and gives up.
async fn begin(work: impl Future) {
    let mut work = pin!(work);
    poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx).is_ready())).await;
}

fn start(server: &Server, program: &str, key: &str, budget: Duration) -> Child {
    let tenant = &server.tenant;
    let url = format!("redis://{}:{}@{}", tenant.name, tenant.password, server.address());
    let budget = budget.as_millis().to_string();
    Child::start_with(program, &[(KEY, key), ("REDIS_URL", &url), ("WINDDOWN_BUDGET_MS", &budget)]).ready()
}

/// How many it says were accepted, and its report.
fn outcome(ended: &Ended) -> Result<(u64, &Report), BoxError> {
    let accepted = ended.stdout.lines().find_map(|line| line.strip_prefix("accepted "));
    let accepted = accepted.ok_or_else(|| format!("it did not say what was accepted: {}", ended.stderr))?;
    Ok((accepted.parse()?, ended.report.as_ref().ok_or_else(|| format!("no report: {}", ended.stderr))?))
}

fn records(report: &Report) -> Result<Records, BoxError> {
    report.resource("redis").and_then(|row| row.records).ok_or_else(|| format!("no records in {report}").into())
}

async fn counter(server: &Server, key: &str) -> Result<u64, BoxError> {
    let counter: Option<u64> = cmd("GET").arg(key).query_async(&mut server.superuser().await).await?;
    Ok(counter.unwrap_or(0))
}

/// 100,000 no-reply commands, and a signal: when all are accepted, or at a random moment before, in turns.
pub(crate) async fn healthy(server: &Server, program: &str) -> Result<String, BoxError> {
    let (rounds, seed) = (rounds(200, 5), fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut all, mut least, mut took) = (0, COMMANDS, Vec::new());
    for round in 0..rounds {
        let key = server.tenant.key(&format!("{program}_{round}"));
        let mut child = start(server, program, &key, BUDGET);
        if round % 2 == 0 {
            assert_eq!(child.line(), "sent\n");
        } else {
            std::thread::sleep(Duration::from_micros(random.u64(..100_000)));
        }
        let ended = child.terminate().end();
        let (accepted, report) = outcome(&ended)?;
        took.push(ended.took);
        let (listed, counter, records) = (server.sessions().await?, counter(server, &key).await?, records(report)?);
        let accounting = (records.accepted, records.written);
        if (listed, counter, accounting) != (0, accepted, (accepted, accepted)) || !report.is_clean() {
            let what = format!("{accepted} accepted, {counter} executed, {listed} sessions listed");
            return Err(format!("seed {seed}, round {round}: {what}\n{report}").into());
        }
        (all, least) = (all + accepted, least.min(accepted));
    }
    took.sort_unstable();
    Ok(format!(
        "{rounds} of {rounds} signals: {all} accepted, all executed, 0 lost, between {least} and {COMMANDS} each; \
         from the signal to the end of the process: median {:.0?}, longest {:.0?}, {} inside Lambda's 300 ms",
        took[rounds / 2],
        took[rounds - 1],
        took.iter().filter(|took| **took < Duration::from_millis(300)).count()
    ))
}

/// Commands and pipelines whose futures were dropped.
pub(crate) async fn abandoned(server: &Server) -> Result<String, BoxError> {
    let rounds = rounds(200, 5);
    for round in 0..rounds {
        let key = server.tenant.key(&format!("abandoned_{round}"));
        let mut child = start(server, "abandons", &key, BUDGET);
        assert_eq!(child.line(), "sent\n");
        let ended = child.terminate().end();
        let (begun, report) = outcome(&ended)?;
        let (listed, counter) = (server.sessions().await?, counter(server, &key).await?);
        if (listed, counter) != (0, begun) || !report.is_clean() {
            return Err(format!("round {round}: {begun} begun, {counter} executed, {listed} listed\n{report}").into());
        }
    }
    Ok(format!("{rounds} of {rounds} signals: all of 1100 commands whose futures were dropped were executed"))
}

/// The server stops at a random moment, and goes on when the process is over: what is accepted is executed, reported lost, or
/// in doubt, and the accounting has the server's own numbers.
pub(crate) async fn stopped(server: &Server) -> Result<String, BoxError> {
    let (rounds, seed) = (rounds(100, 5), fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut accepted_in_all, mut executed, mut lost, mut in_doubt, mut exact) = (0, 0, 0, 0, 0);
    for round in 0..rounds {
        let key = server.tenant.key(&format!("stopped_{round}"));
        let child = start(server, "two_threads", &key, LONG_BUDGET);
        std::thread::sleep(Duration::from_micros(random.u64(..50_000)));
        server.pause().await?;
        let ended = child.terminate().end();
        server.resume().await?;
        let (accepted, report) = outcome(&ended)?;
        let records = records(report)?;
        // What was sent is still read, unless the server sees before that nobody is there.
        while server.sessions().await? > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let counter = counter(server, &key).await?;
        let sums = records.accepted == accepted
            && accepted == records.written + records.lost + records.in_doubt
            && (records.written..=records.written + records.in_doubt).contains(&counter);
        if !sums {
            return Err(format!("seed {seed}, round {round}: {accepted} accepted, {counter} executed\n{report}").into());
        }
        exact += usize::from(counter + records.lost == accepted);
        (accepted_in_all, executed) = (accepted_in_all + accepted, executed + counter);
        (lost, in_doubt) = (lost + records.lost, in_doubt + records.in_doubt);
    }
    Ok(format!(
        "{rounds} of {rounds} signals: {accepted_in_all} accepted, {executed} executed, {lost} reported lost, {in_doubt} in \
         doubt; executed + lost = accepted in {exact}"
    ))
}
