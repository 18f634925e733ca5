//! `cargo xtask images`: the servers that tests run against, as images of one name whichever way they came.
//!
//! This goes through the command `docker`: it knows contexts, logins and proxies, it packs what an image is built
//! from, and its commands, `--format` and exit codes are documented and kept. A client of the API would do each of
//! these again, with an asynchronous runtime, in a program that is built before anything else can run.

mod base;
mod engine;
mod label;
mod official;
mod pins;

use std::{
    env, fs,
    fs::File,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail};

use self::pins::{Image, Pins};
use crate::{run, workspace::Workspace};

/// Set to run without containers.
pub(crate) const SKIP_VARIABLE: &str = "WINDDOWN_SKIP_CONTAINERS";

/// How many are made at a time. Half of one's time goes to downloads and the disk.
const AT_ONCE: usize = 3;

/// Why the images are left out, when it was asked for.
pub(crate) fn skipped() -> Option<String> {
    let set = env::var_os(SKIP_VARIABLE).is_some_and(|value| !value.is_empty());
    set.then(|| format!("{SKIP_VARIABLE} is set: no image is made, and the tests that need a server do not run"))
}

/// Makes what is missing; with `rebuild`, everything.
pub(crate) fn make(workspace: &Workspace, rebuild: bool) -> Result<()> {
    let start = Instant::now();
    let pins = Pins::read(&workspace.root.join("images"))?;
    let folder = workspace.target.join("images");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // two runs at once would make everything twice
    let lock = File::create(folder.join("lock")).context("cannot make the images' lock file")?;
    lock.lock().context("cannot lock the images' folder")?;

    engine::ensure(&folder)?;
    let maker =
        Maker { pins: &pins, folder: &folder, rebuild, registry: AtomicBool::new(true), mirror: OnceLock::new() };
    let mut made = 0;
    let mut failed = Vec::new();
    for (image, outcome) in pins.images.iter().zip(at_once(AT_ONCE, &pins.images, |image| maker.make(image))) {
        match outcome {
            Ok(false) => {}
            Ok(true) => made += 1,
            // the others are of use without it
            Err(error) => failed.push(format!("{} ({error:#})", image.tag())),
        }
    }
    if made > 0 {
        // what a newer image has taken the name of; only ours, and only what no container uses
        let ours = format!("label={}", label::NAME);
        run::output(&mut docker(["image", "prune", "--force", "--filter", &ours]))?;
    }
    if !failed.is_empty() {
        bail!("not made: {}", failed.join(", "));
    }
    let here = pins.images.len() - made;
    eprintln!("images: {made} made, {here} were here, {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Does the same with each of these, a few at a time. What comes of it is in their order.
fn at_once<T: Sync, R: Send + Sync>(limit: usize, all: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let results: Vec<_> = all.iter().map(|_| OnceLock::new()).collect();
    let queue = Mutex::new(all.iter().zip(&results));
    thread::scope(|scope| {
        for _ in 0..limit {
            scope.spawn(|| {
                loop {
                    // not held while one is at work
                    let next = queue.lock().expect("nobody panics with it").next();
                    let Some((one, result)) = next else { return };
                    // each has one place, and is taken once
                    let _ = result.set(work(one));
                }
            });
        }
    });
    results.into_iter().map(|result| result.into_inner().expect("a panic has ended the scope")).collect()
}

/// Makes images, several at a time.
struct Maker<'a> {
    pins: &'a Pins,
    folder: &'a Path,
    rebuild: bool,
    /// Whether a registry is worth another try: one that did not answer once is not waited for again.
    registry: AtomicBool,
    /// Where Debian's packages come from, once it was asked for; the error is of text, for all to have it.
    mirror: OnceLock<Result<String, String>>,
}

impl Maker<'_> {
    /// Makes an image; whether it had to be.
    fn make(&self, image: &Image) -> Result<bool> {
        let digest = self.pins.digest(image)?;
        if !self.rebuild && label::of(&image.tag())?.as_deref() == Some(&digest) {
            return Ok(false);
        }
        if let Some(reference) = &image.official
            && self.registry.load(Ordering::Relaxed)
        {
            let official = timed(&format!("{}: {reference} from its registry", image.tag()), || {
                official::pull(reference)?;
                self.name_official(image, reference, &digest)
            });
            match official {
                Ok(()) => return Ok(true),
                Err(why) => {
                    if self.registry.swap(false, Ordering::Relaxed) {
                        eprintln!("images: no container registry ({why:#}), so from Debian's packages");
                    }
                }
            }
        }
        let mirror = self.mirror.get_or_init(|| base::debian_mirror().map_err(|error| format!("{error:#}")));
        let mirror = mirror.as_ref().map_err(|error| anyhow!("{error}"))?;
        timed(&format!("{}: {}", image.tag(), image.packages.join(" ")), || {
            base::make(self.pins, image, mirror, self.folder, self.rebuild)?;
            self.build(image, &digest)
        })?;
        Ok(true)
    }

    /// Gives an official image our name and label, without changing what is in it.
    fn name_official(&self, image: &Image, reference: &str, digest: &str) -> Result<()> {
        let mut build = docker(["build", "--label", &format!("{}={digest}", label::NAME), "--tag", &image.tag(), "-"]);
        let mut child = build
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start docker")?;
        let mut input = child.stdin.take().context("docker has no input")?;
        input.write_all(format!("FROM {reference}\n").as_bytes()).context("cannot write to docker")?;
        // it reads to the end
        drop(input);
        let status = child.wait().context("cannot wait for docker")?;
        if !status.success() {
            bail!("docker build ended with {status}");
        }
        Ok(())
    }

    fn build(&self, image: &Image, digest: &str) -> Result<()> {
        let recipe = self.pins.recipe(image);
        let mut build = docker(["build", "--network", "none", "--label", &format!("{}={digest}", label::NAME)]);
        build.arg("--file").arg(recipe.join("Containerfile"));
        let base = image.base_tag();
        for (name, value) in [("BASE", base.as_str()), ("NAME", &image.name), ("VERSION", &image.version)] {
            build.arg("--build-arg").arg(format!("{name}={value}"));
        }
        if self.rebuild {
            build.arg("--no-cache");
        }
        build.arg("--tag").arg(image.tag()).arg(&recipe);
        let log = self.folder.join(format!("{}.log", image.tag().replace(['/', ':'], "-")));
        run::logged(&mut build, &log)
    }
}

/// A command for the engine.
fn docker<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new("docker");
    command.args(arguments);
    command
}

/// Says what begins, and how long it took.
fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    eprintln!("images: {what} ...");
    let result = work();
    let end = if result.is_ok() { "done" } else { "not done" };
    eprintln!("images: {what} {end}, {:.1} s", start.elapsed().as_secs_f64());
    result
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_few_are_at_work_at_once_and_results_keep_the_order() {
        let both = Barrier::new(2);
        let squares = at_once(2, &[1, 2, 3, 4], |number| {
            // over only when another one is here too
            both.wait();
            number * number
        });
        assert_eq!(squares, [1, 4, 9, 16]);
    }
}
