//! What every process of an environment inherits and does not lose by itself, whatever it does with its environment variables,
//! its session, its parent and its open files: a number of the environment's own.
//!
//! It is the soft limit of locks on files, `RLIMIT_LOCKS`. Linux has kept that since 2.4.25, and looks at it no more
//! (getrlimit(2)); it is inherited over fork and exec, and everybody may read that of others.

use std::io;

use rustix::process::Pid;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mark(u64);

impl Mark {
    /// A mark that nobody else has. `None` where there is no such limit to put it in, or one that somebody has set: a mark above
    /// it would be refused.
    pub(crate) fn new() -> Option<Self> {
        #[cfg(target_os = "linux")]
        if rustix::process::getrlimit(rustix::process::Resource::Locks).maximum.is_none() {
            // 63 bits of chance, and no number that anybody would set
            let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
            return Some(Self((high ^ low) >> 1 | 1 << 62));
        }
        None
    }

    /// Marks a process, and all that it starts from now on.
    ///
    /// # Errors
    ///
    /// When it has made itself another user's.
    #[cfg(target_os = "linux")]
    pub(crate) fn put_on(self, pid: Pid) -> io::Result<()> {
        use rustix::process::{Resource, Rlimit, prlimit};
        prlimit(Some(pid), Resource::Locks, Rlimit { current: Some(self.0), maximum: None })?;
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn put_on(self, _pid: Pid) -> io::Result<()> {
        Ok(())
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn is_on(self, pid: Pid) -> bool {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_nonzero())).unwrap_or_default();
        let soft = limits.lines().find_map(|line| line.strip_prefix("Max file locks")?.split_whitespace().next());
        soft.and_then(|soft| soft.parse().ok()) == Some(self.0)
    }
}
