//! Builds the test binaries, and reads from cargo's messages where they are.

use std::{path::PathBuf, process::Command};

use cargo_metadata::{Artifact, Message, TargetKind};

use super::binary::Binary;
use crate::{
    jobs::{Done, LIMIT, Progress},
    process::Source,
    workspace::Workspace,
};

/// Builds what `cargo test` with these arguments would run, and the examples.
pub(crate) fn build(workspace: &Workspace, arguments: &[&str], progress: &Progress) -> (Done, Vec<Binary>) {
    let mut cargo = workspace.cargo(["test", "--locked", "--workspace", "--all-features", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics").args(arguments);
    run(&mut cargo, workspace, progress)
}

fn run(cargo: &mut Command, workspace: &Workspace, progress: &Progress) -> (Done, Vec<Binary>) {
    let ran = match progress.run(cargo, LIMIT) {
        Ok(ran) => ran,
        Err(why) => return (Done::failed(format!("{why:#}")), Vec::new()),
    };
    let messages: String = ran.of(Source::Out).map(|line| line.text.as_str()).collect();
    let mut binaries = Vec::new();
    for (artifact, path) in artifacts(&messages) {
        match workspace.member(&artifact.package_id) {
            Ok(member) => binaries.push(Binary::new(&artifact, path, member)),
            Err(why) => return (Done::failed(format!("{why:#}")), Vec::new()),
        }
    }
    // the messages are not for people
    (Done::of(&ran.without(Source::Out), cargo), binaries)
}

/// The programs that have tests or benches in them.
fn artifacts(messages: &str) -> Vec<(Artifact, PathBuf)> {
    let messages = Message::parse_stream(messages.as_bytes()).filter_map(Result::ok);
    let artifacts = messages.filter_map(|message| match message {
        Message::CompilerArtifact(artifact) if artifact.profile.test => {
            let path = artifact.executable.clone()?.into();
            (!artifact.target.kind.contains(&TargetKind::Example)).then_some((artifact, path))
        }
        _ => None,
    });
    artifacts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &str, name: &str, test: bool, executable: &str) -> String {
        format!(
            "{{\"reason\":\"compiler-artifact\",\"package_id\":\"path+file:///p#a@1.0.0\",\"manifest_path\":\"/p/Cargo.toml\",\
             \"target\":{{\"kind\":[\"{kind}\"],\"crate_types\":[\"bin\"],\"name\":\"{name}\",\"src_path\":\"/p/x.rs\",\
             \"edition\":\"2024\",\"doc\":false,\"doctest\":false,\"test\":true}},\"profile\":{{\"opt_level\":\"0\",\
             \"debuginfo\":0,\"debug_assertions\":true,\"overflow_checks\":true,\"test\":{test}}},\"features\":[],\
             \"filenames\":[],\"executable\":{executable},\"fresh\":false}}\n"
        )
    }

    #[test]
    fn only_what_can_be_run_as_tests_is_taken() {
        let messages = [
            message("lib", "a", true, "\"/t/deps/a-1\""),
            message("lib", "a", false, "null"),
            message("bin", "a", false, "\"/t/a\""),
            message("test", "cost", true, "\"/t/deps/cost-1\""),
            message("example", "show", false, "\"/t/examples/show\""),
            message("bench", "speed", true, "\"/t/deps/speed-1\""),
            "not of cargo\n".to_owned(),
        ];
        let found: Vec<_> = artifacts(&messages.concat()).into_iter().map(|(_, path)| path).collect();
        assert_eq!(found, ["/t/deps/a-1", "/t/deps/cost-1", "/t/deps/speed-1"].map(PathBuf::from));
    }
}
