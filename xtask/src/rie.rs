//! AWS's Runtime Interface Emulator: Lambda's own sandbox code as a plain program, the judge of our Lambda side.
//!
//! It is taken from the Python package of the SAM command line, the one place on a package registry that has it.

use std::{
    env,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{python, run, workspace::Workspace};

/// Where the tests find the emulator. A caller may set it to an emulator of their own.
pub(crate) const PATH_VARIABLE: &str = "WINDDOWN_RIE";

/// Set to run without the emulator.
const SKIP_VARIABLE: &str = "WINDDOWN_SKIP_RIE";

/// The package's version, and what its wheel must hash to: the program in it is run.
const VERSION: &str = "1.170.0";
const WHEEL_SHA256: &str = "24ebaf5ecba38dc1758089968cb89ab61e124b84e92a344fc7a2771a47f4d0bf";

/// Why the emulator is left out, when it was asked for.
pub(crate) fn skipped() -> Option<String> {
    let set = env::var_os(SKIP_VARIABLE).is_some_and(|value| !value.is_empty());
    set.then(|| {
        format!(
            "{SKIP_VARIABLE} is set: AWS's Runtime Interface Emulator is not fetched, \
             and the tests that run a function under it do not run"
        )
    })
}

/// The emulator's path, after fetching it when it is not there.
pub(crate) fn fetch(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(own) = env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) {
        if !own.is_file() {
            bail!("{PATH_VARIABLE} names no file: {}: correct it or unset it", own.display());
        }
        return Ok(own);
    }

    let folder = workspace.target.join("rie");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // several test binaries can ask at once: the first fetches, the others wait for it
    let lock = File::create(folder.join("lock")).context("cannot make the emulator's lock file")?;
    lock.lock().context("cannot lock the emulator's folder")?;

    let emulator = folder.join("aws-lambda-rie");
    // written last: a fetch that was interrupted is done again, and so is one of an older version
    let stamp = folder.join("version");
    if emulator.is_file() && fs::read_to_string(&stamp).is_ok_and(|version| version == VERSION) {
        return Ok(emulator);
    }
    download(&folder, &emulator)?;
    fs::write(&stamp, VERSION).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(emulator)
}

fn download(folder: &Path, emulator: &Path) -> Result<()> {
    let member = member()?;
    let python = python::with_pip(SKIP_VARIABLE)?;

    // in the same folder, so that the last step is a rename
    let scratch = tempfile::tempdir_in(folder).context("cannot make a temporary folder")?;
    // only a requirements file can say the hash
    let requirements = scratch.path().join("requirements.txt");
    fs::write(&requirements, format!("aws-sam-cli=={VERSION} --hash=sha256:{WHEEL_SHA256}\n"))
        .context("cannot write the requirements file")?;
    let mut pip = Command::new(&python);
    // nothing of the package is run by this Python, so pip need not ask whether it is new enough for it
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary=:all:", "--python-version", "3.13", "--require-hashes", "--dest"])
        .arg(scratch.path())
        .arg("--requirement")
        .arg(&requirements);
    run::status_aside(&mut pip).with_context(|| {
        format!(
            "cannot download aws-sam-cli {VERSION} from the Python package index (set {SKIP_VARIABLE}=1 to do without)"
        )
    })?;

    let wheel = scratch.path().join(format!("aws_sam_cli-{VERSION}-py3-none-any.whl"));
    let unpacked = scratch.path().join("aws-lambda-rie");
    // python is here anyway; a zip crate would be one more thing to build before the first test
    let mut unzip = Command::new(&python);
    unzip
        .args([
            "-c",
            "import sys, zipfile; open(sys.argv[3], 'wb').write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))",
        ])
        .arg(&wheel)
        .arg(member)
        .arg(&unpacked);
    run::status(&mut unzip).with_context(|| format!("{member} is not in the package"))?;

    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755)).context("cannot make the emulator executable")?;
    fs::rename(&unpacked, emulator).with_context(|| format!("cannot write {}", emulator.display()))
}

/// The program for this machine, inside the package.
fn member() -> Result<&'static str> {
    match (env::consts::OS, env::consts::ARCH) {
        ("linux", "x86_64") => Ok("samcli/local/rapid/aws-lambda-rie-x86_64"),
        ("linux", "aarch64") => Ok("samcli/local/rapid/aws-lambda-rie-arm64"),
        (system, processor) => {
            bail!("AWS's emulator is not made for {system} on {processor}: set {SKIP_VARIABLE}=1 to do without")
        }
    }
}
