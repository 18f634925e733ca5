//! `cargo xtask lint`.

use anyhow::Result;

use crate::{
    deny, deploy,
    jobs::{self, Done, Job},
    leftovers, run, rust_version,
    schedule::Class,
    summary::{Outcome, Summary},
    test::with_flags,
    workspace::{CARGO_LOCK, Workspace},
};

/// cargo-deny is built once for both that need it.
const DENY_LOCK: &str = "cargo-deny";

/// Runs every check. As with the tests, a failed one does not hide the others.
pub(crate) fn lint(workspace: &Workspace) -> Result<bool> {
    let mut summary = Summary::default();
    summary.extend(jobs::run_all(jobs(workspace)));
    println!("\n{summary}");
    print!("{}", summary.failures());
    Ok(summary.passed())
}

/// A job for each check.
pub(crate) fn jobs(workspace: &Workspace) -> Vec<Job<'_>> {
    let mut jobs = vec![
        Job::new("leftovers", Class::Works, |_| found(leftovers::find(workspace))),
        Job::new("rust versions", Class::Works, |_| found(rust_version::find(workspace))),
        component("format", Class::Works, "fmt", "rustfmt", workspace, &["--all", "--check"]),
        Job::new("dependencies", Class::Locks(DENY_LOCK), |progress| deny::check(workspace, progress)),
        Job::new("advisories", Class::Locks(DENY_LOCK), |progress| deny::advisories(workspace, progress)),
        Job::new("deploy, budgets", Class::Works, |_| found(deploy::budgets(workspace))),
        Job::new("deploy, templates", Class::Works, |progress| deploy::check(workspace, progress)),
        Job::new("deploy, terraform format", Class::Works, |progress| deploy::check_format(workspace, progress)),
        Job::new("deploy, systemd", Class::Works, |progress| deploy::check_unit(workspace, progress)),
    ];
    let all = ["--locked", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    jobs.push(component("clippy", Class::Locks(CARGO_LOCK), "clippy", "clippy", workspace, &all));
    jobs.extend(features_alone(workspace));

    let mut doc = workspace.cargo_aside(["doc", "--locked", "--workspace", "--all-features", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", with_flags("RUSTDOCFLAGS", "-D warnings"));
    jobs.push(Job::command("documentation", Class::Locks(CARGO_LOCK), doc));
    jobs
}

/// Each package with nothing and with each feature alone: all features together hide one that needs another, since each
/// brings crates with features that the others then find. By clippy, for which dependencies are compiled already: a check that
/// denies warnings by a flag compiles them once more.
fn features_alone(workspace: &Workspace) -> impl Iterator<Item = Job<'_>> {
    workspace.features.iter().flat_map(move |(package, features)| {
        let alone = features.iter().filter(|feature| *feature != "full").map(String::as_str);
        std::iter::once("").chain(alone).map(move |feature| {
            let mut clippy = workspace.cargo_aside(["clippy", "--locked", "--no-default-features", "-p", package]);
            clippy.args(["--features", feature, "--", "-D", "warnings"]);
            let with = if feature.is_empty() { "no feature" } else { feature };
            Job::command(format!("{package}, {with}"), Class::Locks(CARGO_LOCK), clippy)
        })
    })
}

/// Passed if there is nothing to say.
fn found<T: ToString>(found: Result<Vec<T>>) -> Done {
    match found {
        Err(error) => Done::failed(format!("{error:#}")),
        Ok(found) if found.is_empty() => Done::new(Outcome::Passed),
        Ok(found) => {
            let output: Vec<_> = found.iter().map(ToString::to_string).collect();
            Done { output: output.join("\n"), ..Done::failed(format!("{} found", found.len())) }
        }
    }
}

/// Runs a cargo command that comes as a component of the toolchain.
fn component<'a>(
    step: &'static str,
    class: Class,
    command: &'static str,
    component: &'static str,
    workspace: &'a Workspace,
    arguments: &[&str],
) -> Job<'a> {
    if !run::works(&mut workspace.cargo([command, "--version"])) {
        let why = format!("{component} is missing: run `rustup component add {component}`");
        return Job::new(step, class, |_| Done::failed(why));
    }
    let mut cargo = workspace.cargo_aside([command]);
    cargo.args(arguments);
    Job::command(step, class, cargo)
}
