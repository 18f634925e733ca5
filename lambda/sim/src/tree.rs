//! Every process of one environment, those included that have left their process group (`setsid`) or lost their parent.
//!
//! They are known by what they inherited: `AWS_LAMBDA_RUNTIME_API` holds an address that no other environment has. What a
//! process that has it starts belongs to it too, whatever that has done with its own environment variables.
//!
//! On other systems than Linux there is no such list, and the process groups are all that is reached.

use std::net::SocketAddr;

use rustix::process::Signal;

#[derive(Debug, Default)]
pub(crate) struct Tree(#[cfg(target_os = "linux")] Vec<linux::Member>);

#[cfg(target_os = "linux")]
impl Tree {
    /// Stops every process, until there is none that runs: what one starts before it is stopped is found in the next round.
    pub(crate) fn stop(api: SocketAddr) -> Self {
        let mut stopped = Self::default();
        loop {
            let known: Vec<_> = stopped.0.iter().map(|member| member.pid).collect();
            let new: Vec<_> = Self::find(api).0.into_iter().filter(|member| !known.contains(&member.pid)).collect();
            if new.is_empty() {
                return stopped;
            }
            for member in new {
                member.signal(Signal::STOP);
                stopped.0.push(member);
            }
        }
    }

    /// Lets every process go on.
    pub(crate) fn go_on(api: SocketAddr) {
        Self::find(api).0.iter().for_each(|member| member.signal(Signal::CONT));
    }

    /// Kills every process of the tree.
    pub(crate) fn kill(self) {
        self.0.iter().for_each(|member| member.signal(Signal::KILL));
    }

    fn find(api: SocketAddr) -> Self {
        Self(linux::members(api))
    }
}

#[cfg(not(target_os = "linux"))]
impl Tree {
    pub(crate) fn stop(_api: SocketAddr) -> Self {
        Self::default()
    }

    pub(crate) fn go_on(_api: SocketAddr) {}

    pub(crate) fn kill(self) {}
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::{HashMap, HashSet};
    use std::fs;
    use std::net::SocketAddr;
    use std::os::fd::OwnedFd;

    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    #[derive(Debug)]
    pub(super) struct Member {
        pub(super) pid: Pid,
        handle: OwnedFd,
    }

    impl Member {
        /// Looks again once the handle is there: the number may be another process's by then.
        fn open(pid: Pid, is_it: impl Fn() -> bool) -> Option<Self> {
            let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            is_it().then_some(Self { pid, handle })
        }

        pub(super) fn signal(&self, signal: Signal) {
            // an error means that it has ended, and nobody else can have its handle
            let _ = pidfd_send_signal(&self.handle, signal);
        }
    }

    pub(super) fn members(api: SocketAddr) -> Vec<Member> {
        let variable = format!("AWS_LAMBDA_RUNTIME_API={api}");
        let mut members = Vec::new();
        let mut ours = HashSet::new();
        let mut others = HashMap::new();
        for pid in processes() {
            if has(pid, variable.as_bytes()) {
                ours.insert(pid);
                members.extend(Member::open(pid, || has(pid, variable.as_bytes())));
            } else if let Some(parent) = parent(pid) {
                others.insert(pid, parent);
            }
        }
        // children, then theirs
        loop {
            let children: Vec<_> = others.iter().filter(|(_, it)| ours.contains(*it)).map(|(a, b)| (*a, *b)).collect();
            if children.is_empty() {
                return members;
            }
            for (pid, of) in children {
                others.remove(&pid);
                ours.insert(pid);
                members.extend(Member::open(pid, || parent(pid) == Some(of)));
            }
        }
    }

    fn processes() -> impl Iterator<Item = Pid> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
    }

    fn parent(pid: Pid) -> Option<Pid> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        // after the program's name, which is in parentheses and may hold anything: state, parent
        let (_, rest) = stat.rsplit_once(") ")?;
        Pid::from_raw(rest.split(' ').nth(1)?.parse().ok()?)
    }

    /// Whether it was started with `variable`. That of another user cannot be read, and is none of ours.
    fn has(pid: Pid, variable: &[u8]) -> bool {
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|it| it == variable)
    }
}
