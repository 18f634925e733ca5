//! How many tests ran, read from what libtest and the conformance suite print.

use std::{fmt, ops::AddAssign};

/// Tests of one binary, one step or one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Counts {
    /// Reads one line of output; `None` for every line that is not a binary's closing line.
    ///
    /// Cargo has no stable machine-readable form of this, and the line has kept its shape for years.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (_verdict, counts) = line.trim_end().strip_prefix("test result: ")?.split_once(". ")?;
        let mut fields = counts.split("; ");
        let mut field = |name| fields.next()?.strip_suffix(name)?.trim_end().parse().ok();
        Some(Self { passed: field("passed")?, failed: field("failed")?, ignored: field("ignored")? })
    }

    /// Tests that ran, whatever came of it.
    pub(crate) fn ran(&self) -> u64 {
        self.passed + self.failed
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, ignored } = self;
        write!(f, "{passed} passed, {failed} failed, {ignored} skipped")
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self { passed, failed, ignored } = other;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
    }
}

/// What the conformance suite says of one backend when its cases are over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Harness {
    pub(crate) name: String,
    pub(crate) counts: Counts,
    /// How many cases do not apply, and why.
    pub(crate) does_not_apply: String,
}

impl Harness {
    /// Reads `conformance: NAME: 31 passed, 0 failed, 0 skipped; 2 do not apply: why`, which `testkit/src/suite.rs`
    /// prints.
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.trim_end().strip_prefix("conformance: ")?.split_once(": ")?;
        let (counts, others) = rest.split_once("; ")?;
        let mut fields = counts.split(", ");
        let mut field = |name| fields.next()?.strip_suffix(name)?.trim_end().parse().ok();
        let counts = Counts { passed: field("passed")?, failed: field("failed")?, ignored: field("skipped")? };
        Some(Self { name: name.to_owned(), counts, does_not_apply: others.replacen(" do not apply", "", 1) })
    }
}

/// What a job's tests have said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Of all binaries.
    pub(crate) counts: Counts,
    pub(crate) harnesses: Vec<Harness>,
}

impl Seen {
    /// Adds up the closing lines among these.
    pub(crate) fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut seen = Self::default();
        for line in lines {
            if let Some(counts) = Counts::parse(line) {
                seen.counts += counts;
            } else if let Some(harness) = Harness::parse(line) {
                seen.harnesses.push(harness);
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str =
        "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 7 filtered out; finished in 1.25s";
    const FAILED: &str =
        "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";

    #[test]
    fn a_binary_s_closing_line_is_counted_whatever_its_verdict() {
        assert_eq!(Counts::parse(PASSED), Some(Counts { passed: 12, failed: 0, ignored: 3 }));
        assert_eq!(Counts::parse(FAILED), Some(Counts { passed: 4, failed: 2, ignored: 0 }));
    }

    #[test]
    fn other_lines_are_not_counted() {
        for line in [
            "",
            "running 3 tests",
            "test counts::tests::x ... ok",
            "12 passed, 0 failed",
            "test result: ok",
            "test result: ok. many passed; 0 failed; 0 ignored",
            "test result: ok. 1 passed; 0 failed",
            "note: test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            assert_eq!(Counts::parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_counts_of_all_binaries_are_added() {
        let lines = ["running 15 tests\n", PASSED, "\u{fffd} not text\n", FAILED];
        assert_eq!(Seen::read(lines).counts, Counts { passed: 16, failed: 2, ignored: 3 });
    }

    #[test]
    fn what_the_conformance_suite_says_of_each_backend_is_kept() {
        let lines = "conformance: postgres_17: 40 passed, 1 failed, 0 skipped; 0 do not apply\n\
                     conformance: sqlite: 24 passed, 0 failed, 3 skipped; 2 do not apply: kill (no server), slow (a; b: c)\n\
                     conformance: half: 24 passed\n";
        let seen = Seen::read(lines.lines());
        let harness = |name: &str, passed, failed, ignored, why: &str| Harness {
            name: name.into(),
            counts: Counts { passed, failed, ignored },
            does_not_apply: why.into(),
        };
        let expected =
            [harness("postgres_17", 40, 1, 0, "0"), harness("sqlite", 24, 0, 3, "2: kill (no server), slow (a; b: c)")];
        assert_eq!(seen.harnesses, expected);
        assert_eq!(seen.counts, Counts::default(), "libtest's own line counts them");
    }
}
