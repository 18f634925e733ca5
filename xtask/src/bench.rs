//! `cargo xtask bench`.

use anyhow::Result;

use crate::{run, workspace::Workspace};

/// Runs all benchmarks, or the named one with arguments for criterion.
pub(crate) fn bench(workspace: &Workspace, name: Option<&str>, arguments: &[String]) -> Result<bool> {
    let mut command = workspace.cargo(["bench", "--locked", "--workspace", "--all-features"]);
    if let Some(name) = name {
        command.args(["--bench", name]).arg("--").args(arguments);
    }
    run::status(&mut command)?;
    Ok(true)
}
