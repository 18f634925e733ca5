//! Debian's packages: what a command needs is installed where that can be done without asking anyone.

use std::{
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};

use crate::run;

/// Jobs of one run may need packages at once, and apt lets one of them in. For other processes it can be told to wait.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Whether this machine has Debian's packages, and we may install them.
pub(crate) fn can_install() -> bool {
    Path::new("/etc/debian_version").exists() && rustix::process::geteuid().is_root()
}

/// Installs packages. Only where [`can_install`] says so.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let wanted = || format!("cannot install {}", packages.join(" "));
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    update().with_context(wanted)?;
    let mut install = Command::new("apt-get");
    install.args(["-o", "DPkg::Lock::Timeout=300", "install", "--yes", "--no-install-recommends"]).args(packages);
    run::status_aside(install.env("DEBIAN_FRONTEND", "noninteractive")).with_context(wanted)
}

/// The address this machine takes Debian's packages from.
pub(crate) fn mirror() -> Result<String> {
    if let Some(mirror) = find_mirror()? {
        return Ok(mirror);
    }
    // what a source calls itself is only known once its lists are here
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    update()?;
    drop(turn);
    find_mirror()?.context("apt knows no source of Debian's packages")
}

fn update() -> Result<()> {
    run::status_aside(Command::new("apt-get").arg("update"))
}

fn find_mirror() -> Result<Option<String>> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    Ok(first_mirror(&run::output(&mut targets)?))
}

/// Other sources, and the one for security alone, have another label.
fn first_mirror(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| line.strip_prefix("Debian ")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_first_source_of_debian_itself() {
        let targets = "Node tools https://tools.invalid/\nDebian-Security http://security.invalid/\n \
                       http://no-label.invalid/\nDebian http://mirror.invalid/debian/\nDebian http://other.invalid/\n";
        assert_eq!(first_mirror(targets).as_deref(), Some("http://mirror.invalid/debian/"));
        assert_eq!(first_mirror(" http://no-label.invalid/\n"), None);
    }
}
