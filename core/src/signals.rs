//! Which signals say stop, and who else handles them.

use std::{borrow::Cow, fs};

use signal_hook::{consts, low_level::signal_name};
use tokio::signal::unix::SignalKind;

use crate::{Error, ErrorKind};

/// SIGTERM as `SIGTERM`.
pub(crate) fn name(kind: SignalKind) -> Cow<'static, str> {
    let number = kind.as_raw_value();
    signal_name(number).map_or_else(|| format!("signal {number}").into(), Cow::Borrowed)
}

/// What always says stop, and those that the application adds.
///
/// # Errors
/// [`ErrorKind::Config`] for one that cannot say stop.
pub(crate) fn all(further: &[SignalKind]) -> Result<Vec<SignalKind>, Error> {
    let mut all = vec![SignalKind::terminate(), SignalKind::interrupt()];
    for kind in further {
        check(*kind)?;
        if !all.contains(kind) {
            all.push(*kind);
        }
    }
    Ok(all)
}

fn check(kind: SignalKind) -> Result<(), Error> {
    let why = match kind.as_raw_value() {
        consts::SIGKILL | consts::SIGSTOP => "no process can handle it",
        consts::SIGABRT
        | consts::SIGBUS
        | consts::SIGFPE
        | consts::SIGILL
        | consts::SIGSEGV
        | consts::SIGSYS
        | consts::SIGTRAP => "it says that the process is broken, which must end at once",
        consts::SIGCHLD => "it comes whenever a child process ends",
        ..1 => "there is no such signal",
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::Config, format!("{} cannot begin a drain: {why}", name(kind))))
}

/// Of these signals, those that something in this process handles. None where the system does not tell.
pub(crate) fn handled(kinds: &[SignalKind]) -> Option<Vec<SignalKind>> {
    // proc_pid_status(5): a mask in hexadecimal, the lowest bit is signal 1.
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
    let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
    let is_caught = |kind: &&SignalKind| {
        let bit = u32::try_from(kind.as_raw_value() - 1).ok().and_then(|bit| caught.checked_shr(bit));
        bit.is_some_and(|bits| bits & 1 == 1)
    };
    Some(kinds.iter().filter(is_caught).copied().collect())
}

/// Whether the crate `ctrlc` has installed its handlers. That shows only in its thread: `sigaction(2)` replaces a handler, and
/// who it was cannot be asked without unsafe code.
pub(crate) fn has_ctrlc() -> bool {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return false };
    // One may end between the listing and the reading.
    threads.flatten().any(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name == "ctrl-c\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_cannot_say_stop_are_refused_by_name() {
        for number in [consts::SIGKILL, consts::SIGSTOP, consts::SIGSEGV, consts::SIGABRT, consts::SIGCHLD, 0, -3] {
            let error = all(&[SignalKind::from_raw(number)]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{number}");
        }
        let text = all(&[SignalKind::from_raw(consts::SIGKILL)]).unwrap_err().to_string();
        assert_eq!(text, "SIGKILL cannot begin a drain: no process can handle it");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_handler_is_seen_when_it_is_there() {
        let kind = SignalKind::from_raw(consts::SIGWINCH);
        assert_eq!(handled(&[kind]), Some(Vec::new()));
        let _handler = tokio::signal::unix::signal(kind).unwrap();
        assert_eq!(handled(&[kind, SignalKind::from_raw(99)]), Some(vec![kind]));
    }

    #[test]
    fn what_is_added_is_added_once() {
        let all = all(&[SignalKind::hangup(), SignalKind::terminate(), SignalKind::hangup()]).unwrap();
        assert_eq!(all, [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]);
        assert_eq!(all.iter().map(|kind| name(*kind)).collect::<Vec<_>>(), ["SIGTERM", "SIGINT", "SIGHUP"]);
    }
}
