//! Running commands to their end. Those of a run's jobs are run by [`process`](crate::process).

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::{ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};

/// How much is shown of the output of a command that failed.
const LAST_LINES: usize = 20;

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
    let file = File::create(log).with_context(|| unwritable(log))?;
    command.stdin(Stdio::null()).stderr(file.try_clone().with_context(|| unwritable(log))?).stdout(file);
    shown_if_failed(status(command), log)
}

/// As [`logged`], where standard output goes to another one. When both fail, that one's fault is the consequence.
pub(crate) fn logged_into<T>(
    command: &mut Command,
    log: &Path,
    other: impl FnOnce(ChildStdout) -> Result<T>,
) -> Result<T> {
    let file = File::create(log).with_context(|| unwritable(log))?;
    let mut child = command
        .stdin(Stdio::null())
        .stderr(file)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program(command)))?;
    let output = child.stdout.take().context("a command has no output")?;
    let result = other(output);
    let status = child.wait().context("cannot wait for a command")?;
    if !status.success() {
        let ended = Err(anyhow!("{} ended with {status}", program(command)));
        return shown_if_failed(ended, log);
    }
    result
}

fn unwritable(log: &Path) -> String {
    format!("cannot write {}", log.display())
}

/// Shows the end of a command's log unless it ended well.
fn shown_if_failed<T>(result: Result<T>, log: &Path) -> Result<T> {
    if result.is_err() {
        let text = fs::read(log).unwrap_or_default();
        for line in last_lines(&String::from_utf8_lossy(&text), LAST_LINES) {
            eprintln!("    {line}");
        }
        return result.with_context(|| format!("see {}", log.display()));
    }
    result
}

/// The end of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> Vec<&str> {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
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

fn show(command: &Command) {
    eprintln!("\n{}", shown(command));
}

/// A command as one could type it, with what it adds to the environment.
pub(crate) fn shown(command: &Command) -> String {
    let mut line = String::from("$");
    for (name, value) in command.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        line.push_str(&format!(" {}={:?}", name.display(), value));
    }
    line.push_str(&format!(" {}", program(command)));
    for argument in command.get_args() {
        line.push_str(&format!(" {}", argument.display()));
    }
    line
}

/// A program's name without its folder.
pub(crate) fn program(command: &Command) -> String {
    let path = Path::new(command.get_program());
    path.file_name().unwrap_or(path.as_os_str()).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let error = status(&mut Command::new("/nowhere/no-such-program")).unwrap_err();
        assert!(error.to_string().contains("cannot start no-such-program"), "{error:#}");
    }

    #[test]
    fn of_two_that_fail_together_the_first_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let fails = |_| -> Result<()> { bail!("the archive was cut short") };
        let error = logged_into(&mut shell("exit 3"), &log, fails).unwrap_err();
        assert!(format!("{error:#}").ends_with("sh ended with exit status: 3"), "{error:#}");
        let error = logged_into(&mut shell("exit 0"), &log, fails).unwrap_err();
        assert_eq!(error.to_string(), "the archive was cut short");
    }

    #[test]
    fn a_command_is_shown_as_one_could_type_it() {
        let mut command = shell("exit 3");
        assert_eq!(shown(command.env("NAME", "v")), "$ NAME=\"v\" sh -c exit 3");
    }
}
