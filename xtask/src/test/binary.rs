//! A test binary: what cargo knows of it, which tests it has, and the job that runs it.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use cargo_metadata::{Artifact, TargetKind};

use super::times::{self, Times};
use crate::{
    counts::Seen,
    failures::{self, Failure},
    jobs::{Done, Job, LIMIT},
    process::{Ran, Source},
    schedule::Class,
    summary::Outcome,
    workspace::{Kind, Member},
};

/// Why a step failed whose tests were none.
const RAN_NO_TEST: &str = "ran no test";

/// How many tests of a binary run at once that mostly waits.
const WAITING: usize = 16;

/// A program with tests, or a bench.
#[derive(Clone, Debug)]
pub(crate) struct Binary {
    /// `PACKAGE/TARGET`, without what all packages' names begin with.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    path: PathBuf,
    /// Its package's.
    folder: PathBuf,
    is_bench: bool,
    /// Those that the filter leaves, in its order; an error says why it could not be asked.
    pub(crate) tests: Result<Vec<String>, String>,
}

impl Binary {
    /// As cargo built it.
    pub(crate) fn new(artifact: &Artifact, path: PathBuf, member: &Member) -> Self {
        let folder = artifact.manifest_path.parent().map(|folder| folder.as_std_path().to_owned()).unwrap_or_default();
        let is_lib = artifact.target.kind.contains(&TargetKind::Lib);
        let target = if is_lib { "lib" } else { artifact.target.name.as_str() };
        Self {
            name: format!("{}/{target}", member.name),
            kind: member.kind(&artifact.target.name),
            path,
            folder,
            is_bench: artifact.target.kind.contains(&TargetKind::Bench),
            tests: Ok(Vec::new()),
        }
    }

    /// Whether it is run once, without counting.
    pub(crate) fn is_bench(&self) -> bool {
        self.is_bench
    }

    /// Asks it for the tests that this filter leaves. Benches have none.
    pub(crate) fn list(&mut self, filter: Option<&str>) {
        if self.is_bench {
            return;
        }
        let mut command = self.command();
        command.args(filter).args(["--list", "--format", "terse"]).stdin(Stdio::null());
        self.tests = match command.output() {
            Err(error) => Err(format!("cannot be started: {error}")),
            Ok(output) if !output.status.success() => Err(format!("cannot list its tests: {}", output.status)),
            Ok(output) => Ok(times::listed(&String::from_utf8_lossy(&output.stdout))),
        };
    }

    /// What runs it, in this environment.
    pub(crate) fn job<'a>(self, filter: Option<&str>, env: &[(&'static str, OsString)]) -> Job<'a> {
        let class = self.kind.class();
        let mut command = self.command();
        command.envs(env.iter().map(|(name, value)| (name, value)));
        if self.is_bench {
            return Job::command(format!("bench {}", self.name), class, command);
        }
        let tests = match self.tests {
            Ok(tests) => tests,
            Err(why) => return Job::new(self.name, Class::Waits, move |_| Done::failed(why)),
        };
        let at_once = match class {
            Class::Waits => WAITING,
            _ => thread::available_parallelism().map_or(1, usize::from),
        };
        command.args(filter).arg(format!("--test-threads={at_once}"));
        let name = self.name.clone();
        Job::new(self.name, class, move |progress| match progress.run(&mut command, LIMIT) {
            Err(why) => Done::failed(format!("{why:#}")),
            Ok(ran) => {
                let lines = ran.of(Source::Out).map(|line| (line.at, line.text.as_str()));
                let times = times::read(&tests, at_once, lines);
                judged(&name, &ran, &command, times)
            }
        })
    }

    /// As cargo would start it.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}

/// A job of a command that has tests. One that a filter leaves without tests has not failed, unless all jobs are so.
pub(crate) fn counted<'a>(name: &'static str, class: Class, mut command: Command, filter: Option<&str>) -> Job<'a> {
    let is_filtered = filter.is_some();
    Job::new(name, class, move |progress| match progress.run(&mut command, LIMIT) {
        Err(why) => Done::failed(format!("{why:#}")),
        Ok(ran) => {
            let mut done = judged(name, &ran, &command, Times::default());
            if is_filtered && done.outcome == Outcome::Failed(RAN_NO_TEST.to_owned()) {
                done.outcome = Outcome::Skipped("no test's name contains the filter".to_owned());
            }
            done
        }
    })
}

/// What came of tests.
fn judged(name: &str, ran: &Ran, command: &Command, times: Times) -> Done {
    let out = || ran.of(Source::Out).map(|line| line.text.as_str());
    let seen = Seen::read(out());
    let done = Done::of(ran, command);
    let mut failures = failures::read(out());
    let outcome = match done.outcome {
        Outcome::Passed if seen.counts.ran() > 0 => Outcome::Passed,
        Outcome::Passed if seen.counts.ignored > 0 => Outcome::Skipped("all its tests are ignored".to_owned()),
        Outcome::Passed => Outcome::Failed(RAN_NO_TEST.to_owned()),
        other => other,
    };
    // those that had begun when it ended without a word about them
    if let Outcome::Failed(why) = &outcome
        && !times.unended.is_empty()
    {
        let why = format!("{why}; these tests had begun: {}", times.unended.join(", "));
        failures.push(Failure::of_job(name, &why, &done.output));
    }
    let Times { took, unended: _ } = times;
    Done { outcome, seen: Some(seen), failures, times: took, output: done.output }
}
