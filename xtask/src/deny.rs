//! cargo-deny: found, or built into the target folder.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{run, workspace::Workspace};

/// The version built where none is installed.
const VERSION: &str = "0.20.2";

/// What the build may take. One cut short goes on where it stopped the next time.
const LIMIT: Duration = Duration::from_secs(8 * 60);

/// The program: an installed one, else one built earlier, else one built now.
pub(crate) fn find(workspace: &Workspace) -> Result<PathBuf> {
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
    let mut install = workspace.cargo(["install", "--locked", "--no-track", "--root"]);
    install.arg(&root).arg("--target-dir").arg(&build).arg(format!("cargo-deny@{VERSION}"));
    run::status_within(&mut install, LIMIT).context("it could not be built")?;
    // several hundred megabytes that nobody needs again
    std::fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
    Ok(built)
}

/// Licences, bans and sources, as `deny.toml` says.
pub(crate) fn check(program: &Path, workspace: &Workspace) -> Command {
    let mut command = Command::new(program);
    // without `--workspace` only what the facade depends on is looked at
    command.current_dir(&workspace.root).args(["--locked", "--workspace", "check", "licenses", "bans", "sources"]);
    command
}
