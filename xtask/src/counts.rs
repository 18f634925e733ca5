//! How many tests ran, read from what libtest and the conformance suite print.

use std::ops::AddAssign;

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

/// What a stream of bytes has said so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Of all binaries.
    pub(crate) counts: Counts,
    pub(crate) harnesses: Vec<Harness>,
}

/// Cuts a stream of bytes into lines and adds up the closing lines among them.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    unfinished: Vec<u8>,
    seen: Seen,
}

impl Counter {
    /// Takes the next piece of the stream, which may begin and end anywhere. Returns whether it said anything.
    pub(crate) fn push(&mut self, piece: &[u8]) -> bool {
        let mut said = false;
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.unfinished.extend_from_slice(part);
            if part.ends_with(b"\n") {
                // tests may print what is no text; such a line is not the one looked for
                if let Ok(line) = std::str::from_utf8(&self.unfinished) {
                    said |= self.seen.read(line);
                }
                self.unfinished.clear();
            }
        }
        said
    }

    /// What has been counted so far.
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }
}

impl Seen {
    fn read(&mut self, line: &str) -> bool {
        if let Some(counts) = Counts::parse(line) {
            self.counts += counts;
            return true;
        }
        match Harness::parse(line) {
            None => false,
            Some(harness) => {
                self.harnesses.push(harness);
                true
            }
        }
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
    fn pieces_of_any_size_add_up_to_the_same_counts() {
        let mut output = format!("running 15 tests\n\n{PASSED}\r\n\u{2713} ").into_bytes();
        output.extend_from_slice(b"\xff not text \xfe\n");
        output.extend_from_slice(format!("{FAILED}\n").as_bytes());
        for size in [1, 2, 7, 64, output.len()] {
            let mut counter = Counter::default();
            output.chunks(size).for_each(|piece| {
                counter.push(piece);
            });
            assert_eq!(counter.seen().counts, Counts { passed: 16, failed: 2, ignored: 3 }, "pieces of {size} bytes");
        }
    }

    #[test]
    fn what_the_conformance_suite_says_of_each_backend_is_kept() {
        let lines = "conformance: postgres_17: 40 passed, 1 failed, 0 skipped; 0 do not apply\n\
                     conformance: sqlite: 24 passed, 0 failed, 3 skipped; 2 do not apply: kill (no server), slow (a; b: c)\n\
                     conformance: half: 24 passed\n";
        let mut counter = Counter::default();
        assert!(counter.push(lines.as_bytes()));
        let harness = |name: &str, passed, failed, ignored, why: &str| Harness {
            name: name.into(),
            counts: Counts { passed, failed, ignored },
            does_not_apply: why.into(),
        };
        let expected =
            [harness("postgres_17", 40, 1, 0, "0"), harness("sqlite", 24, 0, 3, "2: kill (no server), slow (a; b: c)")];
        assert_eq!(counter.seen().harnesses, expected);
        assert_eq!(counter.seen().counts, Counts::default(), "libtest's own line counts them");
    }

    #[test]
    fn a_line_cut_short_is_not_counted() {
        let mut counter = Counter::default();
        counter.push(PASSED.as_bytes());
        assert_eq!(counter.seen().counts, Counts::default());
    }
}
