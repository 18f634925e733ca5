//! What the tests share: the functions they run, and whether a process is still there.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, test_kill_process_group};
use winddown_sim::{Config, Record};

/// The command under test.
pub(crate) const COMMAND: &str = env!("CARGO_BIN_EXE_winddown-sim");

/// An example program of this crate. `cargo test` builds them beside the command before it runs the tests; with `--test NAME` it
/// does not, and they have to be built first.
pub(crate) fn example(name: &str) -> PathBuf {
    let path = Path::new(COMMAND).with_file_name("examples").join(name);
    assert!(path.exists(), "{} is missing: run `cargo build -p winddown-sim --examples`", path.display());
    path
}

/// Time that no machine uses up, however busy it is.
pub(crate) const AMPLE: Duration = Duration::from_secs(60);

/// So late may a busy machine run what has to happen at an instant. Nothing happens before its instant.
pub(crate) const LATE_MS: f64 = 5_000.0;

/// An example as a function, with its output captured and with [`AMPLE`] time for everything: what it does by itself, and
/// does not have to be killed for, it does on any machine.
pub(crate) fn function(name: &str) -> Config {
    within_lambdas_limits(name).init_timeout(AMPLE).timeout(AMPLE).budget(AMPLE)
}

/// The same within Lambda's own limits, for what holds of them always: who is killed, not before which instant.
pub(crate) fn within_lambdas_limits(name: &str) -> Config {
    Config::new(example(name)).capture_output()
}

/// `sim_misbehave` in one of its modes.
pub(crate) fn misbehave(mode: &str) -> Config {
    function("sim_misbehave").arg(mode)
}

/// The same within Lambda's own limits.
pub(crate) fn misbehave_within_lambdas_limits(mode: &str) -> Config {
    within_lambdas_limits("sim_misbehave").arg(mode)
}

/// The timeline's words, for what must have happened in which order.
pub(crate) fn events(record: &Record) -> Vec<&str> {
    record.timeline.iter().map(|entry| entry.event.as_str()).collect()
}

/// When `event` happened, in milliseconds. It must have, once.
pub(crate) fn at_ms(record: &Record, event: &str) -> f64 {
    let mut entries = record.timeline.iter().filter(|entry| entry.event == event);
    match (entries.next(), entries.next()) {
        (Some(entry), None) => entry.at_ms,
        _ => panic!("not exactly one '{event}' in {:?}", events(record)),
    }
}

/// Fails unless the process group is empty, or becomes so: the kernel takes a moment to end what it was told to kill.
pub(crate) fn assert_group_gone(pid: u32) {
    let group = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    assert_soon(|| test_kill_process_group(group).is_err(), &format!("process group {pid} is still there"));
}

/// Fails unless the process, which is no child of ours, has ended: whoever inherited it may not have reaped it yet.
pub(crate) fn assert_process_gone(pid: u32) {
    let gone = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // the state follows the program's name, which is in parentheses
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => true,
    };
    assert_soon(gone, &format!("process {pid} is still there"));
}

// for things outside this process, which cannot be waited for
pub(crate) fn assert_soon(mut holds: impl FnMut() -> bool, otherwise: &str) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < AMPLE, "{otherwise}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `T` for a stopped process, and none for one that is gone.
pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

/// What `sim_misbehave clock` writes.
pub(crate) struct Clock(PathBuf);

impl Clock {
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        Self(directory.join(name))
    }

    pub(crate) fn file(&self) -> &Path {
        &self.0
    }

    /// Its process id, when it has begun.
    pub(crate) fn pid(&self) -> u32 {
        assert_soon(|| !self.times().is_empty(), "the clock never began");
        self.lines()[0].try_into().expect("a process id")
    }

    /// The milliseconds since 1970 that it has written.
    pub(crate) fn times(&self) -> Vec<u64> {
        self.lines().into_iter().skip(1).collect()
    }

    fn lines(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        // what follows the last end of a line is not whole yet
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| line.parse().expect("a number")).collect()
    }

    pub(crate) fn assert_goes(&self) {
        let pid = self.pid();
        let before = self.times().len();
        assert_soon(|| self.times().len() > before, &format!("the clock of process {pid} has stopped"));
    }

    pub(crate) fn assert_stands(&self) {
        let pid = self.pid();
        assert_soon(|| state(pid) == Some('T'), &format!("process {pid} runs on"));
        let before = self.times().len();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(self.times().len(), before, "the clock of process {pid} goes on");
    }
}
