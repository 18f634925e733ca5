//! Claims about processes whose server fails in one way after the other, at random, for any harness that has a buffer: real
//! processes under load, and a real SIGTERM at the end, also in the middle of a failure. What the *server* has decides.
//!
//! A test binary gives its trial to [`Suite::tests`](crate::Suite::tests), and its `main` begins with [`program`].

use std::{
    env, fmt,
    future::Future,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use libtest_mimic::Trial;
use tempfile::TempDir;
use tokio::{
    runtime::Builder,
    time::{sleep, timeout},
};
use winddown_buffer::Push as _;
use winddown_core::{BoxError, EXIT_AT_DEADLINE, ErrorKind, Lifecycle, Records, Report, ShutdownGuard};

use crate::{
    CheckoutOf, ServerUse, Stranger,
    buffered::{self, Buffered, Difference, SPILLS, TABLE, accepted, record, records, replay_here, said, variable},
    child::{self, Child, Ended},
    gone,
    scene::SLACK,
    soak::{rounds, trial},
    starved::Starved,
};

/// A harness whose server fails in more than one way. Its checkouts have a session each.
pub trait Chaos: Buffered + Starved {
    /// What can happen to its server.
    const TROUBLES: &'static [Trouble] =
        &[Trouble::Restart, Trouble::Pause, Trouble::Reset, Trouble::ReadOnly, Trouble::Full];

    /// What of it ends what strangers do, too, without anybody touching them.
    const ENDS_OTHERS: &'static [Trouble] = &[Trouble::Restart];

    /// One query, in the process under test.
    fn ask(checkout: &mut CheckoutOf<Self>) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// As [`run`](crate::Harness::run), in the process under test.
    fn statement(checkout: &mut CheckoutOf<Self>, takes: Duration)
    -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Whether the server refuses to write, and has what it has, as one does whose successor writes now. The harness's own
    /// sessions may, and strangers do not want to.
    fn read_only(&self, read_only: bool) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = read_only;
        std::future::ready(Err(format!("{} has no such thing", Self::NAME).into()))
    }
}

/// What happens to a server, or on the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// It is [killed](crate::Harness::kill), and [started again](crate::Harness::start_again).
    Restart,
    /// It is [away](Buffered::away).
    Pause,
    /// All connections are reset, once.
    Reset,
    /// It [refuses to write](Chaos::read_only).
    ReadOnly,
    /// It [lets nobody in](crate::Harness::full).
    Full,
}

impl Trouble {
    async fn begins<H: Chaos>(self, harness: &H) -> Result<(), BoxError> {
        match self {
            Self::Restart => harness.kill().await,
            Self::Pause => harness.away().await,
            Self::Reset => {
                harness.proxy().ok_or("there is nothing that could reset a connection")?.reset();
                Ok(())
            }
            Self::ReadOnly => harness.read_only(true).await,
            Self::Full => harness.full(true).await,
        }
    }

    async fn ends<H: Chaos>(self, harness: &H) -> Result<(), BoxError> {
        match self {
            Self::Restart => harness.start_again().await,
            Self::Pause => harness.back().await,
            Self::Reset => Ok(()),
            Self::ReadOnly => harness.read_only(false).await,
            Self::Full => harness.full(false).await,
        }
    }

    /// How long it may last.
    fn longest(self) -> Duration {
        Duration::from_millis(match self {
            Self::Pause => 2_000,
            Self::Restart | Self::ReadOnly | Self::Full => 1_000,
            Self::Reset => 0,
        })
    }
}

/// Set to the seed of a round: that one round.
const SEED: &str = "WINDDOWN_TEST_SEED";

/// Used up where a server does not answer.
const BUDGET: Duration = Duration::from_secs(2);

/// How many tasks have a checkout most of the time, and how many sessions there are for them and for a buffer.
const WORKERS: u64 = 6;
const SESSIONS: usize = 8;

/// No statement takes longer.
const LONGEST: Duration = Duration::from_secs(3);

/// How many records are accepted before anything happens.
const FIRST: i64 = 100;

const STORMS: &str = "storms";

/// Runs the program that this process is, if it is the one here.
#[must_use]
pub fn program<H: Chaos>() -> Option<ExitCode> {
    child::role().filter(|role| role == STORMS)?;
    Some(child::run(Builder::new_multi_thread().worker_threads(2), storms::<H>()))
}

/// What the workers did so far.
#[derive(Debug, Default)]
struct Work {
    done: AtomicU64,
    failed: AtomicU64,
    abandoned: AtomicU64,
}

/// Works, and pushes, until it is refused; says what came of it.
async fn storms<H: Chaos>() -> Result<(), BoxError> {
    let seed: u64 = variable(SEED)?.parse()?;
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard_as("db", H::with_room(SESSIONS)?);
    let buffer = lifecycle.guard(buffered::writer::<H>(&db, &variable(TABLE)?, Path::new(&variable(SPILLS)?)));
    lifecycle.init().await?;
    let work: Arc<Work> = Arc::default();
    for worker in 0..WORKERS {
        tokio::spawn(works::<H>(db.clone(), Rng::with_seed(seed.wrapping_add(worker)), Arc::clone(&work)));
    }
    let pushing = tokio::spawn(async move {
        let mut accepted = 0;
        while buffer.push(record(accepted)).await.is_ok() {
            accepted += 1;
            if accepted == FIRST {
                child::ready();
            }
            if accepted % 10 == 0 {
                // So that a failure meets batches on their way, and the table does not become too large to be read.
                sleep(Duration::from_millis(2)).await;
            }
        }
        println!("accepted {accepted}");
    });
    // Whether it is clean is for the claim to say. Nobody waits for the workers: some wait for a server that is not there.
    let _ = child::until_stopped(&lifecycle).await;
    let [done, failed, abandoned] =
        [&work.done, &work.failed, &work.abandoned].map(|count| count.load(Ordering::Relaxed));
    println!("work {done} {failed} {abandoned}");
    Ok(pushing.await?)
}

/// Queries, statements of any length, and some that nobody waits for to the end, until it is refused.
async fn works<H: Chaos>(db: ShutdownGuard<H::Resource>, mut random: Rng, work: Arc<Work>) {
    loop {
        let mut checkout = match db.get().await {
            Ok(checkout) => checkout,
            Err(error) if error.kind() == ErrorKind::ShuttingDown => return,
            Err(_) => {
                work.failed.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let takes = |random: &mut Rng, most: Duration| most.mul_f64(random.f64());
        let outcome = match random.u8(..100) {
            ..50 => H::ask(&mut checkout).await,
            50..80 => H::statement(&mut checkout, takes(&mut random, Duration::from_millis(50))).await,
            80..95 => {
                let (takes, waits) = (takes(&mut random, LONGEST), takes(&mut random, Duration::from_millis(50)));
                match timeout(waits, H::statement(&mut checkout, takes)).await {
                    Ok(outcome) => outcome,
                    Err(_) => {
                        work.abandoned.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                }
            }
            _ => H::statement(&mut checkout, takes(&mut random, LONGEST)).await,
        };
        drop(checkout);
        let count = if outcome.is_ok() { &work.done } else { &work.failed };
        count.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(random.u64(..10))).await;
    }
}

/// The claim.
#[must_use]
pub fn trials<H: Chaos>() -> Vec<Trial> {
    vec![trial::<H>("chaos", ServerUse::Own, |h| Box::pin(chaos(h)))]
}

/// What happens in a round.
#[derive(Debug)]
struct Plan {
    /// What, after how long, and for how long.
    troubles: Vec<(Trouble, Duration, Duration)>,
    /// SIGTERM comes in the middle of the last one.
    is_caught: bool,
    /// How long there is peace before SIGTERM, if it is not.
    rest: Duration,
}

impl Plan {
    fn random<H: Chaos>(random: &mut Rng) -> Self {
        let count = random.usize(1..=rounds(4, 2));
        let mut trouble = || {
            let trouble = H::TROUBLES[random.usize(..H::TROUBLES.len())];
            (trouble, Duration::from_millis(random.u64(..300)), trouble.longest().mul_f64(random.f64()))
        };
        let troubles: Vec<_> = (0..count).map(|_| trouble()).collect();
        let is_caught = random.u8(..3) == 0;
        Self { troubles, is_caught, rest: Duration::from_millis(random.u64(..300)) }
    }

    /// How many of the troubles are over before there can be strangers that nothing but a drain ends; `None` where SIGTERM comes
    /// in the middle of the last one that ends others.
    fn strangers_after<H: Chaos>(&self) -> Option<usize> {
        let ends_others = |(trouble, ..): &(Trouble, Duration, Duration)| H::ENDS_OTHERS.contains(trouble);
        let after = self.troubles.iter().rposition(ends_others).map_or(0, |last| last + 1);
        (after < self.troubles.len() || !self.is_caught).then_some(after)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (trouble, after, lasts) in &self.troubles {
            write!(f, "{trouble:?} after {after:.0?} for {lasts:.0?}, ")?;
        }
        if self.is_caught {
            f.write_str("SIGTERM before its end")
        } else {
            write!(f, "SIGTERM {:.0?} later", self.rest)
        }
    }
}

/// All rounds so far.
#[derive(Debug, Default)]
struct Figures {
    rounds: usize,
    troubles: Vec<(Trouble, usize)>,
    caught: usize,
    clean: usize,
    strangers: usize,
    accounting: Records,
    replayed: u64,
    missing: usize,
    work: [u64; 3],
    /// Closed, unconfirmed, cut, cancelled, left behind.
    sessions: [u64; 5],
    took: Vec<Duration>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, troubles, caught, clean, strangers, accounting, replayed, missing, .. } = self;
        let Records { accepted, written, spilled, lost, in_doubt, .. } = accounting;
        let [done, failed, abandoned] = self.work;
        let [closed, unconfirmed, cut, cancelled, left_behind] = self.sessions;
        let (median, longest) = match &self.took[..] {
            [] => <_>::default(),
            took => (took[took.len() / 2], took[took.len() - 1]),
        };
        write!(
            f,
            "{rounds} rounds of {troubles:?}, in {caught} SIGTERM came before its end; {clean} clean reports; {strangers} strangers \
             untouched; {accepted} records accepted = {written} written + {spilled} spilled + {lost} lost + {in_doubt} in doubt, \
             {replayed} replayed, {missing} missing, none twice; {done} statements done, {failed} failed, {abandoned} abandoned; \
             sessions: {closed} closed, {unconfirmed} unconfirmed, {cut} cut, {cancelled} cancelled, {left_behind} left behind; from \
             SIGTERM to the end, of {BUDGET:?}: median {median:.2?}, longest {longest:.2?}"
        )
    }
}

/// 200 rounds, or 2.
async fn chaos<H: Chaos>(harness: &H) -> Result<String, BoxError> {
    let (rounds, seed) = match env::var(SEED) {
        Ok(seed) => (1, seed.parse()?),
        Err(_) => (rounds(200, 2), fastrand::u64(..)),
    };
    let mut figures = Figures::default();
    for number in 0..rounds {
        // One by itself is repeated by its own.
        let seed = seed.wrapping_add(number as u64);
        let plan = Plan::random::<H>(&mut Rng::with_seed(seed));
        let round = Round { harness, plan: &plan, number, seed };
        round
            .run(&mut figures)
            .await
            .map_err(|error| -> BoxError { format!("round {number} ({SEED}={seed}): {plan}: {error}").into() })?;
    }
    figures.took.sort_unstable();
    Ok(figures.to_string())
}

struct Round<'a, H> {
    harness: &'a H,
    plan: &'a Plan,
    number: usize,
    seed: u64,
}

impl<H: Chaos> Round<'_, H> {
    async fn run(&self, figures: &mut Figures) -> Result<(), BoxError> {
        let Self { harness, plan, number, seed } = *self;
        let (table, spills) = (harness.table(&format!("chaos_{number}")), TempDir::new()?);
        harness.create(&table).await?;
        let child = self.start(&table, spills.path()).ready();
        let strangers = self.troubles().await?;
        let ended = child.terminate().end();
        if plan.is_caught {
            let caught = plan.troubles.last().map(|(trouble, ..)| *trouble);
            caught.ok_or("there is no round without trouble")?.ends(harness).await?;
        }
        let failed = |what: &dyn fmt::Display| said(seed, number, &ended, what);
        let report = ended.report.as_ref().ok_or_else(|| failed(&"no report"))?;
        let failed = |what: &dyn fmt::Display| failed(&format!("{what}\n{report}"));

        // Where something blocks a thread, the process is ended by its deadline.
        let is_ended = ended.code == Some(0) || (ended.code == Some(EXIT_AT_DEADLINE) && !report.is_clean());
        if !is_ended || ended.took > BUDGET + SLACK || report.took > BUDGET + SLACK {
            return Err(failed(&"it did not end well, or too late"));
        }
        self.nothing_runs_on(report).await.map_err(|error| failed(&error))?;
        figures.strangers += strangers.len();
        for stranger in strangers {
            stranger.untouched().await.map_err(|error| failed(&error))?;
        }
        let missing = self.books_balance(&ended, report, &table, spills.path(), figures).await;
        figures.missing += missing.map_err(|error| failed(&error))?;
        figures.count(plan, &ended, report);
        Ok(())
    }

    fn start(&self, table: &str, spills: &Path) -> Child {
        let mut variables = self.harness.environment();
        variables.extend([
            ("WINDDOWN_BUDGET_MS", BUDGET.as_millis().to_string()),
            (TABLE, table.to_owned()),
            (SEED, self.seed.to_string()),
            (SPILLS, spills.to_str().expect("made from a name that is text").to_owned()),
        ]);
        Child::start_with(STORMS, &variables)
    }

    /// One after the other. The last one is not over if SIGTERM comes in the middle of it.
    async fn troubles(&self) -> Result<Vec<Stranger>, BoxError> {
        let Self { harness, plan, .. } = *self;
        let strangers_after = plan.strangers_after::<H>();
        let mut strangers = Vec::new();
        for (number, (trouble, after, lasts)) in plan.troubles.iter().enumerate() {
            if strangers_after.is_some_and(|after| after <= number) {
                strangers.push(harness.stranger().await?);
            }
            sleep(*after).await;
            trouble.begins(harness).await?;
            sleep(*lasts).await;
            if plan.is_caught && number + 1 == plan.troubles.len() {
                return Ok(strangers);
            }
            trouble.ends(harness).await?;
        }
        strangers.push(harness.stranger().await?);
        sleep(plan.rest).await;
        Ok(strangers)
    }

    /// Nothing runs on, and no row appears, unless the report says that something may. What is cut, or lost on the way, ends when
    /// the server sees that.
    async fn nothing_runs_on(&self, report: &Report) -> Result<(), BoxError> {
        let harness = self.harness;
        let rows = harness.rows().await?;
        let (running, sessions) = (harness.running().await?, harness.sessions().await?);
        let says_all = report.is_clean() && report.resources.iter().all(|row| row.error.is_none());
        // A server that was told to stop a statement does so a moment later, and whose connection is gone cannot say when.
        let is_reset = self.plan.troubles.iter().any(|(trouble, ..)| *trouble == Trouble::Reset);
        if says_all && !is_reset && (running, sessions) != (0, 0) {
            return Err(
                format!("{running} statements run on, {sessions} sessions are left after a clean report").into()
            );
        }
        let running = gone(|| harness.running()).await?;
        let sessions = gone(|| harness.sessions()).await?;
        if (running, sessions) != (0, 0) {
            return Err(format!("{running} statements run on, {sessions} sessions are left").into());
        }
        match harness.rows().await? - rows {
            0 => Ok(()),
            _ if !says_all => Ok(()),
            more => Err(format!("{more} statements ran on, and left a row after a clean report").into()),
        }
    }

    /// What was accepted is written, or spilled and then replayed, or said to be in doubt; how much is missing.
    async fn books_balance(
        &self,
        ended: &Ended,
        report: &Report,
        table: &str,
        spills: &Path,
        figures: &mut Figures,
    ) -> Result<usize, BoxError> {
        let accepted = accepted(ended).ok_or("it did not say what was accepted")?;
        let accounting = records(report)?;
        let Records { written, spilled, lost, in_doubt, pending, .. } = accounting;
        // Each record can be written, and there is room for what is spilled.
        if accounting.accepted != accepted as u64
            || accounting.accepted != written + spilled + in_doubt
            || lost + pending > 0
        {
            return Err(format!("the accounting do not balance: {accepted} were accepted, {accounting:?}").into());
        }
        let replayed = replay_here(self.harness, table, spills).await?;
        if !(spilled..=spilled + in_doubt).contains(&replayed) {
            return Err(format!("{replayed} were replayed").into());
        }
        let difference = Difference::between(0..accepted, &self.harness.numbers(table).await?);
        difference.none_but(in_doubt)?;
        figures.replayed += replayed;
        Ok(difference.missing)
    }
}

impl Figures {
    fn count(&mut self, plan: &Plan, ended: &Ended, report: &Report) {
        self.rounds += 1;
        for (trouble, ..) in &plan.troubles {
            match self.troubles.iter_mut().find(|(counted, _)| counted == trouble) {
                Some((_, count)) => *count += 1,
                None => self.troubles.push((*trouble, 1)),
            }
        }
        self.caught += usize::from(plan.is_caught);
        self.clean += usize::from(report.is_clean());
        let accounting = report.resource("audit").and_then(|row| row.records).unwrap_or_default();
        let all = &mut self.accounting;
        all.accepted += accounting.accepted;
        all.written += accounting.written;
        all.spilled += accounting.spilled;
        all.lost += accounting.lost;
        all.in_doubt += accounting.in_doubt;
        let work = ended.stdout.lines().find_map(|line| line.strip_prefix("work ")).unwrap_or_default();
        for (all, count) in self.work.iter_mut().zip(work.split(' ')) {
            *all += count.parse().unwrap_or(0);
        }
        if let Some(row) = report.resource("db") {
            let sessions = row.sessions;
            let counts =
                [sessions.closed, sessions.unconfirmed, sessions.cut, sessions.cancelled, sessions.left_behind];
            for (all, count) in self.sessions.iter_mut().zip(counts) {
                *all += count;
            }
        }
        self.took.push(ended.took);
    }
}
