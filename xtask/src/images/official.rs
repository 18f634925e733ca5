//! Official images, where a container registry answers.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::docker;

/// What a registry may take until it says that it has an image.
const ANSWER: Duration = Duration::from_secs(5);

/// What an image may take from then on.
const DOWNLOAD: Duration = Duration::from_secs(10 * 60);

/// Pulls an image. An error is a registry that does not answer, refuses, or takes too long.
pub(crate) fn pull(reference: &str) -> Result<()> {
    let mut child = docker(["pull", reference])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start docker")?;
    let output = child.stdout.take().context("docker has no output")?;
    let errors = child.stderr.take().context("docker has no errors")?;

    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        // the first line comes with the registry's answer; nobody listens any more once we have given up
        BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .take_while(|line| sender.send(line.clone()).is_ok())
            .count()
    });
    let (why, complaint) = mpsc::channel();
    thread::spawn(move || {
        let last = BufReader::new(errors).lines().map_while(Result::ok).last();
        why.send(last.unwrap_or_default())
    });

    let mut limit = ANSWER;
    let in_time = loop {
        match lines.recv_timeout(limit) {
            Ok(_) => limit = DOWNLOAD,
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    if !in_time {
        // fails only where it has just ended by itself
        let _ = child.kill();
    }
    let status = child.wait().context("cannot wait for docker")?;
    if !in_time {
        bail!("no answer in {} s", limit.as_secs());
    }
    if !status.success() {
        bail!("{}", complaint.recv().unwrap_or_default());
    }
    Ok(())
}
