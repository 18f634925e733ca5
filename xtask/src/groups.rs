//! The process groups of the jobs that run, so that none is left when this process is told to end.

use std::{
    collections::BTreeSet,
    io,
    os::unix::process::CommandExt,
    process::{self, Child, Command},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// What a job has to clean up in before it is killed.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// The groups that run.
static RUNNING: Mutex<Running> = Mutex::new(Running { groups: BTreeSet::new(), ending: false });

/// Told whenever one ends.
static ENDED: Condvar = Condvar::new();

struct Running {
    groups: BTreeSet<i32>,
    /// Nothing starts any more.
    ending: bool,
}

/// From now on Ctrl-C and its like end every job before they end this process.
pub(crate) fn end_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot handle signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("\nended by a signal: ending what runs");
            end_all();
            process::exit(128 + signal);
        }
    });
    Ok(())
}

/// A job's process, alone in a group of its own with what it starts.
#[derive(Debug)]
pub(crate) struct Group(Pid);

impl Group {
    /// Starts a command as the first of a new group.
    pub(crate) fn start(command: &mut Command) -> io::Result<(Child, Self)> {
        // held until it is known, so that no signal misses it
        let mut running = running();
        if running.ending {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "this run is ending"));
        }
        let child = command.process_group(0).spawn()?;
        let group = Self(Pid::from_child(&child));
        running.groups.insert(group.0.as_raw_pid());
        Ok((child, group))
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        signal(self.0, Signal::TERM);
    }

    /// Ends it.
    pub(crate) fn kill(&self) {
        signal(self.0, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        running().groups.remove(&self.0.as_raw_pid());
        ENDED.notify_all();
    }
}

fn running() -> MutexGuard<'static, Running> {
    // whoever panicked with it had changed it as a whole or not at all
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signal(group: Pid, signal: Signal) {
    // fails only where all of it has just ended by itself
    let _ = kill_process_group(group, signal);
}

fn end_all() {
    let mut running = running();
    running.ending = true;
    for_each(&running, Signal::TERM);
    let waited = ENDED.wait_timeout_while(running, GRACE, |running| !running.groups.is_empty());
    let (running, _) = waited.unwrap_or_else(PoisonError::into_inner);
    for_each(&running, Signal::KILL);
}

fn for_each(running: &Running, what: Signal) {
    for group in running.groups.iter().filter_map(|group| Pid::from_raw(*group)) {
        signal(group, what);
    }
}
