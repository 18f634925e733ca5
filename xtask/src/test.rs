//! `cargo xtask test` and `cargo xtask soak`: what is to be run, as jobs.

mod binary;
mod build;
mod times;

use std::{
    cmp::Reverse,
    ffi::OsString,
    sync::{Mutex, OnceLock, PoisonError},
};

use anyhow::Result;

use self::binary::{Binary, Pace};
use crate::{
    containers::Containers,
    foreign, images,
    jobs::{self, Done, Job, Progress},
    lint, rie,
    schedule::Class,
    summary::{Outcome, Summary},
    workspace::{CARGO_LOCK, Workspace},
};

/// What the names of the model checker's tests begin with.
const MODELS: &str = "models::";

/// What the names of the tests begin with that are for builds without TLS.
const WITHOUT_TLS: &str = "without_tls";

/// Which tests are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    /// Only those whose name contains this.
    pub(crate) filter: Option<&'a str>,
    /// Only those that need no container, and none that takes a build of its own.
    pub(crate) quick: bool,
    /// The lints too, beside them.
    pub(crate) lint: bool,
}

/// How the tests are built and told to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// Without containers, and without what takes a build of its own.
    Quick,
    Everyday,
    /// The long ones, in release, and as long as they can be.
    Soak,
}

/// Sets up and runs the tests. What fails hides nothing but what it makes impossible.
pub(crate) fn test(workspace: &Workspace, wanted: Wanted<'_>) -> Result<bool> {
    let mut summary = Summary::default();
    let size = if wanted.quick { Size::Quick } else { Size::Everyday };
    let run = Run { workspace, filter: wanted.filter, size, set_up: SetUp::default() };
    let binaries = run.prepare(&mut summary);
    // what takes longest comes first: cargo does one thing after the other
    let mut jobs = if wanted.lint { lint::jobs(workspace) } else { Vec::new() };
    if let Some(binaries) = binaries {
        if wanted.filter.is_none() || binaries.is_empty() {
            jobs.extend(run.by_cargo());
        }
        jobs.extend(run.binaries(binaries));
    }
    summary.extend(jobs::run_all(jobs));
    run.finish(summary)
}

/// Runs the long tests, full size.
pub(crate) fn soak(workspace: &Workspace) -> Result<bool> {
    let mut summary = Summary::default();
    // the long tests are called so, and are longer when asked
    let run = Run { workspace, filter: Some("soak"), size: Size::Soak, set_up: SetUp::default() };
    if let Some(binaries) = run.prepare(&mut summary) {
        summary.extend(jobs::run_all(run.binaries(binaries)));
    }
    run.finish(summary)
}

/// One run of tests.
struct Run<'a> {
    workspace: &'a Workspace,
    filter: Option<&'a str>,
    size: Size,
    set_up: SetUp,
}

/// What the jobs that set up leave for those that test.
#[derive(Default)]
struct SetUp {
    containers: OnceLock<Containers>,
    /// Where the programs are that a build does not bring along.
    programs: Mutex<Vec<(&'static str, OsString)>>,
    binaries: OnceLock<Vec<Binary>>,
}

impl Run<'_> {
    /// Sets up everything, side by side. Gives the binaries that have a test to run, if they could be built.
    fn prepare(&self, summary: &mut Summary) -> Option<Vec<Binary>> {
        let emulator = Job::new("emulator", Class::Waits, |_| {
            self.programs(rie::skipped(), || Ok(vec![(rie::PATH_VARIABLE, rie::fetch(self.workspace)?.into())]))
        });
        let languages = Job::new("languages", Class::Waits, |_| {
            self.programs(foreign::skipped(), || {
                let python = (foreign::PYTHON_VARIABLE, foreign::python(self.workspace)?.into());
                Ok(vec![(foreign::NODE_VARIABLE, foreign::node()?.into()), python])
            })
        });
        let build = Job::new("build", Class::Locks(CARGO_LOCK), |progress| self.build(progress));
        let mut jobs = vec![build];
        if self.size != Size::Soak {
            jobs.extend([emulator, languages]);
        }
        // whether a filter leaves a test that needs one is known when they are built
        let images_first = self.filter.is_none() && self.size != Size::Quick;
        if images_first {
            jobs.push(self.images());
        }
        summary.extend(jobs::run_all(jobs));
        let binaries: Vec<_> =
            self.set_up.binaries.get()?.iter().filter(|binary| self.wants(binary)).cloned().collect();
        if !images_first && self.size != Size::Quick && binaries.iter().any(|binary| binary.kind.starts_containers) {
            summary.extend(jobs::run_all(vec![self.images()]));
        }
        Some(binaries)
    }

    fn images(&self) -> Job<'_> {
        Job::new("images", Class::Waits, |_| {
            let (outcome, containers) = Containers::set_up(self.workspace);
            // asked once
            let _ = self.set_up.containers.set(containers);
            Done::new(outcome)
        })
    }

    /// Gets programs for the tests.
    fn programs(&self, skipped: Option<String>, fetch: impl FnOnce() -> Result<Vec<(&'static str, OsString)>>) -> Done {
        let outcome = match skipped {
            Some(why) => Outcome::Skipped(why),
            None => match fetch() {
                Ok(programs) => {
                    self.set_up.programs.lock().unwrap_or_else(PoisonError::into_inner).extend(programs);
                    Outcome::Passed
                }
                Err(error) => Outcome::Failed(format!("{error:#}")),
            },
        };
        Done::new(outcome)
    }

    /// Builds all that is run later, and asks every binary for its tests.
    fn build(&self, progress: &Progress) -> Done {
        // the second is quick: everything but the benches themselves is there
        let steps: &[&[&str]] = match self.size {
            Size::Everyday if self.filter.is_none() => &[&[], &["--bench", "*"]],
            Size::Everyday | Size::Quick => &[&[]],
            Size::Soak => &[&["--release", "--tests"]],
        };
        let mut binaries = Vec::new();
        let mut output = String::new();
        for arguments in steps {
            let (done, built) = build::build(self.workspace, arguments, progress);
            if done.outcome != Outcome::Passed {
                return done;
            }
            output.push_str(&done.output);
            binaries.extend(built);
        }
        for binary in &mut binaries {
            binary.list(self.filter);
        }
        // built once
        let _ = self.set_up.binaries.set(binaries);
        Done { output, ..Done::new(Outcome::Passed) }
    }

    /// Whether a binary has anything to run. One that cannot say so has: it fails then.
    fn wants(&self, binary: &Binary) -> bool {
        match &binary.tests {
            Ok(_) if binary.is_bench() => self.filter.is_none(),
            Ok(tests) => !tests.is_empty(),
            Err(_) => true,
        }
    }

    /// A job for each binary. Those with the most tests are the first: the others end beside them.
    fn binaries(&self, mut binaries: Vec<Binary>) -> Vec<Job<'_>> {
        binaries.sort_by_key(|binary| Reverse(binary.tests.as_ref().map_or(0, Vec::len)));
        let pace = (self.size == Size::Soak).then_some(Pace::SOAK);
        let job = |binary: Binary| {
            let pace = pace.unwrap_or_else(|| Pace::of(binary.kind));
            binary.job(pace, self.filter, &self.env())
        };
        binaries.into_iter().map(job).collect()
    }

    /// The tests that only cargo can run: those of the documentation, and those that are built in another way.
    fn by_cargo(&self) -> Vec<Job<'_>> {
        let filter: Vec<_> = self.filter.iter().flat_map(|filter| ["--", *filter]).collect();
        let mut docs = self.workspace.cargo_aside(["test", "--locked", "--workspace", "--all-features", "--doc"]);
        docs.args(&filter).envs(self.env());
        let docs = binary::counted("doc tests", Class::Locks(CARGO_LOCK), docs, self.filter);
        let mut jobs = vec![docs];
        // a name that nobody has is not worth a build
        let wants = |names: &str| self.size != Size::Quick && self.filter.is_none_or(|filter| filter.contains(names));
        if wants(WITHOUT_TLS) {
            // all features together leave nothing of what is said without them
            let lib = ["test", "--locked", "--no-default-features", "--lib"];
            let mut without = self.workspace.cargo_aside(lib);
            without.args(["-p", "winddown-mysql", "-p", "winddown-postgres", "-p", "winddown-redis"]);
            without.arg(self.filter.unwrap_or(WITHOUT_TLS));
            jobs.push(binary::counted("without TLS", Class::Locks(CARGO_LOCK), without, self.filter));
        }
        if !wants(MODELS) {
            return jobs;
        }

        // loom replaces the types that are synchronised with: a build of its own, in a folder of its own so that the two
        // builds do not throw each other's work away
        let test = ["test", "--locked", "--release", "-p", "winddown-core", "-p", "winddown-net", "--lib"];
        let mut models = self.workspace.cargo_aside(test);
        models
            .arg(self.filter.unwrap_or(MODELS))
            .env("RUSTFLAGS", with_flags("RUSTFLAGS", "--cfg winddown_loom"))
            .env("CARGO_TARGET_DIR", self.workspace.target.join("loom"))
            // without a bound the search takes minutes; with fewer than four it misses a caller that resumes too late
            .env("LOOM_MAX_PREEMPTIONS", "5");
        let models = binary::counted("model checker", Class::Works, models, self.filter);
        jobs.push(models);
        jobs
    }

    /// What the tests have to be told.
    fn env(&self) -> Vec<(&'static str, OsString)> {
        let mut env = self.set_up.programs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(containers) = self.set_up.containers.get() {
            env.extend(containers.env().map(|(name, value)| (name, value.into())));
        }
        match self.size {
            Size::Quick => env.push((images::SKIP_VARIABLE, "1".into())),
            Size::Everyday => {}
            Size::Soak => env.push(("WINDDOWN_SOAK", "1".into())),
        }
        env
    }

    /// Removes what the run left; prints the table, what failed, and the closing line. Whether the run is good.
    fn finish(self, mut summary: Summary) -> Result<bool> {
        let containers = self.set_up.containers.into_inner();
        summary.extend(containers.and_then(Containers::sweep));
        let total = summary.total();
        let nothing_ran = total.ran() == 0;
        println!("\n{summary}");
        print!("{}", summary.failures());
        if nothing_ran {
            match self.filter {
                Some(filter) if summary.passed() => println!("no test ran: no test's name contains {filter:?}"),
                _ => println!("no test ran"),
            }
        }
        println!("{total}");
        Ok(summary.passed() && !nothing_ran)
    }
}

/// The value of a flags variable with more flags, keeping what the caller's environment has.
pub(crate) fn with_flags(variable: &str, more: &str) -> String {
    match std::env::var(variable) {
        Ok(flags) if !flags.is_empty() => format!("{flags} {more}"),
        _ => more.to_owned(),
    }
}
