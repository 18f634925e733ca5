//! The front door: the Lambda API and plain HTTP, environments that are started, frozen, replaced and ended.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use common::{AMPLE, COMMAND, assert_process_gone, assert_soon, example, state};

/// The command with `sim_front_door` behind it.
struct Door {
    command: Child,
    /// What it has said, as it says it.
    said: BufReader<ChildStderr>,
    /// What the function prints.
    printed: Mutex<BufReader<ChildStdout>>,
    address: String,
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn pid(&self) -> u32 {
        self.json()["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_else(|| panic!("{}", self.body))
    }
}

impl Door {
    fn open(options: &[&str]) -> Self {
        Self::open_for(&[&example("sim_front_door").to_string_lossy()], options)
    }

    fn open_for(function: &[&str], options: &[&str]) -> Self {
        let mut command = Command::new(COMMAND);
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        for limit in ["--budget", "--init-timeout", "--timeout"] {
            if !options.contains(&limit) {
                command.args([limit, "60s"]);
            }
        }
        let mut command = command
            .args(options)
            .arg("--")
            .args(function)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
        let said = BufReader::new(command.stderr.take().expect("piped"));
        let printed = Mutex::new(BufReader::new(command.stdout.take().expect("piped")));
        let mut door = Self { command, said, printed, address: String::new() };
        let line = door.line("listening on http://");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(',').next()).expect("an address");
        door.address = address.to_owned();
        door
    }

    /// Reads on until it says this.
    fn line(&mut self, wanted: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert!(self.said.read_line(&mut line).expect("readable") > 0, "never '{wanted}', but\n{seen}");
            if line.contains(wanted) {
                return line.trim().to_owned();
            }
            seen.push_str(&line);
        }
    }

    /// Waits until the function works on an event that takes time.
    fn begun(&self) {
        let mut line = String::new();
        self.printed.lock().expect("no panic").read_line(&mut line).expect("readable");
        assert_eq!(line, "begun\n");
    }

    fn send(&self, method: &str, target: &str, headers: &str, body: &str) -> Reply {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}",
            self.address
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).expect("it answers");
        let reply = String::from_utf8_lossy(&reply).into_owned();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {reply:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Reply { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    fn invoke(&self, event: &Value) -> Reply {
        self.send("POST", INVOKE, "", &event.to_string())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.command.id()).expect("a process id")).expect("a process id");
        kill_process(pid, signal).expect("it runs");
    }

    /// Ctrl-C. Returns the exit status, and the rest of what it has said.
    fn close(self) -> (Option<i32>, String) {
        self.close_by(Signal::INT)
    }

    fn close_by(mut self, signal: Signal) -> (Option<i32>, String) {
        self.signal(signal);
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).expect("readable");
        (self.command.wait().expect("it ends").code(), rest)
    }
}

/// Ends with its test, however that ends.
impl Drop for Door {
    fn drop(&mut self) {
        // it may have ended, and been waited for
        if self.command.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal(Signal::TERM);
            let _ = self.command.wait();
        }
    }
}

const INVOKE: &str = "/2015-03-31/functions/function/invocations";

#[test]
fn an_invocation_is_answered_with_what_the_function_said() {
    let door = Door::open(&[]);
    let reply = door.invoke(&json!({"z": 1, "a": 1.50}));
    assert_eq!((reply.status, &reply.json()["event"]), (200, &json!({"z": 1, "a": 1.5})));
    assert!(reply.head.contains("x-amz-executed-version: $latest") && reply.head.contains("x-amzn-requestid: "));
    assert!(!reply.head.contains("x-amz-function-error"), "{}", reply.head);

    let failed = door.invoke(&json!({"fail": "no stock"}));
    assert_eq!((failed.status, &failed.json()["errorMessage"]), (200, &json!("no stock")));
    assert!(failed.head.contains("x-amz-function-error: unhandled"), "{}", failed.head);

    let exited = door.invoke(&json!({"exit": 3}));
    assert_eq!(exited.json()["errorType"], "Runtime.ExitError", "Lambda's own words where the function has none");
    assert_eq!(door.invoke(&json!({})).status, 200, "it is started again");

    assert_eq!(door.send("POST", INVOKE, "x-amz-invocation-type: DryRun\r\n", "{}").status, 204);
    let wrong = door.send("POST", INVOKE, "x-amz-invocation-type: Later\r\n", "{}");
    assert!(wrong.status == 400 && wrong.head.contains("invalidparametervalueexception"), "{}", wrong.head);
    let large = door.send("POST", INVOKE, "", &"x".repeat(6 * 1024 * 1024 + 101));
    assert!(large.status == 413 && large.head.contains("requesttoolargeexception"), "{}", large.head);
    let (code, said) = door.close();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 of 1 environments ended by themselves"), "{said}");
}

#[test]
fn an_asynchronous_invocation_is_accepted_and_its_failure_is_said() {
    let mut door = Door::open(&[]);
    let accepted = door.send("POST", INVOKE, "x-amz-invocation-type: Event\r\n", r#"{"fail":"too late"}"#);
    assert_eq!((accepted.status, accepted.body.as_str()), (202, ""));
    assert!(door.line("an asynchronous invocation failed").contains("too late"));
    assert_eq!(door.close().0, Some(0));
}

#[test]
fn a_plain_request_becomes_an_event_and_the_answer_a_response() {
    let door = Door::open(&[]);
    let reply = door.send("PUT", "/orders/1?a=b%20c", "cookie: x=y\r\n", "hello");
    assert_eq!((reply.status, reply.body.as_str()), (202, "PUT|/orders/1|a=b%20c|hello"));
    assert!(reply.head.contains("x-words: 4") && reply.head.contains("set-cookie: a=1"), "{}", reply.head);

    let streamed = door.send("GET", "/stream", "", "");
    assert_eq!(streamed.status, 201);
    assert!(streamed.head.contains("x-streamed: yes") && streamed.head.contains("transfer-encoding: chunked"));
    for piece in 1..=3 {
        assert!(streamed.body.contains(&format!("piece {piece} ")), "{}", streamed.body);
    }
    assert_eq!(door.close().0, Some(0));
}

#[test]
fn as_many_environments_as_allowed_run_at_once_and_the_next_invocation_waits() {
    let door = Door::open(&["--max-environments", "3"]);
    let pids = thread::scope(|scope| {
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| door.invoke(&json!({"ms": 3000})).pid())).collect();
        calls.into_iter().map(|call| call.join().expect("it is answered")).collect::<Vec<_>>()
    });
    let mut different = pids.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 3, "{pids:?}");
    let (code, said) = door.close();
    assert!(code == Some(0) && said.contains("3 of 3 environments ended by themselves"), "{said}");
}

#[test]
fn several_invocations_run_at_once_in_one_environment_where_that_is_wanted() {
    let door = Door::open(&["--max-concurrency", "4"]);
    // the function takes them one by one; what counts is that one environment has them all
    let pids = thread::scope(|scope| {
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| door.invoke(&json!({"ms": 20})).pid())).collect();
        calls.into_iter().map(|call| call.join().expect("it is answered")).collect::<Vec<_>>()
    });
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    assert_eq!(door.close().0, Some(0));
}

#[test]
fn an_environment_that_has_nothing_to_do_is_frozen() {
    let door = Door::open(&[]);
    let pid = door.invoke(&json!({})).pid();
    assert_soon(|| state(pid) == Some('T'), "it is not frozen");
    assert_eq!(door.invoke(&json!({})).pid(), pid, "and thawed");
    assert_eq!(door.close().0, Some(0));
}

#[test]
fn an_environment_that_nobody_needs_for_a_while_is_ended() {
    let mut door = Door::open(&["--idle", "1s"]);
    door.line("environment 1, function: exit code 0");
    let pid = door.invoke(&json!({})).pid();
    door.line("environment 2, function: exit code 0");
    assert_process_gone(pid);
    let (code, said) = door.close();
    assert!(code == Some(0) && said.contains("2 of 2 environments ended by themselves"), "{said}");
}

#[test]
fn sighup_replaces_every_environment_and_loses_nothing() {
    let mut door = Door::open(&[]);
    let first = door.invoke(&json!({})).pid();
    let slow = thread::scope(|scope| {
        let slow = scope.spawn(|| door.invoke(&json!({"ms": 1500})));
        door.begun();
        door.signal(Signal::HUP);
        slow.join().expect("it is answered")
    });
    assert_eq!((slow.status, slow.pid()), (200, first), "what it had begun it has ended");
    door.line("SIGHUP: every environment is replaced");
    door.line("environment 1, function: exit code 0");
    assert_ne!(door.invoke(&json!({})).pid(), first);
    let (code, said) = door.close();
    assert!(code == Some(0) && said.contains("2 of 2 environments ended by themselves"), "{said}");
}

#[test]
fn a_program_that_has_changed_is_what_runs_next() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("bootstrap");
    // written beside it and moved there, as a build does: a program that runs cannot be written to
    let install = || {
        let new = folder.path().join("new");
        std::fs::copy(example("sim_front_door"), &new).expect("a copy");
        std::fs::rename(new, &program).expect("moved");
    };
    install();
    let mut door = Door::open_for(&[&program.to_string_lossy()], &[]);
    let first = door.invoke(&json!({})).pid();
    assert_eq!(door.invoke(&json!({})).pid(), first);
    install();
    assert_ne!(door.invoke(&json!({})).pid(), first);
    door.line("the program has changed");
    door.line("environment 1, function: exit code 0");
    assert_eq!(door.close().0, Some(0));
}

#[test]
fn what_is_under_way_at_ctrl_c_is_answered() {
    let door = Door::open(&[]);
    let pid = door.invoke(&json!({})).pid();
    thread::scope(|scope| {
        let slow = scope.spawn(|| door.invoke(&json!({"ms": 60_000})));
        door.begun();
        // the function exits at SIGTERM at once, and so this is the answer
        door.signal(Signal::INT);
        let answer = slow.join().expect("it is answered");
        assert_eq!((answer.status, &answer.json()["errorType"]), (200, &json!("Runtime.ExitError")));
    });
    assert_process_gone(pid);
}

#[test]
fn a_function_that_does_not_end_by_itself_is_exit_status_1() {
    let ignores = example("sim_misbehave");
    let door = Door::open_for(&[&ignores.to_string_lossy(), "ignore-sigterm"], &["--budget", "100ms"]);
    let (code, said) = door.close_by(Signal::TERM);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("0 of 1 environments ended by themselves"), "{said}");
}

#[test]
fn a_second_ctrl_c_kills_what_does_not_end() {
    let ignores = example("sim_misbehave");
    let mut door = Door::open_for(&[&ignores.to_string_lossy(), "ignore-sigterm"], &[]);
    // whichever thread has started it
    let children = std::fs::read_dir(format!("/proc/{}/task", door.command.id())).expect("its threads").flatten();
    let children = children.map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let pid = children.collect::<String>().trim().parse().expect("one child");
    door.signal(Signal::INT);
    door.line("shutting down");
    assert_eq!(door.close().0, Some(130));
    assert_process_gone(pid);
}

#[test]
fn what_cannot_be_served_is_exit_status_2() {
    for (options, says) in [
        (&["--listen", "127.0.0.1:0", "--max-environments", "0"][..], "0 is not in 1.."),
        (&["--listen", "nowhere:0"], "choose another one with --listen"),
    ] {
        let output = Command::new(COMMAND).arg("serve").args(options).args(["--", "true"]).output().expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(says), "{stderr}");
    }
    let output =
        Command::new(COMMAND).args(["serve", "--listen", "127.0.0.1:0", "--", "./missing"]).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("check the path"), "{stderr}");
}

#[test]
fn pieces_are_passed_on_as_they_come() {
    let door = Door::open(&[]);
    let mut stream = TcpStream::connect(&door.address).expect("it listens");
    let event = r#"{"pieces":100}"#;
    let path = "/2021-11-15/functions/function/response-streaming-invocations";
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{event}",
        event.len()
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let begun = Instant::now();
    let (mut seen, mut first) = (Vec::new(), None);
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).expect("it answers");
        if read == 0 {
            break;
        }
        seen.extend_from_slice(&buffer[..read]);
        if first.is_none() && seen.windows(8).any(|window| window == b"piece 1 ") {
            first = Some(begun.elapsed());
        }
    }
    let text = String::from_utf8_lossy(&seen);
    assert!(text.contains("application/vnd.amazon.eventstream") && text.contains("InvokeComplete"), "{text}");
    assert!(text.contains("piece 100 "), "{text}");
    // all of it takes 2 s
    let (first, last) = (first.expect("the first piece"), begun.elapsed());
    assert!(
        last - first > Duration::from_secs(1) && last < AMPLE,
        "the first after {first:?}, the last after {last:?}"
    );
    assert_eq!(door.close().0, Some(0));
}
