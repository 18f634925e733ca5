//! Running commands: shown, timed, and for tests counted.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    counts::{Counter, Seen},
    summary::{Outcome, Row},
};

/// How long a command's output may stay open after the command has ended.
const GRACE: Duration = Duration::from_secs(5);

/// How much is shown of the output of a command that failed.
const LAST_LINES: usize = 20;

/// Why a step failed whose tests were none.
pub(crate) const RAN_NO_TEST: &str = "ran no test";

/// Runs a step whose output is the user's alone.
pub(crate) fn step(step: impl Into<String>, command: &mut Command) -> Row {
    let start = Instant::now();
    show(command);
    let outcome = match status(command) {
        Ok(()) => Outcome::Passed,
        Err(why) => Outcome::Failed(format!("{why:#}")),
    };
    Row { step: step.into(), took: start.elapsed(), counts: None, harnesses: Vec::new(), outcome }
}

/// Runs a step and counts its tests, passing its output through as it comes.
pub(crate) fn test_step(step: impl Into<String>, command: &mut Command) -> Row {
    let start = Instant::now();
    show(command);
    let (seen, outcome) = match counted(command, io::stdout(), GRACE) {
        Ok((seen, outcome)) => (seen, outcome),
        Err(why) => (Seen::default(), Outcome::Failed(format!("{why:#}"))),
    };
    let Seen { counts, harnesses } = seen;
    Row { step: step.into(), took: start.elapsed(), counts: Some(counts), harnesses, outcome }
}

/// Runs a command to its end; an error says which and how it ended.
pub(crate) fn status(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", program(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", program(command));
    }
    Ok(())
}

/// As [`status`], with the command's standard output sent to standard error: ours is for answers.
pub(crate) fn status_aside(command: &mut Command) -> Result<()> {
    show(command);
    status(command.stdout(io::stderr()))
}

/// Runs a command to its end and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {}", program(command)))?;
    if !output.status.success() {
        bail!("{} ended with {}", program(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed no text", program(command)))
}

/// Runs a command whose output nobody reads unless it fails: then the end of it is shown.
pub(crate) fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let unwritable = || format!("cannot write {}", log.display());
    let file = File::create(log).with_context(unwritable)?;
    command.stdin(Stdio::null()).stderr(file.try_clone().with_context(unwritable)?).stdout(file);
    let result = status(command);
    if result.is_err() {
        let text = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
            eprintln!("    {line}");
        }
        return result.with_context(|| format!("see {}", log.display()));
    }
    Ok(())
}

/// Whether a command can be started and ends well; what it prints is nobody's business.
pub(crate) fn works(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a command, but not for longer than `limit`.
pub(crate) fn status_within(command: &mut Command, limit: Duration) -> Result<()> {
    show(command);
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program(command)))?;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a command")? {
            if !status.success() {
                bail!("{} ended with {status}", program(command));
            }
            return Ok(());
        }
        if start.elapsed() >= limit {
            end(&mut child);
            bail!("{} was not done after {} s", program(command), limit.as_secs());
        }
        // std can wait for a child or for a while, not for both
        thread::sleep(Duration::from_millis(200));
    }
}

fn end(child: &mut Child) {
    // both fail only where the child has just ended by itself
    let _ = child.kill();
    let _ = child.wait();
}

fn counted(command: &mut Command, shown: impl Write + Send + 'static, grace: Duration) -> Result<(Seen, Outcome)> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", program(command)))?;
    let output = child.stdout.take().expect("standard output was asked for one line above");
    let (sender, news) = mpsc::channel();
    // its own thread, because the pipe can outlive the command: see below
    thread::spawn(move || pass_through(output, shown, &sender));

    let status = child.wait().context("cannot wait for a command")?;
    let mut total = Seen::default();
    let deadline = Instant::now() + grace;
    let left_behind = loop {
        match news.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(seen) => total = seen,
            Err(RecvTimeoutError::Disconnected) => break false,
            // some process of a test still holds the pipe; waiting for it could take for ever
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };

    let outcome = if !status.success() {
        Outcome::Failed(status.to_string())
    } else if left_behind {
        Outcome::Failed("a test left a process running".into())
    } else if total.counts.ran() == 0 {
        Outcome::Failed(RAN_NO_TEST.into())
    } else {
        Outcome::Passed
    };
    Ok((total, outcome))
}

/// Copies bytes as they come, so that a test's name shows while it runs, and sends what was counted whenever it changes.
fn pass_through(mut output: impl Read, mut shown: impl Write, news: &mpsc::Sender<Seen>) {
    let mut counter = Counter::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let piece = match output.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => &buffer[..length],
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        // when nobody reads ours any more (`| head`), counting still goes on
        let _ = shown.write_all(piece).and_then(|()| shown.flush());
        if counter.push(piece) && news.send(counter.seen().clone()).is_err() {
            return;
        }
    }
}

/// Prints a command as one could type it, with what it adds to the environment.
fn show(command: &Command) {
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut line = String::from("\n$");
    for (name, value) in set {
        line.push_str(&format!(" {}={:?}", name.display(), value));
    }
    line.push_str(&format!(" {}", program(command)));
    for argument in command.get_args() {
        line.push_str(&format!(" {}", argument.display()));
    }
    eprintln!("{line}");
}

/// A program's name without its folder.
fn program(command: &Command) -> String {
    let path = Path::new(command.get_program());
    path.file_name().unwrap_or(path.as_os_str()).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::Counts;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    /// Unseen: the outer run of these tests counts the same lines.
    fn outcome(script: &str) -> (Counts, Outcome) {
        let (seen, outcome) = counted(&mut shell(script), io::sink(), GRACE).unwrap();
        (seen.counts, outcome)
    }

    #[test]
    fn a_step_s_tests_are_counted_over_all_its_binaries() {
        let line = "echo 'test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out'";
        let expected = Counts { passed: 4, failed: 0, ignored: 2 };
        assert_eq!(outcome(&format!("{line}; {line}")), (expected, Outcome::Passed));
    }

    #[test]
    fn a_step_that_ran_no_test_fails() {
        let line = "echo 'test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 9 filtered out'";
        assert_eq!(outcome(line).1, Outcome::Failed(RAN_NO_TEST.into()));
    }

    #[test]
    fn a_step_with_a_bad_status_fails_whatever_its_tests_said() {
        let line = "echo 'test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out'; exit 3";
        assert_eq!(outcome(line).1, Outcome::Failed("exit status: 3".into()));
    }

    #[test]
    fn a_process_that_outlives_its_test_fails_the_step_instead_of_holding_it_up() {
        let line = "sleep 2 & echo 'test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out'";
        let grace = Duration::from_millis(100);
        let (seen, outcome) = counted(&mut shell(line), io::sink(), grace).unwrap();
        assert_eq!(outcome, Outcome::Failed("a test left a process running".into()));
        assert_eq!(seen.counts.passed, 2);
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended() {
        let start = Instant::now();
        let error = status_within(Command::new("sleep").arg("60"), Duration::ZERO).unwrap_err();
        assert_eq!(error.to_string(), "sleep was not done after 0 s");
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let error = status(&mut Command::new("/nowhere/no-such-program")).unwrap_err();
        assert!(error.to_string().contains("cannot start no-such-program"), "{error:#}");
    }
}
