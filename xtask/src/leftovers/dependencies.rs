//! The table of dependencies in the description of the architecture, against what is declared and used.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;

/// The heading above the table.
const HEADING: &str = "## Dependencies";

/// The crates of `[workspace.dependencies]` that are not the workspace's own.
pub(crate) fn declared(manifest: &str) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Manifest {
        workspace: Workspace,
    }
    #[derive(Deserialize)]
    struct Workspace {
        dependencies: BTreeMap<String, Dependency>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Dependency {
        Version(#[expect(dead_code, reason = "only its shape matters")] String),
        Table { path: Option<String> },
    }
    let manifest: Manifest = toml::from_str(manifest).context("cannot read [workspace.dependencies]")?;
    let external = manifest.workspace.dependencies.into_iter().filter_map(|(name, dependency)| match dependency {
        Dependency::Table { path: Some(_) } => None,
        Dependency::Version(_) | Dependency::Table { path: None } => Some(name),
    });
    Ok(external.collect())
}

/// What the table lacks, and what it has that nothing uses any more: lines, and what is wrong with them.
pub(crate) fn check(text: &str, declared: &BTreeSet<String>, used: &BTreeSet<String>) -> Vec<(usize, String)> {
    let rows = rows(text);
    let heading = rows.first().map_or(1, |(line, _)| *line);
    let named: BTreeSet<_> = rows.iter().map(|(_, name)| *name).collect();
    let mut found = Vec::new();
    for name in declared.iter().filter(|name| !named.contains(name.as_str())) {
        found.push((heading, format!("the table of dependencies lacks `{name}`")));
    }
    for name in declared.difference(used) {
        found.push((heading, format!("no package uses `{name}`: remove it from [workspace.dependencies]")));
    }
    for (line, name) in rows.iter().filter(|(_, name)| !declared.contains(*name)) {
        found.push((*line, format!("`{name}` is not in [workspace.dependencies] any more")));
    }
    found
}

/// The crates that the table names in its first column, with their lines.
fn rows(text: &str) -> Vec<(usize, &str)> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    let section =
        lines.skip_while(|(_, line)| *line != HEADING).skip(1).take_while(|(_, line)| !line.starts_with("## "));
    let cells = section.filter_map(|(number, line)| Some((number, line.strip_prefix("| ")?.split(" | ").next()?)));
    // what is between backticks: every other piece
    cells.flat_map(|(number, cell)| cell.split('`').skip(1).step_by(2).map(move |name| (number, name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A\n| `before` | x |\n## Dependencies\nVersions are in `Cargo.toml`.\n\n| crate | used by |\n\
                        | --- | --- |\n| `tokio` | all but `xtask` |\n| `a`, `b-c` | x |\n## After\n| `after` | x |\n";

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_first_column_of_the_table_is_read() {
        assert_eq!(rows(TEXT), [(8, "tokio"), (9, "a"), (9, "b-c")]);
    }

    #[test]
    fn a_table_that_is_up_to_date_is_left_alone() {
        let all = names(&["tokio", "a", "b-c"]);
        assert_eq!(check(TEXT, &all, &all), []);
    }

    #[test]
    fn what_is_missing_and_what_is_gone_are_found() {
        let found = check(TEXT, &names(&["tokio", "a", "new"]), &names(&["tokio", "new"]));
        let found: Vec<_> = found.iter().map(|(line, what)| format!("{line} {what}")).collect();
        assert_eq!(
            found,
            [
                "8 the table of dependencies lacks `new`",
                "8 no package uses `a`: remove it from [workspace.dependencies]",
                "9 `b-c` is not in [workspace.dependencies] any more",
            ]
        );
    }

    #[test]
    fn the_workspace_s_own_crates_are_no_dependencies() {
        let manifest = "[workspace.dependencies]\nown = { path = \"own\" }\na = \"1\"\nb = { version = \"1\" }\n";
        assert_eq!(declared(manifest).unwrap(), names(&["a", "b"]));
        assert!(declared("[package]\n").is_err());
    }
}
