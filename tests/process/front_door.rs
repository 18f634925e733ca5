//! The simulator's front door, called by the AWS SDK for Python.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use winddown_testkit::child;

use crate::{
    cases::cases,
    foreign::{functions, program},
};

cases![the_aws_sdk_on_boto3_invokes_four_environments_that_are_replaced_in_between];

/// Ends with its case, however that ends.
struct Simulator(Child);

impl Drop for Simulator {
    fn drop(&mut self) {
        // It may have ended, and been waited for. It ends its environments at this signal, and not at SIGKILL.
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

/// A thousand invocations over four environments, all of which are replaced when half of them are answered: each is answered once.
fn the_aws_sdk_on_boto3_invokes_four_environments_that_are_replaced_in_between() {
    let function = child::example("sim_front_door");
    // the command is beside the folder of the examples
    let simulator = std::path::Path::new(function.get_program()).parent().unwrap().with_file_name("winddown-sim");
    let simulator = Command::new(simulator)
        .args(["serve", "--listen", "127.0.0.1:0", "--max-environments", "4"])
        .args(["--budget", "60s", "--timeout", "60s", "--init-timeout", "60s", "--"])
        .arg(function.get_program())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut simulator = Simulator(simulator);
    let mut said = BufReader::new(simulator.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening on") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it never listens");
    }
    let endpoint = line.split(' ').find(|word| word.starts_with("http://")).unwrap().trim_end_matches(',');

    let mut client = Command::new(program("WINDDOWN_PYTHON", "awslambdaric"))
        .arg(functions("client.py"))
        .arg(endpoint)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = BufReader::new(client.stdout.take().unwrap());
    let mut half = String::new();
    answers.read_line(&mut half).unwrap();
    assert_eq!(half.trim(), "half");
    let signal = |signal| kill_process(Pid::from_child(&simulator.0), signal).unwrap();
    signal(Signal::HUP);
    client.stdin.take().unwrap().write_all(b"on\n").unwrap();
    let mut seen = String::new();
    answers.read_to_string(&mut seen).unwrap();
    assert!(client.wait().unwrap().success(), "{seen}");
    let seen: Value = serde_json::from_str(&seen).unwrap();

    assert_eq!(seen["sync"], json!([null, {"hello": "Ada"}]));
    assert_eq!(seen["failed"], json!(["Unhandled", "no stock"]));
    assert_eq!((&seen["async"], &seen["dry_run"]), (&json!([202, ""]), &json!(204)));
    let streamed = seen["streamed"][0].as_str().unwrap();
    // what comes before it is the status and the headers that `lambda_runtime` writes
    assert!(streamed.ends_with("piece 1 piece 2 piece 3 piece 4 piece 5 "), "{streamed}");
    assert_eq!(seen["streamed"][1], json!({}));
    let many = &seen["many"];
    assert_eq!(
        (&many["errors"], &many["answered"], &many["each_once"]),
        (&json!([]), &json!(1000), &json!(true)),
        "{many}"
    );
    // four, and those that have taken their place; how many of either were needed is the machine's business
    let environments = many["environments"].as_u64().unwrap();
    assert!((2..=8).contains(&environments), "{many}");

    signal(Signal::INT);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(simulator.0.wait().unwrap().success(), "{rest}");
    println!("1000 invocations over {environments} environments; {}", rest.lines().last().unwrap_or_default());
}
