//! Removes what tests started in containers once their process is gone, however it went.
//!
//! Whoever starts containers says so in their labels: which run they belong to, and which process owns them. A
//! [`Reaper`] is a shell that waits for the end of a pipe whose other end only that process holds. A panic, Ctrl-C and
//! SIGKILL all end the pipe, so no signal needs a handler: handlers in a test binary would be in the way of tests that
//! are about signals.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

/// The label that names the run.
pub const RUN_LABEL: &str = "winddown.run";

/// The label that names the process which removes what carries it, and without which nobody needs it.
pub const OWNER_LABEL: &str = "winddown.owner";

/// Where a run that consists of several processes tells them its name.
pub const RUN_VARIABLE: &str = "WINDDOWN_TEST_RUN";

/// Removes everything with the label `$1`, containers first: a network goes when nobody is on it.
///
/// Containers one by one: Docker Engine 20.10 can lock up for good when two leave the same network at once
/// (<https://github.com/moby/moby/issues/46661>). Another try is for what could not be removed, which is mostly what
/// somebody else is just removing.
const SWEEP: &str = r#"
for try in 1 2 3 4 5 6 7 8 9 10; do
    containers=$(docker ps --all --quiet --no-trunc --filter "label=$1") || exit 1
    networks=$(docker network ls --quiet --no-trunc --filter "label=$1") || exit 1
    [ -n "$containers$networks" ] || exit 0
    left=
    for container in $containers; do docker rm --force --volumes "$container" || left=1; done
    for network in $networks; do docker network rm "$network" || left=1; done
    [ -z "$left" ] || sleep 0.5
done
exit 1
"#;

/// Waits for the end of its input first. Signals to everything in a terminal or a session are not meant for it.
const WAIT: &str = "trap '' HUP INT QUIT TERM\ncat >/dev/null\n";

/// This process, told from every other that may use the same engine.
pub fn this_process() -> String {
    format!("{}/{}", place(), std::process::id())
}

/// The run that this process is part of: the one it was told, or one of its own.
pub fn this_run() -> String {
    std::env::var(RUN_VARIABLE).ok().filter(|run| !run.is_empty()).unwrap_or_else(this_process)
}

/// Where a process number means something: this machine, and on it these processes.
fn place() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // only Linux has more than one numbering
    let numbering = fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    format!("{name}/{numbering}")
}

/// Whether a process that [`this_process`] named is known to be gone; one elsewhere is not.
fn is_gone(owner: &str) -> bool {
    let Some((there, number)) = owner.rsplit_once('/') else { return false };
    let Some(process) = number.parse().ok().and_then(Pid::from_raw) else { return false };
    there == place() && test_kill_process(process) == Err(Errno::SRCH)
}

/// Sweeps what has a label, once this process is gone or the reaper is dropped or told to finish.
#[derive(Debug)]
pub struct Reaper {
    shell: Child,
}

impl Reaper {
    /// Starts one, for everything with a label `name` of this value.
    ///
    /// # Errors
    ///
    /// When no shell can be started.
    pub fn start(name: &str, value: &str) -> io::Result<Self> {
        let mut shell = shell(&format!("{WAIT}{SWEEP}"), &format!("{name}={value}"));
        // a group of its own: what ends a whole group is not meant for it either
        let shell = shell.process_group(0).stdin(Stdio::piped()).spawn()?;
        Ok(Self { shell })
    }

    /// Sweeps now, and waits until it is done.
    ///
    /// # Errors
    ///
    /// When something could not be removed.
    pub fn finish(mut self) -> io::Result<()> {
        drop(self.shell.stdin.take());
        let status = self.shell.wait()?;
        status.success().then_some(()).ok_or_else(|| io::Error::other(format!("the sweep ended with {status}")))
    }
}

/// Removes what owners left who are gone themselves, and returns how many they were.
///
/// # Errors
///
/// When the engine does not answer, or something could not be removed.
pub fn sweep_orphans() -> io::Result<usize> {
    let label = format!("label={OWNER_LABEL}");
    let format = format!("{{{{.Label {OWNER_LABEL:?}}}}}");
    let mut owners = docker(&["ps", "--all", "--filter", &label, "--format", &format])?;
    owners.push_str(&docker(&["network", "ls", "--filter", &label, "--format", &format])?);
    let mut gone: Vec<_> = owners.lines().filter(|owner| is_gone(owner)).collect();
    gone.sort_unstable();
    gone.dedup();
    for owner in &gone {
        let status = shell(SWEEP, &format!("{OWNER_LABEL}={owner}")).stdin(Stdio::null()).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("the sweep of what {owner} left ended with {status}")));
        }
    }
    Ok(gone.len())
}

/// What a script says is nobody's business, how it ends is.
fn shell(script: &str, label: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh", label]).stdout(Stdio::null()).stderr(Stdio::null());
    shell
}

fn docker(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("docker").args(arguments).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    String::from_utf8(output.stdout).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_of_this_place_can_be_known_to_be_gone() {
        let mut child = Command::new("true").spawn().unwrap();
        let number = child.id();
        child.wait().unwrap();
        assert!(is_gone(&format!("{}/{number}", place())));
        assert!(!is_gone(&format!("elsewhere/{}/{number}", place())));
        assert!(!is_gone(&this_process()));
        assert!(!is_gone("no process"));
        assert!(!is_gone(""));
    }

    #[test]
    fn a_reaper_waits_for_the_end_of_its_owner() {
        let mut shell = shell(&format!("{WAIT}exit 7"), "none").stdin(Stdio::piped()).spawn().unwrap();
        assert!(shell.try_wait().unwrap().is_none());
        drop(shell.stdin.take());
        assert_eq!(shell.wait().unwrap().code(), Some(7));
    }
}
