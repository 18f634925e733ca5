//! What does winddown cost at a cold start?
//!
//! The examples `with_winddown` and `without_winddown` are the same function. Both are started under the simulator in turns,
//! in one run; `cargo xtask bench cold_start` builds them in release mode and prints how long their init takes, from the start
//! of the process to its first question for an invocation, how large the programs are, and the ratios.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::runtime::Builder;
use winddown_sim::{Config, Reason, Sim};

const ROUNDS: usize = 101;

const PROGRAMS: [&str; 2] = ["with_winddown", "without_winddown"];

fn main() -> Result<()> {
    // Without it, somebody only wants to know whether it runs.
    let measured = env::args().any(|argument| argument == "--bench");
    let rounds = if measured { ROUNDS } else { 1 };
    if measured {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--release", "--locked", "--package", "winddown-lambda"]);
        build.args(PROGRAMS.iter().flat_map(|program| ["--example", program]));
        ensure!(build.status()?.success(), "the programs cannot be built");
    }
    let programs = PROGRAMS.map(path).into_iter().collect::<Result<Vec<_>>>()?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut inits = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        // Who comes first differs from round to round.
        for turn in [round % 2, 1 - round % 2] {
            inits[turn].push(runtime.block_on(init(&programs[turn]))?);
        }
    }
    if !measured {
        return Ok(());
    }
    let [with, without] = inits.map(median);
    let sizes = programs.iter().map(|program| Ok(fs::metadata(program)?.len() as f64)).collect::<Result<Vec<_>>>()?;
    println!(
        "init: {with:.2?} with winddown, {without:.2?} without: {:.2} times",
        with.as_secs_f64() / without.as_secs_f64()
    );
    println!(
        "size: {:.1} MB with winddown, {:.1} MB without: {:.2} times",
        sizes[0] / 1e6,
        sizes[1] / 1e6,
        sizes[0] / sizes[1]
    );
    Ok(())
}

/// Where cargo puts the example: beside this program's own folder.
fn path(program: &str) -> Result<PathBuf> {
    let this = env::current_exe()?;
    let folder = this.parent().and_then(Path::parent).context("this program is not where cargo puts it")?;
    let path = folder.join("examples").join(program);
    ensure!(path.exists(), "{} is not built: run `cargo build --examples -p winddown-lambda` first", path.display());
    Ok(path)
}

/// From the start of the process to the end of its init.
async fn init(program: &Path) -> Result<Duration> {
    let began = Instant::now();
    let sim = Sim::start(Config::new(program).capture_output()).await?;
    let took = began.elapsed();
    sim.shutdown(Reason::Spindown).await;
    Ok(took)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
