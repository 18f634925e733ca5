//! The steps of a run and the table they end in.

use std::{fmt, time::Duration};

use crate::counts::{Counts, Harness};

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
    pub(crate) outcome: Outcome,
}

impl Row {
    /// A step that could not be run.
    pub(crate) fn failed(step: &str, why: String) -> Self {
        Self {
            step: step.to_owned(),
            took: Duration::ZERO,
            counts: None,
            harnesses: Vec::new(),
            outcome: Outcome::Failed(why),
        }
    }

    /// A step that was left out.
    pub(crate) fn skipped(step: &str, why: String) -> Self {
        Self {
            step: step.to_owned(),
            took: Duration::ZERO,
            counts: None,
            harnesses: Vec::new(),
            outcome: Outcome::Skipped(why),
        }
    }
}

/// All steps of a run, in the order they ran.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    rows: Vec<Row>,
}

impl Summary {
    pub(crate) fn push(&mut self, row: Row) {
        self.rows.push(row);
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
        let width = self.rows.iter().map(|row| row.step.len()).max().unwrap_or(0);
        let tests = self.rows.iter().any(|row| row.counts.is_some());
        let head = if tests { "   passed   failed  ignored" } else { "" };
        writeln!(f, "{:width$}  {:>9}{head}  outcome", "step", "seconds")?;
        for Row { step, took, counts, harnesses: _, outcome } in &self.rows {
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

        let harnesses = || self.rows.iter().flat_map(|row| &row.harnesses);
        let Some(width) = harnesses().map(|harness| harness.name.len()).max() else { return Ok(()) };
        let width = width.max("conformance".len());
        writeln!(f, "\n{:width$}   passed   failed  ignored  do not apply", "conformance")?;
        for Harness { name, counts: Counts { passed, failed, ignored }, does_not_apply } in harnesses() {
            writeln!(f, "{name:width$}{passed:>9}{failed:>9}{ignored:>9}  {does_not_apply}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(counts: Option<Counts>, outcome: Outcome) -> Row {
        Row { step: "step".into(), took: Duration::from_millis(1250), counts, harnesses: Vec::new(), outcome }
    }

    #[test]
    fn one_failed_step_fails_the_run_and_a_skipped_one_does_not() {
        let mut summary = Summary::default();
        summary.push(row(None, Outcome::Passed));
        summary.push(row(None, Outcome::Skipped("asked for".into())));
        assert!(summary.passed());
        summary.push(row(None, Outcome::Failed("exit status: 101".into())));
        assert!(!summary.passed());
    }

    #[test]
    fn a_step_that_failed_before_its_tests_shows_in_the_total() {
        let mut summary = Summary::default();
        summary
            .push(row(Some(Counts { passed: 5, failed: 2, ignored: 1 }), Outcome::Failed("exit status: 101".into())));
        summary.push(row(Some(Counts::default()), Outcome::Failed("did not build".into())));
        assert_eq!(summary.total(), Counts { passed: 5, failed: 3, ignored: 1 });
    }

    #[test]
    fn the_table_has_columns_for_tests_only_where_there_are_tests() {
        let mut summary = Summary::default();
        summary.push(row(None, Outcome::Passed));
        assert_eq!(summary.to_string(), "step    seconds  outcome\nstep        1.2  ok\n");
        summary.push(row(Some(Counts { passed: 5, failed: 0, ignored: 1 }), Outcome::Passed));
        let table = summary.to_string();
        assert!(table.contains("step        1.2        -        -        -  ok\n"), "{table}");
        assert!(table.contains("step        1.2        5        0        1  ok\n"), "{table}");
    }
    #[test]
    fn each_backend_of_the_conformance_suite_has_a_row() {
        let mut summary = Summary::default();
        let counts = Counts { passed: 24, failed: 0, ignored: 1 };
        let harness = Harness { name: "sqlite".into(), counts, does_not_apply: "2: kill (no server)".into() };
        summary.push(Row { harnesses: vec![harness], ..row(Some(counts), Outcome::Passed) });
        let table = summary.to_string();
        assert!(table.contains("\n\nconformance   passed   failed  ignored  do not apply\n"), "{table}");
        assert!(table.ends_with("\nsqlite            24        0        1  2: kill (no server)\n"), "{table}");
    }
}
