//! A minimal Debian as an image: what the Debian-built images stand on where no registry has one.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{docker, label, pins::Base};
use crate::{debian, run};

/// Makes a base, unless it is there.
pub(crate) fn make(base: &Base, folder: &Path, rebuild: bool) -> Result<()> {
    let digest = base.digest();
    if !rebuild && label::of(&base.tag())?.as_deref() == Some(&digest) {
        return Ok(());
    }
    let mirror = debian_mirror()?;
    super::timed(&format!("{}: debootstrap", base.tag()), || {
        // in a folder that lets programs run, which a folder for temporary files need not
        let root = tempfile::tempdir_in(folder).context("cannot make a temporary folder")?;
        // It mounts /proc and /sys in the folder. In its own namespace they are gone when it is, however that came about, and
        // whoever removes the folder removes nothing of the machine's.
        let mut debootstrap = Command::new("unshare");
        debootstrap.args(["--mount", "debootstrap", "--variant=minbase", &base.suite]).arg(root.path()).arg(&mirror);
        // where it looks for the programs that it runs inside
        debootstrap.env("PATH", with_system_folders());
        run::logged(&mut debootstrap, &folder.join(format!("base-{}.log", base.suite)))?;
        settings(base, root.path())?;
        import(base, &digest, root.path())
    })
}

/// The machine's own mirror, with the program that needs it installed.
fn debian_mirror() -> Result<String> {
    if !debian::can_install() {
        bail!("no registry answers, and images from Debian's packages can only be made on Debian, as root");
    }
    let mut debootstrap = Command::new("debootstrap");
    if !run::works(debootstrap.arg("--version")) {
        debian::install(&["debootstrap"])?;
    }
    debian::mirror()
}

/// What installing packages in the image needs.
fn settings(base: &Base, root: &Path) -> Result<()> {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    // no package starts its service while the image is made
    write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")?;
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(root.join("usr/sbin/policy-rc.d"), executable).context("cannot make policy-rc.d executable")?;
    // an image that is not finished is thrown away anyhow
    write("etc/dpkg/dpkg.cfg.d/image", "force-unsafe-io\n")?;
    write(
        "etc/apt/apt.conf.d/image",
        "DPkg::Options \"--force-confold\";\nAPT::Keep-Downloaded-Packages \"false\";\n",
    )?;
    if !base.check_valid_until {
        write("etc/apt/apt.conf.d/valid-until", "Acquire::Check-Valid-Until \"false\";\n")?;
    }
    // several hundred files that are at their newest when the first package is installed
    let archives = root.join("var/cache/apt/archives");
    fs::remove_dir_all(&archives).context("cannot remove the packages that were unpacked")?;
    fs::create_dir_all(archives.join("partial")).context("cannot make apt's folder")
}

/// Hands the folder to the engine, without a file in between.
fn import(base: &Base, digest: &str, root: &Path) -> Result<()> {
    let mut tar = Command::new("tar")
        .arg("--directory")
        .arg(root)
        .args(["--create", "."])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start tar")?;
    let archive = tar.stdout.take().context("tar has no output")?;
    let change = format!("LABEL {}={digest}", label::NAME);
    let mut import = docker(["import", "--change", &change, "-", &base.tag()]);
    let imported = run::status(import.stdin(archive).stdout(Stdio::null()));
    let packed = tar.wait().context("cannot wait for tar")?;
    imported?;
    if !packed.success() {
        bail!("tar ended with {packed}");
    }
    Ok(())
}

/// `PATH` with the folders of an administrator's programs, which not every root has.
fn with_system_folders() -> String {
    let path = env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}
