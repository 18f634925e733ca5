//! The project's own commands.
//!
//! `cargo xtask test` is all a developer needs before sending work; `cargo xtask ci` is that and `cargo xtask lint`, as CI
//! runs them.

mod bench;
mod containers;
mod counts;
mod debian;
mod deny;
mod deploy;
mod failures;
mod foreign;
mod groups;
mod images;
mod jobs;
mod leftovers;
mod lint;
mod minimal_versions;
mod process;
mod python;
mod rie;
mod run;
mod rust_version;
mod schedule;
mod summary;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{test::Wanted, workspace::Workspace};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Sets up what the tests need, then runs them all: unit, integration, benches once, docs, model checker
    Test {
        /// Only tests whose name contains this; images are made only if one of them may need one
        filter: Option<String>,
        /// Only what needs no container: no image is made, and no bench and no model checker is run
        #[arg(long)]
        quick: bool,
    },
    /// Formatting, clippy, each feature alone, documentation, dependencies, templates, leftovers such as links to nowhere
    Lint,
    /// Whether it compiles with the lowest version of each dependency that it allows
    MinimalVersions,
    /// Tests and lints, side by side where they are not in each other's way: what CI runs
    Ci,
    /// Benchmarks: all, or one
    Bench {
        /// The bench target
        name: Option<String>,
        /// For criterion, after `--`; with a named bench only, since unit tests know no such arguments
        #[arg(last = true, requires = "name")]
        arguments: Vec<String>,
    },
    /// The long tests, full size
    Soak,
    /// Makes the images that tests start containers from: the missing ones
    Images {
        /// All of them, anew
        #[arg(long)]
        rebuild: bool,
    },
    /// Fetches AWS's Runtime Interface Emulator, unless it is here already, and prints its path
    Rie,
    /// Finds Node.js, after installing it where it is missing and that can be done, and prints where it is
    Node,
    /// Makes a Python that has the package awslambdaric, unless it is here already, and prints its path
    Awslambdaric,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // one line: the chain of causes, without a backtrace
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well; an error only where a command could not go on at all.
fn run(task: Task) -> Result<bool> {
    let workspace = Workspace::find()?;
    groups::end_on_signals()?;
    match task {
        Task::Test { filter, quick } => {
            test::test(&workspace, Wanted { filter: filter.as_deref(), quick, ..Wanted::default() })
        }
        Task::Ci => test::test(&workspace, Wanted { lint: true, ..Wanted::default() }),
        Task::Lint => lint::lint(&workspace),
        Task::MinimalVersions => minimal_versions::check(&workspace).map(|()| true),
        Task::Bench { name, arguments } => bench::bench(&workspace, name.as_deref(), &arguments),
        Task::Soak => test::soak(&workspace),
        Task::Images { rebuild } => images::make(&workspace, rebuild).map(|()| true),
        Task::Rie => {
            println!("{}", rie::fetch(&workspace)?.display());
            Ok(true)
        }
        Task::Node => {
            println!("{}", foreign::node()?.display());
            Ok(true)
        }
        Task::Awslambdaric => {
            println!("{}", foreign::python(&workspace)?.display());
            Ok(true)
        }
    }
}
