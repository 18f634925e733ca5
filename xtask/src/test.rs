//! `cargo xtask test` and `cargo xtask soak`.

use std::{path::PathBuf, process::Command, time::Instant};

use anyhow::Result;

use crate::{
    containers::Containers,
    counts::Counts,
    foreign, rie, run,
    summary::{Outcome, Row, Summary},
    workspace::Workspace,
};

/// Sets up and runs every test. Steps after a failed one still run, so that one run shows everything.
pub(crate) fn test(workspace: &Workspace, filter: Option<&str>) -> Result<bool> {
    let mut summary = Summary::default();
    let emulator = || Ok(vec![(rie::PATH_VARIABLE, rie::fetch(workspace)?)]);
    let (row, mut programs) = set_up("emulator", rie::skipped(), emulator);
    summary.push(row);
    let languages = || {
        let python = (foreign::PYTHON_VARIABLE, foreign::python(workspace)?);
        Ok(vec![(foreign::NODE_VARIABLE, foreign::node()?), python])
    };
    let (row, more) = set_up("languages", foreign::skipped(), languages);
    programs.extend(more);
    summary.push(row);
    let (row, containers) = Containers::set_up(workspace);
    summary.push(row);

    // without a choice of targets: that includes doc tests, and builds the examples as the programs that tests start
    let mut all = workspace.cargo(["test", "--locked", "--workspace", "--all-features", "--no-fail-fast"]);
    summary.push(counted("tests", all.envs(containers.env()).envs(programs), filter));
    if let Some(row) = containers.sweep() {
        summary.push(row);
    }

    // criterion then runs each once, without measuring, and prints nothing that can be counted
    if filter.is_none() {
        let mut benches = workspace.cargo(["test", "--locked", "--workspace", "--all-features", "--bench", "*"]);
        summary.push(run::step("benches", &mut benches));
    }

    // loom replaces the types core synchronises with: a build of its own, in a folder of its own so that the two
    // builds do not throw each other's work away
    let mut models = workspace.cargo(["test", "--locked", "--release", "-p", "winddown-core", "--lib", "gate::models"]);
    models
        .env("RUSTFLAGS", with_flags("RUSTFLAGS", "--cfg winddown_loom"))
        .env("CARGO_TARGET_DIR", workspace.target.join("loom"))
        // without a bound the search takes minutes; with fewer than four it misses a caller that resumes too late
        .env("LOOM_MAX_PREEMPTIONS", "5");
    summary.push(counted("model checker", &mut models, filter));

    Ok(close(&summary))
}

/// Runs the long tests, full size.
pub(crate) fn soak(workspace: &Workspace) -> Result<bool> {
    let mut summary = Summary::default();
    let (row, containers) = Containers::set_up(workspace);
    summary.push(row);
    let mut soak = workspace.cargo(["test", "--release", "--locked", "--workspace", "--all-features", "--tests"]);
    // the long tests are called so, and are longer when asked
    soak.args(["soak", "--", "--nocapture"]).env("WINDDOWN_SOAK", "1").envs(containers.env());
    summary.push(run::test_step("soak", &mut soak));
    if let Some(row) = containers.sweep() {
        summary.push(row);
    }
    Ok(close(&summary))
}

/// The value of a flags variable with more flags, keeping what the caller's environment has.
pub(crate) fn with_flags(variable: &str, more: &str) -> String {
    match std::env::var(variable) {
        Ok(flags) if !flags.is_empty() => format!("{flags} {more}"),
        _ => more.to_owned(),
    }
}

/// What the tests need and a build does not bring along: the variables that say where it is.
type Programs = Vec<(&'static str, PathBuf)>;

/// Gets one of them, or several that go together.
fn set_up(step: &str, skipped: Option<String>, fetch: impl FnOnce() -> Result<Programs>) -> (Row, Programs) {
    let start = Instant::now();
    let (outcome, programs) = match skipped {
        Some(why) => {
            eprintln!("{why}");
            (Outcome::Skipped(why), Programs::new())
        }
        None => match fetch() {
            Ok(programs) => (Outcome::Passed, programs),
            Err(error) => {
                eprintln!("error: {error:#}");
                (Outcome::Failed(format!("{error:#}")), Programs::new())
            }
        },
    };
    (Row { step: step.into(), took: start.elapsed(), counts: None, harnesses: Vec::new(), outcome }, programs)
}

/// Runs a step; one that a filter left without tests has not failed, unless all steps are (see [`close`]).
fn counted(step: &str, command: &mut Command, filter: Option<&str>) -> Row {
    let Some(filter) = filter else { return run::test_step(step, command) };
    let mut row = run::test_step(step, command.args(["--", filter]));
    if row.outcome == Outcome::Failed(run::RAN_NO_TEST.into()) {
        row.outcome = Outcome::Skipped(format!("no test's name contains {filter:?}"));
    }
    row
}

/// Prints the table and the closing line; whether the run is good.
fn close(summary: &Summary) -> bool {
    let total = summary.total();
    let nothing_ran = total.ran() == 0;
    println!("\n{summary}");
    if nothing_ran {
        println!("no test ran");
    }
    let Counts { passed, failed, ignored } = total;
    println!("{passed} passed, {failed} failed, {ignored} skipped");
    summary.passed() && !nothing_ran
}
