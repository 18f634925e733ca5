//! What Rust each package says it needs, against what those say that it is made of.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand, Package, semver::Version};

use crate::workspace::Workspace;

/// A package, by what it says of itself.
#[derive(Debug)]
struct Crate {
    name: String,
    rust_version: Option<Version>,
    /// What it is made of, tests left out.
    needs: Vec<String>,
}

/// The packages whose `rust-version` is too low, with all features and the versions in `Cargo.lock`.
///
/// One of our own that somebody has to ask for may say a later Rust than who has a feature for it: then that feature needs it.
pub(crate) fn find(workspace: &Workspace) -> Result<Vec<String>> {
    let mut command = MetadataCommand::new();
    command.current_dir(&workspace.root).other_options(["--locked".to_owned(), "--all-features".to_owned()]);
    let metadata = command.exec().context("cargo could not read the workspace")?;
    let graph = metadata.resolve.as_ref().context("cargo has resolved nothing")?;
    let mut needs = BTreeMap::new();
    for node in &graph.nodes {
        let is_part = |kind: DependencyKind| matches!(kind, DependencyKind::Normal | DependencyKind::Build);
        let parts = node.deps.iter().filter(|dep| dep.dep_kinds.iter().any(|dep| is_part(dep.kind)));
        needs.insert(&node.id, parts.map(|dep| dep.pkg.repr.clone()).collect::<Vec<_>>());
    }
    let members: BTreeSet<_> = metadata.workspace_members.iter().map(|member| &member.repr).collect();
    let saying: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .map(|package| (&package.id.repr, (package.name.as_str(), &package.rust_version)))
        .collect();
    let crates = metadata.packages.iter().map(|package| {
        let mut needs = needs.remove(&package.id).unwrap_or_default();
        if members.contains(&package.id.repr) {
            let declared = declared(package);
            needs.retain(|id| {
                let Some((name, says)) = saying.get(id).filter(|_| members.contains(id)) else { return true };
                !(*says > &package.rust_version && is_asked_for(name, &declared, &package.features))
            });
        }
        let name = format!("{} {}", package.name, package.version);
        (package.id.repr.clone(), Crate { name, rust_version: package.rust_version.clone(), needs })
    });
    let crates = crates.collect();
    Ok(metadata.workspace_members.iter().filter_map(|member| too_low(&member.repr, &crates)).collect())
}

/// What a package is made of by its manifest, tests left out, and whether it is optional each time.
fn declared(package: &Package) -> Vec<(&str, bool)> {
    let parts = package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
    parts.map(|dependency| (dependency.name.as_str(), dependency.optional)).collect()
}

/// Whether a dependency is optional wherever it is declared, and no feature of `default` turns it on.
fn is_asked_for(name: &str, declared: &[(&str, bool)], features: &BTreeMap<String, Vec<String>>) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec!["default"];
    while let Some(feature) = next.pop() {
        if seen.insert(feature) {
            next.extend(features.get(feature).into_iter().flatten().map(String::as_str));
        }
    }
    let turns_on = |feature: &&str| {
        let dependency = feature.strip_prefix("dep:").unwrap_or(feature);
        dependency.split_once('/').map_or(dependency, |(dependency, _)| dependency) == name
    };
    declared.iter().filter(|(declared, _)| *declared == name).all(|(_, is_optional)| *is_optional)
        && !seen.iter().any(turns_on)
}

/// What to say of a package that is made of something that needs a later Rust, however far down.
fn too_low(member: &str, crates: &BTreeMap<String, Crate>) -> Option<String> {
    let mut seen = BTreeSet::new();
    let mut next = vec![member];
    while let Some(id) = next.pop() {
        if seen.insert(id) {
            next.extend(crates.get(id).iter().flat_map(|found| &found.needs).map(String::as_str));
        }
    }
    let highest = seen.iter().filter_map(|id| crates.get(*id)).max_by_key(|found| &found.rust_version)?;
    let member = crates.get(member)?;
    let needed = highest.rust_version.as_ref()?;
    match &member.rust_version {
        Some(said) if said >= needed => None,
        Some(said) => Some(format!("{} says Rust {said}, and {} needs {needed}", member.name, highest.name)),
        None => Some(format!("{} has no rust-version, and {} needs {needed}", member.name, highest.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a` needs `b`, which needs `c`; they and nobody else say these versions.
    fn chain(versions: [Option<&str>; 3]) -> BTreeMap<String, Crate> {
        let needs = [vec!["b".to_owned()], vec!["c".to_owned()], Vec::new()];
        let crates = ["a", "b", "c"].into_iter().zip(versions).zip(needs).map(|((name, version), needs)| {
            let rust_version = version.map(|version| Version::parse(version).unwrap());
            (name.to_owned(), Crate { name: name.to_owned(), rust_version, needs })
        });
        crates.collect()
    }

    #[test]
    fn what_a_dependency_of_a_dependency_needs_counts() {
        let found = too_low("a", &chain([Some("1.85.0"), Some("1.70.0"), Some("1.88.0")]));
        assert_eq!(found.as_deref(), Some("a says Rust 1.85.0, and c needs 1.88.0"));
        assert_eq!(too_low("b", &chain([Some("1.90.0"), Some("1.88.0"), Some("1.88.0")])), None);
        assert_eq!(too_low("a", &chain([Some("1.88.0"), None, Some("1.88.0")])), None);
        assert_eq!(too_low("a", &chain([Some("1.88.0"), None, None])), None);
    }

    #[test]
    fn a_package_that_says_nothing_is_found() {
        let found = too_low("a", &chain([None, Some("1.70.0"), None]));
        assert_eq!(found.as_deref(), Some("a has no rust-version, and b needs 1.70.0"));
    }

    #[test]
    fn what_somebody_has_to_ask_for_is_optional_and_not_in_default() {
        let features = |default: &str| {
            let default = vec![default.to_owned()];
            let features = [("default", default), ("on", vec!["dep:x".to_owned()]), ("weak", vec!["x?/y".to_owned()])];
            features.into_iter().map(|(name, turns_on)| (name.to_owned(), turns_on)).collect()
        };
        assert!(is_asked_for("x", &[("x", true), ("y", false)], &features("weak")));
        assert!(!is_asked_for("x", &[("x", true)], &features("on")));
        assert!(!is_asked_for("x", &[("x", true)], &features("x/y")));
        assert!(!is_asked_for("x", &[("x", false)], &features("weak")));
        assert!(!is_asked_for("x", &[("x", true), ("x", false)], &features("weak")));
    }
}
