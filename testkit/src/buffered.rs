//! Claims about buffers in front of a sink, for any harness whose adapter has one: real signals at random moments, servers that
//! fail in the middle of a batch, and what was spilled replayed under SIGKILL. What the *server* has decides.
//!
//! A test binary gives its trials to [`Suite::tests`](crate::Suite::tests), and its `main` begins with [`program`].

use std::{
    collections::BTreeSet,
    env, fmt,
    fs::{self, File},
    future::Future,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, ExitCode, Output},
    sync::Arc,
    thread,
    time::Duration,
};

use libtest_mimic::Trial;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{runtime::Builder, time::sleep};
use winddown_buffer::{Batch, BatchWriter, Delivery, Push as _, Replay, Sink, Spill, WriteError, WriteWith};
use winddown_core::{BoxError, Checkout, Error, ErrorKind, Lifecycle, Records, Report, ShutdownGuard};

use crate::{
    Harness, InProcess, Need, ServerUse, Setup,
    child::{self, Child, Ended},
    scene::lifecycle,
    soak::{Claim, rounds, trial},
};

/// What is buffered: a number, and some text.
pub type Record = (i64, String);

/// A harness whose adapter has a sink that writes each record exactly once.
pub trait Buffered: InProcess {
    /// The sink under test.
    type Sink: Sink<Record, Target = Self::Resource>;

    /// One that writes to the table, or whatever it is, of this name, exactly once.
    fn sink(table: &str) -> Self::Sink;

    /// What the table of this name is called on the server.
    fn table(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Makes the table.
    fn create(&self, table: &str) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// The numbers of all records in the table, each as often as it is there.
    fn numbers(&self, table: &str) -> impl Future<Output = Result<Vec<i64>, BoxError>> + Send;

    /// The adapter's `winddown-replay` command, and its options up to the table, which comes last.
    const REPLAY: (&'static str, &'static [&'static str]);

    /// Nobody can write for now, and nobody is told: the server is [paused](Harness::pause), where there is one.
    fn away(&self) -> impl Future<Output = Result<(), BoxError>> + Send {
        self.pause()
    }

    /// The end of [`away`](Self::away).
    fn back(&self) -> impl Future<Output = Result<(), BoxError>> + Send {
        self.resume()
    }
}

/// Where the process is told which table it writes to, which number its records begin with, how many there are, and where it
/// spills.
pub(crate) const TABLE: &str = "WINDDOWN_TEST_TABLE";
const FIRST: &str = "WINDDOWN_TEST_FIRST";
const COUNT: &str = "WINDDOWN_TEST_COUNT";
pub(crate) const SPILLS: &str = "WINDDOWN_TEST_SPILLS";

/// What Lambda gives; on a machine that runs other tests beside, seconds, so that only what is claimed can fail.
fn budget() -> Duration {
    Duration::from_millis(rounds(500, 3_000) as u64)
}

const PUSHES: &str = "pushes";
const REPLAYS: &str = "replays";

/// Runs the program that this process is, if it is one of these.
#[must_use]
pub fn program<H: Buffered>() -> Option<ExitCode> {
    let role = child::role().filter(|role| [PUSHES, REPLAYS].contains(&role.as_str()))?;
    let program = async { if role == PUSHES { pushes::<H>().await } else { replays::<H>().await } };
    Some(child::run(Builder::new_multi_thread().worker_threads(2), program))
}

pub(crate) fn variable(name: &str) -> Result<String, BoxError> {
    env::var(name).map_err(|error| format!("{name}: {error}").into())
}

pub(crate) fn record(number: i64) -> Record {
    (number, format!("record\t{number} with 'quotes', \\ and\nlines"))
}

/// Pushes until it is refused, or has pushed all it should; says how many were accepted.
async fn pushes<H: Buffered>() -> Result<(), BoxError> {
    let (first, count): (i64, i64) = (variable(FIRST)?.parse()?, variable(COUNT)?.parse()?);
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard_as("db", H::from_env()?);
    let buffer = lifecycle.guard(writer::<H>(&db, &variable(TABLE)?, Path::new(&variable(SPILLS)?)));
    lifecycle.init().await?;
    let pushing = tokio::spawn(async move {
        let mut accepted = 0;
        child::ready();
        while accepted < count && buffer.push(record(first + accepted)).await.is_ok() {
            accepted += 1;
        }
        println!("accepted {accepted}");
    });
    // Whether it is clean is for the claim to say.
    let _ = child::until_stopped(&lifecycle).await;
    Ok(pushing.await?)
}

/// Replays what was spilled.
async fn replays<H: Buffered>() -> Result<(), BoxError> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard_as("db", H::from_env()?);
    lifecycle.init().await?;
    child::ready();
    let replayed = Replay::<Record, _>::new(&db, H::sink(&variable(TABLE)?), "audit").run(variable(SPILLS)?).await?;
    println!("replayed {}", replayed.written);
    lifecycle.drain().await;
    Ok(())
}

/// Small enough that what it holds is written within [`budget`] by a server that answers.
pub(crate) fn writer<H: Buffered>(
    db: &ShutdownGuard<H::Resource>,
    table: &str,
    spills: &Path,
) -> BatchWriter<Record, H::Sink> {
    BatchWriter::new(db, H::sink(table))
        .name("audit")
        .capacity(200_000)
        .heap_size(|(_, text)| text.capacity())
        .batch_size(100)
        .in_flight(2)
        .max_age(Duration::from_millis(5))
        .spill(Spill::directory(spills))
}

/// The claims that this harness can be held to.
#[must_use]
pub fn trials<H: Buffered>() -> Vec<Trial> {
    type Named<H> = (&'static str, Option<Need>, Claim<H>);
    let claims: [Named<H>; 7] = [
        ("an_operator_lists_checks_and_writes_back_what_was_spilled", None, |h| Box::pin(operator(h))),
        ("s5_a_signal_at_any_moment_costs_no_record", None, |h| Box::pin(signals(h))),
        ("s5_what_is_spilled_and_replayed_under_sigkill_is_there_once", None, |h| Box::pin(kills(h))),
        ("s5_a_server_that_is_killed_in_mid_batch_gets_each_record_once", Some(Need::Kill), |h| {
            Box::pin(faults(h, Fault::Killed))
        }),
        ("s5_a_server_that_is_paused_in_mid_batch_gets_each_record_once", Some(Need::Pause), |h| {
            Box::pin(faults(h, Fault::Paused))
        }),
        ("s5_a_server_that_is_cut_off_in_mid_batch_gets_each_record_once", Some(Need::Partition), |h| {
            Box::pin(faults(h, Fault::CutOff))
        }),
        ("s5_a_server_that_stays_away_gets_each_record_from_the_spill", Some(Need::Kill), |h| Box::pin(stays_away(h))),
    ];
    let lacks = |need: Option<Need>| need.is_some_and(|need| H::LACKS.iter().any(|(lacked, _)| *lacked == need));
    let claims = claims.into_iter().filter(|(_, need, _)| !lacks(*need));
    claims.map(|(name, _, claim)| trial(name, ServerUse::Own, claim)).collect()
}

fn start<H: Buffered>(harness: &H, program: &str, table: &str, first: i64, count: i64, spills: &Path) -> Child {
    let mut variables = harness.environment();
    variables.extend([
        ("WINDDOWN_BUDGET_MS", budget().as_millis().to_string()),
        (TABLE, table.to_owned()),
        (FIRST, first.to_string()),
        (COUNT, count.to_string()),
        (SPILLS, spills.to_str().expect("made from a name that is text").to_owned()),
    ]);
    Child::start_with(program, &variables)
}

/// What is wrong, and what the process had to say.
pub(crate) fn said(seed: u64, round: usize, ended: &Ended, what: &dyn fmt::Display) -> BoxError {
    let Ended { code, signal, took, stdout, stderr, .. } = ended;
    let end = format!("exit code {code:?}, signal {signal:?}, after {took:?}");
    format!("seed {seed}, round {round}: {what}\n{end}\n{stdout}\n{stderr}").into()
}

pub(crate) fn accepted(ended: &Ended) -> Option<i64> {
    ended.stdout.lines().find_map(|line| line.strip_prefix("accepted ")?.parse().ok())
}

pub(crate) fn records(report: &Report) -> Result<Records, BoxError> {
    report.resource("audit").and_then(|row| row.records).ok_or_else(|| format!("no records in {report}").into())
}

/// Whether the table has each of these once, and nothing else.
pub(crate) struct Difference {
    pub(crate) missing: usize,
    /// There, but not expected, or twice.
    too_many: usize,
}

impl Difference {
    pub(crate) fn between(expected: impl IntoIterator<Item = i64>, found: &[i64]) -> Self {
        let expected: BTreeSet<i64> = expected.into_iter().collect();
        let once: BTreeSet<i64> = found.iter().copied().collect();
        let missing = expected.difference(&once).count();
        let too_many = found.len() - once.len() + once.difference(&expected).count();
        Self { missing, too_many }
    }

    fn none(&self) -> Result<(), BoxError> {
        self.none_but(0)
    }

    /// None, but that so many may be missing: those that the report says are in doubt.
    pub(crate) fn none_but(&self, in_doubt: u64) -> Result<(), BoxError> {
        if self.missing as u64 > in_doubt || self.too_many > 0 { Err(self.to_string().into()) } else { Ok(()) }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records are missing, {} are too many", self.missing, self.too_many)
    }
}

/// Replays what is in the directory, in this process; how many records were written.
pub(crate) async fn replay_here<H: Buffered>(harness: &H, table: &str, spills: &Path) -> Result<u64, BoxError> {
    let lifecycle = lifecycle(Duration::from_secs(10));
    let db = lifecycle.guard_as("db", harness.resource(&Setup::default()));
    let replayed = Replay::<Record, _>::new(&db, H::sink(table), "audit").run(spills).await;
    lifecycle.drain().await;
    Ok(replayed?.written)
}

/// 1,000 times SIGTERM at a random moment, or 5: each accepted record is written, or spilled and then replayed.
async fn signals<H: Buffered>(harness: &H) -> Result<String, BoxError> {
    let (rounds, seed) = (rounds(1_000, 5), fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut all, mut written, mut spilled, mut in_doubt, mut missing) = (0, 0, 0, 0, 0);
    let mut took = Vec::new();
    for round in 0..rounds {
        let (table, spills) = (harness.table(&format!("signals_{round}")), TempDir::new()?);
        harness.create(&table).await?;
        let child = start(harness, PUSHES, &table, 0, i64::MAX, spills.path()).ready();
        thread::sleep(Duration::from_micros(random.u64(..60_000)));
        let ended = child.terminate().end();
        let failed = |what: &dyn fmt::Display| said(seed, round, &ended, what);
        let accepted = accepted(&ended).ok_or_else(|| failed(&"it did not say what was accepted"))?;
        let report = ended.report.as_ref().ok_or_else(|| failed(&"no report"))?;
        let accounting = records(report)?;
        let sum = accounting.written + accounting.spilled + accounting.in_doubt;
        if accounting.accepted != accepted as u64 || accounting.accepted != sum {
            return Err(failed(&format!("{accepted} were accepted\n{report}")));
        }
        let replayed = replay_here(harness, &table, spills.path()).await?;
        if !(accounting.spilled..=accounting.spilled + accounting.in_doubt).contains(&replayed) {
            return Err(failed(&format!("{replayed} were replayed\n{report}")));
        }
        let found = harness.numbers(&table).await?;
        let difference = Difference::between(0..accepted, &found);
        difference.none_but(accounting.in_doubt).map_err(|what| failed(&what))?;
        (all, written, spilled) =
            (all + accounting.accepted, written + accounting.written, spilled + accounting.spilled);
        (in_doubt, missing) = (in_doubt + accounting.in_doubt, missing + difference.missing);
        took.push(ended.took);
    }
    took.sort_unstable();
    Ok(format!(
        "{rounds} of {rounds} signals: {all} records accepted = {written} written + {spilled} spilled and replayed + \
         {in_doubt} in doubt; {missing} missing, none there twice; from the signal to the end of the process: median {:.0?}, \
         longest {:.0?}",
        took[rounds / 2],
        took[rounds - 1]
    ))
}

/// 200 times, or 4, the server is away when the signal comes, for two processes that spill to one directory. Each may spill to
/// the end, or is killed at a random moment while it does; two replays at once are killed at random moments, and run again.
/// What was reported as spilled is there once, and so is each line of a spill that was finished by a process that was killed.
async fn kills<H: Buffered>(harness: &H) -> Result<String, BoxError> {
    const COUNT: i64 = 2_000;
    let (rounds, seed) = (rounds(200, 4), fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut killed_spills, mut killed_replays, mut all, mut cut_short) = (0, 0, 0, 0);
    let (mut doubts, mut missing) = (0, 0);
    for round in 0..rounds {
        let (table, spills) = (harness.table(&format!("kills_{round}")), TempDir::new()?);
        harness.create(&table).await?;
        let pushing = [0, COUNT].map(|first| start(harness, PUSHES, &table, first, COUNT, spills.path()));
        let pushing = pushing.map(Child::ready);
        thread::sleep(Duration::from_micros(random.u64(..10_000)));
        harness.away().await?;
        let [one, two] = pushing.map(Child::terminate);
        // Which of them are killed, by turns: none, either, both.
        let kills = [round % 2 == 1, round % 4 >= 2];
        if kills[0] || kills[1] {
            thread::sleep(budget() / 2 + budget().mul_f64(random.f64() / 2.0));
        }
        let kill = |child: Child, is_killed: bool| if is_killed { child.signal(Signal::KILL) } else { child };
        let ended = [kill(one, kills[0]), kill(two, kills[1])].map(Child::end);
        harness.back().await?;
        let failed = |what: &dyn fmt::Display| said(seed, round, &ended[0], &said(seed, round, &ended[1], what));
        // Each line of a file that is complete is a record that the replay must bring.
        let lines = numbers_in(spills.path())?;
        let (mut in_doubt, mut expected) = (0, BTreeSet::new());
        for (first, ended) in [0, COUNT].into_iter().zip(&ended) {
            killed_spills += usize::from(ended.signal.is_some());
            let lines: BTreeSet<_> = lines.range(first..first + COUNT).copied().collect();
            let Some(report) = &ended.report else {
                // It was killed; or it was over so late, on a machine that does other work, that its report was not waited for.
                // What was written before is there too.
                cut_short += 1;
                expected.extend(lines);
                continue;
            };
            let Records { accepted, written, spilled, in_doubt: doubtful, .. } = records(report)?;
            let whole = accepted == written + spilled + doubtful;
            if !whole || !(spilled..=spilled + doubtful).contains(&(lines.len() as u64)) {
                return Err(failed(&format!("{} lines were spilled\n{report}", lines.len())));
            }
            in_doubt += doubtful;
            // With a report that is all that was accepted.
            expected.extend(first..first + self::accepted(ended).unwrap_or(COUNT));
        }
        doubts += in_doubt;
        for _ in 0..3 {
            let replaying = [(), ()].map(|()| start(harness, REPLAYS, &table, 0, 0, spills.path()));
            thread::sleep(Duration::from_micros(random.u64(..80_000)));
            for replayed in replaying.map(|replay| replay.signal(Signal::KILL).end()) {
                killed_replays += usize::from(replayed.signal.is_some());
            }
        }
        replay_here(harness, &table, spills.path()).await?;
        let found = harness.numbers(&table).await?;
        let there: BTreeSet<_> = found.iter().copied().collect();
        let twice = found.len() - there.len();
        let strangers = there.iter().filter(|number| !(0..2 * COUNT).contains(*number)).count();
        let lost = expected.difference(&there).count();
        missing += lost;
        // What a process that said nothing wrote before it was killed may be there as well.
        let told = |number: &i64| ended[usize::from(*number >= COUNT)].report.is_some();
        let too_many = there.difference(&expected).filter(|number| told(number)).count();
        if lost as u64 > in_doubt || strangers + twice + too_many > 0 {
            return Err(failed(&format!(
                "{lost} are missing, {too_many} too many; {twice} are there twice, {strangers} were never pushed"
            )));
        }
        all += found.len();
    }
    Ok(format!(
        "{rounds} rounds, {killed_spills} spilling processes and {killed_replays} replays killed ({cut_short} before their \
         report was out): {all} records there, {missing} missing of what was reported ({doubts} in doubt) or in a file, none twice"
    ))
}

/// An operator looks at what was spilled, mends a line that was damaged, and writes it back, with the adapter's command.
async fn operator<H: Buffered>(harness: &H) -> Result<String, BoxError> {
    const COUNT: i64 = 250;
    let (table, directory) = (harness.table("operator"), TempDir::new()?);
    harness.create(&table).await?;
    let spills = directory.path();
    spill(spills, COUNT).await?;
    let (program, options) = H::REPLAY;
    let run = |arguments: &[&str], options: &[&str], table: &str| -> Result<(Option<i32>, String), BoxError> {
        let mut command = Command::new(program);
        command.args(arguments).arg(spills).args(options).envs(harness.environment());
        if !table.is_empty() {
            command.arg(table);
        }
        let Output { status, stdout, stderr } = command.output()?;
        Ok((status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr))))
    };
    let expect = |what: &str, (code, said): (Option<i32>, String), expected: i32, text: &str| -> Result<(), BoxError> {
        let is_right = code == Some(expected) && said.contains(text);
        let failed = || format!("{what}: exit status {code:?} and not {expected}, or without {text:?}:\n{said}").into();
        if is_right { Ok(()) } else { Err(failed()) }
    };
    expect("list", run(&["list"], &[], "")?, 0, "       250  audit ")?;

    let entry = fs::read_dir(spills)?.next().ok_or("there is no spill file")??.path();
    let whole = fs::read_to_string(&entry)?;
    fs::write(&entry, whole.replacen("\"record\":[7,", "\"record\":[7", 1))?;
    let buffer = ["--buffer", "audit"];
    expect("check", run(&["check"], &buffer, "")?, 1, "9: it is damaged")?;
    fs::write(&entry, whole)?;
    expect("check", run(&["check"], &buffer, "")?, 0, "250 records found, 0 written")?;
    if !harness.numbers(&table).await?.is_empty() {
        return Err("a check has written something".into());
    }
    let write: Vec<_> = buffer.into_iter().chain(options.iter().copied()).collect();
    expect("write", run(&["write"], &write, &table)?, 0, "250 written, 1 files removed")?;
    Difference::between(0..COUNT, &harness.numbers(&table).await?).none()?;
    expect("write again", run(&["write"], &write, &table)?, 0, "0 records found")?;
    let usage = run(&["write"], &[], "")?;
    expect("write without a buffer", usage, 2, "--buffer")?;
    Ok(format!("{COUNT} records listed, checked and written, each there once"))
}

/// Spills records to this directory, of a buffer whose target takes none.
async fn spill(directory: &Path, count: i64) -> Result<(), BoxError> {
    let lifecycle = lifecycle(Duration::from_secs(2));
    let nowhere = lifecycle.guard(winddown_core::Client::opened("nowhere", ()));
    let away =
        WriteWith::new(Delivery::ExactlyOnce, |_: &mut Checkout<winddown_core::Client<()>>, _: &Batch<Record>| {
            Box::pin(async { Err(WriteError::Failed(Error::new(ErrorKind::Write, "there is no such table"))) })
        });
    let writer = BatchWriter::new(&nowhere, away).name("audit").spill(Spill::directory(directory));
    // So large that all are in one file.
    let buffer = lifecycle.guard(writer.batch_size(count as usize).max_age(Duration::MAX));
    for number in 0..count {
        buffer.push(record(number)).await?;
    }
    let accounting = records(&*lifecycle.drain().await)?;
    if accounting.spilled == count as u64 {
        Ok(())
    } else {
        Err(format!("not all were spilled: {accounting:?}").into())
    }
}

/// The numbers of the records in the spill files that are complete.
fn numbers_in(spills: &Path) -> Result<BTreeSet<i64>, BoxError> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(spills)? {
        let path = entry?.path();
        // What was not finished has never counted as spilled.
        if path.extension().is_none_or(|extension| extension != "ndjson") {
            continue;
        }
        for line in BufReader::new(File::open(path)?).lines() {
            let line: serde_json::Value = serde_json::from_str(&line?)?;
            if line["type"] != "winddown.record" {
                continue;
            }
            let number = line["record"][0].as_i64().ok_or("a line without a record")?;
            if !numbers.insert(number) {
                return Err(format!("record {number} was spilled twice").into());
            }
        }
    }
    Ok(numbers)
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Killed,
    Paused,
    CutOff,
}

impl Fault {
    async fn begins<H: Harness>(self, harness: &H) -> Result<(), BoxError> {
        match self {
            Self::Killed => harness.kill().await,
            Self::Paused => harness.pause().await,
            Self::CutOff => harness.partition().await,
        }
    }

    async fn ends<H: Harness>(self, harness: &H) -> Result<(), BoxError> {
        match self {
            Self::Killed => harness.start_again().await,
            Self::Paused => harness.resume().await,
            Self::CutOff => harness.heal().await,
        }
    }
}

/// Pushes on and on in a task of its own, until it is refused; says how many were accepted.
fn push_on<S: Sink<Record>>(
    buffer: &ShutdownGuard<BatchWriter<Record, S>>,
    first: i64,
) -> tokio::task::JoinHandle<i64> {
    let buffer = buffer.clone();
    tokio::spawn(async move {
        let mut next = first;
        while buffer.push(record(next)).await.is_ok() {
            next += 1;
            if next % 50 == 0 {
                // Not as fast as it could, so that a fault meets batches on their way and not a full buffer alone.
                sleep(Duration::from_millis(1)).await;
            }
        }
        next - first
    })
}

/// 20 times, or twice, the server fails while batches are on their way, and comes back: everything that was accepted is
/// there once.
async fn faults<H: Buffered>(harness: &H, fault: Fault) -> Result<String, BoxError> {
    let (rounds, seed) = (rounds(20, 2), fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut all = 0;
    for round in 0..rounds {
        let failed = |what: &dyn fmt::Display| -> BoxError { format!("seed {seed}, round {round}: {what}").into() };
        let (table, spills) = (harness.table(&format!("faults_{round}")), TempDir::new()?);
        harness.create(&table).await?;
        let lifecycle = lifecycle(Duration::from_secs(30));
        let db = lifecycle.guard_as("db", harness.resource(&Setup::default()));
        let buffer = lifecycle.guard(writer::<H>(&db, &table, spills.path()));
        lifecycle.init().await?;
        let pushing = push_on(&buffer, 0);
        sleep(Duration::from_micros(20_000 + random.u64(..100_000))).await;
        fault.begins(harness).await?;
        sleep(Duration::from_micros(random.u64(..500_000))).await;
        fault.ends(harness).await?;
        sleep(Duration::from_micros(random.u64(..100_000))).await;
        let report = lifecycle.drain().await;
        let (accepted, accounting) = (pushing.await?, records(&report)?);
        if accounting.accepted != accepted as u64 || accounting.written != accounting.accepted {
            return Err(failed(&format!("{accepted} were accepted\n{report}")));
        }
        let found = harness.numbers(&table).await?;
        Difference::between(0..accepted, &found).none().map_err(|what| failed(&format!("{what}\n{report}")))?;
        all += accepted;
    }
    Ok(format!("{rounds} of {rounds} times {fault:?}: {all} records accepted, all written, each there once"))
}

/// 20 times, or twice, the server is killed while batches are on their way, and not there again before the drain is over:
/// everything that is not written is spilled, and there once after it is replayed. What the process had no time to spill, on a
/// machine that is busy, is in doubt.
async fn stays_away<H: Buffered>(harness: &H) -> Result<String, BoxError> {
    let (rounds, seed) = (rounds(20, 2), fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut all, mut spilled, mut in_doubt) = (0, 0, 0);
    for round in 0..rounds {
        let failed = |what: &dyn fmt::Display| -> BoxError { format!("seed {seed}, round {round}: {what}").into() };
        let (table, spills) = (harness.table(&format!("away_{round}")), TempDir::new()?);
        harness.create(&table).await?;
        let lifecycle = lifecycle(Duration::from_secs(6));
        let db = lifecycle.guard_as("db", harness.resource(&Setup::default()));
        let buffer = lifecycle.guard(writer::<H>(&db, &table, spills.path()));
        lifecycle.init().await?;
        let pushing = push_on(&buffer, 0);
        sleep(Duration::from_micros(20_000 + random.u64(..50_000))).await;
        harness.kill().await?;
        let report: Arc<Report> = lifecycle.drain().await;
        let (accepted, accounting) = (pushing.await?, records(&report)?);
        if accounting.accepted != accepted as u64
            || accounting.written + accounting.spilled + accounting.in_doubt != accounting.accepted
        {
            return Err(failed(&format!("{accepted} were accepted\n{report}")));
        }
        harness.start_again().await?;
        let replayed = replay_here(harness, &table, spills.path()).await?;
        if !(accounting.spilled..=accounting.spilled + accounting.in_doubt).contains(&replayed) {
            return Err(failed(&format!("{replayed} were replayed\n{report}")));
        }
        let found = harness.numbers(&table).await?;
        let difference = Difference::between(0..accepted, &found);
        difference.none_but(accounting.in_doubt).map_err(|what| failed(&format!("{what}\n{report}")))?;
        (all, spilled, in_doubt) = (all + accepted, spilled + accounting.spilled, in_doubt + accounting.in_doubt);
    }
    Ok(format!(
        "{rounds} of {rounds} times: {all} records accepted, {spilled} of them spilled and replayed, {in_doubt} in doubt, each \
         there once"
    ))
}
