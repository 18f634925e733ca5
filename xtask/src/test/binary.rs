//! A test binary: what cargo knows of it, which tests it has, and the job that runs it.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
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
const WAITING: usize = 5;

/// What a long test may take at full size, with all others of its binary.
const SOAK_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// When a binary's tests run, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    class: Class,
    at_once: usize,
    limit: Duration,
}

impl Pace {
    /// One long test after the other: they print figures.
    pub(crate) const SOAK: Self = Self { class: Class::Alone, at_once: 1, limit: SOAK_LIMIT };

    /// Everyday's.
    pub(crate) fn of(kind: Kind) -> Self {
        let class = kind.class();
        let at_once = match class {
            Class::Waits => WAITING,
            Class::Works | Class::Locks(_) | Class::Alone => thread::available_parallelism().map_or(1, usize::from),
        };
        Self { class, at_once, limit: LIMIT }
    }
}

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
    pub(crate) fn job<'a>(self, pace: Pace, filter: Option<&str>, env: &[(&'static str, OsString)]) -> Job<'a> {
        let Pace { class, at_once, limit } = pace;
        let mut command = self.command();
        command.envs(env.iter().map(|(name, value)| (name, value)));
        if self.is_bench {
            return Job::command(format!("bench {}", self.name), class, command);
        }
        let tests = match self.tests {
            Ok(tests) => tests,
            Err(why) => return Job::new(self.name, class, move |_| Done::failed(why)),
        };
        command.args(filter).arg(format!("--test-threads={at_once}"));
        let name = self.name.clone();
        Job::new(self.name, class, move |progress| match progress.run(&mut command, limit) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{counts::Counts, process};

    const ENDED: &str = "echo 'test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out'";

    fn judge(script: &str, unended: &[&str]) -> Done {
        let mut command = Command::new("sh");
        let ran = process::collect(command.args(["-c", script]), LIMIT, process::GRACE, |_| {}).unwrap();
        let unended = unended.iter().map(|name| (*name).to_owned()).collect();
        judged("job", &ran, &command, Times { unended, ..Times::default() })
    }

    #[test]
    fn a_job_s_tests_are_counted_over_all_its_binaries() {
        let done = judge(&format!("{ENDED}; {ENDED}"), &[]);
        assert_eq!(done.seen.unwrap().counts, Counts { passed: 4, failed: 0, ignored: 2 });
        assert_eq!(done.outcome, Outcome::Passed);
    }

    #[test]
    fn what_is_said_aside_is_not_counted() {
        let done = judge(&format!("{ENDED}; {ENDED} >&2"), &[]);
        assert_eq!(done.seen.unwrap().counts.passed, 2);
    }

    #[test]
    fn a_job_that_ran_no_test_fails() {
        let nothing = ENDED.replace("2 passed", "0 passed").replace("1 ignored", "0 ignored");
        assert_eq!(judge(&nothing, &[]).outcome, Outcome::Failed(RAN_NO_TEST.into()));
    }

    #[test]
    fn one_whose_tests_are_all_ignored_says_so() {
        let ignored = ENDED.replace("2 passed", "0 passed");
        assert_eq!(judge(&ignored, &[]).outcome, Outcome::Skipped("all its tests are ignored".into()));
    }

    #[test]
    fn a_job_with_a_bad_status_fails_whatever_its_tests_said() {
        assert_eq!(judge(&format!("{ENDED}; exit 3"), &[]).outcome, Outcome::Failed("exit status: 3".into()));
    }

    #[test]
    fn tests_that_a_crash_has_cut_short_are_named() {
        let done = judge("echo about to crash >&2; exit 134", &["a::one", "b"]);
        let [Failure { name, message }] = &done.failures[..] else { panic!("{:?}", done.failures) };
        assert_eq!(name, "job");
        assert!(message.starts_with("exit status: 134; these tests had begun: a::one, b\n"), "{message}");
        assert!(message.ends_with("about to crash"), "{message}");
    }

    #[test]
    fn binaries_that_wait_have_many_tests_at_once() {
        assert_eq!(Pace::of(Kind::default()).class, Class::Works);
        assert!(Pace::of(Kind::default()).at_once >= 1);
        let waits = Kind { mostly_waits: true, ..Kind::default() };
        assert_eq!(Pace::of(waits), Pace { class: Class::Waits, at_once: WAITING, limit: LIMIT });
    }
}
