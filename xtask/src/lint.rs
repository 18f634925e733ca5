//! `cargo xtask lint`.

use std::time::Instant;

use anyhow::Result;

use crate::{
    deny, run,
    summary::{Row, Summary},
    test::with_flags,
    workspace::Workspace,
};

/// Runs every check. As with the tests, a failed one does not hide the others.
pub(crate) fn lint(workspace: &Workspace) -> Result<bool> {
    let mut summary = Summary::default();

    summary.push(component("format", "fmt", "rustfmt", workspace, &["--all", "--check"]));
    let all = ["--locked", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    summary.push(component("clippy", "clippy", "clippy", workspace, &all));

    // the facade with nothing and with each feature alone: all features together hide one that needs another
    let alone = ["--locked", "-p", "winddown", "--no-default-features"];
    let none = [&alone[..], &["--", "-D", "warnings"]].concat();
    summary.push(component("no feature", "clippy", "clippy", workspace, &none));
    for feature in &workspace.facade_features {
        let one = [&alone[..], &["--features", feature, "--", "-D", "warnings"]].concat();
        summary.push(component(&format!("feature {feature} alone"), "clippy", "clippy", workspace, &one));
    }

    let mut doc = workspace.cargo(["doc", "--locked", "--workspace", "--all-features", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", with_flags("RUSTDOCFLAGS", "-D warnings"));
    summary.push(run::step("documentation", &mut doc));

    let start = Instant::now();
    summary.push(match deny::find(workspace) {
        Ok(program) => run::step("dependencies", &mut deny::check(&program, workspace)),
        // the one check that may be left out: building the tool is slow, and it is not on every machine
        Err(error) => {
            let why = format!("{error:#}");
            eprintln!("cargo-deny is left out: {why}");
            Row { took: start.elapsed(), ..Row::skipped("dependencies", why) }
        }
    });
    let why = "the advisory database is not on a package registry";
    summary.push(Row::skipped("advisories", why.into()));

    println!("\n{summary}");
    Ok(summary.passed())
}

/// Runs a cargo command that comes as a component of the toolchain.
fn component(step: &str, command: &str, component: &str, workspace: &Workspace, arguments: &[&str]) -> Row {
    if !run::works(&mut workspace.cargo([command, "--version"])) {
        let why = format!("{component} is missing: run `rustup component add {component}`");
        return Row::failed(step, why);
    }
    let mut command = workspace.cargo([command]);
    run::step(step, command.args(arguments))
}
