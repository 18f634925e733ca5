//! What a drain does with a disk that is slow or full, on tokio's paused clock: each limit is pinned 1 ms before and 1 ms
//! after. The rest of what becomes of spilled records is in `tests/outcomes.rs`.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::{Instant, advance},
};
use winddown_core::{Checkout, Error, ErrorKind, Lifecycle, Outcome, Records, Report};

use super::{Disk, Folder, RealDisk, Spill, Writing, file_name, write_to_log};
use crate::{Batch, BatchWriter, Delivery, Push as _, WriteError, WriteWith};

/// Drains have 936 ms of it, and the pool keeps the last 50 ms of these and 26 ms for the buffer's answer.
const BUDGET: Duration = ms(1040);
const END: Duration = ms(860);

/// What a spill to files is given of that: half of what is left when settling has ended, after 494 ms.
const GIVEN: Duration = ms(183);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A disk that works until it is told what comes of it.
struct Held {
    begins: tokio::sync::mpsc::UnboundedSender<()>,
    outcome: Mutex<mpsc::Receiver<io::Result<()>>>,
}

impl Held {
    fn wait(&self) -> io::Result<()> {
        // Nobody may listen any more.
        let _ = self.begins.send(());
        // As nobody tells it when a test has failed.
        self.outcome.lock().unwrap().recv().unwrap_or(Ok(()))
    }
}

impl Disk for Held {
    fn sync(&self, file: &File) -> io::Result<()> {
        self.wait()?;
        RealDisk.sync(file)
    }

    fn sync_folder(&self, folder: &Folder) -> io::Result<()> {
        self.wait()?;
        RealDisk.sync_folder(folder)
    }
}

/// A drain with three records that the target does not take, and the disk that they are spilled to.
struct Scene {
    lifecycle: Lifecycle,
    began: Instant,
    begun: UnboundedReceiver<()>,
    outcomes: mpsc::Sender<io::Result<()>>,
}

impl Scene {
    async fn new(directory: &Path) -> Self {
        Self::within(BUDGET, directory).await
    }

    async fn within(budget: Duration, directory: &Path) -> Self {
        let lifecycle = Lifecycle::builder().signals(false).budget(budget).build().unwrap();
        let db = lifecycle.guard(winddown_core::Client::opened("db", ()));
        let away =
            WriteWith::new(Delivery::ExactlyOnce, |_: &mut Checkout<winddown_core::Client<()>>, _: &Batch<u64>| {
                Box::pin(async { Err(WriteError::Retry(Error::new(ErrorKind::Write, "the server is away"))) })
            });
        let (begins, begun) = unbounded_channel();
        let (outcomes, outcome) = mpsc::channel();
        let disk = Held { begins, outcome: Mutex::new(outcome) };
        let writer = BatchWriter::new(&db, away).name("audit").max_age(Duration::MAX);
        let buffer = lifecycle.guard(writer.spill(Spill::directory_on(Arc::new(disk), directory.to_owned())));
        for record in 0..3 {
            buffer.push(record).await.unwrap();
        }
        Self { lifecycle, began: Instant::now(), begun, outcomes }
    }

    /// Ready when the disk begins to work, so long after the drain. From then on the clock stands still.
    async fn begun(&mut self) -> Duration {
        self.begun.recv().await.unwrap();
        self.began.elapsed()
    }

    /// Drains; the disk has the file so long after the drain began, and its directory at once.
    async fn drained(mut self, synced: Duration) -> (Arc<Report>, Records) {
        let lifecycle = self.lifecycle.clone();
        let disk = async {
            let begun = self.begun().await;
            advance(synced - begun).await;
            self.outcomes.send(Ok(())).unwrap();
            self.outcomes.send(Ok(())).unwrap();
        };
        let (report, ()) = tokio::join!(lifecycle.drain_in_tasks(), disk);
        let records = report.resource("audit").unwrap().records.unwrap();
        assert_eq!(records.accepted, records.written + records.spilled + records.lost + records.in_doubt, "{report}");
        (report, records)
    }
}

fn files(directory: &Path) -> usize {
    directory.read_dir().unwrap().count()
}

#[tokio::test(start_paused = true)]
async fn writing_goes_on_until_half_of_what_is_kept_is_left_for_the_spill() {
    let directory = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(directory.path()).await;
    let lifecycle = scene.lifecycle.clone();
    let drain = tokio::spawn(async move { lifecycle.drain_in_tasks().await });
    assert_eq!(scene.begun().await, END - GIVEN);
    drop(scene);
    assert_eq!(drain.await.unwrap().resource("audit").unwrap().records.unwrap().spilled, 3);
}

#[tokio::test(start_paused = true)]
async fn a_short_budget_keeps_for_the_disk_what_a_spill_needs() {
    // Of 225 ms, half of what it has, the pool keeps 33 ms, and the buffer's answer 8 ms.
    let (budget, end, needed) = (ms(500), ms(450 - 33 - 8), ms(100));
    let directory = tempfile::tempdir().unwrap();
    let mut scene = Scene::within(budget, directory.path()).await;
    let lifecycle = scene.lifecycle.clone();
    let drain = tokio::spawn(async move { lifecycle.drain_in_tasks().await });
    let begun = scene.begun().await;
    assert!(begun.abs_diff(end - needed) <= ms(1), "{begun:?}");
    drop(scene);
    assert_eq!(drain.await.unwrap().resource("audit").unwrap().records.unwrap().spilled, 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_on_the_disk_1_ms_before_the_end_is_spilled_and_1_ms_after_it_in_doubt() {
    for (synced, outcome, spilled) in [(END - ms(1), Outcome::Failed, 3), (END + ms(1), Outcome::Hung, 0)] {
        let directory = tempfile::tempdir().unwrap();
        let (report, records) = Scene::new(directory.path()).await.drained(synced).await;
        assert_eq!(report.resource("audit").unwrap().outcome, outcome, "{report}");
        assert_eq!((records.spilled, records.in_doubt, records.lost), (spilled, 3 - spilled, 0), "{report}");
        assert_eq!(report.resource("db").unwrap().outcome, Outcome::Drained, "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_disk_does_not_take_is_lost_and_leaves_nothing_whether_it_is_the_file_or_its_directory() {
    for taken in 0..2 {
        let directory = tempfile::tempdir().unwrap();
        let scene = Scene::new(directory.path()).await;
        for _ in 0..taken {
            scene.outcomes.send(Ok(())).unwrap();
        }
        scene.outcomes.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        let report = scene.lifecycle.drain_in_tasks().await;
        let records = report.resource("audit").unwrap().records.unwrap();
        assert_eq!((records.accepted, records.spilled, records.lost), (3, 0, 3), "{report}");
        assert_eq!(files(directory.path()), 0, "what is lost is not found by a replay");
    }
}

#[test]
fn what_a_log_took_counts_and_what_it_did_not_take_is_named() {
    /// Takes so many bytes.
    struct Full(usize, Vec<u8>);
    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.0 - self.1.len()).min(100);
            if taken == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.1.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // The second record of each batch cannot be held.
    let batches =
        [Batch::from(vec![Some(Some(1)), Some(None), Some(Some(3))]), Batch::from(vec![Some(Some(4)), Some(None)])];
    let from = Writing { buffer: "audit", record_type: "t", key: None, in_log: false };
    let whole = {
        let mut all = Full(usize::MAX, Vec::new());
        assert_eq!(write_to_log(&mut all, &from, &batches).unwrap().len(), 2);
        all.1
    };
    for room in 0..=whole.len() {
        let mut log = Full(room, Vec::new());
        let unspilled = write_to_log(&mut log, &from, &batches).unwrap();
        let lines = log.1.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(lines + unspilled.len(), 5, "{room}");
        let mut named: Vec<_> = unspilled.iter().map(|one| (one.batch, one.record)).collect();
        named.sort_unstable();
        let mut expected = vec![(0, 1), (1, 1)];
        expected.extend([(0, 0), (0, 2), (1, 0)].into_iter().skip(lines));
        expected.sort_unstable();
        assert_eq!(named, expected, "{room}");
    }
}

#[test]
fn a_long_name_of_a_buffer_is_cut_between_characters() {
    assert_eq!(file_name(&"é".repeat(100)), "é".repeat(75));
    assert_eq!(file_name(&format!("x{}", "é".repeat(100))), format!("x{}", "é".repeat(74)));
    assert_eq!(file_name("orders/a"), "orders_a");
    assert_eq!(file_name(""), "");
}
