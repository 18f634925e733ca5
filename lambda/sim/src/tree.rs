//! Every process of one environment, those included that have left their process group (`setsid`), lost their parent or
//! cleared their environment variables.
//!
//! They are known by what they inherited and by whose children they are, see [`Family`]. What cannot be told to be of this
//! environment is a stranger's, and left alone.
//!
//! On other systems than Linux there is no such list, and the process groups are all that is reached.

use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::Signal;

use crate::adoption::Adoption;
use crate::mark::Mark;
use crate::process::Process;

/// How the processes of one environment are told from all others. One of these is enough:
///
/// 1. It was started with the environment's `AWS_LAMBDA_RUNTIME_API`, an address that no other environment has.
/// 2. It bears the environment's [`Mark`], which it cannot lose with its environment variables.
/// 3. It is an orphan that came to this process, where these can be of nobody else, see [`Adoption`].
/// 4. Its parent is such a process, or one that the simulator has started.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) api: SocketAddr,
    pub(crate) mark: Option<Mark>,
    pub(crate) adoption: Adoption,
}

#[derive(Debug, Default)]
pub(crate) struct Tree(#[cfg(target_os = "linux")] Vec<linux::Member>);

#[cfg(target_os = "linux")]
impl Tree {
    /// Stops every process, until there is none that runs: what one starts before it is stopped is found in the next round.
    ///
    /// `started` is every process that the simulator has started and not reaped, here and below; no other is started meanwhile.
    pub(crate) fn stop(family: &Family, started: &[Arc<Process>]) -> Self {
        let mut stopped = Self::default();
        loop {
            let known: Vec<_> = stopped.0.iter().map(|member| member.pid).collect();
            let found = linux::members(family, started);
            let new: Vec<_> = found.into_iter().filter(|member| !known.contains(&member.pid)).collect();
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
    pub(crate) fn go_on(family: &Family, started: &[Arc<Process>]) {
        linux::members(family, started).iter().for_each(|member| member.signal(Signal::CONT));
    }

    /// Kills every process of the tree, and returns how many of them run in a group that the simulator has not made.
    pub(crate) fn kill(self) -> usize {
        self.0.iter().for_each(|member| member.signal(Signal::KILL));
        self.0.iter().filter(|member| member.is_stray).count()
    }

    /// Reaps every orphan that has come to this process and has ended. Returns how many of the family have not.
    pub(crate) fn reap(family: &Family, started: &[Arc<Process>]) -> usize {
        let left = linux::reap(started);
        if family.adoption.is_of_family() { left } else { 0 }
    }
}

#[cfg(not(target_os = "linux"))]
impl Tree {
    pub(crate) fn stop(_family: &Family, _started: &[Arc<Process>]) -> Self {
        Self::default()
    }

    pub(crate) fn go_on(_family: &Family, _started: &[Arc<Process>]) {}

    pub(crate) fn kill(self) -> usize {
        0
    }

    pub(crate) fn reap(_family: &Family, _started: &[Arc<Process>]) -> usize {
        0
    }
}

#[cfg(target_os = "linux")]
pub(crate) mod linux {
    use std::collections::{HashMap, HashSet};
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use rustix::process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, pidfd_open, pidfd_send_signal, waitid,
    };

    use super::Family;
    use crate::process::Process;

    #[derive(Debug)]
    pub(super) struct Member {
        pub(super) pid: Pid,
        handle: OwnedFd,
        /// It runs, in a group of somebody else's.
        pub(super) is_stray: bool,
    }

    impl Member {
        /// Looks again once the handle is there: the number may be another process's by then.
        fn open(pid: Pid, groups: &HashSet<Pid>, is_it: impl Fn() -> bool) -> Option<Self> {
            let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            let status = Status::of(pid);
            let is_stray = status.is_some_and(|it| it.runs && it.group.is_some_and(|group| !groups.contains(&group)));
            is_it().then_some(Self { pid, handle, is_stray })
        }

        pub(super) fn signal(&self, signal: Signal) {
            // an error means that it has ended, and nobody else can have its handle
            let _ = pidfd_send_signal(&self.handle, signal);
        }
    }

    pub(super) fn members(family: &Family, started: &[Arc<Process>]) -> Vec<Member> {
        let has_inherited = |pid| {
            let variable = format!("AWS_LAMBDA_RUNTIME_API={}", family.api);
            has(pid, variable.as_bytes()) || family.mark.is_some_and(|mark| mark.is_on(pid))
        };
        let groups: HashSet<_> = started.iter().map(|process| process.group()).collect();
        let roots: HashMap<_, _> = unreaped(started).collect();
        let mut members = Vec::new();
        // whose children are ours, and how long they are what they were
        let mut ours: HashMap<Pid, Option<&Process>> = roots.iter().map(|(pid, root)| (*pid, Some(*root))).collect();
        let mut others = HashMap::new();
        for pid in processes() {
            if has_inherited(pid) {
                ours.entry(pid).or_default();
                members.extend(Member::open(pid, &groups, || has_inherited(pid)));
            } else if let Some(parent) = parent(pid) {
                others.insert(pid, parent);
            }
        }
        if family.adoption.is_of_family() {
            ours.insert(getpid(), None);
            others.retain(|pid, _| !roots.contains_key(pid));
        }
        // children, then theirs
        loop {
            let children: Vec<_> =
                others.iter().filter_map(|(pid, of)| ours.get(of).map(|root| (*pid, *of, *root))).collect();
            if children.is_empty() {
                return members;
            }
            for (pid, of, root) in children {
                others.remove(&pid);
                ours.entry(pid).or_default();
                let is_it = || parent(pid) == Some(of) && root.is_none_or(|root| root.unreaped().is_some());
                members.extend(Member::open(pid, &groups, is_it));
            }
        }
    }

    pub(super) fn reap(started: &[Arc<Process>]) -> usize {
        let roots: HashMap<_, _> = unreaped(started).collect();
        let mut left = 0;
        for pid in children().filter(|pid| !roots.contains_key(pid)) {
            // an error means that somebody else has reaped it
            left += usize::from(matches!(
                waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG),
                Ok(None)
            ));
        }
        left
    }

    /// The children of this process.
    pub(crate) fn children() -> impl Iterator<Item = Pid> {
        processes().filter(|pid| parent(*pid) == Some(getpid()))
    }

    fn unreaped(started: &[Arc<Process>]) -> impl Iterator<Item = (Pid, &Process)> {
        started.iter().filter_map(|process| Some((process.unreaped()?, &**process)))
    }

    fn processes() -> impl Iterator<Item = Pid> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
    }

    fn parent(pid: Pid) -> Option<Pid> {
        Status::of(pid)?.parent
    }

    struct Status {
        /// It is not only waiting to be reaped.
        runs: bool,
        parent: Option<Pid>,
        group: Option<Pid>,
    }

    impl Status {
        fn of(pid: Pid) -> Option<Self> {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
            // after the program's name, which is in parentheses and may hold anything: state, parent, group
            let (_, rest) = stat.rsplit_once(") ")?;
            let mut rest = rest.split(' ');
            let runs = !matches!(rest.next()?, "Z" | "X");
            let mut number = || Some(Pid::from_raw(rest.next()?.parse().ok()?));
            Some(Self { runs, parent: number()?, group: number()? })
        }
    }

    /// Whether it was started with `variable`. That of another user cannot be read, and is none of ours.
    fn has(pid: Pid, variable: &[u8]) -> bool {
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|it| it == variable)
    }
}
