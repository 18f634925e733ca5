//! The jobs of a run, side by side as the schedule says: each says when it starts, and all that it printed when it ends.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{self, AssertUnwindSafe},
    process::Command,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    counts::Seen,
    failures::Failure,
    process::{self, Ran},
    run,
    schedule::{Class, Schedule},
    summary::{Outcome, Row},
};

/// What a job may take. One that takes longer hangs: a machine that is half as fast as most needs twenty minutes for a build.
pub(crate) const LIMIT: Duration = Duration::from_secs(40 * 60);

/// How long nothing is printed, at most.
const SILENCE: Duration = Duration::from_secs(30);

/// How much of a job's last line is shown while it runs.
const LINE: usize = 80;

/// Something to do, and how it uses the machine.
pub(crate) struct Job<'a> {
    name: String,
    class: Class,
    work: Box<dyn FnOnce(&Progress) -> Done + Send + 'a>,
}

/// What came of a job.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    /// Only of those that run tests.
    pub(crate) seen: Option<Seen>,
    pub(crate) failures: Vec<Failure>,
    /// What each test took, as far as it is known.
    pub(crate) times: Vec<(String, Duration)>,
    /// What it has to show.
    pub(crate) output: String,
}

/// Where a job that runs leaves its last line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<Mutex<String>>);

impl<'a> Job<'a> {
    /// A job that is a function.
    pub(crate) fn new(name: impl Into<String>, class: Class, work: impl FnOnce(&Progress) -> Done + Send + 'a) -> Self {
        Self { name: name.into(), class, work: Box::new(work) }
    }

    /// A job that is a command, good if that ends well.
    pub(crate) fn command(name: impl Into<String>, class: Class, mut command: Command) -> Self {
        Self::new(name, class, move |progress| match progress.run(&mut command, LIMIT) {
            Ok(ran) => Done::of(&ran, &command),
            Err(why) => Done::failed(format!("{why:#}")),
        })
    }
}

impl fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("name", &self.name).field("class", &self.class).finish_non_exhaustive()
    }
}

impl Done {
    /// One that has nothing to show.
    pub(crate) fn new(outcome: Outcome) -> Self {
        Self { outcome, seen: None, failures: Vec::new(), times: Vec::new(), output: String::new() }
    }

    /// One that could not be done.
    pub(crate) fn failed(why: String) -> Self {
        Self::new(Outcome::Failed(why))
    }

    /// A command's. What cargo says while all is well is left out.
    pub(crate) fn of(ran: &Ran, command: &Command) -> Self {
        let outcome = ran.end.failure().map_or(Outcome::Passed, Outcome::Failed);
        let lines = ran.lines.iter().map(|line| line.text.as_str()).filter(|line| !is_progress(line));
        let output = format!("{}\n{}", run::shown(command), lines.collect::<String>());
        Self { output, ..Self::new(outcome) }
    }
}

impl Progress {
    /// Runs a command of the job.
    pub(crate) fn run(&self, command: &mut Command, limit: Duration) -> Result<Ran> {
        process::collect(command, limit, process::GRACE, |line| self.say(&line.text))
    }

    fn say(&self, line: &str) {
        let line = line.trim();
        // what begins so is for a program to read
        if !line.is_empty() && !line.starts_with('{') {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = line.chars().take(LINE).collect();
        }
    }

    fn last(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What cargo prints of each crate.
fn is_progress(line: &str) -> bool {
    const WORDS: [&str; 7] =
        ["Blocking", "Checking", "Compiling", "Documenting", "Downloaded", "Downloading", "Updating"];
    let mut words = line.split_whitespace();
    line.starts_with("  ") && words.next().is_some_and(|word| WORDS.contains(&word))
}

/// Runs them all. Rows are in the order in which the jobs ended.
pub(crate) fn run_all(jobs: Vec<Job<'_>>) -> Vec<Row> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut schedule = Schedule::new(jobs.iter().map(|job| job.class), cores);
    let mut jobs: Vec<_> = jobs.into_iter().map(Some).collect();
    let mut running = BTreeMap::new();
    let mut rows = Vec::new();
    let (sender, ended) = mpsc::channel();
    thread::scope(|scope| {
        loop {
            while let Some(number) = schedule.next() {
                let Some(Job { name, class: _, work }) = jobs[number].take() else { continue };
                println!("start    {name}");
                let progress = Progress::default();
                running.insert(number, (name, Instant::now(), progress.clone()));
                let sender = sender.clone();
                scope.spawn(move || {
                    // one that panics is a failure of its own
                    let done = panic::catch_unwind(AssertUnwindSafe(|| work(&progress)));
                    // listened to until all have sent theirs
                    let _ = sender.send((number, done.unwrap_or_else(|_| Done::failed("it panicked".to_owned()))));
                });
            }
            if running.is_empty() {
                return;
            }
            match ended.recv_timeout(SILENCE) {
                Ok((number, done)) => {
                    schedule.ended(number);
                    let (name, start, _) = running.remove(&number).expect("only what runs can end");
                    rows.push(close(name, start.elapsed(), done));
                }
                // all is silent: who is at work?
                Err(_) => running.values().for_each(|(name, start, progress)| {
                    println!("running  {name}, {:.0} s: {}", start.elapsed().as_secs_f64(), progress.last());
                }),
            }
        }
    });
    rows
}

/// Prints what came of a job, and makes it a row.
fn close(name: String, took: Duration, done: Done) -> Row {
    let Done { outcome, seen, mut failures, times, output } = done;
    let (word, why) = match &outcome {
        Outcome::Passed => ("ok      ", String::new()),
        Outcome::Failed(why) => ("FAILED  ", format!(": {why}")),
        Outcome::Skipped(why) => ("skipped ", format!(": {why}")),
    };
    let counts = seen.as_ref().map(|seen| seen.counts);
    let tests = counts.map(|counts| format!(", {counts}")).unwrap_or_default();
    let output = output.trim_matches('\n');
    if !output.is_empty() {
        println!("\n{output}");
    }
    println!("{word} {name}{why}{tests}, {:.1} s", took.as_secs_f64());
    if !output.is_empty() {
        println!();
    }
    if let Outcome::Failed(why) = &outcome
        && failures.is_empty()
    {
        failures.push(Failure::of_job(&name, why, output));
    }
    Row {
        step: name,
        took,
        counts,
        harnesses: seen.map(|seen| seen.harnesses).unwrap_or_default(),
        failures,
        times,
        outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell<'a>(name: &'a str, class: Class, script: &str) -> Job<'a> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Job::command(name, class, command)
    }

    #[test]
    fn jobs_run_side_by_side_and_each_has_a_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        // each waits for the other
        let first = format!("touch {path}/first; until [ -e {path}/second ]; do sleep 0.05; done");
        let second = format!("touch {path}/second; until [ -e {path}/first ]; do sleep 0.05; done; exit 3");
        let rows = run_all(vec![shell("first", Class::Waits, &first), shell("second", Class::Works, &second)]);
        let mut outcomes: Vec<_> = rows.iter().map(|row| (row.step.as_str(), row.outcome.clone())).collect();
        outcomes.sort_by_key(|(step, _)| *step);
        let failed = Outcome::Failed("exit status: 3".to_owned());
        assert_eq!(outcomes, [("first", Outcome::Passed), ("second", failed)]);
    }

    #[test]
    fn a_job_that_panics_fails_alone() {
        let rows = run_all(vec![
            Job::new("bad", Class::Works, |_| panic!("on purpose")),
            Job::new("good", Class::Works, |_| Done::new(Outcome::Passed)),
        ]);
        assert_eq!(rows.iter().filter(|row| row.outcome == Outcome::Passed).count(), 1);
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn what_cargo_prints_of_each_crate_is_left_out() {
        assert!(is_progress("   Compiling winddown v0.1.0\n"));
        assert!(!is_progress("Compiling is what it does\n"));
        assert!(!is_progress("warning: unused\n"));
        assert!(!is_progress("    Finished `dev` profile\n"));
    }

    #[test]
    fn what_is_for_programs_is_not_shown_as_progress() {
        let progress = Progress::default();
        progress.say("   Compiling a v1\n");
        progress.say("{\"reason\":\"x\"}\n");
        progress.say("\n");
        assert_eq!(progress.last(), "Compiling a v1");
    }
}
