//! Failed tests and what they said, read from what libtest and libtest-mimic print.

use crate::run;

/// How much of a message is shown once more.
const LAST_LINES: usize = 40;

/// A failed test; or a job that failed without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) name: String,
    pub(crate) message: String,
}

impl Failure {
    /// Of a job that says how it ended, and printed this.
    pub(crate) fn of_job(name: &str, why: &str, output: &str) -> Self {
        let mut lines = vec![why];
        lines.extend(run::last_lines(output.trim_end(), LAST_LINES / 2));
        Self { name: name.to_owned(), message: lines.join("\n") }
    }
}

/// The tests that a job's standard output says have failed: those between the line `failures:` and the next like it.
pub(crate) fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut is_inside = false;
    let mut open: Option<(String, Vec<&str>)> = None;
    let mut close = |open: Option<(String, Vec<&str>)>| {
        if let Some((name, lines)) = open {
            // what follows a panic's message is shown where the job's output is
            let lines: Vec<_> = lines.into_iter().take_while(|line| *line != "stack backtrace:").collect();
            let message = run::last_lines(lines.join("\n").trim(), LAST_LINES).join("\n");
            failures.push(Failure { name, message });
        }
    };
    for line in lines {
        let line = line.trim_end();
        if line == "failures:" {
            is_inside = !is_inside;
            close(open.take());
        } else if is_inside && let Some(name) = head(line) {
            close(open.replace((name.to_owned(), Vec::new())));
        } else if let Some((_, lines)) = &mut open {
            lines.push(line);
        }
    }
    // the list of names may be missing where a binary crashed on the way
    close(open);
    failures
}

/// The name in `---- name stdout ----` or `---- name ----`.
fn head(line: &str) -> Option<&str> {
    let name = line.strip_prefix("---- ")?.strip_suffix(" ----")?;
    Some(name.strip_suffix(" stdout").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(name: &str, message: &str) -> Failure {
        Failure { name: name.to_owned(), message: message.to_owned() }
    }

    #[test]
    fn what_libtest_says_of_failed_tests_is_found() {
        let output = "running 3 tests\ntest a::one ... FAILED\ntest b ... ok\n\nfailures:\n\n---- a::one stdout ----\n\
                      a line of its own\n\nthread 'a::one' panicked at src/lib.rs:1:1:\nleft: 1\nstack backtrace:\n   0: x\n\n\
                      ---- src/lib.rs - doc (line 3) stdout ----\nerror: no\n\nfailures:\n    a::one\n\n\
                      test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let expected = [
            failure("a::one", "a line of its own\n\nthread 'a::one' panicked at src/lib.rs:1:1:\nleft: 1"),
            failure("src/lib.rs - doc (line 3)", "error: no"),
        ];
        assert_eq!(read(output.lines()), expected);
    }

    #[test]
    fn so_is_what_libtest_mimic_says() {
        let output = "failures:\n\n---- postgres::case ----\ntest panicked: 1\n  two\n\n---- silent ----\n\n\n\
                      failures:\n    postgres::case\n    silent\n";
        assert_eq!(read(output.lines()), [failure("postgres::case", "test panicked: 1\n  two"), failure("silent", "")]);
    }

    #[test]
    fn output_without_failures_has_none() {
        assert_eq!(read(["test a ... ok", "---- not inside ----", "x"]), []);
    }

    #[test]
    fn of_a_long_message_the_end_is_kept() {
        let long: Vec<_> = (0..100).map(|line| line.to_string()).collect();
        let lines = ["failures:", "---- a ----"].into_iter().chain(long.iter().map(String::as_str));
        let failures = read(lines);
        assert_eq!(failures[0].message.lines().count(), LAST_LINES);
        assert!(failures[0].message.ends_with("\n99"));
    }

    #[test]
    fn a_job_s_failure_has_the_end_of_its_output() {
        let failure = Failure::of_job("build", "exit status: 101", "one\ntwo\n\n");
        assert_eq!(failure.message, "exit status: 101\none\ntwo");
    }
}
