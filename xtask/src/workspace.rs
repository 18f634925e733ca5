//! What the commands need to know about the workspace, as cargo tells it.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;

/// Where things are, and which features the facade has.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The workspace's folder; every command runs there.
    pub(crate) root: PathBuf,
    /// Where builds and fetched tools go; follows `CARGO_TARGET_DIR`.
    pub(crate) target: PathBuf,
    /// The features of the package `winddown`, without `default`.
    pub(crate) facade_features: Vec<String>,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self> {
        let metadata = MetadataCommand::new().no_deps().exec().context("cargo could not read the workspace")?;
        let facade = metadata.packages.iter().find(|package| package.name == "winddown").context("no winddown here")?;
        let mut facade_features: Vec<_> = facade.features.keys().filter(|name| *name != "default").cloned().collect();
        facade_features.sort();
        Ok(Self { root: metadata.workspace_root.into(), target: metadata.target_directory.into(), facade_features })
    }

    /// A command of the cargo that started us, at the workspace's root.
    pub(crate) fn cargo<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root).args(arguments);
        command
    }
}
