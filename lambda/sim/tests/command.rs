//! The command: exit status, record, timeline, bad input, Ctrl-C.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use common::{COMMAND, Clock, assert_group_gone, assert_process_gone, assert_soon, example, state};

/// Runs the command with `options`, on an example with its arguments, and with time that no machine uses up.
fn run(options: &[&str], function: &[&str]) -> Output {
    command(options, function).output().expect("the command runs")
}

/// The same, not yet run. What is among the options is left as it is.
fn command(options: &[&str], function: &[&str]) -> Command {
    let mut command = Command::new(COMMAND);
    command.arg("run").args(options);
    for limit in ["--budget", "--timeout", "--init-timeout"] {
        if !options.contains(&limit) {
            command.args([limit, "60s"]);
        }
    }
    command.arg("--").arg(example(function[0])).args(&function[1..]);
    command
}

/// The same within Lambda's own limits.
fn run_within_lambdas_limits(options: &[&str], function: &[&str]) -> Output {
    let mut command = Command::new(COMMAND);
    command.arg("run").args(options).arg("--").arg(example(function[0])).args(&function[1..]);
    command.output().expect("the command runs")
}

/// The record, from a run with `--json -`. The function is gone by the time the command is.
fn record(output: &Output) -> Value {
    let record: Value = serde_json::from_slice(&output.stdout).expect("standard output is the record alone");
    if let Some(pid) = record["function"]["pid"].as_u64() {
        assert_group_gone(u32::try_from(pid).expect("a process id"));
    }
    record
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_exit_status_is_0_when_the_function_ended_by_itself() {
    let output = run(&["--json", "-", "--invoke", r#"{"n":1}"#, "--invoke", "[2]", "--times", "2"], &["sim_graceful"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let record = record(&output);
    assert_eq!(record["function"]["exit_code"], 0);
    assert_eq!(record["function"]["signal"], Value::Null);
    assert_eq!(record["function"]["killed"], false);
    assert_eq!(record["shutdown"]["sigterm_sent"], true);
    assert_eq!(record["shutdown"]["reason"], "spindown");
    assert_eq!(record["shutdown"]["budget_ms"], 60_000);
    assert_eq!(record["shutdown"]["overran"], false);
    assert!(record["shutdown"]["took_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{record}");
    let invocations = record["invocations"].as_array().expect("a list");
    let payloads: Vec<_> = invocations.iter().map(|invocation| invocation["payload"].to_string()).collect();
    assert_eq!(payloads, [r#"{"n":1}"#, "[2]", r#"{"n":1}"#, "[2]"]);
    for invocation in invocations {
        assert_eq!(invocation["ok"], true);
        assert!(invocation["ms"].as_f64().is_some_and(|ms| ms > 0.0), "{invocation}");
        assert_eq!(invocation["request_id"].as_str().map(str::len), Some(36));
    }
    assert_eq!(record["extensions"][0]["name"], "graceful");
    assert_eq!(record["extensions"][0]["kind"], "internal");
    assert_eq!(record["extensions"][0]["events"], serde_json::json!([]));
    assert_eq!(record["timeline"][0]["event"], "start");
    assert!(record["timeline"][0]["at_ms"].is_f64(), "{record}");
    // the function's own standard output went out of the record's way
    assert!(stderr(&output).contains("goodbye"), "{}", stderr(&output));
}

#[test]
fn without_an_extension_the_exit_status_is_1_and_says_why() {
    let output = run(&["--json", "-"], &["sim_echo"]);
    assert_eq!(output.status.code(), Some(1));
    let record = record(&output);
    assert_eq!(record["function"]["signal"], 9);
    assert_eq!(record["shutdown"]["sigterm_sent"], false);
    assert_eq!(record["invocations"].as_array().map(Vec::len), Some(1), "one {{}} by default");
    assert!(stderr(&output).lines().last().is_some_and(|line| line.contains("register an extension")));
}

#[test]
fn a_function_that_has_to_be_killed_is_exit_status_1() {
    let output = run(&["--json", "-", "--budget", "100ms"], &["sim_misbehave", "ignore-sigterm"]);
    assert_eq!(output.status.code(), Some(1));
    let record = record(&output);
    assert_eq!(record["shutdown"]["overran"], true);
    assert_eq!(record["shutdown"]["budget_ms"], 100);
    assert_eq!(record["function"]["killed"], true);
}

#[test]
fn the_budget_is_lambdas_own_unless_another_is_given() {
    for (options, budget) in [(&["--json", "-"][..], 500), (&["--json", "-", "--max-concurrency", "1"], 600)] {
        let output = run_within_lambdas_limits(options, &["sim_misbehave", "ignore-sigterm"]);
        assert_eq!(output.status.code(), Some(1));
        let record = record(&output);
        assert_eq!((&record["shutdown"]["budget_ms"], &record["shutdown"]["overran"]), (&json!(budget), &json!(true)));
    }
}

#[test]
fn the_timeline_is_printed_for_people_with_many_invocations_shortened() {
    let output = run(&["--times", "200"], &["sim_graceful"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("196 more invocations"), "{text}");
    assert!(text.contains("response 200 ok"), "{text}");
    assert!(text.lines().last().is_some_and(|line| line.starts_with("function: exit code 0")), "{text}");
    let progress = stderr(&output);
    assert!(progress.lines().count() < 20, "a line for each phase, not for each invocation: {progress}");
    assert!(progress.contains("invocation 200 of 200: ok"), "{progress}");
}

#[test]
fn the_freeze_comes_after_half_of_the_invocations() {
    let output = run(&["--json", "-", "--times", "4", "--freeze", "100ms"], &["sim_graceful"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let record = record(&output);
    let timeline: Vec<_> =
        record["timeline"].as_array().expect("a list").iter().filter_map(|entry| entry["event"].as_str()).collect();
    let position = |event: &str| {
        timeline.iter().position(|it| it.starts_with(event)).unwrap_or_else(|| panic!("no {event}: {timeline:?}"))
    };
    assert!(position("response 2") < position("freeze"));
    assert!(position("thaw") < position("invoke 3"));
}

#[test]
fn the_record_can_go_to_a_file_with_the_output_in_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("record.json");
    let output =
        run(&["--capture", "--shutdown", "failure", "--json", file.to_str().expect("UTF-8")], &["sim_graceful"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let record: Value = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("a record");
    assert_eq!(record["shutdown"]["reason"], "failure");
    assert_eq!(record["output"][0]["line"], "goodbye");
    assert_eq!(record["output"][0]["stream"], "stdout");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("goodbye"), "captured");
}

#[test]
fn an_event_can_come_from_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("event.json");
    std::fs::write(&file, r#"{"from":"file"}"#).expect("written");
    let output = run(&["--json", "-", "--invoke", &format!("@{}", file.display())], &["sim_graceful"]);
    assert_eq!(record(&output)["invocations"][0]["payload"]["from"], "file");
}

#[test]
fn an_external_extension_is_a_command_with_arguments() {
    let external = format!("{} stay", example("sim_external_extension").display());
    let output =
        run(&["--json", "-", "--budget", "5s", "--external-extension", &external, "--env", "A=1"], &["sim_graceful"]);
    let record = record(&output);
    assert_eq!(record["extensions"][0]["kind"], "external");
    assert_eq!(record["extensions"][0]["signal"], 9, "its argument makes it stay");
    assert_eq!(output.status.code(), Some(0), "the function ended by itself: {}", stderr(&output));
}

#[test]
fn an_invocation_that_times_out_ends_the_run() {
    let output = run(
        &["--json", "-", "--timeout", "100ms", "--times", "3", "--invoke", r#"{"sleep_ms":50000}"#],
        &["sim_graceful"],
    );
    assert_eq!(output.status.code(), Some(1));
    let record = record(&output);
    assert_eq!(record["invocations"].as_array().map(Vec::len), Some(1), "the others are not tried");
    assert_eq!(record["invocations"][0]["error"]["error_type"], "Sandbox.Timedout");
    assert_eq!(record["shutdown"]["reason"], "timeout");
}

#[test]
fn a_crash_ends_the_run() {
    let output = run(&["--json", "-", "--times", "3", "--invoke", r#"{"exit":0}"#], &["sim_graceful"]);
    assert_eq!(output.status.code(), Some(1), "an exit code of 0 outside of shutdown is a crash");
    let record = record(&output);
    assert_eq!(record["shutdown"]["reason"], "failure");
    assert_eq!(record["shutdown"]["sigterm_sent"], false);
    assert_eq!(record["function"]["exit_code"], 0);
}

/// Bad input: one line that says what to do, and nothing was started.
fn assert_refused(output: &Output, what: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(what), "{text}");
    assert!(output.stdout.is_empty());
}

#[test]
fn an_event_that_is_not_json_is_refused_before_anything_is_started() {
    assert_refused(&run(&["--invoke", "{name: Ada}"], &["sim_graceful"]), "--invoke: '{name: Ada}' is not JSON");
    assert_refused(&run(&["--invoke", "@/no/such/event"], &["sim_graceful"]), "check the path after @");
    assert_refused(&run(&["--env", "NAME"], &["sim_graceful"]), "write KEY=VALUE");
    assert_refused(
        &run(&["--json", "/no/such/directory/record"], &["sim_graceful"]),
        "check that its directory exists",
    );
}

#[test]
fn a_bootstrap_that_does_not_exist_is_one_line_that_says_so() {
    let output = Command::new(COMMAND).args(["run", "--", "./no-such-bootstrap"]).output().expect("the command runs");
    assert_refused(&output, "cannot start ./no-such-bootstrap: no such file");
}

#[test]
fn a_bootstrap_that_may_not_be_executed_is_one_line_that_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("bootstrap");
    std::fs::write(&file, "#!/bin/sh\n").expect("written");
    let output = Command::new(COMMAND).args(["run", "--"]).arg(&file).output().expect("the command runs");
    assert_refused(&output, "make it executable (chmod +x)");
}

#[test]
fn a_function_that_never_asks_for_an_event_ends_with_a_line_that_says_so() {
    let output = run(&["--json", "-", "--init-timeout", "200ms"], &["sim_misbehave", "never-next"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    let last = text.lines().last().expect("a line");
    assert!(last.contains("waited for the function to GET /2018-06-01/runtime/invocation/next"), "{text}");
    assert_eq!(record(&output)["function"]["signal"], 9);
}

/// Starts the command on a function, waits until a line of progress says `ready`, then sends SIGINT.
fn interrupt_when(ready: &str, options: &[&str], function: &[&str], times: usize) -> (Option<i32>, Value) {
    let options = [&["--json", "-"], options].concat();
    let mut child =
        command(&options, function).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command runs");
    let pid = Pid::from_child(&child);
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(ready)), "the command never said '{ready}'");
    for time in 1..=times {
        kill_process(pid, Signal::INT).expect("the command still runs");
        if time < times {
            assert!(lines.any(|line| line.contains("interrupted, shutting down")), "the first one is answered");
        }
    }
    lines.for_each(drop);
    let output = child.wait_with_output().expect("the command ends");
    (output.status.code(), record(&output))
}

#[test]
fn ctrl_c_shuts_the_function_down_properly() {
    let (status, record) = interrupt_when("init done", &["--invoke", r#"{"sleep_ms":50000}"#], &["sim_graceful"], 1);
    assert_eq!(status, Some(130));
    assert_eq!(record["shutdown"]["sigterm_sent"], true);
    assert_eq!(record["function"]["exit_code"], 0);
}

#[test]
fn ctrl_c_during_init_leaves_nothing_running() {
    let (status, record) = interrupt_when("waiting for init", &[], &["sim_misbehave", "never-next"], 1);
    assert_eq!(status, Some(130));
    assert_eq!(record["function"]["signal"], 9);
}

#[test]
fn a_second_ctrl_c_kills() {
    let options = ["--times", "2", "--interval", "60s"];
    let (status, record) = interrupt_when("invocation 1 of 2", &options, &["sim_misbehave", "ignore-sigterm"], 2);
    assert_eq!(status, Some(130));
    assert_eq!(record["shutdown"]["overran"], false, "its budget was not over");
    assert_eq!(record["function"]["killed"], true);
    assert!(record["shutdown"]["took_ms"].as_f64().is_some_and(|ms| ms < 30_000.0), "{record}");
}

#[test]
fn what_the_function_left_in_its_group_is_gone_when_the_command_is() {
    let output = run(&["--json", "-", "--capture"], &["sim_misbehave", "leave-child"]);
    let record = record(&output);
    let line = record["output"][0]["line"].as_str().expect("it says which child");
    let child = line.strip_prefix("child ").and_then(|pid| pid.parse().ok()).expect("a process id");
    assert_process_gone(child);
}

#[test]
fn managed_instances_are_given_several_invocations_at_once() {
    let options = ["--json", "-", "--max-concurrency", "4", "--times", "8", "--invoke", r#"{"together":4}"#];
    let output = run(&options, &["sim_misbehave", "concurrent"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("8 invocations, 0 failed"), "{}", stderr(&output));
    let record = record(&output);
    let at = |event: &str| {
        let timeline = record["timeline"].as_array().expect("a list");
        let entry = timeline.iter().find(|it| it["event"].as_str().is_some_and(|it| it.starts_with(event)));
        entry.and_then(|it| it["at_ms"].as_f64()).unwrap_or_else(|| panic!("no {event} in {timeline:?}"))
    };
    assert!(at("invoke 4 ") < at("response "), "four at once: {record}");
    assert!(at("invoke 5 ") > at("response "), "and not five: {record}");
}

#[test]
fn a_snapshot_is_restored_before_the_first_invocation() {
    let output = run(&["--json", "-", "--snap-start"], &["sim_misbehave", "snap"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let record = record(&output);
    let events: Vec<_> =
        record["timeline"].as_array().expect("a list").iter().filter_map(|it| it["event"].as_str()).collect();
    let position = |event: &str| events.iter().position(|it| it.starts_with(event)).expect("it happened");
    assert!(position("snapshot") < position("restored") && position("restored") < position("invoke 1"), "{events:?}");
}

#[test]
fn managed_instances_cannot_be_frozen() {
    let output = run(&["--max-concurrency", "2", "--freeze", "1s"], &["sim_echo"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--freeze"), "{}", stderr(&output));
}

#[test]
fn with_reinit_a_crash_does_not_end_the_run() {
    let options = ["--json", "-", "--reinit", "--invoke", r#"{"exit":4}"#, "--invoke", "{}"];
    let output = run(&options, &["sim_graceful"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let record = record(&output);
    assert_eq!(record["resets"][0]["function"]["exit_code"], 4);
    assert_eq!(record["invocations"][1]["ok"], true);
}

/// The command with a function that leaves a daemon behind, which is this clock; and what it says after this line.
#[cfg(target_os = "linux")]
fn leaving_a_clock(clock: &Clock, options: &[&str], line: &str) -> (Child, impl Iterator<Item = String>) {
    let file = clock.file().to_str().expect("a path");
    let mut child = command(options, &["sim_misbehave", "leave-clock", file])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    assert!(lines.any(|said| said.contains(line)), "the command never said so");
    (child, lines)
}

#[test]
#[cfg(target_os = "linux")]
fn a_daemon_that_has_kept_nothing_is_frozen_killed_and_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Clock::new(directory.path(), "clock");
    let options = ["--json", "-", "--times", "2", "--freeze", "1s", "--interval", "600s"];
    let (child, lines) = leaving_a_clock(&clock, &options, "thawed");
    clock.assert_goes();
    let times = clock.times();
    let pause = times.windows(2).map(|two| two[1].saturating_sub(two[0])).max();
    assert!(pause >= Some(900), "it was not frozen: at most {pause:?} ms between {} lines", times.len());

    kill_process(Pid::from_child(&child), Signal::INT).expect("the command still runs");
    lines.for_each(drop);
    let output = child.wait_with_output().expect("the command ends");
    let pid = clock.pid();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "it is gone, and reaped, before the command is");
    assert_eq!(record(&output)["shutdown"]["strays"], 1);
}

#[test]
#[cfg(target_os = "linux")]
fn a_daemon_that_ends_is_reaped_while_the_function_lives() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Clock::new(directory.path(), "clock");
    let options = ["--json", "-", "--times", "2", "--interval", "600s"];
    let (child, lines) = leaving_a_clock(&clock, &options, "invocation 1 of 2");
    let pid = clock.pid();
    let daemon = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(daemon, Signal::KILL).expect("it runs");
    let is_gone = || !std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert_soon(is_gone, &format!("process {pid} is not reaped"));
    kill_process(Pid::from_child(&child), Signal::INT).expect("the command still runs");
    lines.for_each(drop);
    let output = child.wait_with_output().expect("the command ends");
    assert_eq!(record(&output)["shutdown"]["strays"], 0, "it had ended before");
}

/// The shell has a child, and becomes the command.
#[test]
#[cfg(target_os = "linux")]
fn what_was_there_before_the_command_is_neither_frozen_nor_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let stranger = Clock::new(directory.path(), "stranger");
    let script = "\"$0\" clock \"$1\" < /dev/null > /dev/null 2>&1 & shift; exec \"$@\"";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(example("sim_misbehave"))
        .arg(stranger.file())
        .arg(COMMAND)
        .args([
            "run",
            "--json",
            "-",
            "--times",
            "2",
            "--freeze",
            "1s",
            "--timeout",
            "60s",
            "--init-timeout",
            "60s",
            "--",
        ])
        .arg(example("sim_graceful"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("frozen for")), "the command never said so");
    assert_ne!(state(stranger.pid()), Some('T'), "it is frozen");
    lines.for_each(drop);
    let output = child.wait_with_output().expect("the command ends");
    assert_eq!(record(&output)["shutdown"]["strays"], 0);
    stranger.assert_goes();
    let pid = i32::try_from(stranger.pid()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, Signal::KILL).expect("it runs");
}
