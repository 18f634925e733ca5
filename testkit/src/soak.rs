//! Claims that are about many drains in a row, for any harness. `cargo xtask soak` runs them full size, the tests in a
//! smaller one.

pub mod wrapped;

use std::{
    collections::BTreeMap,
    env, fs,
    future::Future,
    num::NonZero,
    pin::Pin,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use tokio::runtime::{Builder, Handle};
use winddown_core::{BoxError, Report};

use crate::{
    Harness, InProcess, ServerUse, Setup,
    cases::scene::Scene,
    child::{self, Child},
    gone,
    limit::{Clock, within},
    scene::{SLACK, in_full, lifecycle, until},
    size, slow,
};

/// One claim: what it returns are its figures, in words.
pub type Claim<H> = for<'a> fn(&'a H) -> Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send + 'a>>;

/// How many rounds there are: so many at full size, so many else.
#[must_use]
pub fn rounds(full: usize, small: usize) -> usize {
    size::rounds(full, small)
}

/// The claims that are the same for every server: idle sessions, also on busy cores, a statement that runs, a network that is
/// cut, and what a life leaves behind.
#[must_use]
pub fn trials<H: InProcess>() -> Vec<Trial> {
    let claims: [(&str, ServerUse, Claim<H>); 5] = [
        ("s6_nothing_is_listed_when_a_drain_of_idle_sessions_returns", ServerUse::Shared, |h| Box::pin(idle(h))),
        ("s6_nor_where_other_work_keeps_every_core_busy", ServerUse::Shared, |h| Box::pin(idle_on_busy_cores(h))),
        ("no_row_appears_after_a_drain_under_a_running_statement", ServerUse::Shared, |h| {
            Box::pin(slow::undisturbed(h))
        }),
        ("l1_a_drain_behind_a_cut_network_ends_by_its_deadline", ServerUse::Own, |h| Box::pin(cut_off(h))),
        ("a_drained_lifecycle_leaves_no_task_thread_or_socket", ServerUse::Shared, |h| Box::pin(leaves_nothing(h))),
    ];
    let trials = claims.into_iter().map(|(name, server, claim)| trial(name, server, claim));
    trials.chain(slow::trials::<H>()).collect()
}

/// A trial of one claim, called `soak_HARNESS_NAME`.
#[must_use]
pub fn trial<H: Harness>(name: &str, server: ServerUse, claim: Claim<H>) -> Trial {
    let name = format!("soak_{}_{name}", H::NAME);
    Trial::test(name.clone(), move || {
        let began = Instant::now();
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let limit = Duration::from_secs(60 * rounds(180, 10) as u64);
        let soak = async {
            let harness = H::start(server).await?;
            let figures = claim(&harness).await;
            let ended = harness.end().await;
            // What the claim says comes first: what is left then follows from it.
            figures.and_then(|figures| ended.map(|()| figures))
        };
        let outcome: Option<Result<String, BoxError>> =
            runtime.block_on(Arc::<Clock>::default().run(within(limit, soak)));
        let outcome = outcome.unwrap_or_else(|| Err(format!("it hung: it was not over after {limit:?}").into()));
        println!("{name}: {}; {:.0?} in all", outcome.map_err(|error| in_full(error.as_ref()))?, began.elapsed());
        Ok(())
    })
    .with_ignored_flag(H::skipped().is_some())
}

/// Closed, cut, cancelled.
fn sessions(report: &Report) -> (u64, u64, u64) {
    let sessions = report.resource("db").expect("it was registered").sessions;
    (sessions.closed, sessions.cut, sessions.cancelled)
}

/// A lifecycle with so many idle sessions, each of which was used.
async fn living<H: Harness>(harness: &H, budget: Duration, sessions: usize) -> Scene<H> {
    let scene = Scene::with(harness, budget, &Setup { size: sessions, ..Setup::default() });
    drop(scene.out(harness, sessions).await);
    scene
}

/// S6: 20 idle sessions, and what the server lists when drain returns. 200 times, or 5.
///
/// # Errors
/// When one is listed, or the server has complaints.
pub async fn idle<H: Harness>(harness: &H) -> Result<String, BoxError> {
    idle_beside(harness, || None).await
}

/// The same on a machine that does other work besides: twice as many threads as it has cores, for as long as a drain takes.
async fn idle_on_busy_cores<H: Harness>(harness: &H) -> Result<String, BoxError> {
    idle_beside(harness, || Some(OtherWork::begin())).await
}

async fn idle_beside<H: Harness>(
    harness: &H,
    other_work: impl Fn() -> Option<OtherWork> + Send + Sync,
) -> Result<String, BoxError> {
    let rounds = rounds(200, 5);
    let mut took = Vec::new();
    for round in 0..rounds {
        let scene = living(harness, Duration::from_secs(10), 20).await;
        let listed = harness.sessions().await?;
        if listed != 20 {
            return Err(format!("round {round}: the server lists {listed} of 20 before the drain").into());
        }
        let other_work = other_work();
        let began = Instant::now();
        let report = scene.lifecycle.drain().await;
        took.push(began.elapsed());
        drop(other_work);
        let listed = harness.sessions().await?;
        if listed != 0 || sessions(&report) != (20, 0, 0) || !report.is_clean() {
            return Err(format!("round {round}: the server lists {listed} after\n{report}").into());
        }
    }
    took.sort_unstable();
    let complaints = harness.complaints().await?;
    if !complaints.is_empty() {
        return Err(format!("the server complains: {complaints:?}").into());
    }
    Ok(format!(
        "{rounds} of {rounds} drains of 20 sessions left none listed; median {:.1?}, longest {:.1?}",
        took[rounds / 2],
        took[rounds - 1]
    ))
}

/// Threads that keep every core busy until this is dropped.
struct OtherWork {
    is_over: Arc<AtomicBool>,
    workers: Vec<thread::JoinHandle<()>>,
}

impl OtherWork {
    fn begin() -> Self {
        let is_over: Arc<AtomicBool> = Arc::default();
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let work = |_| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || while !is_over.load(Ordering::Relaxed) {})
        };
        let workers = (0..cores * 2).map(work).collect();
        Self { is_over, workers }
    }
}

impl Drop for OtherWork {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            // It has nothing to panic about.
            let _ = worker.join();
        }
    }
}

/// L1: 10 idle sessions and 2 busy ones, and the network is cut without FIN or RST. 50 times, or 3.
async fn cut_off<H: Harness>(harness: &H) -> Result<String, BoxError> {
    const BUDGET: Duration = Duration::from_millis(1500);
    // Long enough for both to be listed at the same time, and on most machines for one drain behind the cut.
    const TAKES: Duration = Duration::from_secs(6);
    let rounds = rounds(50, 3);
    let mut longest = Duration::ZERO;
    let mut busy = 0;
    for round in 0..rounds {
        let scene = living(harness, BUDGET, 12).await;
        let began = Instant::now();
        let run = async || {
            let mut checkout = scene.get().await;
            harness.run(&mut checkout, TAKES).await.is_err()
        };
        let drain = async {
            until("the server lists both statements", || async {
                harness.running().await.is_ok_and(|count| count == 2)
            })
            .await;
            harness.partition().await?;
            let drains = Instant::now();
            let report = scene.lifecycle.drain().await;
            let took = drains.elapsed();
            // Neither has ended by itself until here.
            let both_are_busy = began.elapsed() < TAKES;
            harness.heal().await?;
            Ok::<_, BoxError>((report, took, both_are_busy))
        };
        let (one, other, drained) = tokio::join!(run(), run(), drain);
        let (report, took, both_are_busy) = drained?;
        longest = longest.max(took);
        busy += usize::from(both_are_busy);
        if took > BUDGET + SLACK || sessions(&report).0 != 0 || sessions(&report).1 != 12 {
            return Err(format!("round {round}: {took:?}\n{report}").into());
        }
        let sites = &report.resource("db").expect("it was registered").stragglers;
        let named: usize = sites.iter().map(|site| site.count).sum();
        if named > 2 || (both_are_busy && named < 2) {
            return Err(format!("round {round}: {named} of the two that were busy are named\n{report}").into());
        }
        if H::CUTS_HOLDERS && both_are_busy && !(one && other) {
            return Err(format!("round {round}: a statement succeeded").into());
        }
        // Whom nobody told of the end: statements run on to theirs.
        let left = gone(|| harness.sessions()).await?;
        if left != 0 {
            return Err(format!("round {round}: {left} sessions are left").into());
        }
    }
    Ok(format!(
        "{rounds} of {rounds} drains ended by the deadline of {BUDGET:?}, 12 sessions cut; in {busy} two were busy, and were named; \
         longest {longest:.2?}"
    ))
}

/// What a process has after 1,000 lives, or 50: one of its own, since this one runs other tests at the same time.
async fn leaves_nothing<H: InProcess>(harness: &H) -> Result<String, BoxError> {
    let mut variables = harness.environment();
    variables.push((LIVES, rounds(1_000, 50).to_string()));
    let ended = Child::start_with(LIVE, &variables).end();
    if ended.code != Some(0) {
        return Err(format!("{}{}", ended.stdout, ended.stderr).into());
    }
    match harness.sessions().await? {
        0 => Ok(ended.stdout.trim_end().to_owned()),
        left => Err(format!("the server lists {left} sessions after\n{}", ended.stdout).into()),
    }
}

/// A program that lives many times, and where it is told how often.
const LIVE: &str = "lives";
const LIVES: &str = "WINDDOWN_TEST_LIVES";

/// Runs the program that this process is, if it is the one here.
#[must_use]
pub fn program<H: InProcess>() -> Option<ExitCode> {
    child::role().filter(|role| role == LIVE)?;
    Some(child::run(Builder::new_multi_thread().worker_threads(2), lives::<H>()))
}

/// A session in each life, and what this process has when all of them are over.
async fn lives<H: InProcess>() -> Result<(), BoxError> {
    let lives: usize = env::var(LIVES)?.parse()?;
    let mut before = None;
    for life in 0..lives {
        let lifecycle = lifecycle(Duration::from_secs(10));
        let db = lifecycle.guard_as("db", H::from_env()?);
        drop(db.get().await?);
        let report = lifecycle.drain().await;
        if sessions(&report) != (1, 0, 0) {
            return Err(format!("life {life}\n{report}").into());
        }
        drop((db, lifecycle));
        // The first lives start what stays: threads of the runtime, a thread that counts the time.
        if life == 10 {
            before = Some(possessions());
        }
    }
    // What was told to end has a moment to do so.
    let began = Instant::now();
    let before = before.ok_or("there were no more than ten lives")?;
    loop {
        let after = possessions();
        if after.iter().all(|(what, count)| count <= &before[what]) {
            println!("{lives} lives of a session: {after:?}, and {before:?} after the first ten");
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(5) {
            return Err(format!("{after:?}, and {before:?} after the first ten lives").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn possessions() -> BTreeMap<&'static str, usize> {
    let count = |folder| fs::read_dir(folder).map_or(0, Iterator::count);
    BTreeMap::from([
        ("tasks", Handle::current().metrics().num_alive_tasks()),
        ("threads", count("/proc/self/task")),
        ("files", count("/proc/self/fd")),
    ])
}
