//! What the tests with functions in other languages need: Node.js, and a Python that has Lambda's own runtime for it.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{debian, python, run, workspace::Workspace};

/// Where the tests find Node.js. A caller may set it to one of their own.
pub(crate) const NODE_VARIABLE: &str = "WINDDOWN_NODE";

/// Where the tests find a Python that has the package `awslambdaric`. A caller may set it to one of their own.
pub(crate) const PYTHON_VARIABLE: &str = "WINDDOWN_PYTHON";

/// Set to run without both.
const SKIP_VARIABLE: &str = "WINDDOWN_SKIP_FOREIGN";

/// The Python package with its dependencies: versions, and what each must hash to.
const REQUIREMENTS: &str = "tests/process/functions/requirements.txt";

/// Why they are left out, when it was asked for.
pub(crate) fn skipped() -> Option<String> {
    let set = env::var_os(SKIP_VARIABLE).is_some_and(|value| !value.is_empty());
    set.then(|| {
        format!(
            "{SKIP_VARIABLE} is set: Node.js and awslambdaric are not fetched, and functions in them are not tested"
        )
    })
}

/// Node.js. Debian's is installed where none is here and that can be done without asking anyone.
pub(crate) fn node() -> Result<PathBuf> {
    if let Some(own) = own(NODE_VARIABLE)? {
        return Ok(own);
    }
    let is_here = || run::works(Command::new("node").arg("--version"));
    if !is_here() {
        if !debian::can_install() {
            bail!("Node.js is needed: install it (Debian: nodejs), or set {SKIP_VARIABLE}=1 to do without");
        }
        debian::install(&["nodejs"])?;
        if !is_here() {
            bail!("nodejs is installed, yet there is no node");
        }
    }
    Ok("node".into())
}

/// A Python with `awslambdaric`, in an environment of its own that is made when it is not there.
pub(crate) fn python(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(own) = own(PYTHON_VARIABLE)? {
        return Ok(own);
    }
    python::environment(workspace, "awslambdaric", REQUIREMENTS, SKIP_VARIABLE)
}

/// The program that the caller has named.
fn own(variable: &str) -> Result<Option<PathBuf>> {
    let Some(own) = env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from) else { return Ok(None) };
    if !run::works(Command::new(&own).arg("--version")) {
        bail!("{variable} names no program that can be run: {}: correct it or unset it", own.display());
    }
    Ok(Some(own))
}
