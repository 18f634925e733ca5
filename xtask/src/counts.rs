//! How many tests ran, read from what libtest prints.

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

/// Cuts a stream of bytes into lines and adds up the closing lines among them.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    unfinished: Vec<u8>,
    counts: Counts,
}

impl Counter {
    /// Takes the next piece of the stream, which may begin and end anywhere.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.unfinished.extend_from_slice(part);
            if part.ends_with(b"\n") {
                // tests may print what is no text; such a line is not the one looked for
                if let Some(counts) = std::str::from_utf8(&self.unfinished).ok().and_then(Counts::parse) {
                    self.counts += counts;
                }
                self.unfinished.clear();
            }
        }
    }

    /// What has been counted so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
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
            output.chunks(size).for_each(|piece| counter.push(piece));
            assert_eq!(counter.counts(), Counts { passed: 16, failed: 2, ignored: 3 }, "pieces of {size} bytes");
        }
    }

    #[test]
    fn a_line_cut_short_is_not_counted() {
        let mut counter = Counter::default();
        counter.push(PASSED.as_bytes());
        assert_eq!(counter.counts(), Counts::default());
    }
}
