//! What the commands need to know about the workspace, as cargo tells it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, bail};
use cargo_metadata::{MetadataCommand, Package, PackageId};
use serde::Deserialize;

use crate::schedule::Class;

/// What two of cargo's commands hold that build into the same folder.
pub(crate) const CARGO_LOCK: &str = "cargo's build folder";

/// Where things are, what its test binaries do, and which features its packages have.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The workspace's folder; every command runs there.
    pub(crate) root: PathBuf,
    /// Where builds and fetched tools go; follows `CARGO_TARGET_DIR`.
    pub(crate) target: PathBuf,
    /// The packages that have features, and those, without `default`.
    pub(crate) features: Vec<(String, Vec<String>)>,
    /// What its packages depend on, their tests included.
    pub(crate) dependencies: BTreeSet<String>,
    members: BTreeMap<PackageId, Member>,
}

/// A package of the workspace.
#[derive(Debug)]
pub(crate) struct Member {
    /// Without what all their names begin with.
    pub(crate) name: String,
    kinds: Kinds,
}

/// How a test binary uses the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) mostly_waits: bool,
    pub(crate) measures: bool,
    pub(crate) starts_containers: bool,
}

/// `[package.metadata.xtask]`: test and bench targets that are not like most.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Kinds {
    /// For servers or processes: they start first and together, each with many tests at once.
    mostly_wait: Vec<String>,
    /// Time, or this process's own cost: they run last, one by one.
    measure: Vec<String>,
    /// They need the images.
    start_containers: Vec<String>,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self> {
        let metadata = MetadataCommand::new().no_deps().exec().context("cargo could not read the workspace")?;
        let features = metadata.packages.iter().map(|package| {
            let names = package.features.keys().filter(|name| *name != "default").cloned().collect();
            (package.name.to_string(), names)
        });
        let features = features.filter(|(_, names): &(_, Vec<_>)| !names.is_empty()).collect();
        let members = metadata.packages.iter().map(|package| Ok((package.id.clone(), Member::read(package)?)));
        let members = members.collect::<Result<_>>()?;
        let dependencies = metadata.packages.iter().flat_map(|package| &package.dependencies);
        let dependencies = dependencies.map(|dependency| dependency.name.clone()).collect();
        Ok(Self {
            root: metadata.workspace_root.into(),
            target: metadata.target_directory.into(),
            features,
            dependencies,
            members,
        })
    }

    /// The package with this id.
    pub(crate) fn member(&self, id: &PackageId) -> Result<&Member> {
        self.members.get(id).with_context(|| format!("{id} is not in the workspace"))
    }

    /// A command of the cargo that started us, at the workspace's root.
    pub(crate) fn cargo<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(cargo());
        command.current_dir(&self.root).args(arguments);
        command
    }

    /// The same for what is to take what others leave: compilers beside tests that look at the time.
    pub(crate) fn cargo_aside<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("nice");
        command.current_dir(&self.root).args(["-n", "10"]).arg(cargo()).args(arguments);
        command
    }
}

impl Member {
    fn read(package: &Package) -> Result<Self> {
        let name = package.name.strip_prefix("winddown-").unwrap_or(&package.name).to_owned();
        let kinds = match package.metadata.get("xtask") {
            None => Kinds::default(),
            Some(kinds) => Kinds::deserialize(kinds)
                .with_context(|| format!("cannot read [package.metadata.xtask] of {}", package.name))?,
        };
        for target in kinds.all() {
            if !package.targets.iter().any(|known| known.name == *target) {
                bail!("[package.metadata.xtask] of {} names the target {target:?}, which it has not", package.name);
            }
        }
        Ok(Self { name, kinds })
    }

    /// How one of its targets uses the machine.
    pub(crate) fn kind(&self, target: &str) -> Kind {
        let Kinds { mostly_wait, measure, start_containers } = &self.kinds;
        let is_in = |list: &[String]| list.iter().any(|name| name == target);
        Kind { mostly_waits: is_in(mostly_wait), measures: is_in(measure), starts_containers: is_in(start_containers) }
    }
}

impl Kind {
    /// When it may run.
    pub(crate) fn class(self) -> Class {
        match self {
            Self { measures: true, .. } => Class::Alone,
            Self { mostly_waits: true, .. } => Class::Waits,
            Self { .. } => Class::Works,
        }
    }
}

impl Kinds {
    fn all(&self) -> impl Iterator<Item = &String> {
        self.mostly_wait.iter().chain(&self.measure).chain(&self.start_containers)
    }
}

fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_nothing_is_said_of_runs_beside_others_and_needs_no_container() {
        let kinds: Kinds =
            toml::from_str("mostly-wait = [\"server\"]\nmeasure = [\"cost\"]\nstart-containers = [\"server\"]\n")
                .unwrap();
        let member = Member { name: "core".to_owned(), kinds };
        assert_eq!(member.kind("lib"), Kind::default());
        assert_eq!(member.kind("lib").class(), Class::Works);
        assert_eq!(member.kind("cost").class(), Class::Alone);
        assert_eq!(member.kind("server").class(), Class::Waits);
        assert!(member.kind("server").starts_containers);
    }

    #[test]
    fn what_nobody_reads_is_not_written() {
        assert!(toml::from_str::<Kinds>("mostly-waits = [\"server\"]\n").is_err());
    }

    #[test]
    fn the_project_s_own_packages_can_be_read() {
        let workspace = Workspace::find().unwrap();
        let core = workspace.members.values().find(|member| member.name == "core").unwrap();
        assert_eq!(core.kind("cost").class(), Class::Alone);
    }
}
