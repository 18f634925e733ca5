//! Functions that know nothing of winddown, under the simulator: Node.js with a bootstrap of its own, Python on Lambda's
//! runtime for it, and Rust on `lambda_runtime` alone.
//!
//! Each keeps one connection to a server of the test's, and sends a line through it for what it does: `hello`, `tick` every
//! 20 ms, `query` for each invocation, `bye` on SIGTERM.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use winddown::sim::{Config, ErrorKind, Reason, Record, Sim};
use winddown_testkit::{child::ROLE, scene::until};

use crate::{
    cases::cases,
    lambda::{AMPLE, LATE, play},
};

cases![
    a_function_on_node_says_goodbye_with_an_extension_only,
    a_function_on_awslambdaric_says_goodbye_with_an_extension_only,
    a_function_on_awslambdaric_that_polls_in_native_code_does_not_hear_the_signal,
    a_function_on_lambda_runtime_says_goodbye_in_its_hook,
    a_function_whose_hook_takes_too_long_is_killed,
    a_function_that_fails_to_start_says_so_whatever_its_language,
];

/// Leaves out the cases that need a program which is no part of this workspace.
const SKIP: &str = "WINDDOWN_SKIP_FOREIGN";

/// Why a case is to be left out, where somebody has asked for that.
pub(crate) fn left_out(case: &str) -> Option<String> {
    let foreign = ["_on_node_", "_on_awslambdaric_", "_on_boto3_"].iter().any(|it| case.contains(it))
        || case.ends_with("whatever_its_language");
    (foreign && env::var_os(SKIP).is_some()).then(|| format!("{SKIP} is set"))
}

/// A program: from `cargo xtask test`, or found now.
pub(crate) fn program(variable: &str, task: &str) -> String {
    if let Ok(path) = env::var(variable) {
        return path;
    }
    let output = Command::new(env!("CARGO")).args(["xtask", task]).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "`cargo xtask {task}` failed; set {SKIP} to leave these tests out");
    String::from_utf8(output.stdout).unwrap().trim().into()
}

fn node() -> Config {
    Config::new(program("WINDDOWN_NODE", "node")).arg(functions("bootstrap.mjs"))
}

/// Python as Lambda runs it: which of its two ways to poll the runtime takes depends on the name of the environment.
fn python(version: &str) -> Config {
    Config::new(program("WINDDOWN_PYTHON", "awslambdaric"))
        .args(["-m", "awslambdaric", "function.handler"])
        .env("PYTHONPATH", functions(""))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("AWS_EXECUTION_ENV", format!("AWS_Lambda_{version}"))
}

fn plain() -> Config {
    Config::new(env::current_exe().unwrap()).env(ROLE, "plain")
}

pub(crate) fn functions(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process/functions").join(file)
}

/// The server of one function: the lines it has got.
struct Server {
    address: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
    reader: thread::JoinHandle<()>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let lines = Arc::<Mutex<Vec<_>>>::default();
        let seen = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            let (connection, _) = listener.accept().unwrap();
            // A function that is killed while it sends resets its connection.
            for line in BufReader::new(connection).lines().map_while(Result::ok) {
                seen.lock().unwrap().push(line);
            }
        });
        Self { address, lines, reader }
    }

    fn ticks(&self) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| *line == "tick").count()
    }

    /// Waits until there are more ticks than that: the function runs.
    async fn ticks_on(&self, from: usize) {
        let patience = Instant::now() + AMPLE;
        while self.ticks() <= from {
            assert!(Instant::now() < patience, "the function does not run");
            // What a thread reads from a socket is no event of the test's runtime.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What it got but ticks, when the connection has ended.
    fn end(self) -> Vec<String> {
        self.reader.join().unwrap();
        let lines = std::mem::take(&mut *self.lines.lock().unwrap());
        lines.into_iter().filter(|line| line != "tick").collect()
    }
}

/// Takes a function through its life: init, two invocations, a freeze in which nothing runs, a thaw by the third, shutdown.
fn live(config: Config) -> (Record, Vec<String>) {
    let server = Server::start();
    let config = config.env("SERVER", server.address.to_string()).capture_output().timeout(AMPLE).init_timeout(AMPLE);
    play(async {
        let sim = match Sim::start(config).await {
            Ok(sim) => sim,
            Err(error) => panic!("{error}: {:?}", error.record().map(|record| &record.output)),
        };
        for number in 0..2 {
            let invocation = sim.invoke(json!({ "number": number })).await.unwrap();
            assert!(invocation.ok, "{:?}", invocation.error);
            assert_eq!(invocation.payload, json!({ "number": number }));
        }
        server.ticks_on(server.ticks()).await;
        sim.freeze().await.unwrap();
        // What was sent before the freeze is still read.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let ticks = server.ticks();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(server.ticks(), ticks, "nothing runs in a frozen environment");
        assert!(sim.invoke(json!({})).await.unwrap().ok);
        server.ticks_on(ticks).await;
        // As Lambda does, when the function has asked for its next invocation, and waits for it: Python hears no signal that comes in
        // the moment before it waits.
        sim.freeze().await.unwrap();
        sim.thaw();
        until_it_waits(sim.function_pid().expect("it runs")).await;
        let record = sim.shutdown(Reason::Spindown).await;
        (record, server.end())
    })
}

/// Waits until the first thread of a process waits for something. There is no event for that.
async fn until_it_waits(pid: u32) {
    until("the function waits", || async {
        // proc(5): the state follows the command's name, which is in parentheses.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').is_some_and(|(_, fields)| fields.starts_with(" S"))
    })
    .await;
}

const WORK: [&str; 4] = ["hello", "query", "query", "query"];

/// Gets SIGTERM, says goodbye, and is gone by itself, whatever time it takes for that.
fn says_goodbye(config: Config) {
    let (record, lines) = &live(config.budget(AMPLE));
    assert!(record.ended_by_itself(), "{record}\n{:?}", record.output);
    assert_eq!(record.function.exit_code, Some(0), "{record}");
    assert_eq!(*lines, [WORK.as_slice(), &["bye"]].concat(), "{record}");
}

/// Without an extension there is no signal that it could hear.
fn was_killed_without_notice((record, lines): &(Record, Vec<String>)) {
    assert!(!record.ended_by_itself() && !record.shutdown.sigterm_sent, "{record}");
    assert_eq!((record.function.signal, record.function.killed), (Some(9), true), "{record}");
    assert_eq!(*lines, WORK, "{record}");
}

/// It got SIGTERM, and was killed when the budget was over.
fn overran((record, lines): &(Record, Vec<String>)) {
    assert!(record.shutdown.sigterm_sent && record.shutdown.overran, "{record}");
    assert_eq!((record.function.signal, record.function.killed), (Some(9), true), "{record}");
    assert_eq!(record.shutdown.budget_ms, 500);
    assert!((500.0..500.0 + LATE.as_secs_f64() * 1e3).contains(&record.shutdown.took_ms), "{record}");
    assert_eq!(*lines, WORK, "{record}");
}

fn a_function_on_node_says_goodbye_with_an_extension_only() {
    says_goodbye(node().env("REGISTER", "1"));
    was_killed_without_notice(&live(node()));
}

fn a_function_on_awslambdaric_says_goodbye_with_an_extension_only() {
    says_goodbye(python("python3.12").env("REGISTER", "1"));
    was_killed_without_notice(&live(python("python3.12")));
}

fn a_function_on_awslambdaric_that_polls_in_native_code_does_not_hear_the_signal() {
    // As on Lambda before Python 3.12: the handler would run when the native call returns, which it does not.
    overran(&live(python("python3.11").env("REGISTER", "1")));
}

fn a_function_on_lambda_runtime_says_goodbye_in_its_hook() {
    says_goodbye(plain());
}

fn a_function_whose_hook_takes_too_long_is_killed() {
    overran(&live(plain().env("HOOK_MS", "60000")));
}

fn a_function_that_fails_to_start_says_so_whatever_its_language() {
    for (config, expected) in [(node(), ErrorKind::InitExit), (python("python3.12"), ErrorKind::InitError)] {
        let error = play(Sim::start(config.env("SERVER", "nowhere").capture_output())).unwrap_err();
        assert_eq!(error.kind(), expected, "{error}");
    }
}
