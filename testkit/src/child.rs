//! Programs as child processes, ended by real signals. A test binary that has programs of its own starts itself again as one
//! of them: its `main` asks for its [`role`] first.
//!
//! What cannot be had here ends the test: all of this panics.
#![expect(clippy::missing_panics_doc, reason = "said above")]

use std::{
    env,
    ffi::OsStr,
    future::Future,
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{ChildStderr, Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Builder;
use winddown_core::{BoxError, Error, Lifecycle, Report};

/// Set for a child: which program it is.
pub const ROLE: &str = "WINDDOWN_TEST_PROGRAM";

/// A child that has not ended by then never will, on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(180);

/// Which program this process is, if it is a child.
#[must_use]
pub fn role() -> Option<String> {
    env::var(ROLE).ok()
}

/// Runs a program on the runtime that this builds, to its end: its error is printed, and is the exit code of a failure.
pub fn run<F: Future<Output = Result<(), BoxError>>>(runtime: &mut Builder, program: F) -> ExitCode {
    let runtime = runtime.enable_all().build().map_err(BoxError::from);
    match runtime.and_then(|runtime| runtime.block_on(program)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Works until it is told to stop, and drains.
///
/// # Errors
/// As [`Lifecycle::run`]: also that the report is not clean, which is for whoever reads it to judge.
pub async fn until_stopped(lifecycle: &Lifecycle) -> Result<(), Error> {
    let draining = lifecycle.draining();
    let work = async {
        draining.await;
        Ok::<_, Error>(())
    };
    lifecycle.run(work).await.map(drop)
}

/// Tells the parent that the program has come to the point of its case.
pub fn ready() {
    println!("ready");
}

/// A child that runs. It does not outlive its case, however that ends.
#[derive(Debug)]
#[must_use = "dropped it is killed"]
pub struct Child {
    child: std::process::Child,
    /// Dropped when the child has ended; until then somebody watches that it does.
    over: Option<mpsc::Sender<()>>,
    stdout: BufReader<std::process::ChildStdout>,
    stderr: Option<ChildStderr>,
    signalled: Option<Instant>,
}

/// How a child ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Ended {
    /// Its exit code, if it was not killed.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// From the first signal to the end of the process.
    pub took: Duration,
    /// The report, from its standard error.
    pub report: Option<Report>,
    /// Its standard error.
    pub stderr: String,
    /// What was not read of its standard output.
    pub stdout: String,
}

impl Child {
    /// Starts this binary again as the program of this name, with this budget.
    pub fn start(program: &str, budget: Duration) -> Self {
        Self::start_with(program, &[("WINDDOWN_BUDGET_MS", budget.as_millis().to_string())])
    }

    /// Starts this binary again as the program of this name, with these variables in its environment.
    pub fn start_with<V: AsRef<OsStr>>(program: &str, variables: &[(&str, V)]) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env(ROLE, program);
        Self::spawn(command, variables, Stdio::null())
    }

    /// The same with a standard input in which there is nothing, and that does not end before the child does.
    pub fn start_with_input(program: &str, budget: Duration) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env(ROLE, program);
        Self::spawn(command, &[("WINDDOWN_BUDGET_MS", budget.as_millis().to_string())], Stdio::piped())
    }

    /// An example of this package instead.
    pub fn example<V: AsRef<OsStr>>(name: &str, variables: &[(&str, V)]) -> Self {
        Self::spawn(example(name), variables, Stdio::null())
    }

    fn spawn<V: AsRef<OsStr>>(mut command: Command, variables: &[(&str, V)], stdin: Stdio) -> Self {
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = child.stderr.take();
        let (over, watch) = mpsc::channel();
        let pid = Pid::from_child(&child);
        thread::spawn(move || {
            // So that a case with a child that hangs fails, and does not hang too.
            if watch.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                // It may have ended at this very moment.
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Self { child, over: Some(over), stdout, stderr, signalled: None }
    }

    /// Waits for the program's `ready`.
    pub fn ready(mut self) -> Self {
        let line = self.line();
        if line != "ready\n" {
            let mut stderr = String::new();
            self.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("said {line:?} and not ready; on standard error:\n{stderr}");
        }
        self
    }

    /// Sends it a signal.
    pub fn signal(mut self, signal: Signal) -> Self {
        let pid = Pid::from_child(&self.child);
        self.signalled.get_or_insert_with(Instant::now);
        kill_process(pid, signal).unwrap();
        self
    }

    /// Sends it SIGTERM.
    pub fn terminate(self) -> Self {
        self.signal(Signal::TERM)
    }

    /// The next line of its standard output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Leaves standard error unread from here on, with its pipe open.
    pub fn deaf(mut self) -> (Self, ChildStderr) {
        let stderr = self.stderr.take().unwrap();
        (self, stderr)
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        let reader = self.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut text = String::new();
                stderr.read_to_string(&mut text).unwrap();
                text
            })
        });
        let mut stdout = String::new();
        self.stdout.read_to_string(&mut stdout).unwrap();
        let status = self.child.wait().unwrap();
        let took = self.signalled.map(|signalled| signalled.elapsed()).unwrap_or_default();
        self.over = None;
        let stderr = reader.map(|reader| reader.join().unwrap()).unwrap_or_default();
        let report = stderr.lines().find_map(report);
        Ended { code: status.code(), signal: status.signal(), took, report, stderr, stdout }
    }
}

/// An example of this package, as `cargo test` has built it.
#[must_use]
pub fn example(name: &str) -> Command {
    let path = env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --examples --all-features` first", path.display());
    Command::new(path)
}

/// The report, if the line is one.
#[must_use]
pub fn report(line: &str) -> Option<Report> {
    serde_json::from_str(line).ok()
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.over.is_some() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

impl Ended {
    /// The report; the case fails without one.
    #[must_use]
    pub fn report(&self) -> &Report {
        self.report.as_ref().unwrap_or_else(|| panic!("no report; on standard error:\n{}", self.stderr))
    }
}
