//! Links in Markdown to other files of the project, and to headings.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;

/// The links of all Markdown files that lead nowhere. `there` knows of every path from the project's root whether it is there.
pub(crate) fn check(files: &BTreeMap<String, String>, there: impl Fn(&str) -> bool) -> Vec<Finding> {
    let documents = || files.iter().filter(|(path, _)| is_markdown(path));
    let anchors: BTreeMap<_, _> = documents().map(|(path, text)| (path.as_str(), anchors(text))).collect();
    let mut findings = Vec::new();
    for (path, text) in documents() {
        for (line, target) in links(text) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() { path.clone() } else { joined(path, file) };
            let known = anchors.get(to.as_str());
            let what = if !there(&to) {
                format!("a link to {target}, which is not there")
            } else if !anchor.is_empty() && known.is_some_and(|known| !known.contains(anchor)) {
                format!("a link to {target}, and {to} has no such heading")
            } else {
                continue;
            };
            findings.push(Finding { file: path.clone(), line, what });
        }
    }
    findings
}

fn is_markdown(path: &str) -> bool {
    path.ends_with(".md")
}

/// The lines outside of blocks of code, each without its code, numbered from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            return None;
        }
        // every other piece is between backticks
        (!is_code).then(|| (number + 1, line.split('`').step_by(2).collect::<Vec<_>>().join("")))
    })
}

/// The targets of links within the project: `[text](target)` and `[name]: target`.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // of the line as it is written, since the text that lives on is this one
        let original = text.lines().nth(number - 1).unwrap_or_default();
        let defined = line.strip_prefix('[').and_then(|line| line.split_once("]: ")).map(|(_, target)| target);
        let inline = line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in defined.into_iter().chain(inline) {
            let target = target.split_whitespace().next().unwrap_or_default();
            // without a place in the original it had code in it: that is none of ours
            if let Some(place) = original.find(target)
                && is_ours(target)
            {
                found.push((number, &original[place..place + target.len()]));
            }
        }
    }
    found
}

/// Not an address elsewhere, and not an item of Rust's.
fn is_ours(target: &str) -> bool {
    !target.is_empty() && !target.contains(':') && !target.starts_with('/') && !target.contains('@')
}

/// A relative path, seen from the folder of a file.
fn joined(from: &str, to: &str) -> String {
    let mut parts: Vec<_> = from.split('/').collect();
    parts.pop();
    for part in to.split('/').filter(|part| !part.is_empty() && *part != ".") {
        // above the root there is nothing of ours
        if part != ".." {
            parts.push(part);
        } else if parts.pop().is_none() {
            return to.to_owned();
        }
    }
    parts.join("/")
}

/// What headings are linked by: in small letters, blanks as hyphens, without what is neither letter, number, `-` nor `_`.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let Some((_, title)) = line.split_once("# ").filter(|(hashes, _)| hashes.chars().all(|hash| hash == '#'))
        else {
            continue;
        };
        if is_code {
            continue;
        }
        let anchor: String = title
            .trim()
            .to_lowercase()
            .chars()
            .filter(|character| character.is_alphanumeric() || [' ', '-', '_'].contains(character))
            .map(|character| if character == ' ' { '-' } else { character })
            .collect();
        // one that is there already gets a number
        let numbered = (1..).map(|number| format!("{anchor}-{number}"));
        let free = std::iter::once(anchor.clone()).chain(numbered).find(|anchor| !anchors.contains(anchor));
        anchors.extend(free);
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_all(files: &[(&str, &str)]) -> Vec<String> {
        let files: BTreeMap<_, _> = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        let there = |path: &str| path == "docs" || path == "src/lib.rs" || files.contains_key(path);
        check(&files, there).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn links_to_what_is_there_are_left_alone() {
        let readme = "# Top\n[a](docs/a.md#first-part) [b](src/lib.rs) [c](docs) [d](#top) [e](https://x.invalid/y)\n\
                      [f](crate::Item) [g](./docs/a.md \"title\")\n\n[h]: docs/a.md\n[i]: mailto:x@y.invalid\n";
        let a = "## First, part!\n[up](../README.md#top)\n";
        assert_eq!(check_all(&[("README.md", readme), ("docs/a.md", a)]), Vec::<String>::new());
    }

    #[test]
    fn links_to_nowhere_are_found() {
        let readme = "[a](gone.md)\n[b](docs/a.md#gone) and [c](../outside.md)\n\n[d]: docs/gone.md\n";
        assert_eq!(
            check_all(&[("README.md", readme), ("docs/a.md", "# Here\n")]),
            [
                "README.md:1: a link to gone.md, which is not there",
                "README.md:2: a link to docs/a.md#gone, and docs/a.md has no such heading",
                "README.md:2: a link to ../outside.md, which is not there",
                "README.md:4: a link to docs/gone.md, which is not there",
            ]
        );
    }

    #[test]
    fn code_has_no_links_and_no_headings() {
        let text = "`x[0](gone.md)` [a](#b)\n```\n[c](gone.md)\n# b\n```\n";
        assert_eq!(check_all(&[("a.md", text)]), ["a.md:1: a link to #b, and a.md has no such heading"]);
    }

    #[test]
    fn headings_of_the_same_name_are_numbered() {
        let text = "# A\n## A\n## `code` and more\n[a](#a-1) [b](#code-and-more)\n";
        assert_eq!(check_all(&[("a.md", text)]), Vec::<String>::new());
    }
}
