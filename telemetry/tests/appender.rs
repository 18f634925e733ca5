//! The non-blocking writer of `tracing-appender`, on real files and on writers of every temper.

use std::{
    fs::{self, File},
    io::{self, Write},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder};
use winddown_core::{ErrorKind, Lifecycle, Outcome, ResourceReport, memory::Memory};
use winddown_telemetry::{Appender, non_blocking, non_blocking_with};

fn lifecycle(budget: Duration) -> Lifecycle {
    Lifecycle::builder().signals(false).budget(budget).build().unwrap()
}

/// Not used up by any machine.
const BUDGET: Duration = Duration::from_secs(60);

/// Used up, and waited for.
const USED_UP: Duration = Duration::from_secs(3);

/// So late does a busy machine run a thread that has to see a deadline.
const LATE: Duration = Duration::from_secs(5);

/// Drains, and returns the row of the log and how long it took.
async fn drained(lifecycle: &Lifecycle) -> (ResourceReport, Duration) {
    let report = lifecycle.drain().await;
    let row = report.resource("log").unwrap_or_else(|| panic!("no log in\n{report}"));
    (row.clone(), report.took)
}

/// Takes its time for each line.
#[derive(Clone)]
struct Slow {
    each: Duration,
    written: Arc<Mutex<usize>>,
}

impl Slow {
    fn new(each: Duration) -> Self {
        Self { each, written: Arc::default() }
    }

    fn written(&self) -> usize {
        *self.written.lock().unwrap()
    }
}

impl Write for Slow {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        thread::sleep(self.each);
        *self.written.lock().unwrap() += 1;
        Ok(line.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Does nothing before it may.
struct Gated {
    gate: mpsc::Receiver<()>,
    result: fn() -> io::Result<()>,
}

impl Write for Gated {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // From when the sender is dropped on it waits no longer.
        let _ = self.gate.recv();
        (self.result)().map(|()| line.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The only test of this process that sets the global subscriber.
#[tokio::test]
async fn everything_that_is_logged_before_and_during_the_drain_of_others_is_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.log");
    let lifecycle = lifecycle(BUDGET);
    let (writer, appender) = non_blocking(File::create(&path).unwrap());
    let _log = lifecycle.guard(appender);
    let subscriber = tracing_subscriber::fmt().with_writer(writer).with_ansi(false).without_time().finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let db = lifecycle.guard(Memory::new("db"));
    let session = db.get().await.unwrap();
    lifecycle.on_drain("last words", async || {
        for number in 0..1000 {
            tracing::info!("during {number}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        tracing::info!("the last line of a hook");
    });
    for number in 0..10_000 {
        tracing::info!("before {number}");
    }
    let draining = lifecycle.draining();
    let held = tokio::spawn(async move {
        draining.await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        tracing::info!("the last line of a checkout");
        drop(session);
    });
    let (row, _) = drained(&lifecycle).await;
    assert_eq!((row.outcome, row.cannot.len()), (Outcome::Drained, 0), "{row:?}");
    held.await.unwrap();

    let log = fs::read_to_string(&path).unwrap();
    let count = |what| log.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("before "), count("during "), count("the last line")), (10_000, 1000, 2));
}

#[tokio::test]
async fn a_writer_that_takes_longer_than_the_guard_would_wait_is_waited_for() {
    let lifecycle = lifecycle(BUDGET);
    let slow = Slow::new(Duration::from_millis(15));
    let (mut writer, appender) = non_blocking(slow.clone());
    let _log = lifecycle.guard(appender);
    // The guard would wait for a second.
    let began = Instant::now();
    for _ in 0..100 {
        writer.write_all(b"line\n").unwrap();
    }
    let (row, _) = drained(&lifecycle).await;
    assert_eq!((row.outcome, slow.written()), (Outcome::Drained, 100), "{row:?}");
    assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_wrapped_guard_that_gives_up_is_a_failure() {
    let lifecycle = lifecycle(BUDGET);
    // Closed until the drain is over.
    let (open, gate) = mpsc::channel();
    let (mut writer, guard) = tracing_appender::non_blocking(Gated { gate, result: || Ok(()) });
    let _log = lifecycle.guard(Appender::wrap(guard));
    for _ in 0..100 {
        writer.write_all(b"line\n").unwrap();
    }
    let (row, _) = drained(&lifecycle).await;
    drop(open);
    assert_eq!(row.outcome, Outcome::Failed, "{row:?}");
    assert!(row.error.as_ref().unwrap().contains("lines may be missing"), "{row:?}");
}

#[tokio::test]
async fn a_wrapped_guard_writes_its_rest_and_cannot_be_sure() {
    let lifecycle = lifecycle(BUDGET);
    let slow = Slow::new(Duration::from_millis(1));
    let (mut writer, guard) = tracing_appender::non_blocking(slow.clone());
    let _log = lifecycle.guard(Appender::wrap(guard));
    for _ in 0..100 {
        writer.write_all(b"line\n").unwrap();
    }
    let (row, _) = drained(&lifecycle).await;
    assert_eq!((row.outcome, slow.written(), row.cannot.len()), (Outcome::Drained, 100, 1), "{row:?}");
}

#[tokio::test]
async fn a_writer_that_hangs_is_left_at_the_deadline_and_named() {
    for wrapped in [false, true] {
        let lifecycle = lifecycle(USED_UP);
        let (mut writer, appender) = hanging(wrapped);
        let _log = lifecycle.guard(appender);
        let db = lifecycle.guard(Memory::new("db"));
        drop(db.get().await.unwrap());
        writer.write_all(b"line\n").unwrap();
        let began = Instant::now();
        let report = lifecycle.drain().await;
        assert!(began.elapsed() < USED_UP + LATE, "{report}");
        // A guard of the crate's own gives up after a second.
        let expected = if wrapped { Outcome::Failed } else { Outcome::Hung };
        assert_eq!(report.resource("log").unwrap().outcome, expected, "{report}");
        assert_eq!(report.resource("db").unwrap().outcome, Outcome::Drained);
    }
}

/// On a clock that stands still while nobody waits: the report is told why in the last 12.5 ms.
#[tokio::test(start_paused = true)]
async fn a_writer_that_hangs_is_what_the_report_says() {
    for wrapped in [false, true] {
        let lifecycle = lifecycle(USED_UP);
        let (mut writer, appender) = hanging(wrapped);
        let _log = lifecycle.guard(appender);
        writer.write_all(b"line\n").unwrap();
        let report = lifecycle.drain_in_tasks().await;
        let row = report.resource("log").unwrap();
        assert_eq!(row.outcome, Outcome::Hung, "{report}");
        assert!(row.error.as_ref().unwrap().contains("its writer does not end"), "{report}");
    }
}

fn hanging(wrapped: bool) -> (NonBlocking, Appender) {
    let hangs = Slow::new(Duration::from_secs(3600));
    if wrapped {
        let (writer, guard) = tracing_appender::non_blocking(hangs);
        (writer, Appender::wrap(guard))
    } else {
        non_blocking(hangs)
    }
}

#[tokio::test]
async fn lines_that_could_not_be_written_are_counted() {
    let lifecycle = lifecycle(BUDGET);
    let (mut writer, appender) = non_blocking(File::options().write(true).open("/dev/full").unwrap());
    let _log = lifecycle.guard(appender);
    for _ in 0..3 {
        writer.write_all(b"line\n").unwrap();
    }
    let (row, _) = drained(&lifecycle).await;
    assert_eq!(row.outcome, Outcome::Failed, "{row:?}");
    let error = row.error.unwrap();
    assert!(error.contains("could not be written: 3") && error.contains("No space left"), "{error}");
}

#[tokio::test]
async fn lines_that_were_dropped_since_the_buffer_was_full_are_noted() {
    let lifecycle = lifecycle(BUDGET);
    let (open, gate) = mpsc::channel();
    let (mut writer, appender) =
        non_blocking_with(NonBlockingBuilder::default().buffered_lines_limit(4), Gated { gate, result: || Ok(()) });
    let _log = lifecycle.guard(appender);
    for _ in 0..20 {
        writer.write_all(b"line\n").unwrap();
    }
    drop(open);
    let (row, _) = drained(&lifecycle).await;
    assert_eq!(row.outcome, Outcome::Drained, "{row:?}");
    // One more fits if the writer's thread had taken one out.
    let error = row.error.unwrap();
    assert!(["15", "16"].iter().any(|dropped| error.ends_with(&format!("full: {dropped}"))), "{error}");
}

#[tokio::test]
async fn a_flush_returns_when_the_lines_before_it_are_written() {
    for builder in [NonBlockingBuilder::default(), NonBlockingBuilder::default().lossy(false).buffered_lines_limit(2)] {
        let lifecycle = lifecycle(BUDGET);
        let slow = Slow::new(Duration::from_millis(5));
        let (mut writer, appender) = non_blocking_with(builder, slow.clone());
        let _log = lifecycle.guard(appender);
        for round in 1..=3 {
            for _ in 0..20 {
                writer.write_all(b"line\n").unwrap();
            }
            let (one, other) = tokio::join!(lifecycle.flush(), lifecycle.flush());
            one.and(other).unwrap();
            assert_eq!(slow.written(), round * 20, "and no mark is written");
        }
        let (row, _) = drained(&lifecycle).await;
        assert_eq!((row.outcome, slow.written()), (Outcome::Drained, 60), "{row:?}");
        lifecycle.flush().await.unwrap();
    }
}

#[tokio::test]
async fn a_flush_says_when_lines_before_it_could_not_be_written_and_says_it_once() {
    let lifecycle = lifecycle(BUDGET);
    let (open, gate) = mpsc::channel();
    let (mut writer, appender) = non_blocking(Gated { gate, result: || Err(io::ErrorKind::StorageFull.into()) });
    let _log = lifecycle.guard(appender);
    writer.write_all(b"line\n").unwrap();
    let (flushed, ()) = tokio::join!(biased; lifecycle.flush(), async { drop(open) });
    let error = flushed.unwrap_err();
    assert_eq!((error.kind(), error.resource()), (ErrorKind::Write, Some("log")));
    assert!(error.to_string().contains("could not be written: 1"), "{error}");
    lifecycle.flush().await.unwrap();
    let (row, _) = drained(&lifecycle).await;
    assert!(row.error.as_ref().unwrap().contains("could not be written: 1"), "{row:?}");
}

#[tokio::test]
async fn a_writer_that_panics_is_in_the_report() {
    struct Panics;
    impl Write for Panics {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            panic!("the writer has a bug")
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lifecycle = lifecycle(BUDGET);
    let (mut writer, appender) = non_blocking(Panics);
    let _log = lifecycle.guard(appender);
    writer.write_all(b"line\n").unwrap();
    let (row, took) = drained(&lifecycle).await;
    assert_eq!(row.outcome, Outcome::Panicked, "{row:?}");
    assert!(took < BUDGET / 2, "{took:?}");
}
