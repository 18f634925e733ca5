//! Runs a job's command: its output collected line by line, not longer than it may take, and nothing of it left.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    groups::{self, Group},
    run,
};

/// How long a command's output may stay open after the command has ended.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// Which of its outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Out,
    Err,
}

/// A line of output.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) source: Source,
    /// When it came, from the command's start.
    pub(crate) at: Duration,
    /// With its end, if it has one. What is no text in it has been replaced.
    pub(crate) text: String,
}

/// A command that has been run.
#[derive(Debug)]
pub(crate) struct Ran {
    /// In the order they came.
    pub(crate) lines: Vec<Line>,
    pub(crate) end: End,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Status(ExitStatus),
    /// By itself, while something that it had started went on.
    LeftBehind,
    /// It took too long.
    Limit(Duration),
}

impl Ran {
    /// All that it printed.
    #[cfg(test)]
    fn text(&self) -> String {
        self.lines.iter().map(|line| line.text.as_str()).collect()
    }

    /// The same without what it printed to one of its outputs.
    pub(crate) fn without(&self, source: Source) -> Self {
        Self { lines: self.lines.iter().filter(|line| line.source != source).cloned().collect(), end: self.end }
    }

    /// What it printed to one of its outputs.
    pub(crate) fn of(&self, source: Source) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(move |line| line.source == source)
    }
}

impl End {
    /// Why that is a failure, if it is one.
    pub(crate) fn failure(self) -> Option<String> {
        match self {
            Self::Status(status) if status.success() => None,
            Self::Status(status) => Some(status.to_string()),
            Self::LeftBehind => Some("a test left a process running".to_owned()),
            Self::Limit(limit) => Some(format!("not done after {} s, so it was ended", limit.as_secs())),
        }
    }
}

enum Event {
    Line(Line),
    Ended(std::io::Result<ExitStatus>),
}

/// Runs a command to its end. `each` sees every line as it comes.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn collect(
    command: &mut Command,
    limit: Duration,
    grace: Duration,
    mut each: impl FnMut(&Line),
) -> Result<Ran> {
    let start = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (mut child, group) =
        Group::start(command).with_context(|| format!("cannot start {}", run::program(command)))?;
    let (sender, events) = mpsc::channel();
    // threads of their own, because the pipes can outlive the command: see below
    read(child.stdout.take().context("a command has no output")?, Source::Out, start, sender.clone());
    read(child.stderr.take().context("a command has no errors")?, Source::Err, start, sender.clone());
    thread::spawn(move || {
        // nobody listens any more where the limit was over
        let _ = sender.send(Event::Ended(child.wait()));
    });

    let mut lines = Vec::new();
    let mut status = None;
    let mut deadline = start + limit;
    let mut is_late = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // the limit is one for those too that never stop talking
        let event = if left.is_zero() { Err(RecvTimeoutError::Timeout) } else { events.recv_timeout(left) };
        match event {
            Ok(Event::Line(line)) => {
                each(&line);
                lines.push(line);
            }
            Ok(Event::Ended(ended)) => {
                status = Some(ended.context("cannot wait for a command")?);
                deadline = Instant::now() + grace;
            }
            // it has ended, and nothing holds its outputs
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if status.is_some() => {
                // some process that it started still holds a pipe; waiting for it could take for ever
                group.kill();
                let end = if is_late { End::Limit(limit) } else { End::LeftBehind };
                return Ok(Ran { lines, end });
            }
            Err(RecvTimeoutError::Timeout) if is_late => {
                group.kill();
                deadline = Instant::now() + groups::GRACE;
            }
            Err(RecvTimeoutError::Timeout) => {
                group.terminate();
                is_late = true;
                deadline = Instant::now() + groups::GRACE;
            }
        }
    }
    let end = match status {
        Some(status) if !is_late => End::Status(status),
        _ => End::Limit(limit),
    };
    Ok(Ran { lines, end })
}

/// Sends line by line what comes out of a pipe.
fn read(pipe: impl Read + Send + 'static, source: Source, start: Instant, sender: Sender<Event>) {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        // an error is the end as well: there is nothing more to come
        while pipe.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if sender.send(Event::Line(Line { source, at: start.elapsed(), text })).is_err() {
                return;
            }
            bytes.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn shell(script: &str, limit: Duration, grace: Duration) -> Ran {
        let mut command = Command::new("sh");
        collect(command.args(["-c", script]), limit, grace, |_| {}).unwrap()
    }

    #[test]
    fn lines_of_both_outputs_are_kept_apart_and_whole() {
        let ran = shell("printf 'one\\ntw'; echo aside >&2; printf 'o\\n\\377 three'", LIMIT, GRACE);
        let text = |source| ran.of(source).map(|line| line.text.as_str()).collect::<Vec<_>>();
        assert_eq!(text(Source::Out), ["one\n", "two\n", "\u{fffd} three"]);
        assert_eq!(text(Source::Err), ["aside\n"]);
        assert_eq!(ran.end.failure(), None);
    }

    #[test]
    fn a_bad_status_is_a_failure() {
        assert_eq!(shell("exit 3", LIMIT, GRACE).end.failure().as_deref(), Some("exit status: 3"));
    }

    #[test]
    fn a_process_that_outlives_its_command_is_ended_and_a_failure() {
        let start = Instant::now();
        let ran = shell("sleep 60 & echo $!", LIMIT, Duration::from_millis(100));
        assert_eq!(ran.end, End::LeftBehind);
        assert!(!ran.text().is_empty());
        assert!(start.elapsed() < LIMIT);
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended_with_all_that_it_started() {
        let start = Instant::now();
        let limit = Duration::from_millis(100);
        let ran = shell("sleep 60 & echo begun; sleep 60", limit, GRACE);
        assert_eq!(ran.end, End::Limit(limit));
        assert_eq!(ran.text(), "begun\n");
        // nothing held its outputs, so nothing is left
        assert!(start.elapsed() < LIMIT / 2);
    }

    #[test]
    fn one_that_does_not_listen_is_killed() {
        let limit = Duration::from_millis(100);
        let ran = shell("trap '' TERM; echo begun; while :; do sleep 0.1; done", limit, GRACE);
        assert_eq!(ran.end, End::Limit(limit));
    }
}
