//! Drains under a running statement, of a server that may answer late, for any harness: what must hold however slow it is, and
//! how often a drain is clean inside Lambda's budget.

use std::{
    fmt,
    fs::File,
    io::{self, Seek, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use tokio::sync::Mutex;
use winddown_core::{BoxError, Outcome, Report, SessionCounts};

use crate::{
    Harness, ServerUse, Setup,
    cases::scene::{SLACK, Scene, abandon_statement, while_running},
    containers::Container,
    servers::gone_within,
    soak::{Claim, rounds, trial},
};

/// Lambda's, without an external extension.
const BUDGET: Duration = Duration::from_millis(500);

/// Longer than a drain and what a slow server adds to it.
const TAKES: Duration = Duration::from_secs(5);

/// The claim about servers that are slow, for any harness in a container.
#[must_use]
pub fn trials<H: Harness>() -> Vec<Trial> {
    let claim: Claim<H> = |harness| Box::pin(every_way(harness));
    vec![trial::<H>("s6_the_report_of_a_slow_server_adds_up", ServerUse::Own, claim)]
}

/// What makes the server slow.
#[derive(Debug, Clone, Copy)]
enum Slowness {
    /// What travels to it and back takes longer.
    Delay,
    /// Its processes stand still, again and again.
    Bursts,
    /// It has half of a core.
    HalfACore,
    /// Somebody else writes large files to its disk.
    BusyDisk,
}

impl Slowness {
    fn does_not_apply<H: Harness>(self, harness: &H) -> Option<&'static str> {
        match self {
            Self::Delay if harness.proxy().is_none() => Some("no network"),
            Self::Bursts | Self::HalfACore if harness.container().is_none() => Some("no process of its own"),
            _ => None,
        }
    }
}

impl fmt::Display for Slowness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delay => "20 ms away",
            Self::Bursts => "paused in bursts",
            Self::HalfACore => "half a core",
            Self::BusyDisk => "busy disk",
        })
    }
}

/// S6, L1: in every way in which a server is slow, what the report counts is what the server listed, what it still lists is
/// not called closed, and the drain is over in time. How many drains were clean is printed, and no claim.
async fn every_way<H: Harness>(harness: &H) -> Result<String, BoxError> {
    let rounds = rounds(250, 3);
    let (mut figures, mut failures) = (Vec::new(), Vec::new());
    for slowness in [Slowness::Delay, Slowness::Bursts, Slowness::HalfACore, Slowness::BusyDisk] {
        if let Some(why) = slowness.does_not_apply(harness) {
            figures.push(format!("{slowness}: {why}"));
            continue;
        }
        let disturbance = Disturbance::begin(harness, slowness).await?;
        let outcome = in_a_row(harness, rounds).await;
        disturbance.end(harness).await?;
        match outcome {
            Ok(outcome) => figures.push(format!("{slowness}: {outcome}")),
            Err(error) => failures.push(format!("{slowness}: {error}")),
        }
    }
    let figures = figures.join("; ");
    if failures.is_empty() { Ok(figures) } else { Err(format!("{}\nelse {figures}", failures.join("\n")).into()) }
}

/// S6, L1: the same of a server that is not slow. No row appears after a drain that was clean: nothing runs on.
pub(crate) async fn undisturbed<H: Harness>(harness: &H) -> Result<String, BoxError> {
    in_a_row(harness, rounds(200, 5)).await
}

/// So many drains with a statement that runs, its future held or dropped in turns.
async fn in_a_row<H: Harness>(harness: &H, rounds: usize) -> Result<String, BoxError> {
    let (mut clean, mut took, mut untrue) = (0, Vec::new(), Vec::new());
    for round in 0..rounds {
        let scene = Scene::with(harness, BUDGET, &Setup { size: 3, ..Setup::default() });
        let mut out = scene.out(harness, 3).await;
        let checkout = out.remove(0);
        drop(out);
        let rows = harness.rows().await?;
        let drain = async {
            let listed = harness.sessions().await?;
            let began = Instant::now();
            let report = scene.lifecycle.drain().await;
            took.push(began.elapsed());
            Ok::<_, BoxError>((listed, report, harness.sessions().await?))
        };
        let drained = if round % 2 == 0 {
            while_running(harness, checkout, TAKES, drain).await.1
        } else {
            abandon_statement(harness, checkout, TAKES).await;
            drain.await
        };
        let (before, report, after) = drained?;
        if let Err(error) = check(&report, before, after) {
            untrue.push(format!("round {round}: {error}\n{report}"));
        }
        clean += usize::from(report.is_clean());
        // A statement that could not be stopped runs to its end.
        let left = gone_within(TAKES + SLACK, || harness.sessions()).await?;
        if left > 0 {
            return Err(format!("round {round}: {left} sessions are left\n{report}").into());
        }
        let rows = harness.rows().await? - rows;
        // One that was not stopped has ended by itself, on a machine that stood still.
        if report.is_clean() && row(&report).cancelled > 0 && rows > 0 {
            untrue.push(format!("round {round}: its row has appeared\n{report}"));
        }
    }
    took.sort_unstable();
    let figures =
        format!("{clean} of {rounds} clean, median {:.0?}, longest {:.0?}", took[rounds / 2], took[rounds - 1]);
    match untrue.first() {
        None => Ok(figures),
        Some(first) => Err(format!("{figures}; {} reports are not true, the first in {first}", untrue.len()).into()),
    }
}

fn row(report: &Report) -> SessionCounts {
    report.resource("db").expect("it was registered").sessions
}

/// What the report counts, beside what the server listed before the drain and after it.
fn check(report: &Report, before: usize, after: usize) -> Result<(), String> {
    let SessionCounts { closed, cut, left_behind, .. } = row(report);
    if closed + cut != before as u64 {
        return Err(format!("the server listed {before}"));
    }
    // A resource that was left as it is, its thread without a core, has not said whether its own sessions were still there: one that
    // was not answered, and one that was opened in its place.
    let own = if report.resource("db").is_some_and(|row| row.outcome == Outcome::Hung) { 2 } else { 0 };
    if after as u64 > cut + left_behind + own {
        return Err(format!("the server still lists {after}"));
    }
    if report.took > BUDGET + SLACK {
        return Err("it was not over by the deadline".into());
    }
    Ok(())
}

/// What goes on while a server is slow.
struct Disturbance {
    slowness: Slowness,
    is_over: Arc<AtomicBool>,
    bursts: Option<tokio::task::JoinHandle<Result<(), BoxError>>>,
    writer: Option<JoinHandle<io::Result<()>>>,
}

impl Disturbance {
    async fn begin<H: Harness>(harness: &H, slowness: Slowness) -> Result<Self, BoxError> {
        let mut disturbance = Self { slowness, is_over: Arc::default(), bursts: None, writer: None };
        match slowness {
            Slowness::Delay => harness.slow(Duration::from_millis(10)).await?,
            Slowness::HalfACore => container(harness)?.lock().await.limit_cores(Some(0.5)).await?,
            Slowness::BusyDisk => {
                let (folder, is_over) = (tempfile::tempdir()?, Arc::clone(&disturbance.is_over));
                let write = move || write(folder.path(), &is_over);
                disturbance.writer = Some(thread::Builder::new().name("writer".into()).spawn(write)?);
            }
            Slowness::Bursts => {
                let (freezer, is_over) = (container(harness)?.lock().await.freezer(), Arc::clone(&disturbance.is_over));
                disturbance.bursts = Some(tokio::spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        // Short enough that nobody gives up on the server, often enough that every drain meets some.
                        freezer.freeze_for(Duration::from_millis(fastrand::u64(10..60))).await?;
                        tokio::time::sleep(Duration::from_millis(fastrand::u64(10..100))).await;
                    }
                    Ok(())
                }));
            }
        }
        Ok(disturbance)
    }

    async fn end<H: Harness>(self, harness: &H) -> Result<(), BoxError> {
        let Self { slowness, is_over, bursts, writer } = self;
        is_over.store(true, Ordering::Relaxed);
        match slowness {
            Slowness::BusyDisk | Slowness::Bursts => {}
            Slowness::Delay => harness.slow(Duration::ZERO).await?,
            Slowness::HalfACore => container(harness)?.lock().await.limit_cores(None).await?,
        }
        if let Some(bursts) = bursts {
            bursts.await??;
        }
        if let Some(writer) = writer {
            writer.join().map_err(|_| "the writer panicked")??;
        }
        Ok(())
    }
}

fn container<H: Harness>(harness: &H) -> Result<&Mutex<Container>, BoxError> {
    harness.container().ok_or_else(|| format!("{} has no container", H::NAME).into())
}

/// Writes a file of 512 MB over and over, and sees to it that it is on the disk each time.
fn write(folder: &Path, is_over: &AtomicBool) -> io::Result<()> {
    let piece = vec![7; 4 << 20];
    let mut file = File::create(folder.join("large"))?;
    while !is_over.load(Ordering::Relaxed) {
        file.rewind()?;
        for _ in 0..128 {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            file.write_all(&piece)?;
        }
        file.sync_all()?;
    }
    Ok(())
}
