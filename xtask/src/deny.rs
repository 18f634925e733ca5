//! cargo-deny: found, or built into the target folder.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    jobs::{Done, Progress},
    run,
    summary::Outcome,
    workspace::Workspace,
};

/// The version built where none is installed.
const VERSION: &str = "0.20.2";

/// What the build may take. One cut short goes on where it stopped the next time.
const LIMIT: Duration = Duration::from_secs(8 * 60);

/// What a check may take, and getting the database of advisories.
const CHECK: Duration = Duration::from_secs(2 * 60);

/// Licences, bans and sources, as `deny.toml` says. The one check that may be left out: it is not on every machine, and
/// not everywhere can it be built.
pub(crate) fn check(workspace: &Workspace, progress: &Progress) -> Done {
    match find(workspace, progress) {
        Ok(program) => checked(&program, &["licenses", "bans", "sources"], workspace, progress),
        Err(error) => Done::new(Outcome::Skipped(format!("no cargo-deny: {error:#}"))),
    }
}

/// Advisories about the dependencies, where their database can be reached.
pub(crate) fn advisories(workspace: &Workspace, progress: &Progress) -> Done {
    let program = match find(workspace, progress) {
        Ok(program) => program,
        Err(error) => return Done::new(Outcome::Skipped(format!("no cargo-deny: {error:#}"))),
    };
    let mut fetch = Command::new(&program);
    fetch.current_dir(&workspace.root).args(["--locked", "--workspace", "fetch", "db"]);
    match progress.run(&mut fetch, CHECK) {
        Ok(ran) if ran.end.failure().is_none() => {
            checked(&program, &["--disable-fetch", "advisories"], workspace, progress)
        }
        _ => Done::new(Outcome::Skipped(
            "the advisory database, which is on no package registry, was not reached".into(),
        )),
    }
}

/// The program: an installed one, else one built earlier, else one built now.
fn find(workspace: &Workspace, progress: &Progress) -> Result<PathBuf> {
    let installed = PathBuf::from("cargo-deny");
    if run::works(Command::new(&installed).arg("--version")) {
        return Ok(installed);
    }
    let tools = workspace.target.join("tools");
    // with the version in the name a newer one is built when it changes
    let root = tools.join(format!("cargo-deny-{VERSION}"));
    let built = root.join("bin").join("cargo-deny");
    if run::works(Command::new(&built).arg("--version")) {
        return Ok(built);
    }

    let build = tools.join("build");
    // A build without optimisation takes a fraction of the time, and the program is quick enough.
    let mut install = workspace.cargo_aside(["install", "--locked", "--no-track", "--debug", "--root"]);
    install.arg(&root).arg("--target-dir").arg(&build).arg(format!("cargo-deny@{VERSION}"));
    install.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
    let ran = progress.run(&mut install, LIMIT).context("it could not be built")?;
    if let Some(why) = ran.end.failure() {
        let said = ran.lines.last().map(|line| line.text.trim()).unwrap_or_default();
        bail!("it could not be built: {why}: {said}");
    }
    // several hundred megabytes that nobody needs again
    std::fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
    Ok(built)
}

fn checked(program: &Path, what: &[&str], workspace: &Workspace, progress: &Progress) -> Done {
    let mut command = Command::new(program);
    // without `--workspace` only what the facade depends on is looked at
    command.current_dir(&workspace.root).args(["--locked", "--workspace", "check"]).args(what);
    match progress.run(&mut command, CHECK) {
        Ok(ran) => Done::of(&ran, &command),
        Err(why) => Done::failed(format!("{why:#}")),
    }
}
