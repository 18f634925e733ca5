//! The whole process tree is frozen, thawed and killed: what has left the function's process group, too.
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use winddown_sim::{Reason, Sim};

use common::{Clock, assert_process_gone, example, misbehave, state};

/// Starts a function that leaves daemons, and returns their process ids.
async fn start() -> (Sim, Vec<u32>) {
    let sim = Sim::start(misbehave("leave-daemons")).await.expect("init");
    let mut daemons = Vec::new();
    for _ in 0..4 {
        let known: Vec<_> = daemons.iter().map(|pid| format!("daemon {pid}")).collect();
        let new = |line: &winddown_sim::OutputLine| line.line.starts_with("daemon ") && !known.contains(&line.line);
        let line = sim.wait_for_line(new).await.expect("it says so").line;
        daemons.push(line["daemon ".len()..].parse().expect("a process id"));
    }
    (sim, daemons)
}

#[tokio::test]
async fn a_freeze_stops_processes_that_have_left_the_group_and_a_thaw_lets_them_go_on() {
    let (sim, daemons) = start().await;
    sim.freeze().await.expect("a live environment");
    for &pid in &daemons {
        common::assert_soon(|| state(pid) == Some('T'), &format!("process {pid} runs on"));
    }
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    for &pid in &daemons {
        common::assert_soon(|| state(pid) != Some('T'), &format!("process {pid} is still stopped"));
    }
}

#[tokio::test]
async fn shutdown_ends_processes_that_have_left_the_group() {
    let (sim, daemons) = start().await;
    assert!(sim.shutdown(Reason::Spindown).await.ended_by_itself());
    daemons.into_iter().for_each(assert_process_gone);
}

#[tokio::test]
async fn a_dropped_simulator_leaves_no_process_that_has_left_the_group() {
    let (sim, daemons) = start().await;
    sim.freeze().await.expect("a live environment");
    drop(sim);
    daemons.into_iter().for_each(assert_process_gone);
}

/// A simulator whose function has left a clock, and that clock.
async fn start_with_clock(directory: &Path, name: &str) -> (Sim, Clock) {
    let clock = Clock::new(directory, name);
    let sim = Sim::start(misbehave("leave-clock-later").arg(clock.file())).await.expect("init");
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    clock.assert_goes();
    (sim, clock)
}

/// Clocks of nobody's: a child of this process, and one that has lost its parent, each with nothing of it.
struct Strangers {
    child: Child,
    clocks: [Clock; 2],
}

impl Strangers {
    fn start(directory: &Path) -> Self {
        let clocks = [Clock::new(directory, "child"), Clock::new(directory, "orphan")];
        let program = example("sim_misbehave");
        let child = Command::new(&program).arg("clock").arg(clocks[0].file()).env_clear().stdin(Stdio::null()).spawn();
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", "env -i \"$0\" clock \"$1\" &"]).arg(&program).arg(clocks[1].file());
        assert!(shell.status().expect("a shell").success());
        let strangers = Self { child: child.expect("it starts"), clocks };
        strangers.assert_go();
        strangers
    }

    fn assert_go(&self) {
        self.clocks.iter().for_each(Clock::assert_goes);
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        for clock in &self.clocks {
            let pid = i32::try_from(clock.pid()).ok().and_then(Pid::from_raw).expect("a process id");
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_daemon_that_has_kept_nothing_is_frozen_and_ended_with_its_own_environment_and_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let strangers = Strangers::start(directory.path());
    let (sim, clock) = start_with_clock(directory.path(), "first").await;
    let (other, others_clock) = start_with_clock(directory.path(), "second").await;

    sim.freeze().await.expect("a live environment");
    clock.assert_stands();
    others_clock.assert_goes();
    strangers.assert_go();
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    clock.assert_goes();

    let record = sim.shutdown(Reason::Spindown).await;
    assert!(record.ended_by_itself(), "{record}");
    assert_process_gone(clock.pid());
    assert_eq!(record.shutdown.strays, 1, "{record}");
    others_clock.assert_goes();

    other.freeze().await.expect("a live environment");
    others_clock.assert_stands();
    drop(other);
    assert_process_gone(others_clock.pid());
    strangers.assert_go();
}
