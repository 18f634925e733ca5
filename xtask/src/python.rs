//! The machine's Python, for what is fetched by it.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{debian, run};

/// A Python that has pip. Debian's is installed where that can be done without asking anyone; an error says that `skip` can be
/// set to do without.
pub(crate) fn with_pip(skip: &str) -> Result<PathBuf> {
    if let Some(python) = find() {
        return Ok(python);
    }
    if !debian::can_install() {
        bail!("python3 with pip is needed: install it (Debian: python3-pip), or set {skip}=1 to do without");
    }
    debian::install(&["python3-pip"])?;
    find().context("python3-pip is installed, yet no python3 has pip")
}

/// The second is where Debian puts its own, which another one may hide.
fn find() -> Option<PathBuf> {
    let has_pip = |python: &PathBuf| run::works(Command::new(python).args(["-m", "pip", "--version"]));
    ["python3", "/usr/bin/python3"].into_iter().map(PathBuf::from).find(has_pip)
}
