//! Programs that wrap what they have built, work with clones of it, and are ended by a signal; and what the server has then.

use std::{env, process::ExitCode, time::Duration};

use redis::{AsyncConnectionConfig, Client, RedisResult, Value, aio::ConnectionManagerConfig, cmd};
use tokio::runtime::Builder;
use winddown_core::{BoxError, Lifecycle, Outcome};
use winddown_redis::{Redis, redis};
use winddown_testkit::{
    Harness as _,
    child::{self, Child},
    soak::rounds,
};

use crate::scene::{Server, until};

/// The key that a child pops from; none where it pops nothing.
const KEY: &str = "WINDDOWN_TEST_POPS";

/// Not used up by any machine.
const BUDGET: Duration = Duration::from_secs(30);

const MANAGER: &str = "wraps_manager";

/// The other forms, and whether their end is seen.
const OTHERS: [(&str, bool); 4] = [
    ("wraps_manager_alone", false),
    ("wraps_manager_resp3", false),
    ("wraps_multiplexed", true),
    ("wraps_multiplexed_alone", true),
];

/// Runs the program that this process is, if it is one of these.
pub(crate) fn program() -> Option<ExitCode> {
    let program = child::role().filter(|role| role.starts_with("wraps_"))?;
    Some(child::run(Builder::new_multi_thread().worker_threads(2), works(program)))
}

async fn works(program: String) -> Result<(), BoxError> {
    let lifecycle = Lifecycle::detect()?;
    let mut url = env::var(winddown_redis::URL_VARIABLE)?;
    if program.ends_with("_resp3") {
        url.push_str("/?protocol=resp3");
    }
    let client = Client::open(url)?;
    if program.contains("_multiplexed") {
        let settings = AsyncConnectionConfig::new().set_response_timeout(None);
        let connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
        let wrapped = match program.ends_with("_alone") {
            true => Redis::wrap(connection),
            false => Redis::wrap_with(connection, client),
        };
        let cache = lifecycle.guard(wrapped);
        cmd("PING").exec_async(&mut *cache.get().await?).await?;
        child::ready();
        return Ok(child::until_stopped(&lifecycle).await?);
    }
    let settings = ConnectionManagerConfig::new().set_response_timeout(None);
    let manager = client.get_connection_manager_with_config(settings).await?;
    let wrapped = match program.ends_with("_alone") {
        true => Redis::wrap(manager.clone()),
        false => Redis::wrap_with(manager.clone(), client),
    };
    let cache = lifecycle.guard(wrapped);
    let clones = [manager.clone(), manager.clone(), manager];
    for mut clone in clones.clone() {
        cmd("PING").exec_async(&mut clone).await?;
    }
    cmd("PING").exec_async(&mut *cache.get().await?).await?;
    let [mut pops, ..] = clones;
    let popping = env::var(KEY).ok().map(|key| {
        tokio::spawn(async move {
            let popped: RedisResult<Value> = cmd("BLPOP").arg(key).arg(0).query_async(&mut pops).await;
            println!("told {}", popped.map_or_else(|error| error.to_string(), |popped| format!("{popped:?}")));
        })
    });
    child::ready();
    child::until_stopped(&lifecycle).await?;
    if let Some(popping) = popping {
        popping.await?;
    }
    Ok(())
}

fn start(server: &Server, program: &str, pops: Option<&str>) -> Child {
    let tenant = &server.tenant;
    let url = format!("redis://{}:{}@{}", tenant.name, tenant.password, server.address());
    let budget = BUDGET.as_millis().to_string();
    let mut variables = vec![(winddown_redis::URL_VARIABLE, url.as_str()), ("WINDDOWN_BUDGET_MS", &budget)];
    variables.extend(pops.map(|key| (KEY, key)));
    Child::start_with(program, &variables).ready()
}

/// A manager with several clones; every other time one of them waits in a pop that has no end.
pub(crate) async fn managers(server: &Server) -> Result<String, BoxError> {
    let rounds = rounds(200, 6);
    let mut took = Vec::new();
    for round in 0..rounds {
        let pops = (round % 2 == 1).then(|| server.tenant.key(&format!("jobs_{round}")));
        let child = start(server, MANAGER, pops.as_deref());
        if pops.is_some() {
            until("it pops", || async { server.running().await.is_ok_and(|running| running == 1) }).await;
        }
        let ended = child.terminate().end();
        let listed = server.sessions().await?;
        took.push(ended.took);
        let report = ended.report.as_ref().ok_or_else(|| format!("no report: {}", ended.stderr))?;
        let row = report.resource("redis").ok_or("no row")?;
        let sessions = (row.sessions.closed, row.sessions.cut, row.sessions.unconfirmed, row.sessions.cancelled);
        let expected = (1, 0, 0, u64::from(pops.is_some()));
        if (ended.code, listed, sessions) != (Some(0), 0, expected) || !report.is_clean() {
            return Err(format!("round {round}: exit {:?}, {listed} listed, {sessions:?}\n{report}", ended.code).into());
        }
        if let Some(key) = pops {
            let superuser = &mut server.superuser().await;
            let left: usize = cmd("RPUSH").arg(&key).arg("job").query_async(superuser).await?;
            if left != 1 || !ended.stdout.contains("UNBLOCKED") {
                return Err(format!("round {round}: {left} left, it was told {}", ended.stdout).into());
            }
            let left: usize = cmd("LLEN").arg(&key).query_async(superuser).await?;
            if left != 1 {
                return Err(format!("round {round}: something was popped after the drain").into());
            }
        }
    }
    took.sort_unstable();
    Ok(format!(
        "{rounds} of {rounds} signals: exit 0, none listed, every pop ended, nothing popped after the drain; from the signal to \
         the end of the process: median {:.0?}, longest {:.0?}",
        took[rounds / 2],
        took[rounds - 1]
    ))
}

/// Idle, in every other form.
pub(crate) async fn others(server: &Server) -> Result<String, BoxError> {
    let rounds = rounds(50, 2);
    for round in 0..rounds {
        for (program, is_seen) in OTHERS {
            let ended = start(server, program, None).terminate().end();
            let report = ended.report.as_ref().ok_or_else(|| format!("no report: {}", ended.stderr))?;
            let row = report.resource("redis").ok_or("no row")?;
            let sessions = (row.outcome, row.sessions.closed, row.sessions.cut, row.sessions.unconfirmed);
            let expected = (Outcome::Drained, u64::from(is_seen), 0, u64::from(!is_seen));
            if (ended.code, sessions) != (Some(0), expected) || !report.is_clean() {
                return Err(format!("round {round}, {program}: exit {:?}\n{report}", ended.code).into());
            }
            if is_seen && server.sessions().await? != 0 {
                return Err(format!("round {round}, {program}: listed after\n{report}").into());
            }
            until("it is gone with its process", || async { server.sessions().await.is_ok_and(|listed| listed == 0) })
                .await;
        }
    }
    Ok(format!("{rounds} of {rounds} signals in each of {} forms: exit 0", OTHERS.len()))
}
