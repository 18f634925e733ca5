//! The share of a CPU, and the memory, that Lambda gives a function of a size: as cgroups of Linux, of either version.
//!
//! Version 1 has a hierarchy of folders for each controller, version 2 one for all; a machine can have both. Where they are, and
//! where in them this process is, is in `/proc/self` (cgroups(7)). What an environment starts is put into a folder of its own
//! there, and inherited by all that it starts itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use uuid::Uuid;

use crate::error::{Error, ErrorKind};
use crate::shutdown::EXIT_WAIT;

/// The folders of one environment. They are removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Group {
    cpu: Folder,
    /// The same one in version 2.
    memory: Folder,
}

#[derive(Clone, Debug, PartialEq)]
struct Folder {
    path: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    One,
    Two,
}

impl Group {
    /// Folders with the limits of a function with so many MB.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where this system has none, or this process may not make them.
    pub(crate) fn new(memory_mb: u32) -> Result<Self, Error> {
        let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}"));
        let made = read("cgroup").and_then(|groups| {
            let mounts = read("mountinfo")?;
            let name = format!("winddown-sim-{}", Uuid::new_v4().simple());
            Self::made(&groups, &mounts, &name, memory_mb)
        });
        made.map_err(|cause| {
            let message = format!(
                "the memory size cannot be enforced: {cause}: run as root on a Linux whose cgroups have the controllers cpu and \
                 memory, or by `systemd-run --user --scope -p Delegate=yes`, or leave out memory_mb (--memory)"
            );
            Error::new(ErrorKind::Unsupported, message).with_source(cause)
        })
    }

    fn made(groups: &str, mounts: &str, name: &str, memory_mb: u32) -> io::Result<Self> {
        let place = |controller: &str| {
            Place::find(groups, mounts, controller).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("no cgroup with the controller {controller}"))
            })
        };
        let memory = Folder::make(&place("memory")?, name)?;
        // from here on, an early return removes what was made
        let mut group = Self { cpu: memory.clone(), memory };
        let cpu = place("cpu")?;
        if group.memory.version == Version::One || cpu.version == Version::One {
            group.cpu = Folder::make(&cpu, name)?;
        }
        group.cpu.limit_cpu(memory_mb)?;
        group.memory.limit_memory(memory_mb)?;
        Ok(group)
    }

    /// Puts a process under the limits, and what it starts from now on.
    pub(crate) fn take_in(&self, process: Pid) -> io::Result<()> {
        for folder in self.folders() {
            folder.write("cgroup.procs", process.as_raw_nonzero())?;
        }
        Ok(())
    }

    /// Whether the kernel has killed somebody who needed more memory.
    pub(crate) fn has_killed(&self) -> bool {
        let file = match self.memory.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let lines = self.memory.read(file).unwrap_or_default();
        let killed = lines.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        killed.is_some_and(|count| count > 0)
    }

    /// The most memory that was ever in use at once, in MB, rounded up; `None` where the kernel does not say.
    pub(crate) fn most_used_mb(&self) -> Option<u64> {
        let file = match self.memory.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        };
        let bytes: u64 = self.memory.read(file).ok()?.trim().parse().ok()?;
        Some(bytes.div_ceil(MB))
    }

    fn folders(&self) -> impl Iterator<Item = &Folder> {
        std::iter::once(&self.cpu).chain((self.memory != self.cpu).then_some(&self.memory))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let folders: Vec<_> = self.folders().map(|folder| folder.path.clone()).collect();
        let remove = move || folders.iter().all(|path| fs::remove_dir(path).is_ok() || !path.exists());
        if remove() {
            return;
        }
        // What was killed just now is gone a moment later, and version 1 tells nobody when. Without a thread to wait on, empty
        // folders are left.
        let _ = thread::Builder::new().name("winddown-sim-cgroup".to_owned()).spawn(move || {
            let begun = Instant::now();
            while !remove() && begun.elapsed() < EXIT_WAIT {
                thread::sleep(LOOK_AGAIN);
            }
        });
    }
}

impl Folder {
    fn make(place: &Place, name: &str) -> io::Result<Self> {
        let mut refused = io::Error::new(io::ErrorKind::NotFound, "no cgroup to make another one in");
        for parent in &place.parents {
            let path = parent.join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, version: place.version }),
                Err(cause) => refused = io::Error::new(cause.kind(), format!("{}: {cause}", path.display())),
            }
        }
        Err(refused)
    }

    fn limit_cpu(&self, memory_mb: u32) -> io::Result<()> {
        let period = PERIOD.as_micros();
        let quota = u128::from(memory_mb) * period / u128::from(MB_OF_A_CPU);
        match self.version {
            Version::One => {
                self.write("cpu.cfs_period_us", period)?;
                self.write("cpu.cfs_quota_us", quota)
            }
            Version::Two => self.write("cpu.max", format!("{quota} {period}")),
        }
    }

    fn limit_memory(&self, memory_mb: u32) -> io::Result<()> {
        let bytes = u64::from(memory_mb) * MB;
        let (limit, with_swap, swap) = match self.version {
            Version::One => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes),
            Version::Two => ("memory.max", "memory.swap.max", 0),
        };
        self.write(limit, bytes)?;
        // Lambda swaps nothing; a kernel that accounts for no swap has no such file
        if self.path.join(with_swap).exists() { self.write(with_swap, swap) } else { Ok(()) }
    }

    fn write(&self, file: &str, value: impl ToString) -> io::Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value.to_string())
            .map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", path.display())))
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.path.join(file))
    }
}

/// Where folders for a controller can be made.
#[derive(Debug, PartialEq)]
struct Place {
    version: Version,
    /// The folders to try, in this order.
    parents: Vec<PathBuf>,
}

impl Place {
    /// From what `/proc/self/cgroup` and `/proc/self/mountinfo` say.
    fn find(groups: &str, mounts: &str, controller: &str) -> Option<Self> {
        for line in groups.lines() {
            // hierarchy:controllers:path
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if controllers.split(',').any(|it| it == controller) {
                let mounted = mounts.lines().find_map(|mount| mounted_at(mount, path, "cgroup", Some(controller)))?;
                return Some(Self { version: Version::One, parents: vec![mounted.own] });
            }
        }
        let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
        let mounted = mounts.lines().find_map(|mount| mounted_at(mount, path, "cgroup2", None))?;
        // A folder with processes hands its controllers to none below it, but for the root: so it is made beside our own.
        let hands_on = |folder: &&Path| {
            let controllers = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
            ["cpu", "memory"].iter().all(|wanted| controllers.split_whitespace().any(|it| it == *wanted))
        };
        let below_mount = mounted.own.ancestors().take_while(|folder| folder.starts_with(&mounted.root));
        let parents: Vec<_> = below_mount.filter(hands_on).map(Path::to_owned).collect();
        (!parents.is_empty()).then_some(Self { version: Version::Two, parents })
    }
}

/// Where a hierarchy is mounted, and where in it a cgroup is.
struct Mounted {
    root: PathBuf,
    own: PathBuf,
}

/// `path` of a hierarchy in the file system, if this line of mountinfo (proc_pid_mountinfo(5)) is about that hierarchy, and shows it.
fn mounted_at(mount: &str, path: &str, kind: &str, controller: Option<&str>) -> Option<Mounted> {
    let (mounted, file_system) = mount.split_once(" - ")?;
    let mut mounted = mounted.split(' ').skip(3);
    let (shown, root) = (mounted.next()?, PathBuf::from(mounted.next()?));
    let mut file_system = file_system.split(' ');
    let is_kind = file_system.next()? == kind;
    let mut options = file_system.nth(1)?.split(',');
    if !is_kind || !controller.is_none_or(|controller| options.any(|option| option == controller)) {
        return None;
    }
    // a container sees a part of the hierarchy as its root, while its paths may be the machine's
    let below = Path::new(path).strip_prefix(shown).or_else(|_| Path::new(path).strip_prefix("/")).ok()?;
    let own = if below.as_os_str().is_empty() { root.clone() } else { root.join(below) };
    Some(Mounted { own: if own.exists() { own } else { root.clone() }, root })
}

/// AWS: "Configure Lambda function memory": at 1,769 MB a function has the equivalent of one vCPU.
const MB_OF_A_CPU: u32 = 1_769;
/// In which the share is enforced, as seen on Lambda: a function that has used its share waits for the next one.
const PERIOD: Duration = Duration::from_millis(20);
const MB: u64 = 1024 * 1024;
const LOOK_AGAIN: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of files as a kernel would show it, and what mountinfo would say of it.
    fn tree(folders: &[(&str, &str)]) -> (tempfile::TempDir, String) {
        let root = tempfile::tempdir().expect("a folder");
        for (folder, subtree_control) in folders {
            let folder = root.path().join(folder);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("cgroup.subtree_control"), subtree_control).expect("a file");
        }
        let mounts = format!("31 23 0:28 / {} rw,relatime - cgroup2 cgroup2 rw,nsdelegate", root.path().display());
        (root, mounts)
    }

    #[test]
    fn version_2_is_made_beside_our_own() {
        let (root, mounts) = tree(&[("", "cpu memory pids"), ("user", "cpu memory"), ("user/shell", "")]);
        let group = Group::made("0::/user/shell\n", &mounts, "new", 1_769).expect("made");
        let folder = root.path().join("user/new");
        assert_eq!((&group.cpu.path, &group.cpu), (&folder, &group.memory));
        let written = |file: &str| fs::read_to_string(folder.join(file)).expect("written");
        assert_eq!((written("cpu.max"), written("memory.max")), ("20000 20000".into(), (1_769 * MB).to_string()));
        group.take_in(Pid::from_raw(4711).expect("a process id")).expect("taken in");
        assert_eq!(written("cgroup.procs"), "4711");
    }

    #[test]
    fn version_2_without_the_controllers_is_refused() {
        let (_root, mounts) = tree(&[("", "pids"), ("user", "")]);
        let error = Group::made("0::/user\n", &mounts, "new", 128).expect_err("nobody hands them on");
        assert_eq!(error.to_string(), "no cgroup with the controller memory");
    }

    #[test]
    fn version_1_has_a_folder_for_each_controller() {
        let (root, _) = tree(&[("cpu", ""), ("memory/own", "")]);
        let at = |folder: &str| root.path().join(folder);
        let mounts = format!(
            "33 31 0:30 / {} rw - cgroup cgroup rw,cpu,cpuacct\n35 31 0:32 / {} rw - cgroup cgroup rw,memory",
            at("cpu").display(),
            at("memory").display()
        );
        let group = Group::made("4:memory:/own\n2:cpu,cpuacct:/\n0::/\n", &mounts, "new", 128).expect("made");
        assert_eq!((&group.cpu.path, &group.memory.path), (&at("cpu/new"), &at("memory/own/new")));
        let written = |file: &str| fs::read_to_string(root.path().join(file)).expect("written");
        assert_eq!(
            (written("cpu/new/cpu.cfs_period_us"), written("cpu/new/cpu.cfs_quota_us")),
            ("20000".into(), "1447".into())
        );
        assert_eq!(written("memory/own/new/memory.limit_in_bytes"), (128 * MB).to_string());
    }

    #[test]
    fn a_container_that_sees_a_part_of_the_hierarchy_finds_itself_in_it() {
        let (root, _) = tree(&[("", "")]);
        let mount = format!("33 31 0:30 /docker/abc {} ro - cgroup cgroup rw,cpu", root.path().display());
        let place = Place::find("1:cpu:/docker/abc\n", &mount, "cpu").expect("found");
        assert_eq!(place, Place { version: Version::One, parents: vec![root.path().to_owned()] });
    }
}
