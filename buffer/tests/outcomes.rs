//! What becomes of batches that the sink does not simply take: retried, divided, given up, spilled and replayed.
//!
//! The sink is a closure over a table in memory that remembers the keys of the batches it has, as a database would. All of it
//! is on tokio's paused clock, which stands still while a disk works: what a drain has time for does not depend on the disk.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fs,
    future::pending,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, advance, sleep};
use winddown_buffer::{
    Batch, BatchKey, BatchWriter, Delivery, Push as _, Replay, Replayed, Sink, Spill, WriteError, WriteWith,
};
use winddown_core::{Checkout, Client, Error, ErrorKind, Lifecycle, Outcome, Records, Report, ShutdownGuard};

/// A clone is the same table.
#[derive(Clone, Default)]
struct Table(Arc<Inner>);

#[derive(Default)]
struct Inner {
    rows: Mutex<Rows>,
    script: Mutex<VecDeque<Answer>>,
    then: Mutex<Answer>,
    writing: AtomicUsize,
    most_at_once: AtomicUsize,
}

#[derive(Default)]
struct Rows {
    /// How often each record is there.
    records: BTreeMap<u64, usize>,
    keys: HashSet<BatchKey>,
    /// In the order in which they were asked for.
    tried: Vec<(BatchKey, Vec<u64>)>,
}

#[derive(Clone, Copy, Default)]
enum Answer {
    #[default]
    Store,
    StoreAfter(Duration),
    /// The connection broke, before or behind the commit.
    Unknown {
        stored: bool,
    },
    /// No such table.
    Fail,
    /// The server is away.
    Retry,
    Hang {
        stored: bool,
    },
    Panic,
}

/// Records from this on are rejected.
const POISON: u64 = 1_000_000;

fn write_error(text: &'static str) -> Error {
    Error::new(ErrorKind::Write, text)
}

impl Table {
    fn answers(&self, script: impl IntoIterator<Item = Answer>) -> Self {
        self.0.script.lock().unwrap().extend(script);
        self.clone()
    }

    fn then(&self, answer: Answer) -> Self {
        *self.0.then.lock().unwrap() = answer;
        self.clone()
    }

    /// The records that are there, with how often.
    fn rows(&self) -> Vec<(u64, usize)> {
        self.0.rows.lock().unwrap().records.iter().map(|(record, times)| (*record, *times)).collect()
    }

    fn has_once(&self, records: impl IntoIterator<Item = u64>) {
        assert_eq!(self.rows(), records.into_iter().map(|record| (record, 1)).collect::<Vec<_>>());
    }

    fn tried(&self) -> Vec<(BatchKey, Vec<u64>)> {
        self.0.rows.lock().unwrap().tried.clone()
    }

    fn store(&self, delivery: Delivery, batch: &Batch<u64>) {
        let mut rows = self.0.rows.lock().unwrap();
        if rows.keys.insert(batch.key()) || delivery != Delivery::ExactlyOnce {
            for record in batch {
                *rows.records.entry(*record).or_default() += 1;
            }
        }
    }

    async fn write(&self, delivery: Delivery, batch: &Batch<u64>) -> Result<(), WriteError> {
        self.0.rows.lock().unwrap().tried.push((batch.key(), batch.to_vec()));
        let scripted = self.0.script.lock().unwrap().pop_front();
        let answer = scripted.unwrap_or_else(|| *self.0.then.lock().unwrap());
        match answer {
            Answer::Store => {}
            Answer::StoreAfter(time) => {
                let writing = self.0.writing.fetch_add(1, Ordering::SeqCst) + 1;
                self.0.most_at_once.fetch_max(writing, Ordering::SeqCst);
                sleep(time).await;
                self.0.writing.fetch_sub(1, Ordering::SeqCst);
            }
            Answer::Retry => return Err(WriteError::Retry(write_error("the server is away"))),
            Answer::Fail => return Err(WriteError::Failed(write_error("no such table"))),
            Answer::Unknown { stored } | Answer::Hang { stored } => {
                if stored {
                    self.store(delivery, batch);
                }
                if matches!(answer, Answer::Hang { .. }) {
                    pending::<()>().await;
                }
                return Err(WriteError::Unknown(write_error("the connection broke")));
            }
            Answer::Panic => panic!("sink"),
        }
        if batch.iter().any(|record| *record >= POISON) {
            return Err(WriteError::Rejected(write_error("value out of range")));
        }
        self.store(delivery, batch);
        Ok(())
    }

    fn sink(&self, delivery: Delivery) -> impl Sink<u64, Target = Client<Self>> + use<> {
        WriteWith::new(delivery, move |table: &mut Checkout<Client<Self>>, batch: &Batch<u64>| {
            Box::pin(async move { table.write(delivery, batch).await })
        })
    }
}

struct Setup<S: Sink<u64>> {
    lifecycle: Lifecycle,
    table: Table,
    buffer: ShutdownGuard<BatchWriter<u64, S>>,
}

const BUDGET: Duration = Duration::from_secs(2);

async fn start(delivery: Delivery) -> Setup<impl Sink<u64>> {
    start_with(delivery, None, 1).await
}

async fn start_with(delivery: Delivery, spill: Option<Spill<u64>>, in_flight: usize) -> Setup<impl Sink<u64>> {
    let lifecycle = Lifecycle::builder().signals(false).budget(BUDGET).build().unwrap();
    let table = Table::default();
    let db = lifecycle.guard(Client::opened("db", table.clone()));
    let writer = BatchWriter::new(&db, table.sink(delivery)).name("audit").batch_size(10).max_age(Duration::MAX);
    let writer = writer.in_flight(in_flight);
    let buffer = lifecycle.guard(match spill {
        Some(spill) => writer.spill(spill),
        None => writer,
    });
    lifecycle.init().await.unwrap();
    Setup { lifecycle, table, buffer }
}

impl<S: Sink<u64>> Setup<S> {
    async fn push(&self, records: impl IntoIterator<Item = u64>) {
        for record in records {
            self.buffer.push(record).await.unwrap();
        }
    }

    async fn drain(&self) -> (Arc<Report>, Records) {
        let report = self.lifecycle.drain_in_tasks().await;
        assert!(report.took < BUDGET, "{report}");
        let records = report.resource("audit").unwrap().records.unwrap();
        assert_eq!(
            records.accepted,
            records.written + records.spilled + records.lost + records.in_doubt,
            "every record is in one column: {report}"
        );
        (report, records)
    }
}

/// What a replay into a fresh table finds in the directory.
async fn replay_into(table: &Table, delivery: Delivery, path: &Path) -> Result<Replayed, Error> {
    let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
    let db = lifecycle.guard(Client::opened("db", table.clone()));
    let replayed = Replay::<u64, _>::new(&db, table.sink(delivery), "audit").run(path).await;
    lifecycle.drain_in_tasks().await;
    replayed
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

mod running {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn as_many_batches_are_written_at_once_as_may_be_in_flight() {
        for in_flight in [1, 3] {
            let setup = start_with(Delivery::AtMostOnce, None, in_flight).await;
            setup.table.then(Answer::StoreAfter(Duration::from_secs(1)));
            let began = Instant::now();
            setup.push(0..60).await;
            setup.buffer.flush().await.unwrap();
            assert_eq!(setup.table.0.most_at_once.load(Ordering::SeqCst), in_flight);
            assert_eq!(began.elapsed().as_secs(), 6 / in_flight as u64);
            setup.table.has_once(0..60);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_waits_for_what_came_before_it_and_not_for_what_came_behind() {
        let setup = start_with(Delivery::AtMostOnce, None, 2).await;
        setup.table.answers([Answer::StoreAfter(Duration::from_secs(3)), Answer::StoreAfter(Duration::from_secs(1))]);
        setup.push(0..10).await;
        let began = Instant::now();
        let (flushed, ()) = tokio::join!(setup.buffer.flush(), setup.push(10..20));
        flushed.unwrap();
        assert_eq!(began.elapsed().as_secs(), 3, "the first batch is the slow one");
        let (flushed, ()) = tokio::join!(setup.buffer.flush(), setup.push(20..21));
        flushed.unwrap();
        assert_eq!(setup.buffer.records().written, 20);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_outcome_is_cleared_up_with_the_same_key_where_the_target_remembers_it() {
        for stored in [true, false] {
            let setup = start(Delivery::ExactlyOnce).await;
            setup.table.answers([Answer::Unknown { stored }, Answer::Unknown { stored }]);
            setup.push(0..10).await;
            setup.buffer.flush().await.unwrap();
            setup.table.has_once(0..10);
            let tried = setup.table.tried();
            assert_eq!(tried.len(), 3);
            assert!(tried.iter().all(|one| *one == tried[0]), "{tried:?}");
            let (report, records) = setup.drain().await;
            assert_eq!((records.written, report.is_clean()), (10, true), "{report}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_outcome_may_write_twice_where_that_is_allowed() {
        let setup = start(Delivery::AtLeastOnce).await;
        setup.table.answers([Answer::Unknown { stored: true }]);
        setup.push(0..2).await;
        setup.buffer.flush().await.unwrap();
        assert_eq!(setup.table.rows(), [(0, 2), (1, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_outcome_is_in_doubt_where_twice_is_not_allowed() {
        let setup = start(Delivery::AtMostOnce).await;
        setup.table.answers([Answer::Unknown { stored: false }]);
        setup.push(0..12).await;
        let error = setup.buffer.flush().await.unwrap_err();
        assert!(error.to_string().contains("the connection broke"), "{error}");
        let (report, records) = setup.drain().await;
        assert_eq!((records.written, records.in_doubt), (2, 10), "{report}");
        setup.table.has_once(10..12);
    }

    #[tokio::test(start_paused = true)]
    async fn a_poison_record_is_found_and_the_rest_of_its_batch_written() {
        let rejected = Arc::new(Mutex::new(Vec::new()));
        let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
        let table = Table::default();
        let db = lifecycle.guard(Client::opened("db", table.clone()));
        let told = Arc::clone(&rejected);
        let writer = BatchWriter::new(&db, table.sink(Delivery::ExactlyOnce))
            .name("audit")
            .batch_size(500)
            .on_rejected(move |record: &u64, error: &Error| told.lock().unwrap().push((*record, error.to_string())))
            .on_lost(|records: &[u64], _: &Error| panic!("{} records are not lost, but rejected", records.len()));
        let buffer = lifecycle.guard(writer);
        for record in 0..500 {
            let poison = record == 77 || record == 499;
            buffer.push(if poison { POISON + record } else { record }).await.unwrap();
        }
        buffer.flush().await.unwrap_err();
        table.has_once((0..500).filter(|record| *record != 77 && *record != 499));
        let told: Vec<_> = rejected.lock().unwrap().iter().map(|(record, _)| *record).collect();
        assert_eq!(told, [POISON + 77, POISON + 499]);
        assert!(rejected.lock().unwrap()[0].1.contains("out of range"));
        let tried = table.tried().len();
        assert!(tried < 40, "each takes about two writes for each halving of 500, and not {tried}");
        let records = buffer.records();
        assert_eq!((records.accepted, records.written, records.lost), (500, 498, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_full_by_its_bytes_too_and_what_a_record_owns_counts() {
        let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
        let table = Table::default();
        let db = lifecycle.guard(Client::opened("db", table.clone()));
        let writer = BatchWriter::new(&db, table.sink(Delivery::ExactlyOnce)).max_age(Duration::MAX);
        let buffer = lifecycle.guard(writer.batch_bytes(3 * 1_008).heap_size(|_| 1_000).capacity(6 * 1_008));
        for record in 0..7 {
            buffer.push(record).await.unwrap();
        }
        buffer.flush().await.unwrap();
        assert_eq!(table.tried().iter().map(|(_, records)| records.len()).collect::<Vec<_>>(), [3, 3, 1]);
        // And a buffer that is full without a full batch writes what it has.
        table.then(Answer::StoreAfter(Duration::from_secs(1)));
        let began = Instant::now();
        for record in 7..14 {
            buffer.push(record).await.unwrap();
        }
        assert_eq!(began.elapsed().as_secs(), 1, "the seventh had to wait for the first three");
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_fails_for_good_is_spilled_at_once_and_the_others_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let setup = start_with(Delivery::ExactlyOnce, Some(Spill::directory(directory.path())), 1).await;
        setup.table.answers([Answer::Fail]);
        setup.push(0..20).await;
        setup.buffer.flush().await.unwrap();
        setup.table.has_once(10..20);
        assert_eq!(names(directory.path()).len(), 1);
        let (report, records) = setup.drain().await;
        assert_eq!((records.written, records.spilled), (10, 10), "{report}");
        assert!(!report.is_clean(), "{report}");
        let replayed = replay_into(&setup.table, Delivery::ExactlyOnce, directory.path()).await.unwrap();
        assert_eq!((replayed.files, replayed.written), (1, 10));
        setup.table.has_once(0..20);
        assert!(names(directory.path()).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_panics_is_not_tried_again_but_spilled() {
        let directory = tempfile::tempdir().unwrap();
        let setup = start_with(Delivery::ExactlyOnce, Some(Spill::directory(directory.path())), 1).await;
        setup.table.answers([Answer::Panic]);
        setup.push(0..20).await;
        setup.buffer.flush().await.unwrap();
        setup.table.has_once(10..20);
        let (report, records) = setup.drain().await;
        assert_eq!((records.written, records.spilled, records.in_doubt), (10, 10, 0), "{report}");
    }
}

mod draining {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_server_that_is_away_does_not_take_is_spilled_in_time_and_replayed() {
        let directory = tempfile::tempdir().unwrap();
        let setup = start_with(Delivery::ExactlyOnce, Some(Spill::directory(directory.path())), 1).await;
        setup.table.then(Answer::Retry);
        setup.push(0..1_234).await;
        let (report, records) = setup.drain().await;
        assert_eq!((records.accepted, records.spilled), (1_234, 1_234), "{report}");
        assert_eq!(report.resource("audit").unwrap().outcome, Outcome::Failed, "{report}");
        assert!(report.resource("audit").unwrap().error.as_ref().unwrap().contains("away"), "{report}");
        assert_eq!(report.resource("db").unwrap().outcome, Outcome::Drained, "{report}");

        let table = Table::default();
        let replayed = replay_into(&table, Delivery::ExactlyOnce, directory.path()).await.unwrap();
        assert_eq!((replayed.files, replayed.written, replayed.is_complete()), (1, 1_234, true));
        table.has_once(0..1_234);
        assert!(names(directory.path()).is_empty(), "what is replayed is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_hangs_in_its_commit_is_spilled_too_and_is_there_once_after_the_replay() {
        for stored in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let setup = start_with(Delivery::ExactlyOnce, Some(Spill::directory(directory.path())), 2).await;
            setup.table.then(Answer::Hang { stored });
            setup.push(0..35).await;
            let (report, records) = setup.drain().await;
            assert_eq!((records.spilled, records.in_doubt), (35, 0), "{report}");
            assert_eq!(
                setup.table.rows().len(),
                if stored { 35 } else { 0 },
                "each was tried, over sessions of its own"
            );
            setup.table.then(Answer::Store);
            replay_into(&setup.table, Delivery::ExactlyOnce, directory.path()).await.unwrap();
            setup.table.has_once(0..35);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_hangs_is_in_doubt_where_twice_is_not_allowed_and_the_rest_is_spilled() {
        let directory = tempfile::tempdir().unwrap();
        let setup = start_with(Delivery::AtMostOnce, Some(Spill::directory(directory.path())), 1).await;
        setup.table.answers([Answer::Hang { stored: false }]).then(Answer::Retry);
        setup.push(0..35).await;
        let (report, records) = setup.drain().await;
        assert_eq!((records.spilled, records.in_doubt), (25, 10), "{report}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_spill_what_has_no_outcome_is_in_doubt_and_the_rest_is_lost() {
        for delivery in [Delivery::ExactlyOnce, Delivery::AtMostOnce] {
            for (then, in_doubt) in [
                // One hangs, and one of the others too that are tried over another session; with a key, each is tried.
                (Answer::Hang { stored: true }, if delivery == Delivery::ExactlyOnce { 25 } else { 20 }),
                (Answer::Unknown { stored: true }, if delivery == Delivery::ExactlyOnce { 10 } else { 25 }),
                (Answer::Retry, 0),
            ] {
                let setup = start(delivery).await;
                setup.table.then(then);
                setup.push(0..25).await;
                let (report, records) = setup.drain().await;
                assert_eq!((records.written, records.in_doubt, records.lost), (0, in_doubt, 25 - in_doubt), "{report}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_spilled_is_in_doubt_where_it_may_be_there() {
        let spill = Spill::with(|_, _, _| Err("the disk is full".into()));
        let setup = start_with(Delivery::ExactlyOnce, Some(spill), 1).await;
        setup.table.answers([Answer::Hang { stored: true }]).then(Answer::Retry);
        setup.push(0..25).await;
        let (report, records) = setup.drain().await;
        assert_eq!((records.spilled, records.in_doubt, records.lost), (0, 10, 15), "{report}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_spilled_is_lost_and_says_why() {
        let spill = Spill::with(|_, _, _| Err("the disk is full".into()));
        let setup = start_with(Delivery::ExactlyOnce, Some(spill), 1).await;
        setup.table.then(Answer::Retry);
        setup.push(0..3).await;
        let (report, records) = setup.drain().await;
        assert_eq!((records.spilled, records.lost), (0, 3), "{report}");
    }

    #[tokio::test(start_paused = true)]
    async fn l1_a_spill_that_hangs_is_left_at_the_deadline_and_in_doubt() {
        let (_hold, held) = std::sync::mpsc::channel::<()>();
        let (begins, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let held = Mutex::new(held);
        let spill = Spill::with(move |_, _, _| {
            begins.send(()).unwrap();
            // Until the test is over.
            let _ = held.lock().unwrap().recv();
            Ok(())
        });
        let setup = start_with(Delivery::ExactlyOnce, Some(spill), 1).await;
        setup.table.then(Answer::Retry);
        setup.push(0..3).await;
        let clock = async {
            begun.recv().await.unwrap();
            // By itself the clock stands still while somebody works.
            loop {
                advance(Duration::from_millis(1)).await;
            }
        };
        let (report, records) = tokio::select! {
            drained = setup.drain() => drained,
            () = clock => unreachable!("it goes on for ever"),
        };
        assert_eq!((records.spilled, records.in_doubt), (0, 3), "{report}");
        assert_eq!(report.resource("audit").unwrap().outcome, Outcome::Hung, "{report}");
        assert_eq!(report.resource("db").unwrap().outcome, Outcome::Drained, "{report}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_callback_gets_the_batches_and_the_reason() {
        let got = Arc::new(Mutex::new(Vec::new()));
        let spilled = Arc::clone(&got);
        let spill = Spill::with(move |buffer, batches: &[Batch<u64>], reason| {
            assert_eq!((buffer, reason.kind()), ("audit", ErrorKind::Write));
            spilled.lock().unwrap().extend(batches.iter().flat_map(|batch| batch.to_vec()));
            Ok(())
        });
        let setup = start_with(Delivery::ExactlyOnce, Some(spill), 1).await;
        setup.table.then(Answer::Retry);
        setup.push(0..25).await;
        let (report, records) = setup.drain().await;
        assert_eq!(records.spilled, 25, "{report}");
        assert_eq!(*got.lock().unwrap(), Vec::from_iter(0..25), "in their order");
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_cannot_be_written_to_is_an_error_of_init() {
        let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
        let table = Table::default();
        let db = lifecycle.guard(Client::opened("db", table.clone()));
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = BatchWriter::new(&db, table.sink(Delivery::ExactlyOnce));
        let buffer = lifecycle.guard(writer.spill(Spill::directory(file.path().join("below"))));
        let error = buffer.push(1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }
}
