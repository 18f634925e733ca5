//! The steps of a run and the table they end in.

use std::{fmt, time::Duration};

use crate::{
    counts::{Counts, Harness},
    failures::Failure,
};

/// How many of the slowest tests are listed.
const SLOWEST: usize = 10;

/// Steps of tests that are over sooner share a row, when they went well.
const SHORT: Duration = Duration::from_secs(2);

/// What came of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// Why, in one line.
    Failed(String),
    /// Why, in one line.
    Skipped(String),
}

/// One step, done.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) step: String,
    pub(crate) took: Duration,
    /// Only for steps that run tests.
    pub(crate) counts: Option<Counts>,
    /// The backends that its tests ran the conformance suite against.
    pub(crate) harnesses: Vec<Harness>,
    /// Its failed tests; or itself, if it failed without one.
    pub(crate) failures: Vec<Failure>,
    /// What its tests took, as far as that is known.
    pub(crate) times: Vec<(String, Duration)>,
    pub(crate) outcome: Outcome,
}

impl Row {
    /// A step without tests.
    pub(crate) fn new(step: &str, took: Duration, outcome: Outcome) -> Self {
        Self {
            step: step.to_owned(),
            took,
            counts: None,
            harnesses: Vec::new(),
            failures: Vec::new(),
            times: Vec::new(),
            outcome,
        }
    }

    /// A step that could not be run.
    pub(crate) fn failed(step: &str, why: String) -> Self {
        let failures = vec![Failure::of_job(step, &why, "")];
        Self { failures, ..Self::new(step, Duration::ZERO, Outcome::Failed(why)) }
    }

    /// Whether it is one of many that nobody looks for.
    fn is_short(&self) -> bool {
        self.counts.is_some() && self.outcome == Outcome::Passed && self.took < SHORT
    }
}

/// All steps of a run, in the order they ran.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    rows: Vec<Row>,
}

impl Summary {
    pub(crate) fn extend(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.rows.extend(rows);
    }

    /// All that failed, with what it said.
    pub(crate) fn failures(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            for Failure { name, message } in &row.failures {
                let place = if *name == row.step { String::new() } else { format!("{}: ", row.step) };
                text.push_str(&format!("FAILED  {place}{name}\n"));
                for line in message.lines() {
                    text.push_str(&format!("    {line}\n"));
                }
            }
        }
        text
    }

    /// Whether no step failed.
    pub(crate) fn passed(&self) -> bool {
        !self.rows.iter().any(|row| matches!(row.outcome, Outcome::Failed(_)))
    }

    /// All tests of the run.
    ///
    /// A step that failed without a failed test (it did not build, it ran nothing, a binary crashed) counts as one
    /// failure: a run with status 1 must not close on "0 failed".
    pub(crate) fn total(&self) -> Counts {
        let mut total = Counts::default();
        for row in &self.rows {
            let counts = row.counts.unwrap_or_default();
            total += counts;
            if matches!(row.outcome, Outcome::Failed(_)) && counts.failed == 0 {
                total.failed += 1;
            }
        }
        total
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps(f)?;
        self.harnesses(f)?;
        self.slowest(f)
    }
}

impl Summary {
    fn steps(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (short, long): (Vec<_>, Vec<_>) = self.rows.iter().partition(|row| row.is_short());
        let together = together(&short);
        let rows = || long.iter().copied().chain(&together);
        let width = rows().map(|row| row.step.len()).max().unwrap_or(0);
        let tests = rows().any(|row| row.counts.is_some());
        let head = if tests { "   passed   failed  ignored" } else { "" };
        writeln!(f, "{:width$}  {:>9}{head}  outcome", "step", "seconds")?;
        for Row { step, took, counts, outcome, .. } in rows() {
            write!(f, "{step:width$}  {:>9.1}", took.as_secs_f64())?;
            match counts {
                Some(Counts { passed, failed, ignored }) => write!(f, "{passed:>9}{failed:>9}{ignored:>9}")?,
                None if tests => write!(f, "{:>9}{:>9}{:>9}", "-", "-", "-")?,
                None => {}
            }
            match outcome {
                Outcome::Passed => writeln!(f, "  ok")?,
                Outcome::Failed(why) => writeln!(f, "  FAILED: {why}")?,
                Outcome::Skipped(why) => writeln!(f, "  skipped: {why}")?,
            }
        }
        Ok(())
    }

    fn harnesses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // those that a filter left without a case are not worth a line
        let is_one = |harness: &&Harness| harness.counts != Counts::default();
        let harnesses = || self.rows.iter().flat_map(|row| &row.harnesses).filter(is_one);
        let Some(width) = harnesses().map(|harness| harness.name.len()).max() else { return Ok(()) };
        let width = width.max("conformance".len());
        writeln!(f, "\n{:width$}   passed   failed  ignored  do not apply", "conformance")?;
        for Harness { name, counts: Counts { passed, failed, ignored }, does_not_apply } in harnesses() {
            writeln!(f, "{name:width$}{passed:>9}{failed:>9}{ignored:>9}  {does_not_apply}")?;
        }
        Ok(())
    }

    fn slowest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times: Vec<_> = self
            .rows
            .iter()
            .flat_map(|row| row.times.iter().map(|(test, took)| (*took, row.step.as_str(), test.as_str())))
            .collect();
        if times.is_empty() {
            return Ok(());
        }
        times.sort_by(|one, other| other.cmp(one));
        writeln!(f, "\n  seconds  slowest tests")?;
        for (took, step, test) in times.iter().take(SLOWEST) {
            writeln!(f, "{:>9.1}  {step}: {test}", took.as_secs_f64())?;
        }
        Ok(())
    }
}

/// One row for several.
fn together(rows: &[&Row]) -> Option<Row> {
    let mut counts = Counts::default();
    rows.iter().for_each(|row| counts += row.counts.unwrap_or_default());
    let took = rows.iter().map(|row| row.took).sum();
    let step = format!("{} of less than {} s each", rows.len(), SHORT.as_secs());
    (!rows.is_empty()).then(|| Row { counts: Some(counts), ..Row::new(&step, took, Outcome::Passed) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(counts: Option<Counts>, outcome: Outcome) -> Row {
        Row { counts, ..Row::new("step", Duration::from_millis(3250), outcome) }
    }

    #[test]
    fn one_failed_step_fails_the_run_and_a_skipped_one_does_not() {
        let mut summary = Summary::default();
        summary.extend([row(None, Outcome::Passed)]);
        summary.extend([row(None, Outcome::Skipped("asked for".into()))]);
        assert!(summary.passed());
        summary.extend([row(None, Outcome::Failed("exit status: 101".into()))]);
        assert!(!summary.passed());
    }

    #[test]
    fn a_step_that_failed_before_its_tests_shows_in_the_total() {
        let mut summary = Summary::default();
        summary.extend([row(
            Some(Counts { passed: 5, failed: 2, ignored: 1 }),
            Outcome::Failed("exit status: 101".into()),
        )]);
        summary.extend([row(Some(Counts::default()), Outcome::Failed("did not build".into()))]);
        assert_eq!(summary.total(), Counts { passed: 5, failed: 3, ignored: 1 });
    }

    #[test]
    fn the_table_has_columns_for_tests_only_where_there_are_tests() {
        let mut summary = Summary::default();
        summary.extend([row(None, Outcome::Passed)]);
        assert_eq!(summary.to_string(), "step    seconds  outcome\nstep        3.2  ok\n");
        summary.extend([row(Some(Counts { passed: 5, failed: 0, ignored: 1 }), Outcome::Passed)]);
        let table = summary.to_string();
        assert!(table.contains("step        3.2        -        -        -  ok\n"), "{table}");
        assert!(table.contains("step        3.2        5        0        1  ok\n"), "{table}");
    }

    #[test]
    fn each_backend_of_the_conformance_suite_has_a_row() {
        let mut summary = Summary::default();
        let counts = Counts { passed: 24, failed: 0, ignored: 1 };
        let harness = Harness { name: "sqlite".into(), counts, does_not_apply: "2: kill (no server)".into() };
        summary.extend([Row { harnesses: vec![harness], ..row(Some(counts), Outcome::Passed) }]);
        let table = summary.to_string();
        assert!(table.contains("\n\nconformance   passed   failed  ignored  do not apply\n"), "{table}");
        assert!(table.ends_with("\nsqlite            24        0        1  2: kill (no server)\n"), "{table}");
    }

    #[test]
    fn short_steps_of_tests_share_a_row_unless_they_failed() {
        let counts = |passed, failed| Some(Counts { passed, failed, ignored: 1 });
        let short = |counts, outcome| Row { counts, ..Row::new("short", Duration::from_millis(500), outcome) };
        let mut summary = Summary::default();
        summary.extend([
            short(counts(2, 0), Outcome::Passed),
            short(counts(3, 0), Outcome::Passed),
            short(counts(1, 1), Outcome::Failed("exit status: 101".into())),
        ]);
        let table = summary.to_string();
        assert!(table.contains("short                          0.5        1        1        1  FAILED"), "{table}");
        assert!(table.contains("2 of less than 2 s each        1.0        5        0        2  ok"), "{table}");
        assert_eq!(summary.total(), Counts { passed: 6, failed: 1, ignored: 3 });
    }

    #[test]
    fn the_slowest_tests_are_listed_with_their_seconds() {
        let times = (0..20_u64).map(|number| (format!("test_{number}"), Duration::from_secs(number))).collect();
        let mut summary = Summary::default();
        summary.extend([Row { times, ..row(Some(Counts::default()), Outcome::Passed) }]);
        let table = summary.to_string();
        assert!(table.contains("\n  seconds  slowest tests\n     19.0  step: test_19\n     18.0"), "{table}");
        assert!(table.ends_with("     10.0  step: test_10\n"), "{table}");
    }

    #[test]
    fn what_failed_is_shown_once_more_with_its_message() {
        let failure = Failure { name: "a::test".into(), message: "left: 1\nright: 2".into() };
        let mut summary = Summary::default();
        summary.extend([
            Row { failures: vec![failure], ..row(None, Outcome::Failed("exit status: 101".into())) },
            Row::failed("build", "no compiler".into()),
        ]);
        assert_eq!(
            summary.failures(),
            "FAILED  step: a::test\n    left: 1\n    right: 2\nFAILED  build\n    no compiler\n"
        );
    }
}
