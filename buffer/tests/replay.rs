//! What a replay makes of files and logs, and what it leaves alone.
//!
//! Each test is named after what must come of it. The sink is a table in memory that remembers the keys of its batches.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use winddown_buffer::{
    Batch, BatchKey, BatchWriter, Delivery, Push as _, Replay, Replayed, Sink, Spill, SpillKey, WriteError, WriteWith,
    spilled,
};
use winddown_core::{Checkout, Client, Error, ErrorKind, Lifecycle, Records};

/// A clone is the same table.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<Rows>>);

#[derive(Default)]
struct Rows {
    /// How often each record is there.
    records: BTreeMap<u64, usize>,
    keys: HashSet<BatchKey>,
    /// What comes of the next writes; when there is nothing more, they succeed.
    script: Vec<Answer>,
    /// Larger batches are refused, with the limit.
    largest: Option<usize>,
    writes: usize,
}

#[derive(Clone, Copy)]
enum Answer {
    /// No such table.
    Fail,
    Unknown {
        stored: bool,
    },
    Never,
}

/// Records from this on are rejected.
const POISON: u64 = 1_000_000;

impl Table {
    fn answers(&self, answers: impl IntoIterator<Item = Answer>) -> &Self {
        self.0.lock().unwrap().script.extend(answers);
        self
    }

    fn has_once(&self, records: impl IntoIterator<Item = u64>) {
        let rows: Vec<_> = self.0.lock().unwrap().records.clone().into_iter().collect();
        assert_eq!(rows, records.into_iter().map(|record| (record, 1)).collect::<Vec<_>>());
    }

    async fn write(&self, delivery: Delivery, batch: &Batch<u64>) -> Result<(), WriteError> {
        let answer = {
            let mut rows = self.0.lock().unwrap();
            rows.writes += 1;
            if rows.largest.is_some_and(|largest| batch.len() > largest) {
                return Err(WriteError::TooLarge(Error::new(ErrorKind::Write, "statement timeout")));
            }
            let answer = if rows.script.is_empty() { None } else { Some(rows.script.remove(0)) };
            if matches!(answer, None | Some(Answer::Unknown { stored: true })) {
                if batch.iter().any(|record| *record >= POISON) {
                    return Err(WriteError::Rejected(Error::new(ErrorKind::Write, "value out of range")));
                }
                if rows.keys.insert(batch.key()) || delivery != Delivery::ExactlyOnce {
                    for record in batch {
                        *rows.records.entry(*record).or_default() += 1;
                    }
                }
            }
            answer
        };
        let broken = || Error::new(ErrorKind::Write, "the connection broke");
        match answer {
            None => Ok(()),
            Some(Answer::Fail) => Err(WriteError::Failed(Error::new(ErrorKind::Write, "no such table"))),
            Some(Answer::Unknown { .. }) => Err(WriteError::Unknown(broken())),
            Some(Answer::Never) => std::future::pending().await,
        }
    }
}

struct Into(Delivery);

impl Sink<u64> for Into {
    type Target = Client<Table>;

    fn delivery(&self) -> Delivery {
        self.0
    }

    async fn write(&self, checkout: &mut Checkout<Client<Table>>, batch: &Batch<u64>) -> Result<(), WriteError> {
        checkout.write(self.0, batch).await
    }
}

/// Spills these records of a buffer of this name, in batches of ten, since the target is not there.
async fn spill(spill: Spill<u64>, buffer: &str, records: impl IntoIterator<Item = u64>) -> Records {
    spill_of(spill, buffer, records).await
}

async fn spill_of<T>(spill: Spill<T>, buffer: &str, records: impl IntoIterator<Item = T>) -> Records
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let lifecycle = Lifecycle::builder().signals(false).budget(Duration::from_secs(2)).build().unwrap();
    let db = lifecycle.guard(Client::opened("db", ()));
    let away = WriteWith::new(Delivery::ExactlyOnce, |_: &mut Checkout<Client<()>>, _: &Batch<T>| {
        Box::pin(async { Err(WriteError::Retry(Error::new(ErrorKind::Write, "the server is away"))) })
    });
    let writer = BatchWriter::new(&db, away).name(buffer).batch_size(10).max_age(Duration::MAX).spill(spill);
    let buffer = lifecycle.guard(writer);
    lifecycle.init().await.unwrap();
    for record in records {
        buffer.push(record).await.unwrap();
    }
    let report = lifecycle.drain_in_tasks().await;
    let row = report.resources.iter().find(|row| row.records.is_some()).unwrap();
    row.records.unwrap()
}

/// A directory with a spill file of so many records.
async fn directory_of(records: u64) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let accounting = spill(Spill::directory(directory.path()), "audit", 0..records).await;
    assert_eq!(accounting.spilled, records);
    directory
}

/// A replay of the buffer `audit` into this table.
fn to(table: &Table, delivery: Delivery) -> Replay<u64, Into> {
    let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
    let db = lifecycle.guard(Client::opened("db", table.clone()));
    Replay::new(&db, Into(delivery), "audit")
}

async fn replay(table: &Table, path: impl AsRef<Path>) -> Result<Replayed, Error> {
    to(table, Delivery::ExactlyOnce).run(path).await
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn only_file(directory: &Path) -> PathBuf {
    let names = names(directory);
    assert_eq!(names.len(), 1, "{names:?}");
    directory.join(&names[0])
}

/// The lines with records of all files in a directory.
fn record_lines(directory: &Path) -> Vec<String> {
    let texts = names(directory).into_iter().map(|name| fs::read_to_string(directory.join(name)).unwrap());
    let lines = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| line.contains("winddown.record")).collect()
}

fn unread_of(replayed: &Replayed) -> Vec<(Option<u64>, &str)> {
    replayed.unread.iter().map(|unread| (unread.line, &*unread.why)).collect()
}

mod files {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_lines_of_a_batch_are_one_batch_wherever_they_are() {
        let directory = directory_of(200).await;
        let lines = record_lines(directory.path());
        let logs = tempfile::tempdir().unwrap();
        // The lines of all twenty batches alternate, in two files.
        let mut mixed: Vec<_> = (0..10).flat_map(|of| lines.iter().skip(of).step_by(10)).map(String::as_str).collect();
        mixed.reverse();
        fs::write(logs.path().join("a.log"), mixed[..73].join("\n") + "\n").unwrap();
        fs::write(logs.path().join("b.log"), mixed[73..].join("\n") + "\n").unwrap();
        let table = Table::default();
        let replayed = replay(&table, logs.path()).await.unwrap();
        assert_eq!((replayed.found, replayed.written, replayed.is_complete()), (200, 200, true), "{replayed}");
        table.has_once(0..200);
        assert_eq!(table.0.lock().unwrap().writes, 20);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_finished_is_not_taken_and_not_removed() {
        let directory = directory_of(10).await;
        let file = only_file(directory.path());
        let part = directory.path().join("audit-1.ndjson.part");
        fs::copy(&file, &part).unwrap();
        let table = Table::default();
        let replayed = replay(&table, directory.path()).await.unwrap();
        assert_eq!((replayed.written, &replayed.unfinished[..], replayed.is_complete()), (10, &[part][..], false));
        table.has_once(0..10);
        assert_eq!(names(directory.path()), ["audit-1.ndjson.part"]);
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_replays_share_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        for first in (0..200).step_by(10) {
            spill(Spill::directory(directory.path()), "audit", first..first + 10).await;
        }
        let table = Table::default();
        let replays: Vec<_> = (0..8)
            .map(|_| {
                let (table, path) = (table.clone(), directory.path().to_owned());
                // Where twice would show.
                tokio::spawn(async move { to(&table, Delivery::AtLeastOnce).run(path).await })
            })
            .collect();
        let (mut written, mut files) = (0, 0);
        for replay in replays {
            let replayed = replay.await.unwrap().unwrap();
            assert_eq!(replayed.unread_lines, 0, "{replayed}");
            (written, files) = (written + replayed.written, files + replayed.files);
        }
        assert_eq!((written, files), (200, 20));
        table.has_once(0..200);
        assert!(names(directory.path()).is_empty(), "{:?}", names(directory.path()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_of_which_nothing_is_understood_stays_and_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let customers = directory.path().join("customers.ndjson");
        fs::write(&customers, "{\"id\":1}\n{\"id\":2}\n").unwrap();
        for path in [directory.path(), &customers] {
            let replayed = replay(&Table::default(), path).await.unwrap();
            assert!(!replayed.is_complete(), "{replayed}");
            assert_eq!(unread_of(&replayed), [(None, "no spilled record was recognised in it")]);
            assert_eq!(replayed.unread[0].path, customers);
            assert_eq!(fs::read_to_string(&customers).unwrap().lines().count(), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_damaged_line_is_named_and_kept_and_the_others_are_written() {
        let directory = directory_of(30).await;
        let file = only_file(directory.path());
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen("\"record\":4}", "\"record\":4", 1)).unwrap();
        let table = Table::default();
        for (written, already) in [(29, 0), (0, 29)] {
            let replayed = replay(&table, directory.path()).await.unwrap();
            assert_eq!((replayed.written, replayed.already, replayed.files), (written, already, 0), "{replayed}");
            // The header is the first line.
            assert_eq!(unread_of(&replayed), [(Some(6), "it is damaged")]);
            table.has_once((0..30).filter(|record| *record != 4));
            assert!(fs::read_to_string(&file).unwrap().contains("\"record\":4\n"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_has_lost_its_end_says_so_and_stays() {
        let directory = directory_of(30).await;
        let file = only_file(directory.path());
        let text = fs::read(&file).unwrap();
        // In the middle of a character, and a batch's border.
        for (cut, records) in [(text.len() / 2, 13..17), (text.len() - 40, 29..31)] {
            let mut cut = text[..cut].to_vec();
            cut.push("é".as_bytes()[0]);
            fs::write(&file, cut).unwrap();
            let table = Table::default();
            let replayed = replay(&table, &file).await.unwrap();
            assert!(records.contains(&replayed.written) && replayed.unread_lines > 0, "{replayed}");
            assert!(file.exists());
            fs::remove_file(file.with_extension("ndjson.replayed")).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_buffers_records_are_left_alone() {
        let directory = directory_of(10).await;
        spill(Spill::directory(directory.path()), "payments", 100..105).await;
        let table = Table::default();
        let replayed = replay(&table, directory.path()).await.unwrap();
        assert_eq!((replayed.written, replayed.others, replayed.is_complete()), (10, 5, true), "{replayed}");
        table.has_once(0..10);
        assert!(only_file(directory.path()).file_name().unwrap().to_str().unwrap().starts_with("payments-"));
    }

    #[tokio::test(start_paused = true)]
    async fn records_of_another_type_are_unread_unless_any_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        spill(Spill::directory(directory.path()).record_type("visit/1"), "audit", 0..3).await;
        let table = Table::default();
        let replayed = replay(&table, directory.path()).await.unwrap();
        assert_eq!((replayed.written, replayed.unread_lines), (0, 3), "{replayed}");
        assert!(replayed.unread[0].why.contains("another type"), "{replayed}");
        let replay = to(&table, Delivery::ExactlyOnce).record_type("visit/1");
        assert_eq!(replay.check(directory.path()).await.unwrap().found, 3);
        let replayed = to(&table, Delivery::ExactlyOnce).any_record_type().run(directory.path()).await.unwrap();
        assert_eq!((replayed.written, replayed.is_complete()), (3, true), "{replayed}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_cannot_be_read_as_the_type_is_named_and_kept() {
        let directory = directory_of(10).await;
        let file = only_file(directory.path());
        let text = fs::read_to_string(&file).unwrap().replacen("\"record\":4}", "\"record\":\"four\"}", 1);
        fs::write(&file, text).unwrap();
        let table = Table::default();
        let replayed = replay(&table, &file).await.unwrap();
        assert_eq!(unread_of(&replayed), [(Some(6), "its record is not of the type that is replayed")]);
        assert!(file.exists() && !replayed.to_string().contains("four"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_spilled_is_listed() {
        let directory = directory_of(10).await;
        fs::write(directory.path().join("a.log"), "x\n").unwrap();
        let listed = spilled(directory.path()).unwrap();
        let listed: Vec<_> =
            listed.iter().map(|file| (file.buffer.as_deref(), file.records, file.is_finished)).collect();
        assert_eq!(listed, [(Some("audit"), Some(10), true), (None, None, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bare_name_is_a_file_of_the_current_directory() {
        // No other test has relative paths that exist.
        let directory = directory_of(10).await;
        let before = std::env::current_dir().unwrap();
        std::env::set_current_dir(directory.path()).unwrap();
        let table = Table::default();
        let name = only_file(Path::new(".")).file_name().unwrap().to_owned();
        let replayed = replay(&table, &name).await;
        std::env::set_current_dir(before).unwrap();
        assert_eq!(replayed.unwrap().files, 1);
        table.has_once(0..10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_is_not_there_yet_has_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let replayed = replay(&Table::default(), directory.path().join("spills")).await.unwrap();
        assert_eq!(replayed, Replayed::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_not_there_is_an_error_that_names_it() {
        let error = replay(&Table::default(), "nowhere.ndjson").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().starts_with("nowhere.ndjson"), "{error}");
    }
}

mod logs {
    use super::*;

    fn log_of(directory: &Path, line: impl Fn(&str) -> String) -> (tempfile::TempDir, PathBuf) {
        let text: String = record_lines(directory)
            .iter()
            .map(|record| format!("{}\n{}\n{}\n", line("START"), line(record), line("{\"type\":\"platform.report\"}")))
            .collect();
        let logs = tempfile::tempdir().unwrap();
        let log = logs.path().join("0.log");
        fs::write(&log, text).unwrap();
        (logs, log)
    }

    #[tokio::test(start_paused = true)]
    async fn records_are_found_behind_what_tools_put_before_a_line_and_the_log_stays() {
        let directory = directory_of(30).await;
        let json = |line: &str| {
            let log = serde_json::to_string(&format!("{line}\n")).unwrap();
            format!("{{\"log\":{log},\"stream\":\"stderr\",\"time\":\"2026-01-31T23:59:59Z\"}}")
        };
        type Format = Box<dyn Fn(&str) -> String>;
        let formats: [Format; 6] = [
            Box::new(str::to_owned),
            Box::new(|line| format!("2026-01-31T23:59:59.123456789Z {line}")),
            Box::new(|line| format!("2026-01-31T23:59:59.123456789Z stderr F {line}")),
            Box::new(|line| format!("web-1  | {line}")),
            Box::new(|line| format!("[pod/web-5d/app] 2026-01-31T23:59:59Z {line}")),
            Box::new(json),
        ];
        for format in formats {
            let (_logs, log) = log_of(directory.path(), &format);
            let (before, table) = (fs::read(&log).unwrap(), Table::default());
            let replayed = replay(&table, &log).await.unwrap();
            let sample = format("x");
            assert_eq!((replayed.written, replayed.is_complete()), (30, true), "{sample}: {replayed}");
            table.has_once(0..30);
            assert_eq!(fs::read(&log).unwrap(), before);
            // What is written is noted beside it.
            let replayed = replay(&table, &log).await.unwrap();
            assert_eq!((replayed.written, replayed.already), (0, 30), "{sample}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lines_that_a_container_runtime_cut_at_16_kib_are_put_together() {
        let directory = directory_of(10).await;
        let cut = |line: &str| {
            let (front, behind) = line.split_at(line.len() / 2);
            let at = "2026-01-31T23:59:59.123456789Z";
            format!("{at} stderr P {front}\n{at} stdout F INFO\n{at} stderr F {behind}")
        };
        let (_logs, log) = log_of(directory.path(), cut);
        let table = Table::default();
        let replayed = replay(&table, &log).await.unwrap();
        assert_eq!((replayed.written, replayed.is_complete()), (10, true), "{replayed}");
        table.has_once(0..10);
    }

    #[tokio::test(start_paused = true)]
    async fn behind_an_unknown_prefix_a_record_is_unread_and_named() {
        let directory = directory_of(10).await;
        let (_logs, log) = log_of(directory.path(), |line| format!("user wrote: {line}"));
        let table = Table::default();
        let replayed = replay(&table, &log).await.unwrap();
        assert_eq!((replayed.written, replayed.unread_lines), (0, 10), "{replayed}");
        assert_eq!(unread_of(&replayed)[0], (Some(2), "what stands before the record is no prefix that is known"));
        table.has_once([]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_is_not_whole_is_written_only_where_that_is_said() {
        let directory = directory_of(20).await;
        let lines = record_lines(directory.path());
        let logs = tempfile::tempdir().unwrap();
        let (half, whole) = (logs.path().join("half.log"), logs.path().join("whole.log"));
        fs::write(&half, lines[..15].join("\n")).unwrap();
        fs::write(&whole, lines.join("\n")).unwrap();
        let table = Table::default();
        let replayed = replay(&table, &half).await.unwrap();
        assert_eq!((replayed.written, replayed.incomplete, replayed.is_complete()), (10, 5, false), "{replayed}");
        assert!(replayed.unread[0].why.contains("only 5 of 10"), "{replayed}");
        // So nothing keeps the whole log from bringing it.
        assert_eq!(replay(&table, &whole).await.unwrap().written, 20);
        table.has_once(0..20);
        let table = Table::default();
        let replayed = to(&table, Delivery::ExactlyOnce).incomplete(true).run(&half).await.unwrap();
        assert_eq!((replayed.written, replayed.incomplete), (5, 0), "{replayed}");
        table.has_once(10..15);
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_key_what_is_not_signed_with_it_is_not_taken() {
        let key = |byte| SpillKey::new([byte; 32]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        spill(Spill::directory(directory.path()).key(key(1)), "audit", 0..10).await;
        let file = only_file(directory.path());
        let forged = fs::read_to_string(&file).unwrap().replacen("\"record\":4,", "\"record\":444,", 1);
        fs::write(&file, forged).unwrap();
        let table = Table::default();
        let replayed = to(&table, Delivery::ExactlyOnce).key(key(2)).run(&file).await.unwrap();
        assert_eq!((replayed.written, replayed.unread_lines), (0, 10), "{replayed}");
        let replayed = to(&table, Delivery::ExactlyOnce).key(key(1)).run(&file).await.unwrap();
        assert_eq!((replayed.written, replayed.unread_lines), (9, 1), "{replayed}");
        assert_eq!(unread_of(&replayed), [(Some(6), "it is not signed with the key of this replay")]);
        table.has_once((0..10).filter(|record| *record != 4));
    }
}

mod delivering {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn at_most_once_an_unknown_outcome_is_in_doubt_and_not_written_again() {
        let directory = directory_of(30).await;
        let table = Table::default();
        table.answers([Answer::Unknown { stored: true }, Answer::Unknown { stored: false }]);
        let replayed = to(&table, Delivery::AtMostOnce).run(directory.path()).await.unwrap();
        assert_eq!((replayed.written, replayed.in_doubt), (10, 20), "{replayed}");
        table.has_once((0..10).chain(20..30));
        // They are kept beside, and the file is gone.
        let kept = only_file(directory.path());
        assert!(kept.to_str().unwrap().ends_with(".in-doubt"), "{kept:?}");
        assert_eq!(record_lines(directory.path()).len(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_once_a_replay_that_is_cut_off_in_a_write_leaves_that_in_doubt() {
        let directory = directory_of(30).await;
        let table = Table::default();
        table.answers([Answer::Unknown { stored: true }, Answer::Never]);
        let replay = to(&table, Delivery::AtMostOnce);
        assert!(tokio::time::timeout(Duration::from_secs(60), replay.run(directory.path())).await.is_err());
        drop(replay);
        let replayed = to(&table, Delivery::AtMostOnce).run(directory.path()).await.unwrap();
        assert_eq!((replayed.written, replayed.in_doubt, replayed.already), (10, 10, 10), "{replayed}");
        table.has_once((0..10).chain(20..30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_replay_that_fails_in_the_middle_goes_on_where_it_was() {
        for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce, Delivery::AtMostOnce] {
            let directory = directory_of(30).await;
            let table = Table::default();
            table.0.lock().unwrap().largest = Some(10);
            let good = to(&table, delivery).check(directory.path()).await.unwrap();
            assert_eq!((good.found, good.written), (30, 0));
            table.answers([Answer::Fail]);
            let error = to(&table, delivery).run(directory.path()).await.unwrap_err();
            assert!(error.to_string().contains("no such table"), "{error}");
            let replayed = to(&table, delivery).run(directory.path()).await.unwrap();
            assert_eq!(replayed.written, 30, "{delivery:?}: {replayed}");
            table.has_once(0..30);
            assert!(names(directory.path()).is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_is_too_large_is_divided() {
        let directory = directory_of(30).await;
        let table = Table::default();
        table.0.lock().unwrap().largest = Some(3);
        let replayed = replay(&table, directory.path()).await.unwrap();
        assert_eq!((replayed.written, replayed.files), (30, 1));
        table.has_once(0..30);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_file_twice_is_there_once() {
        let directory = directory_of(30).await;
        let file = only_file(directory.path());
        let text = fs::read(&file).unwrap();
        let table = Table::default();
        replay(&table, &file).await.unwrap();
        fs::write(&file, text).unwrap();
        replay(&table, &file).await.unwrap();
        table.has_once(0..30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_is_rejected_is_kept_beside() {
        let directory = directory_of(30).await;
        let file = only_file(directory.path());
        let text = fs::read_to_string(&file).unwrap().replacen("\"record\":4}", "\"record\":1000004}", 1);
        fs::write(&file, text).unwrap();
        let table = Table::default();
        let replayed = replay(&table, directory.path()).await.unwrap();
        assert_eq!((replayed.written, replayed.rejected), (29, 1));
        table.has_once((0..30).filter(|record| *record != 4));
        let kept = only_file(directory.path());
        assert!(kept.to_str().unwrap().ends_with(".rejected"), "{kept:?}");
        let kept = fs::read_to_string(kept).unwrap();
        assert!(kept.contains("\"record\":1000004}") && kept.contains("value out of range"), "{kept}");
    }
}

mod spilling {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_json_cannot_say_comes_back_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let records =
            [f64::NAN, 0.1, f64::NEG_INFINITY].map(|number| (number, u128::MAX, BTreeMap::from([((1, 'x'), ())])));
        let accounting = spill_of(Spill::directory(directory.path()), "audit", records.clone()).await;
        assert_eq!((accounting.spilled, accounting.lost), (3, 0));
        let got = Arc::new(Mutex::new(Vec::new()));
        let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
        let db = lifecycle.guard(Client::opened("db", Arc::clone(&got)));
        type Record = (f64, u128, BTreeMap<(i32, char), ()>);
        let sink = WriteWith::new(
            Delivery::ExactlyOnce,
            |got: &mut Checkout<Client<Arc<Mutex<Vec<Record>>>>>, batch: &Batch<Record>| {
                got.lock().unwrap().extend(batch.iter().cloned());
                Box::pin(async { Ok(()) })
            },
        );
        Replay::<Record, _>::new(&db, sink, "audit").run(directory.path()).await.unwrap();
        let bits = |records: &[Record]| records.iter().map(|record| (record.0.to_bits(), record.1)).collect::<Vec<_>>();
        assert_eq!(bits(&got.lock().unwrap()), bits(&records));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_else_can_read_what_was_spilled() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        spill(Spill::directory(&path), "audit", 0..3).await;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory.path().join("a")), mode(&path), mode(&only_file(&path))), (0o700, 0o700, 0o600));
    }

    #[tokio::test(start_paused = true)]
    async fn no_symbolic_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
        let db = lifecycle.guard(Client::opened("db", Table::default()));
        let buffer = lifecycle.guard(BatchWriter::new(&db, Into(Delivery::ExactlyOnce)).spill(Spill::directory(&link)));
        let error = buffer.push(1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("symbolic link"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn two_buffers_on_one_pool_do_not_share_a_name() {
        let directory = tempfile::tempdir().unwrap();
        let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
        let db = lifecycle.guard(Client::opened("db", Table::default()));
        let writer = || BatchWriter::new(&db, Into(Delivery::ExactlyOnce)).spill(Spill::directory(directory.path()));
        let (one, two) = (lifecycle.guard(writer()), lifecycle.guard(writer()));
        assert_eq!((one.name(), two.name()), ("db-buffer", "db-buffer-2"));
        one.push(1).await.unwrap();
        two.push(2).await.unwrap();
        // Whoever gives them the same is told.
        let (three, four) = (lifecycle.guard(writer().name("audit")), lifecycle.guard(writer().name("audit")));
        for buffer in [three, four] {
            let error = buffer.push(1).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{error}");
            assert!(error.to_string().contains("BatchWriter::name"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_was_removed_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spills");
        let lifecycle = Lifecycle::builder().signals(false).budget(Duration::from_secs(2)).build().unwrap();
        let table = Table::default();
        table.answers([Answer::Fail]);
        let db = lifecycle.guard(Client::opened("db", table));
        let writer = BatchWriter::new(&db, Into(Delivery::ExactlyOnce)).name("audit").spill(Spill::directory(&path));
        let buffer = lifecycle.guard(writer);
        buffer.push(1).await.unwrap();
        fs::remove_dir(&path).unwrap();
        let report = lifecycle.drain_in_tasks().await;
        assert_eq!(report.resource("audit").unwrap().records.unwrap().spilled, 1, "{report}");
        assert_eq!(names(&path).len(), 1);
    }
}
