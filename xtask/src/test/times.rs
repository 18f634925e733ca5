//! How long each test took, from the lines in which a binary says that they have ended.
//!
//! On a stable toolchain libtest does not say, and libtest-mimic never does. Both start their tests in the order in which
//! they list them, so many at once, and the next as soon as one has ended: so each test's start is the end of another.

use std::{collections::HashMap, time::Duration};

/// What a binary's lines say about its tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// Those that ran to their end, with what they took.
    pub(crate) took: Vec<(String, Duration)>,
    /// Those that had begun and did not end, the oldest first.
    pub(crate) unended: Vec<String>,
}

/// Reads the lines, each with when it came; `order` is the list of tests, of which so many run at once.
pub(crate) fn read<'a>(
    order: &'a [String],
    at_once: usize,
    lines: impl IntoIterator<Item = (Duration, &'a str)>,
) -> Times {
    let mut waiting = order.iter().map(String::as_str);
    let mut running: HashMap<&str, Duration> = HashMap::new();
    let mut took = Vec::new();
    for (at, line) in lines {
        if is_title(line) {
            running = waiting.by_ref().take(at_once).map(|name| (name, at)).collect();
        } else if let Some((name, is_ignored)) = ended(line) {
            // one that is not known to run is in another order than it was listed in: nothing is said about it
            if let Some(start) = running.remove(name) {
                if !is_ignored {
                    took.push((name.to_owned(), at.saturating_sub(start)));
                }
                running.extend(waiting.next().map(|next| (next, at)));
            }
        }
    }
    let mut unended: Vec<_> = running.into_iter().map(|(name, start)| (start, name.to_owned())).collect();
    unended.sort();
    Times { took, unended: unended.into_iter().map(|(_, name)| name).collect() }
}

/// `running 3 tests`
fn is_title(line: &str) -> bool {
    let count = line.trim_end().strip_prefix("running ").and_then(|rest| rest.split_once(' '));
    count.is_some_and(|(count, tests)| count.parse::<usize>().is_ok() && tests.starts_with("test"))
}

/// The test that a line says has ended, and whether it was ignored: `test NAME ... ok`, with blanks after the name from
/// libtest-mimic.
fn ended(line: &str) -> Option<(&str, bool)> {
    let (name, outcome) = line.trim_end().strip_prefix("test ")?.rsplit_once(" ... ")?;
    let is_ignored = outcome.starts_with("ignored");
    let name = name.trim_end();
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    (is_ignored || ["ok", "FAILED"].contains(&outcome)).then_some((name, is_ignored))
}

/// The names in what a binary prints for `--list`, in its order.
pub(crate) fn listed(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn lines<'a>(lines: &'a [(u64, &'a str)]) -> impl Iterator<Item = (Duration, &'a str)> {
        lines.iter().map(|(at, line)| (Duration::from_millis(*at), *line))
    }

    fn took(times: &Times) -> Vec<(&str, u128)> {
        times.took.iter().map(|(name, took)| (name.as_str(), took.as_millis())).collect()
    }

    #[test]
    fn a_test_starts_when_the_one_before_it_makes_room() {
        let order = order(&["a", "b", "c", "d"]);
        let output = [
            (5, "\n"),
            (10, "running 4 tests\n"),
            (40, "test b ... ok\n"),
            (45, "test c - should panic ... FAILED\n"),
            (100, "test a ... ok\n"),
            (105, "test d           ... ok\n"),
        ];
        let times = read(&order, 2, lines(&output));
        assert_eq!(took(&times), [("b", 30), ("c", 5), ("a", 90), ("d", 60)]);
        assert_eq!(times.unended, Vec::<String>::new());
    }

    #[test]
    fn an_ignored_one_makes_room_and_has_no_time() {
        let order = order(&["a", "b", "c"]);
        let output = [
            (0, "running 3 tests"),
            (1, "test a ... ignored, no server"),
            (2, "test b ... ignored (x)"),
            (9, "test c ... ok"),
        ];
        assert_eq!(took(&read(&order, 1, lines(&output))), [("c", 7)]);
    }

    #[test]
    fn those_that_hang_are_named_the_oldest_first() {
        let order = order(&["a", "b", "c", "d"]);
        let output = [(0, "running 4 tests"), (9, "test a ... ok"), (11, "what a test printed")];
        assert_eq!(read(&order, 2, lines(&output)).unended, ["b", "c"]);
    }

    #[test]
    fn tests_in_another_order_have_no_times_rather_than_wrong_ones() {
        let order = order(&["a", "b", "c"]);
        let output = [(0, "running 3 tests"), (5, "test c ... ok"), (9, "test a ... ok")];
        assert_eq!(took(&read(&order, 1, lines(&output))), [("a", 9)]);
    }

    #[test]
    fn other_lines_say_nothing() {
        for line in
            ["running away", "running 3 benches", "test result: ok. 3 passed; 0 failed", "test a ... b", "a ... ok"]
        {
            assert!(!is_title(line), "{line}");
            assert_eq!(ended(line), None, "{line}");
        }
    }

    #[test]
    fn a_list_has_only_tests() {
        assert_eq!(listed("a::b: test\nfast: bench\n\n2 tests, 1 benchmark\n"), ["a::b"]);
    }
}
