//! What somebody meant to come back to, or did not see: conflict markers, notes without an issue, links to nowhere, and a
//! table of dependencies that is not up to date.

mod dependencies;
mod links;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    process::Command,
};

use anyhow::{Context, Result};

use crate::{run, workspace::Workspace};

/// Where the table of dependencies is.
const ARCHITECTURE: &str = "docs/ARCHITECTURE.md";

/// A place in a file, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    file: String,
    /// From 1.
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what } = self;
        write!(f, "{file}:{line}: {what}")
    }
}

/// Looks through all files of the project.
pub(crate) fn find(workspace: &Workspace) -> Result<Vec<Finding>> {
    let files = texts(workspace)?;
    let mut findings = Vec::new();
    for (file, text) in &files {
        let found = conflict_markers(text).into_iter().chain(notes_without_issue(text));
        findings.extend(found.map(|(line, what)| Finding { file: file.clone(), line, what }));
    }
    let there = |path: &str| workspace.root.join(path).exists();
    findings.extend(links::check(&files, there));

    let unread = |path: &str| format!("there is no {path}");
    let architecture = files.get(ARCHITECTURE).with_context(|| unread(ARCHITECTURE))?;
    let manifest = files.get("Cargo.toml").with_context(|| unread("Cargo.toml"))?;
    let found = dependencies::check(architecture, &dependencies::declared(manifest)?, &workspace.dependencies);
    findings.extend(found.into_iter().map(|(line, what)| Finding { file: ARCHITECTURE.to_owned(), line, what }));
    Ok(findings)
}

/// The files that are part of the project or could become so, by their path from its root.
pub(crate) fn paths(workspace: &Workspace) -> Result<BTreeSet<String>> {
    let mut git = Command::new("git");
    git.current_dir(&workspace.root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let paths = run::output(&mut git).context("git cannot list the project's files")?;
    Ok(paths.split_terminator('\0').map(str::to_owned).collect())
}

/// The texts among them.
fn texts(workspace: &Workspace) -> Result<BTreeMap<String, String>> {
    // what is no text, or was removed and not yet committed, is left out
    let texts = paths(workspace)?.into_iter().filter_map(|path| {
        let text = fs::read_to_string(workspace.root.join(&path)).ok()?;
        Some((path, text))
    });
    Ok(texts.collect())
}

/// Lines that a merge has left.
fn conflict_markers(text: &str) -> Vec<(usize, String)> {
    let is_marker = |line: &str| ["<<<<<<< ", ">>>>>>> "].iter().any(|marker| line.starts_with(marker));
    numbered(text)
        .filter(|(_, line)| is_marker(line))
        .map(|(number, _)| (number, "a conflict marker".to_owned()))
        .collect()
}

/// Notes that no issue stands for, so that nobody will find them.
fn notes_without_issue(text: &str) -> Vec<(usize, String)> {
    // in pieces, so that this is none
    const WORDS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    numbered(text)
        .filter(|(_, line)| !has_issue(line))
        .filter_map(|(number, line)| {
            let word = line.split(|character| !is_word(character)).find(|word| WORDS.contains(word))?;
            Some((number, format!("{word} without the number of an issue: open one and write #NUMBER")))
        })
        .collect()
}

/// Whether a line has `#` and a number.
fn has_issue(line: &str) -> bool {
    line.split('#').skip(1).any(|rest| rest.starts_with(|character: char| character.is_ascii_digit()))
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(number, line)| (number + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_merge_has_left_is_found() {
        let marker = |character: char| character.to_string().repeat(7);
        let text = format!("a\n{} HEAD\nb\n{}\nc\n{} 1234\n{}\n", marker('<'), marker('='), marker('>'), marker('<'));
        let lines: Vec<_> = conflict_markers(&text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [2, 6]);
    }

    #[test]
    fn a_note_needs_an_issue() {
        let note = concat!("TO", "DO");
        let text = format!("// {note}: later\n// {note}(#12): later\n{note}S are none\nmy_{note}\nx ({note})\n");
        let lines: Vec<_> = notes_without_issue(&text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [1, 5]);
    }
}
