//! What the tests with functions in other languages need: Node.js, and a Python that has Lambda's own runtime for it.

use std::{
    env,
    fs::{self, File},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, bail};

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
    let folder = workspace.target.join("awslambdaric");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // several test binaries can ask at once: the first fetches, the others wait for it
    let lock = File::create(folder.join("lock")).context("cannot make the lock file of awslambdaric")?;
    lock.lock().context("cannot lock the folder of awslambdaric")?;

    let requirements = workspace.root.join(REQUIREMENTS);
    let wanted = fs::read(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let environment = folder.join("environment");
    let python = environment.join("bin/python");
    // written last: what was interrupted is done again, and so is one of other versions
    let stamp = folder.join("requirements.txt");
    if fs::read(&stamp).is_ok_and(|made| made == wanted) && run::works(Command::new(&python).arg("--version")) {
        return Ok(python);
    }

    let host = python::with_pip(SKIP_VARIABLE)?;
    // without a pip of its own: Debian keeps what that needs in another package
    let mut make = Command::new(&host);
    make.args(["-m", "venv", "--clear", "--without-pip"]).arg(&environment);
    run::status_aside(&mut make).context("cannot make a Python environment")?;
    let mut install = Command::new(&host);
    install
        .args(["-m", "pip", "--python"])
        .arg(&python)
        .args(["install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"])
        .arg("--requirement")
        .arg(&requirements);
    run::status_aside(&mut install).with_context(|| {
        format!(
            "cannot install awslambdaric from the Python package index: Python 3.10 or newer is needed, or set \
             {SKIP_VARIABLE}=1 to do without"
        )
    })?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}

/// The program that the caller has named.
fn own(variable: &str) -> Result<Option<PathBuf>> {
    let Some(own) = env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from) else { return Ok(None) };
    if !run::works(Command::new(&own).arg("--version")) {
        bail!("{variable} names no program that can be run: {}: correct it or unset it", own.display());
    }
    Ok(Some(own))
}
