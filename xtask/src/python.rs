//! The machine's Python, and environments of packages that are made with it.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{debian, run, workspace::Workspace};

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

/// The Python of an environment that has these packages, which is made when it is not there. The file of requirements, a path in
/// the workspace, has versions, and what each must hash to. An error says that `skip` can be set to do without.
pub(crate) fn environment(workspace: &Workspace, name: &str, requirements: &str, skip: &str) -> Result<PathBuf> {
    let folder = workspace.target.join(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // several test binaries can ask at once: the first fetches, the others wait for it
    let lock = File::create(folder.join("lock")).with_context(|| format!("cannot make the lock file of {name}"))?;
    lock.lock().with_context(|| format!("cannot lock the folder of {name}"))?;

    let requirements = workspace.root.join(requirements);
    let wanted = fs::read(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let environment = folder.join("environment");
    let python = environment.join("bin/python");
    // written last: what was interrupted is done again, and so is one of other versions
    let stamp = folder.join("requirements.txt");
    if fs::read(&stamp).is_ok_and(|made| made == wanted) && run::works(Command::new(&python).arg("--version")) {
        return Ok(python);
    }

    let host = with_pip(skip)?;
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
            "cannot install {name} from the Python package index: Python 3.10 or newer is needed, or set {skip}=1 to do without"
        )
    })?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}
