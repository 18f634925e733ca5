//! The whole process tree is frozen, thawed and killed: what has left the function's process group, too.
#![cfg(target_os = "linux")]

mod common;

use serde_json::json;
use winddown_sim::{Reason, Sim};

use common::{assert_process_gone, misbehave};

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

/// `T` for a stopped process.
fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).expect("a state")
}

#[tokio::test]
async fn a_freeze_stops_processes_that_have_left_the_group_and_a_thaw_lets_them_go_on() {
    let (sim, daemons) = start().await;
    sim.freeze().await.expect("a live environment");
    for &pid in &daemons {
        common::assert_soon(|| state(pid) == 'T', &format!("process {pid} runs on"));
    }
    assert!(sim.invoke(json!({})).await.expect("a live environment").ok);
    for &pid in &daemons {
        common::assert_soon(|| state(pid) != 'T', &format!("process {pid} is still stopped"));
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
