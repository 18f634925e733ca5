//! Whatever is spilled, damaged, mixed up and replayed, however often either side dies in the middle and whatever the disk does:
//! each record that counted as spilled is in the target once, or still in a file; none that counted as lost is there.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use proptest::{
    collection::vec,
    option,
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use winddown_core::{Checkout, Error, ErrorKind, Lifecycle};

use super::*;
use crate::{
    Spill,
    spill::{Folder, Open},
};

/// So many cases every day, and so many in a soak.
const CASES: (u32, u32) = (300, 100_000);

/// A disk that fails after so many steps, or is full after so many bytes.
struct Faulty {
    steps: AtomicI64,
    bytes: AtomicI64,
    /// From its failure on it does nothing any more: its process is dead.
    is_deadly: bool,
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    steps: Option<u16>,
    bytes: Option<u16>,
    is_deadly: bool,
}

impl Faulty {
    fn new(fault: Option<Fault>) -> Arc<Self> {
        let left = |limit: Option<u16>| AtomicI64::new(limit.map_or(i64::MAX, i64::from));
        let Fault { steps, bytes, is_deadly } = fault.unwrap_or(Fault { steps: None, bytes: None, is_deadly: false });
        Arc::new(Self { steps: left(steps), bytes: left(bytes), is_deadly })
    }

    fn step(&self) -> io::Result<()> {
        let left = self.steps.fetch_sub(1, Ordering::SeqCst);
        match left {
            1.. => Ok(()),
            0 => Err(io::ErrorKind::StorageFull.into()),
            _ if self.is_deadly => Err(io::Error::other("dead")),
            _ => Ok(()),
        }
    }

    fn is_dead(&self) -> bool {
        self.is_deadly && (self.steps.load(Ordering::SeqCst) < 0 || self.bytes.load(Ordering::SeqCst) < 0)
    }

    fn check(&self) -> io::Result<()> {
        if self.is_dead() { Err(io::Error::other("dead")) } else { self.step() }
    }
}

impl Disk for Faulty {
    fn open(&self, folder: &Folder, name: &OsStr, how: Open) -> io::Result<File> {
        self.check()?;
        folder.open_file(name, how)
    }

    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        let left = self.bytes.load(Ordering::SeqCst);
        let room = usize::try_from(left).unwrap_or(0).min(bytes.len());
        if room == 0 {
            self.bytes.fetch_min(if self.is_deadly { -1 } else { 0 }, Ordering::SeqCst);
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.fetch_sub(room as i64, Ordering::SeqCst);
        file.write(&bytes[..room])
    }

    fn sync(&self, _: &File) -> io::Result<()> {
        self.check()
    }

    fn sync_folder(&self, _: &Folder) -> io::Result<()> {
        self.check()
    }

    fn rename(&self, folder: &Folder, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.check()?;
        RealDisk.rename(folder, from, to)
    }

    fn remove(&self, folder: &Folder, name: &OsStr) -> io::Result<()> {
        self.check()?;
        RealDisk.remove(folder, name)
    }
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Store,
    Unknown { stored: bool },
    Retry,
    TooLarge,
    Fail,
}

/// Remembers the keys of its batches, as a database does.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<Rows>>);

#[derive(Default)]
struct Rows {
    records: BTreeMap<u64, usize>,
    keys: HashSet<BatchKey>,
    script: Vec<Answer>,
}

struct Into {
    delivery: Delivery,
    /// Whose process may be dead.
    disk: Arc<Faulty>,
}

impl Sink<u64> for Into {
    type Target = winddown_core::Client<Table>;

    fn delivery(&self) -> Delivery {
        self.delivery
    }

    async fn write(
        &self,
        checkout: &mut Checkout<winddown_core::Client<Table>>,
        batch: &Batch<u64>,
    ) -> Result<(), WriteError> {
        let error = || Error::new(ErrorKind::Write, "the target");
        if self.disk.is_dead() {
            return Err(WriteError::Failed(error()));
        }
        let mut rows = checkout.0.lock().unwrap();
        let answer = match rows.script.pop().unwrap_or(Answer::Store) {
            // A limit is met behind the key, or nobody could say that the target has nothing of it.
            Answer::TooLarge if self.delivery == Delivery::ExactlyOnce && rows.keys.contains(&batch.key()) => {
                Answer::Store
            }
            answer => answer,
        };
        if matches!(answer, Answer::Store | Answer::Unknown { stored: true }) {
            if batch.iter().any(|record| record % POISON == 0) {
                return Err(WriteError::Rejected(error()));
            }
            if self.delivery != Delivery::ExactlyOnce || rows.keys.insert(batch.key()) {
                for record in batch {
                    *rows.records.entry(*record).or_default() += 1;
                }
            }
        }
        match answer {
            Answer::Store => Ok(()),
            Answer::Unknown { .. } => Err(WriteError::Unknown(error())),
            Answer::Retry => Err(WriteError::Retry(error())),
            Answer::TooLarge => Err(WriteError::TooLarge(error())),
            Answer::Fail => Err(WriteError::Failed(error())),
        }
    }
}

/// Each so many-th record is rejected.
const POISON: u64 = 13;

#[derive(Debug, Clone)]
struct Case {
    delivery: Delivery,
    spills: Vec<OneSpill>,
    /// Which of the spill files become logs, whose lines are mixed in this order.
    logs: Vec<bool>,
    order: Vec<u16>,
    prefix: &'static str,
    /// Lines that are cut: the number among all lines of one file, by file.
    damage: Vec<Option<u8>>,
    replays: Vec<OneReplay>,
}

#[derive(Debug, Clone)]
struct OneSpill {
    is_ours: bool,
    batches: Vec<u8>,
    fault: Option<Fault>,
}

#[derive(Debug, Clone)]
struct OneReplay {
    faults: [Option<Fault>; 2],
    answers: Vec<Answer>,
}

fn faults() -> impl Strategy<Value = Option<Fault>> {
    let fault = (option::of(0..20_u16), option::of(0..3000_u16), any::<bool>());
    option::of(fault.prop_map(|(steps, bytes, is_deadly)| Fault { steps, bytes, is_deadly }))
}

fn cases() -> impl Strategy<Value = Case> {
    let spill = (prop::bool::weighted(0.8), vec(1..5_u8, 1..4), faults());
    let spill = spill.prop_map(|(is_ours, batches, fault)| OneSpill { is_ours, batches, fault });
    let answer = prop_oneof![
        4 => Just(Answer::Store),
        1 => any::<bool>().prop_map(|stored| Answer::Unknown { stored }),
        1 => Just(Answer::Retry),
        1 => Just(Answer::TooLarge),
        1 => Just(Answer::Fail),
    ];
    let replay = ([faults(), faults()], vec(answer, 0..8));
    let replay = replay.prop_map(|(faults, answers)| OneReplay { faults, answers });
    let delivery = prop::sample::select(vec![Delivery::ExactlyOnce, Delivery::AtLeastOnce, Delivery::AtMostOnce]);
    let prefix = prop::sample::select(vec!["", "2026-01-31T23:59:59.123456789Z ", "web-1  | "]);
    let damage = vec(option::weighted(0.2, 0..12_u8), 5);
    (
        delivery,
        vec(spill, 1..5),
        vec(prop::bool::weighted(0.3), 5),
        vec(any::<u16>(), 60),
        prefix,
        damage,
        vec(replay, 0..4),
    )
        .prop_map(|(delivery, spills, logs, order, prefix, damage, replays)| Case {
            delivery,
            spills,
            logs,
            order,
            prefix,
            damage,
            replays,
        })
}

/// What became of what was spilled.
#[derive(Debug, Default)]
struct Accounting {
    spilled: BTreeSet<u64>,
    lost: BTreeSet<u64>,
    /// The process was dead before it said anything.
    untold: BTreeSet<u64>,
    /// Of another buffer.
    others: BTreeSet<u64>,
    /// In lines that were cut.
    damaged: BTreeSet<u64>,
}

/// The records that are in lines of files with such names.
fn records_in(directory: &Path, is_meant: impl Fn(&str) -> bool) -> BTreeSet<u64> {
    let mut records = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if is_meant(path.file_name().unwrap().to_str().unwrap()) {
            let text = fs::read_to_string(path).unwrap();
            records.extend(text.lines().filter_map(record_of));
        }
    }
    records
}

fn record_of(line: &str) -> Option<u64> {
    let (_, behind) = line.split_once("\"record\":")?;
    behind.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn spill_all(case: &Case, directory: &Path) -> Accounting {
    let (mut accounting, mut next) = (Accounting::default(), 1);
    for OneSpill { is_ours, batches, fault } in &case.spills {
        let batches: Vec<Batch<u64>> = batches
            .iter()
            .map(|size| {
                let records: Vec<_> = (next..next + u64::from(*size)).collect();
                next += u64::from(*size);
                Batch::from(records)
            })
            .collect();
        let disk = Faulty::new(*fault);
        let spill = Spill::directory_on(Arc::clone(&disk) as Arc<dyn Disk>, directory.to_owned());
        let buffer = if *is_ours { "audit" } else { "payments" };
        let told = spill.write(buffer, &batches, &Error::new(ErrorKind::Timeout, "time is up"));
        let records = batches.iter().flat_map(|batch| batch.iter().copied());
        match told {
            _ if !is_ours => accounting.others.extend(records),
            _ if disk.is_dead() => accounting.untold.extend(records),
            Ok(_) => accounting.spilled.extend(records),
            Err(_) => accounting.lost.extend(records),
        }
    }
    accounting
}

/// Makes logs of some files, and damages some lines.
fn mix_up(case: &Case, directory: &Path, accounting: &mut Accounting) {
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "ndjson"));
    let mut log = Vec::new();
    for (number, path) in names.iter().enumerate() {
        let text = fs::read_to_string(path).unwrap();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        if let Some(Some(cut)) = case.damage.get(number)
            && let Some(line) = lines.get_mut(usize::from(*cut))
            && let Some(record) = record_of(line)
        {
            accounting.damaged.insert(record);
            line.truncate(line.len() - 1);
        }
        if case.logs.get(number) == Some(&true) {
            log.extend(lines.into_iter().map(|line| format!("{}{line}", case.prefix)));
            fs::remove_file(path).unwrap();
        } else {
            fs::write(path, lines.join("\n") + "\n").unwrap();
        }
    }
    if !log.is_empty() {
        let mut numbered: Vec<_> = log.into_iter().enumerate().collect();
        numbered.sort_by_key(|(number, _)| case.order.get(*number).copied());
        let lines: Vec<_> = numbered.into_iter().map(|(_, line)| line).collect();
        fs::write(directory.join("0.log"), lines.join("\nINFO something else\n") + "\n").unwrap();
    }
}

fn replay_of(table: &Table, delivery: Delivery, disk: &Arc<Faulty>) -> Replay<u64, Into> {
    let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
    let db = lifecycle.guard(winddown_core::Client::opened("db", table.clone()));
    Replay::new(&db, Into { delivery, disk: Arc::clone(disk) }, "audit").on_disk(Arc::clone(disk) as Arc<dyn Disk>)
}

async fn check(case: &Case) -> Result<(), TestCaseError> {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    let mut accounting = spill_all(case, directory);
    mix_up(case, directory, &mut accounting);
    let customers = directory.join("customers.ndjson");
    fs::write(&customers, "{\"id\":1}\n").unwrap();
    let log = fs::read(directory.join("0.log")).ok();
    let others = records_in(directory, |name| name.starts_with("payments"));

    let table = Table::default();
    for OneReplay { faults, answers } in &case.replays {
        table.0.lock().unwrap().script = answers.clone();
        let [one, two] = faults.map(Faulty::new);
        let (one, two) = (replay_of(&table, case.delivery, &one), replay_of(&table, case.delivery, &two));
        // Either may fail: it is run again.
        let _ = tokio::join!(one.run(directory), two.run(directory));
    }
    table.0.lock().unwrap().script.clear();
    let last = replay_of(&table, case.delivery, &Faulty::new(None)).run(directory).await;
    let replayed = last.map_err(|error| TestCaseError::fail(format!("the last replay: {error}")))?;
    let said = format!("{accounting:?}\n{replayed}");

    let there = table.0.lock().unwrap().records.clone();
    let kept = records_in(directory, |name| name.ends_with(".rejected") || name.ends_with(".in-doubt"));
    let unread = records_in(directory, |name| name.ends_with(".ndjson") || name.ends_with(".log"));
    for record in &accounting.spilled {
        let is_there = there.contains_key(record);
        prop_assert!(is_there || kept.contains(record) || unread.contains(record), "{record} is nowhere: {said}");
        let may_stay = record % POISON == 0 || case.delivery == Delivery::AtMostOnce || replayed.unread_lines > 1;
        prop_assert!(is_there || may_stay, "{record} is not written: {said}");
    }
    for (record, times) in &there {
        let is_once = *times == 1 || case.delivery == Delivery::AtLeastOnce;
        prop_assert!(is_once, "{record} is there {times} times: {said}");
        let is_known = accounting.spilled.contains(record) || accounting.untold.contains(record);
        prop_assert!(is_known, "{record} was lost, or is another buffer's: {said}");
    }
    for record in &accounting.lost {
        prop_assert!(!unread.contains(record) && !kept.contains(record), "{record} counts as lost: {said}");
    }
    prop_assert_eq!(fs::read(directory.join("0.log")).ok(), log, "a log is never changed");
    prop_assert_eq!(fs::read_to_string(&customers).unwrap(), "{\"id\":1}\n");
    prop_assert_eq!(records_in(directory, |name| name.starts_with("payments")), others);
    // With nothing in the way, nothing stays.
    if accounting.damaged.is_empty() {
        prop_assert_eq!(replayed.unread_lines, 1, "but for the one that is none of ours: {}", said);
        let left = records_in(directory, |name| name.starts_with("audit") && name.ends_with(".ndjson"));
        prop_assert!(left.is_empty(), "{left:?} stay: {said}");
    }
    Ok(())
}

#[test]
fn s5_what_is_spilled_is_in_the_target_once_or_still_in_a_file_soak() {
    let cases = if env::var_os("WINDDOWN_SOAK").is_some() { CASES.1 } else { CASES.0 };
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&self::cases(), |case| {
        // A blocking thread for each side, as in a process.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(check(&case))
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
