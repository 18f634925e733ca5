//! Claims about processes that have no descriptor left when they are told to stop, for any harness: real processes, whose limit
//! of open files is used up but for a few.
//!
//! A test binary gives its trials to [`Suite::tests`](crate::Suite::tests), and its `main` begins with [`program`].

use std::{
    env,
    fs::{self, File},
    future::Future,
    io,
    process::ExitCode,
    time::Duration,
};

use libtest_mimic::Trial;
use rustix::process::{Resource as Limited, Rlimit, Signal, getrlimit, setrlimit};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use winddown_core::{BoxError, Error, Lifecycle};

use crate::{
    CheckoutOf, InProcess, ServerUse,
    child::{self, Child, Ended},
    gone,
    scene::{LONG, until},
    soak::trial,
};

/// A harness whose resource is used by processes that have no descriptor left.
pub trait Starved: InProcess {
    /// More sessions than a machine can hold twice within the limit that they are given.
    const MANY: usize;

    /// Whether the server can be asked from outside what runs.
    const LISTS_RUNNING: bool = true;

    /// Whether what runs goes on for as long as it takes though its client has gone. Where it does not, a machine that is slow has it
    /// end by itself before anybody comes to stop it.
    const OUTLIVES_ITS_CLIENT: bool = true;

    /// A resource of the server that the environment says, with room for so many sessions, in that process.
    ///
    /// # Errors
    /// When the variables do not say enough.
    fn with_room(sessions: usize) -> Result<Self::Resource, Error>;

    /// Runs what does not end by itself, and counts as [`running`](crate::Harness::running). Says when it has begun, as far as
    /// this process knows.
    fn endless(
        checkout: &mut CheckoutOf<Self>,
        begun: impl FnOnce() + Send + 'static,
    ) -> impl Future<Output = ()> + Send;
}

const STARVES: &str = "starves";

/// Sessions that rest, sessions with a statement, and how many descriptors are left.
const IDLE: &str = "WINDDOWN_TEST_IDLE";
const BUSY: &str = "WINDDOWN_TEST_BUSY";
const FREE: &str = "WINDDOWN_TEST_FREE";
/// Set where somebody still waits for the statements.
const HELD: &str = "WINDDOWN_TEST_HELD";

/// How many descriptors are left, in one process each.
const FREE_ONES: [usize; 7] = [0, 1, 2, 3, 5, 8, 12];

/// Not used up by any machine.
const BUDGET: Duration = Duration::from_secs(60);

/// Runs the program that this process is, if it is the one here.
#[must_use]
pub fn program<H: Starved>() -> Option<ExitCode> {
    child::role().filter(|role| role == STARVES)?;
    Some(child::run(Builder::new_multi_thread().worker_threads(2), starves::<H>()))
}

/// Opens sessions, uses the descriptors up when it is told that what runs is running, and waits for its end.
async fn starves<H: Starved>() -> Result<(), BoxError> {
    let number = |name| Ok::<usize, BoxError>(env::var(name)?.parse()?);
    let (idle, busy, free) = (number(IDLE)?, number(BUSY)?, number(FREE)?);
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard_as("db", H::with_room(idle + busy)?);
    let mut runs = signal(SignalKind::user_defined1())?;
    lifecycle.init().await?;
    let mut out = Vec::new();
    for _ in 0..idle + busy {
        out.push(db.get().await?);
    }
    let mut running = Vec::new();
    for mut checkout in out.split_off(idle) {
        let (begun, begins) = oneshot::channel();
        running.push(tokio::spawn(async move {
            // The program waits for it.
            H::endless(&mut checkout, || _ = begun.send(())).await;
        }));
        begins.await?;
    }
    drop(out);
    child::ready();
    runs.recv().await;
    if env::var_os(HELD).is_none() {
        for statement in running {
            statement.abort();
            // It is aborted, or was over.
            let _ = statement.await;
        }
    }
    let _open = use_up_descriptors(free)?;
    println!("starved");
    Ok(child::until_stopped(&lifecycle).await?)
}

/// Opens files until so many more can be opened by this process, and no more; they are open as long as these are kept.
///
/// # Errors
/// When the limit cannot be set, or was reached before.
pub fn use_up_descriptors(free: usize) -> Result<Vec<File>, BoxError> {
    let highest =
        fs::read_dir("/proc/self/fd")?.filter_map(|file| file.ok()?.file_name().to_str()?.parse::<u64>().ok()).max();
    let most = highest.unwrap_or_default() + 1 + free as u64;
    setrlimit(Limited::Nofile, Rlimit { current: Some(most), ..getrlimit(Limited::Nofile) })?;
    let mut open = Vec::new();
    let refused = loop {
        match File::open("/dev/null") {
            Ok(file) => open.push(file),
            Err(error) => break error,
        }
    };
    if refused.raw_os_error() != Some(rustix::io::Errno::MFILE.raw_os_error()) || open.len() < free {
        return Err(io::Error::other(format!("{} were opened: {refused}", open.len())).into());
    }
    open.truncate(open.len() - free);
    Ok(open)
}

/// The trials of this file.
#[must_use]
pub fn trials<H: Starved>() -> Vec<Trial> {
    vec![
        trial::<H>("l7_idle_sessions_say_goodbye_with_no_descriptor_left", ServerUse::Shared, |h| Box::pin(idle(h))),
        trial::<H>("l7_nor_do_many_need_another_one_each", ServerUse::Shared, |h| Box::pin(many(h))),
        trial::<H>("l7_a_statement_is_stopped_with_no_descriptor_left", ServerUse::Shared, |h| Box::pin(left(h))),
        trial::<H>("l7_what_could_not_be_stopped_has_its_reason", ServerUse::Shared, |h| Box::pin(held(h))),
    ]
}

/// So many idle ones, so many that are busy, and how many descriptors are left.
struct Case {
    idle: usize,
    busy: usize,
    free: usize,
    held: bool,
    budget: Duration,
}

/// Runs these processes, all at once, to their ends.
async fn run<H: Starved>(harness: &H, cases: &[Case]) -> Result<Vec<Ended>, BoxError> {
    let start = |case: &Case| {
        let mut variables = harness.environment();
        variables
            .extend([(IDLE, case.idle), (BUSY, case.busy), (FREE, case.free)].map(|(name, n)| (name, n.to_string())));
        variables.push(("WINDDOWN_BUDGET_MS", case.budget.as_millis().to_string()));
        if case.held {
            variables.push((HELD, "yes".to_owned()));
        }
        Child::start_with(STARVES, &variables)
    };
    let children: Vec<_> = cases.iter().map(start).collect();
    let ready: Vec<_> = children.into_iter().map(Child::ready).collect();
    let busy: usize = cases.iter().map(|case| case.busy).sum();
    if H::LISTS_RUNNING {
        until("the server lists what runs", || async { harness.running().await.is_ok_and(|count| count == busy) })
            .await;
    }
    let mut starved = Vec::new();
    for child in ready {
        let mut child = child.signal(Signal::USR1);
        let said = child.line();
        if said != "starved\n" {
            return Err(format!("said {said:?}: {}", child.end().stderr).into());
        }
        starved.push(child);
    }
    let told: Vec<_> = starved.into_iter().map(Child::terminate).collect();
    let ended: Vec<_> = told.into_iter().map(Child::end).collect();
    let left = gone(|| harness.sessions()).await?;
    for (case, ended) in cases.iter().zip(&ended) {
        if left > 0 || ended.stderr.contains("panicked") || ended.report.is_none() {
            return Err(format!("{} free: {left} sessions are listed, {}", case.free, ended.stderr).into());
        }
    }
    Ok(ended)
}

/// All of them were closed, and all is well.
fn is_clean(case: &Case, ended: &Ended) -> Result<(), BoxError> {
    let row = ended.report().resource("db").ok_or("it was registered")?;
    let all = (case.idle + case.busy) as u64;
    if ended.code == Some(0) && ended.report().is_clean() && (row.sessions.closed, row.sessions.cut) == (all, 0) {
        return Ok(());
    }
    Err(format!("{} free: {}", case.free, ended.stderr).into())
}

async fn idle<H: Starved>(harness: &H) -> Result<String, BoxError> {
    let cases = FREE_ONES.map(|free| Case { idle: 8, busy: 0, free, held: false, budget: BUDGET });
    for (case, ended) in cases.iter().zip(run(harness, &cases).await?) {
        is_clean(case, &ended)?;
    }
    Ok(format!("8 sessions each were closed with {FREE_ONES:?} descriptors free"))
}

async fn many<H: Starved>(harness: &H) -> Result<String, BoxError> {
    let case = Case { idle: H::MANY, busy: 0, free: 3, held: false, budget: BUDGET };
    let ended = run(harness, std::slice::from_ref(&case)).await?.remove(0);
    is_clean(&case, &ended)?;
    Ok(format!("{} sessions were closed with 3 descriptors free", H::MANY))
}

/// Nobody waits for what runs: it is stopped when the drain begins.
async fn left<H: Starved>(harness: &H) -> Result<String, BoxError> {
    let alone = FREE_ONES.map(|free| Case { idle: 0, busy: 1, free, held: false, budget: BUDGET });
    let beside = FREE_ONES.map(|free| Case { idle: 3, busy: 1, free, held: false, budget: BUDGET });
    let cases: Vec<_> = alone.into_iter().chain(beside).collect();
    for (case, ended) in cases.iter().zip(run(harness, &cases).await?) {
        is_clean(case, &ended)?;
        let cancelled = ended.report().resource("db").ok_or("it was registered")?.sessions.cancelled;
        if cancelled > 1 || (H::OUTLIVES_ITS_CLIENT && cancelled == 0) {
            return Err(format!("{} free, {cancelled} cancelled: {}", case.free, ended.stderr).into());
        }
    }
    Ok(format!("a statement each was stopped with {FREE_ONES:?} descriptors free, alone and beside idle sessions"))
}

/// Somebody waits for what runs until its time is over.
async fn held<H: Starved>(harness: &H) -> Result<String, BoxError> {
    let cases = FREE_ONES.map(|free| Case { idle: 2, busy: 2, free, held: true, budget: LONG });
    let (mut cancelled, mut cut) = (0, 0);
    for (case, ended) in cases.iter().zip(run(harness, &cases).await?) {
        let row = ended.report().resource("db").ok_or("it was registered")?;
        let sessions = row.sessions;
        let named: usize = row.stragglers.iter().map(|straggler| straggler.count).sum();
        // On a machine that is busy there may be no time for it.
        let has_reason = sessions.cut == 0 || row.error.is_some() || !row.reasons.is_empty();
        if sessions.closed + sessions.cut != 4 || sessions.closed < 2 || named != 2 || !has_reason {
            return Err(format!("{} free: {}", case.free, ended.stderr).into());
        }
        (cancelled, cut) = (cancelled + sessions.cancelled, cut + sessions.cut);
    }
    Ok(format!("{cancelled} of {} statements were stopped, {cut} sessions cut", cases.len() * 2))
}
