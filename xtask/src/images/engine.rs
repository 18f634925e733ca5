//! The container engine: found, or installed and started.

use std::{
    env,
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{debian, run};

/// What an engine may take until it answers.
const LIMIT: Duration = Duration::from_secs(30);

/// What is known of this machine.
#[derive(Clone, Copy, Debug)]
struct Facts {
    /// Whether an engine answers the command line.
    answers: bool,
    /// Whether the command line is here.
    client: bool,
    /// Whether the engine's program is here.
    program: bool,
    /// Whether the caller named an engine, which may be on another machine.
    named: bool,
    root: bool,
    /// Whether packages can be installed.
    debian: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Use,
    Install,
    Start,
    /// What a person has to do.
    Tell(&'static str),
}

impl Facts {
    fn find() -> Self {
        Self {
            answers: answers(),
            client: run::works(Command::new("docker").arg("--version")),
            program: run::works(Command::new("dockerd").arg("--version")),
            named: ["DOCKER_HOST", "DOCKER_CONTEXT"].into_iter().any(|name| env::var_os(name).is_some()),
            root: rustix::process::geteuid().is_root(),
            debian: debian::can_install(),
        }
    }

    fn next(self) -> Next {
        match self {
            Self { answers: true, .. } => Next::Use,
            Self { client: true, named: true, .. } => {
                Next::Tell("the container engine that DOCKER_HOST or DOCKER_CONTEXT names does not answer: start it")
            }
            Self { client: true, program: true, root: true, .. } => Next::Start,
            Self { debian: true, .. } => Next::Install,
            Self { client: true, .. } => {
                Next::Tell("the container engine does not answer: start Docker, and see that you may use it")
            }
            Self { .. } => Next::Tell("no container engine: install Docker"),
        }
    }
}

/// Sees to it that an engine answers. `folder` is for its log, where it is started without a service.
pub(crate) fn ensure(folder: &Path) -> Result<()> {
    let mut next = Facts::find().next();
    if next == Next::Install {
        install()?;
        next = match Facts::find().next() {
            Next::Install => bail!("Docker is installed, yet the commands docker and dockerd do not both work"),
            next => next,
        };
    }
    match next {
        Next::Use => Ok(()),
        Next::Tell(what) => bail!("{what}"),
        Next::Start | Next::Install => start(folder),
    }
}

/// Whether an engine answers.
fn answers() -> bool {
    run::works(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]))
}

fn install() -> Result<()> {
    debian::install(&["docker.io"])?;
    // newer Debians have the command line in a package of its own
    if !run::works(Command::new("docker").arg("--version")) {
        debian::install(&["docker-cli"])?;
    }
    Ok(())
}

/// Starts the engine, as a service where there are services.
fn start(folder: &Path) -> Result<()> {
    let mut service = Command::new("service");
    let mut systemctl = Command::new("systemctl");
    for command in [service.args(["docker", "start"]), systemctl.args(["start", "docker"])] {
        // the other two ways are left, whatever became of this one
        if run::status_aside(command).is_ok() && wait(LIMIT).is_ok() {
            return Ok(());
        }
    }
    let log = folder.join("dockerd.log");
    start_program(&mut Command::new("dockerd"), &log)?;
    wait(LIMIT).with_context(|| format!("dockerd was started, its log is {}", log.display()))
}

/// Starts the engine's program, which stays when we are gone.
fn start_program(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stderr(file.try_clone().context("cannot share the log")?).stdout(file);
    // a group of its own: Ctrl-C at our terminal is not meant for it
    command.process_group(0).spawn().context("cannot start dockerd")?;
    Ok(())
}

fn wait(limit: Duration) -> Result<()> {
    let start = Instant::now();
    // it tells nobody but systemd when it is ready
    while !answers() {
        if start.elapsed() >= limit {
            return Err(io::Error::from(io::ErrorKind::TimedOut)).context("the container engine does not answer");
        }
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with nothing and no rights.
    const BARE: Facts =
        Facts { answers: false, client: false, program: false, named: false, root: false, debian: false };

    #[test]
    fn an_engine_that_answers_is_used_whatever_else_is_known() {
        assert_eq!(Facts { answers: true, ..BARE }.next(), Next::Use);
        assert_eq!(Facts { answers: true, client: true, named: true, debian: true, ..BARE }.next(), Next::Use);
    }

    #[test]
    fn debian_s_root_gets_what_is_missing_installed() {
        let root = Facts { root: true, debian: true, ..BARE };
        assert_eq!(root.next(), Next::Install);
        assert_eq!(Facts { client: true, ..root }.next(), Next::Install);
        assert_eq!(Facts { program: true, ..root }.next(), Next::Install);
        assert_eq!(Facts { client: true, program: true, ..root }.next(), Next::Start);
    }

    #[test]
    fn root_starts_an_engine_that_is_there_on_any_system() {
        assert_eq!(Facts { client: true, program: true, root: true, ..BARE }.next(), Next::Start);
    }

    #[test]
    fn an_engine_that_the_caller_named_is_not_replaced_by_one_here() {
        let named = Facts { client: true, program: true, root: true, debian: true, named: true, ..BARE };
        let Next::Tell(what) = named.next() else { panic!("{:?}", named.next()) };
        assert!(what.contains("DOCKER_HOST"), "{what}");
    }

    #[test]
    fn anybody_else_is_told_what_to_do() {
        assert_eq!(BARE.next(), Next::Tell("no container engine: install Docker"));
        let Next::Tell(what) = (Facts { client: true, program: true, ..BARE }).next() else { panic!("told nothing") };
        assert!(what.contains("start Docker"), "{what}");
    }
}
