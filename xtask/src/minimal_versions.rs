//! `cargo xtask minimal-versions`: whether the lower bounds in `Cargo.toml` are true.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

use crate::{leftovers, run, workspace::Workspace};

/// Compiles a copy of the workspace with the lowest version that it allows of each direct dependency.
///
/// # Errors
/// One of them cannot be had together with the others, or lacks something that is used.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let copy = workspace.target.join("minimal-versions");
    let root = copy.join("workspace");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    copy_files(&workspace.root, &root, &leftovers::paths(workspace)?)?;

    let mut update = workspace.cargo(["update", "-Z", "direct-minimal-versions"]);
    // the resolver alone does as on nightly; nothing is compiled by this
    run::status(update.current_dir(&root).env("RUSTC_BOOTSTRAP", "1"))?;
    let mut check = workspace.cargo(["check", "--locked", "--workspace", "--all-features"]);
    run::status(check.current_dir(&root).env("CARGO_TARGET_DIR", copy.join("target")))
}

fn copy_files(from: &Path, to: &Path, files: &BTreeSet<String>) -> Result<()> {
    for file in files {
        let (source, copied) = (from.join(file), to.join(file));
        // removed, and not yet committed
        if !source.exists() {
            continue;
        }
        let folder = copied.parent().context("a file is in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::copy(&source, &copied).with_context(|| format!("cannot copy {file}"))?;
    }
    Ok(())
}
