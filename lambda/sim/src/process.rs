//! A child process in a process group of its own: starting, signalling, reaping.
//!
//! Invariants:
//! 1. A group is signalled only while its leader is not reaped. Until then the kernel keeps its number, so that no
//!    stranger can have it.
//! 2. When the leader has exited, what is left of its group is killed, then the leader and the rest are reaped.
//! 3. Reaping has a thread of its own: neither a busy nor a dropped tokio runtime leaves a process behind.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::cgroup::Group;
use crate::mark::Mark;
use crate::record::Stream;

#[derive(Debug)]
pub(crate) struct Process {
    group: Pid,
    state: Mutex<Signals>,
}

#[derive(Debug, Default)]
struct Signals {
    reaped: bool,
    kill_sent: bool,
}

impl Process {
    /// Starts `command` in a new process group, marks it, and limits what it and its children may use. `on_exit` is called once,
    /// from another thread.
    ///
    /// # Errors
    ///
    /// When the program cannot be executed or limited, or no thread can be had to wait for it. Nothing is left running then.
    pub(crate) fn spawn(
        mut command: Command,
        mark: Option<Mark>,
        group: Option<&Arc<Group>>,
        on_exit: impl FnOnce(Exit) + Send + 'static,
    ) -> io::Result<Spawned> {
        let mut child = command.process_group(0).spawn()?;
        // at once: it is still being loaded. One that has changed its user meanwhile is known by what else it has.
        let _ = mark.map(|mark| mark.put_on(Pid::from_child(&child)));
        let limited = group.map_or(Ok(()), |group| group.take_in(Pid::from_child(&child)));
        let stdout = child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
        let stderr = child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
        let process = Arc::new(Self { group: Pid::from_child(&child), state: Mutex::default() });

        let reaped = Arc::clone(&process);
        // the group of cgroups lives until the last of its processes is gone
        let group = group.cloned();
        let waiting = thread::Builder::new().name("winddown-sim-wait".to_owned()).spawn(move || {
            let exit = reaped.reap(child);
            on_exit(exit);
            drop(group);
        });
        if let Err(error) = waiting.map(drop).and(limited) {
            // without a thread the child went with the closure and cannot be waited for any more; at least it does not run on
            process.signal(Signal::KILL);
            return Err(error);
        }
        let pipes = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
        let pipes = pipes.into_iter().filter_map(|(stream, pipe)| Some((stream, pipe?))).collect();
        Ok(Spawned { process, pipes })
    }

    /// Sends `signal` to the whole group; `false` when it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let mut state = self.lock();
        if state.reaped {
            return false;
        }
        state.kill_sent |= signal == Signal::KILL;
        kill_process_group(self.group, signal).is_ok()
    }

    /// Whether [`signal`](Self::signal) has sent SIGKILL.
    pub(crate) fn kill_sent(&self) -> bool {
        self.lock().kill_sent
    }

    /// Its process id, while that can be no other's.
    pub(crate) fn unreaped(&self) -> Option<Pid> {
        (!self.lock().reaped).then_some(self.group)
    }

    /// The id of its process group, for as long as somebody is in that.
    pub(crate) fn group(&self) -> Pid {
        self.group
    }

    pub(crate) fn id(&self) -> u32 {
        self.group.as_raw_nonzero().get().unsigned_abs()
    }

    fn reap(&self, mut child: Child) -> Exit {
        // the leader stays a zombie (NOWAIT), so that its group's number is still ours (invariant 1)
        let exited = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(self.group), exited), Err(Errno::INTR)) {}
        let at = Instant::now();
        let mut state = self.lock();
        // an error means that the group is empty but for the zombie, which is what is wanted
        let _ = kill_process_group(self.group, Signal::KILL);
        let status = child.wait().ok();
        state.reaped = true;
        let killed = state.kill_sent;
        drop(state);
        // the rest of the group is ours to reap if we are a subreaper, as the command is; otherwise there is nothing to wait for
        while matches!(waitid(WaitId::Pgid(Some(self.group)), WaitIdOptions::EXITED), Ok(_) | Err(Errno::INTR)) {}
        Exit::new(at, status, killed)
    }

    fn lock(&self) -> MutexGuard<'_, Signals> {
        // two booleans are never half-written
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A started process and its captured output, if its command asked for pipes.
pub(crate) struct Spawned {
    pub(crate) process: Arc<Process>,
    pub(crate) pipes: Vec<(Stream, Box<dyn Read + Send>)>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    pub(crate) at: Instant,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// Whether our SIGKILL did it. A process that was sent one while it exited by itself was not killed.
    pub(crate) killed: bool,
}

impl Exit {
    fn new(at: Instant, status: Option<ExitStatus>, kill_sent: bool) -> Self {
        let code = status.and_then(|status| status.code());
        let signal = status.and_then(|status| status.signal());
        Self { at, code, signal, killed: kill_sent && signal == Some(Signal::KILL.as_raw()) }
    }

    /// Whether somebody else's SIGKILL did it, such as the kernel's.
    pub(crate) fn is_sigkill_of_others(&self) -> bool {
        self.signal == Some(Signal::KILL.as_raw()) && !self.killed
    }

    /// `0`, or `signal 9`.
    pub(crate) fn describe(&self) -> String {
        match (self.code, self.signal) {
            (Some(code), _) => code.to_string(),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown".to_owned(),
        }
    }
}

/// Calls `on_line` for each line of `pipe` from a thread of its own, and `on_end` after the last.
///
/// # Errors
///
/// When no thread can be had.
pub(crate) fn read_lines(
    pipe: Box<dyn Read + Send>,
    on_line: impl Fn(String) + Send + 'static,
    on_end: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    thread::Builder::new().name("winddown-sim-output".to_owned()).spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line);
            on_line(text.trim_end_matches(['\n', '\r']).to_owned());
            line.clear();
        }
        on_end();
    })?;
    Ok(())
}
