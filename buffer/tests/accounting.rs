//! Nothing that was accepted is lost where it need not be, and no book lies: unknown outcomes, starved runtimes, writes that
//! hang, limits of a statement, ends without a drain.

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use winddown_buffer::{BatchWriter, Delivery, Push as _, Spill};
use winddown_core::{Error, ErrorKind, Lifecycle, Outcome, Records, Report, ShutdownGuard};

use crate::common::{Answer, POISON, Target, Writes};

type Writer = BatchWriter<u64, Writes>;

struct Setup {
    lifecycle: Lifecycle,
    target: Target,
    db: ShutdownGuard<Target>,
    buffer: ShutdownGuard<Writer>,
}

const TEN_SECONDS: Duration = Duration::from_secs(10);

fn setup_with(delivery: Delivery, largest: usize, settings: impl FnOnce(Writer) -> Writer) -> Setup {
    setup_within(TEN_SECONDS, delivery, largest, settings)
}

fn setup_within(
    budget: Duration,
    delivery: Delivery,
    largest: usize,
    settings: impl FnOnce(Writer) -> Writer,
) -> Setup {
    let lifecycle = Lifecycle::builder().signals(false).budget(budget).build().unwrap();
    let target = Target::default();
    let db = lifecycle.guard(target.clone());
    let sink = Writes { target: target.clone(), delivery, largest };
    let writer = BatchWriter::new(&db, sink).name("audit").batch_size(10).max_age(Duration::MAX);
    let buffer = lifecycle.guard(settings(writer));
    Setup { lifecycle, target, db, buffer }
}

async fn setup(delivery: Delivery) -> Setup {
    let setup = setup_with(delivery, usize::MAX, |writer| writer);
    setup.lifecycle.init().await.unwrap();
    setup
}

impl Setup {
    async fn push(&self, records: impl IntoIterator<Item = u64>) {
        for record in records {
            self.buffer.push(record).await.unwrap();
        }
    }

    async fn drain(&self) -> (Arc<Report>, Records) {
        let report = self.lifecycle.drain_in_tasks().await;
        let records = accounting(&report);
        (report, records)
    }
}

fn accounting(report: &Report) -> Records {
    let records = report.resource("audit").unwrap().records.unwrap();
    let Records { accepted, written, spilled, lost, in_doubt, pending, .. } = records;
    assert_eq!((accepted, pending), (written + spilled + lost + in_doubt, 0), "{report}");
    records
}

/// Lets every task run that can.
async fn others() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

mod unknown_outcomes {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn s6_an_at_least_once_batch_whose_repetition_is_a_duplicate_is_in_doubt_and_not_lost() {
        let setup = setup(Delivery::AtLeastOnce).await;
        setup.target.answers([Answer::Unknown { stored: true }]);
        setup.target.then(Answer::Rejected);
        setup.push(0..10).await;
        setup.buffer.flush().await.unwrap_err();
        setup.target.has_once(0..10);
        let (report, records) = setup.drain().await;
        assert_eq!((records.lost, records.in_doubt), (0, 10), "{report}");
    }

    #[tokio::test(start_paused = true)]
    async fn s6_what_the_target_may_have_is_never_called_lost_whatever_comes_next() {
        for next in [Answer::Fail, Answer::Retry, Answer::Panic { stored: false }, Answer::TooLarge, Answer::Rejected] {
            let setup = setup(Delivery::AtLeastOnce).await;
            setup.target.answers([Answer::Unknown { stored: true }]);
            setup.target.then(next);
            setup.push(0..10).await;
            let (report, records) = setup.drain().await;
            assert_eq!((records.lost, records.in_doubt), (0, 10), "{next:?}: {report}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_the_target_may_have_is_not_divided_for_a_limit_where_it_would_be_there_twice() {
        let setup = setup(Delivery::ExactlyOnce).await;
        setup.target.answers([Answer::Unknown { stored: true }, Answer::TooLarge, Answer::TooLarge]);
        setup.push(0..10).await;
        setup.buffer.flush().await.unwrap();
        setup.target.has_once(0..10);
        let (report, records) = setup.drain().await;
        assert_eq!(records.written, 10, "{report}");
    }
}

mod starved {
    use super::*;

    /// The pool waits this long for the checkout that the starved task holds.
    const USED_UP: Duration = Duration::from_secs(4);

    /// The application's only thread blocks as soon as the flusher has done what it can; then comes the drain.
    fn drain_while_starved(delivery: Delivery, checkouts_hang: usize, first: Option<Answer>) -> (Arc<Report>, Setup) {
        let (sender, receiver) = mpsc::channel();
        let over = Arc::new(AtomicBool::new(false));
        let application = thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let setup = setup_within(USED_UP, delivery, usize::MAX, |writer| writer.batch_size(100));
                    setup.lifecycle.init().await.unwrap();
                    setup.target.checkouts_hang(checkouts_hang);
                    setup.target.answers(first);
                    setup.push(0..1_000).await;
                    others().await;
                    sender.send(setup).unwrap();
                    while !over.load(Ordering::SeqCst) {
                        thread::sleep(Duration::from_millis(1));
                    }
                });
            }
        });
        let setup = receiver.recv().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let report = runtime.block_on(setup.lifecycle.drain());
        over.store(true, Ordering::SeqCst);
        application.join().unwrap();
        (report, setup)
    }

    #[test]
    fn a_batch_that_a_starved_flusher_holds_is_written_by_the_goodbye_with_all_others() {
        for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
            let (report, setup) = drain_while_starved(delivery, 0, Some(Answer::Hang { stored: true }));
            assert_eq!(accounting(&report).written, 1_000, "{delivery:?}: {report}");
            let rows = setup.target.rows();
            assert_eq!(rows.len(), 1_000);
            assert!(delivery == Delivery::AtLeastOnce || rows.values().all(|times| *times == 1));
        }
    }

    #[test]
    fn a_batch_that_a_starved_flusher_holds_costs_no_other_where_twice_is_not_allowed() {
        let (report, setup) = drain_while_starved(Delivery::AtMostOnce, 0, Some(Answer::Hang { stored: false }));
        let records = accounting(&report);
        assert_eq!((records.written, records.in_doubt, records.lost), (900, 100, 0), "{report}");
        setup.target.has_once(100..1_000);
    }

    #[test]
    fn a_starved_flusher_that_waits_for_a_checkout_costs_nothing() {
        let (report, setup) = drain_while_starved(Delivery::ExactlyOnce, 1, None);
        assert_eq!(accounting(&report).written, 1_000, "{report}");
        setup.target.has_once(0..1_000);
        let db = report.resource("db").unwrap();
        assert!(db.left_out <= 1, "what the starved task holds: {report}");
    }
}

mod hung {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn l6_a_write_that_hangs_is_given_up_with_its_checkout_and_written_over_another() {
        for stored in [true, false] {
            let setup = setup(Delivery::ExactlyOnce).await;
            setup.target.answers([Answer::Hang { stored }]);
            setup.push(0..30).await;
            let began = Instant::now();
            timeout(Duration::from_secs(60), setup.buffer.flush()).await.expect("it goes on").unwrap();
            assert!(began.elapsed() <= Duration::from_secs(31), "{:?}", began.elapsed());
            setup.target.has_once(0..30);
            assert_eq!(setup.target.abandoned(), 1);
            let (report, records) = setup.drain().await;
            assert_eq!((records.written, report.is_clean()), (30, true), "{report}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_hangs_is_in_doubt_where_twice_is_not_allowed_and_the_others_are_written() {
        let setup = setup(Delivery::AtMostOnce).await;
        setup.target.answers([Answer::Hang { stored: true }]);
        setup.push(0..30).await;
        timeout(Duration::from_secs(60), setup.buffer.flush()).await.expect("it goes on").unwrap_err();
        let (report, records) = setup.drain().await;
        assert_eq!((records.written, records.in_doubt), (20, 10), "{report}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_checkout_that_hangs_is_not_waited_for_for_ever() {
        let setup = setup(Delivery::ExactlyOnce).await;
        setup.target.checkouts_hang(2);
        setup.push(0..30).await;
        timeout(Duration::from_secs(120), setup.buffer.flush()).await.expect("it goes on").unwrap();
        setup.target.has_once(0..30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_hangs_when_the_drain_begins_costs_nothing_where_the_server_is_healthy() {
        for (stored, checkouts) in [(true, 0), (false, 0), (false, 1)] {
            let setup = setup(Delivery::ExactlyOnce).await;
            setup.target.checkouts_hang(checkouts);
            setup.target.answers([Answer::Hang { stored }]);
            setup.push(0..305).await;
            others().await;
            let (report, records) = setup.drain().await;
            assert_eq!((records.written, report.is_clean()), (305, true), "{report}");
            setup.target.has_once(0..305);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_of_the_goodbye_that_hangs_costs_nothing_where_the_server_is_healthy() {
        let setup = setup_with(Delivery::ExactlyOnce, usize::MAX, |writer| writer.batch_size(500));
        setup.lifecycle.init().await.unwrap();
        setup.target.answers([Answer::Hang { stored: true }, Answer::Hang { stored: false }]);
        setup.push(0..305).await;
        let (report, records) = setup.drain().await;
        assert_eq!((records.written, report.is_clean()), (305, true), "{report}");
        setup.target.has_once(0..305);
    }

    /// One that takes longer than any before, every time, is not hung.
    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_slow_gets_the_time_it_needs() {
        let setup = setup(Delivery::ExactlyOnce).await;
        setup.target.then(Answer::StoreAfter(Duration::from_secs(100)));
        setup.push(0..20).await;
        timeout(Duration::from_secs(600), setup.buffer.flush()).await.expect("its bound grows").unwrap();
        setup.target.has_once(0..20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_that_waits_when_the_goodbye_is_left_at_its_deadline_returns_an_error() {
        let spill = Spill::with(|_, _, _| {
            thread::sleep(Duration::from_secs(3));
            Ok(())
        });
        let lifecycle = Lifecycle::builder().signals(false).budget(Duration::from_millis(300)).build().unwrap();
        let target = Target::default();
        let db = lifecycle.guard(target.clone());
        let sink = Writes { target: target.clone(), delivery: Delivery::ExactlyOnce, largest: usize::MAX };
        let buffer = lifecycle.guard(BatchWriter::new(&db, sink).name("audit").max_age(Duration::MAX).spill(spill));
        lifecycle.init().await.unwrap();
        target.then(Answer::Retry);
        buffer.push(1).await.unwrap();
        let flush = tokio::spawn({
            let buffer = buffer.clone();
            async move { buffer.flush().await }
        });
        others().await;
        let clock = async {
            loop {
                // By itself the clock stands still while somebody works.
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        };
        let report = tokio::select! {
            report = lifecycle.drain_in_tasks() => report,
            () = clock => unreachable!("it goes on for ever"),
        };
        assert_eq!(report.resource("audit").unwrap().outcome, Outcome::Hung, "{report}");
        assert_eq!(accounting(&report).in_doubt, 1, "{report}");
        let flushed = timeout(Duration::from_secs(1), flush).await.expect("nobody waits for ever").unwrap();
        assert!(flushed.is_err());
    }
}

mod limits {
    use super::*;

    /// A batch that is too large is seen after half a second: 2,000 rows must not pay that for each of four batches, and each of
    /// their halves.
    #[tokio::test(start_paused = true)]
    async fn a_limit_that_a_smaller_batch_keeps_is_learnt() {
        let setup = setup_with(Delivery::ExactlyOnce, 40, |writer| writer.batch_size(500));
        setup.lifecycle.init().await.unwrap();
        let began = Instant::now();
        setup.push(0..2_000).await;
        timeout(Duration::from_secs(60), setup.buffer.flush()).await.expect("it ends").unwrap();
        setup.target.has_once(0..2_000);
        let too_large = setup.target.tried().iter().filter(|size| **size > 40).count();
        assert!(too_large <= 8, "{too_large} batches were too large");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_large_again_when_the_limit_has_passed() {
        let setup = setup_with(Delivery::ExactlyOnce, usize::MAX, |writer| writer.batch_size(100));
        setup.lifecycle.init().await.unwrap();
        setup.target.answers([Answer::TooLarge, Answer::TooLarge]);
        setup.push(0..40_000).await;
        setup.buffer.flush().await.unwrap();
        let tried = setup.target.tried();
        assert_eq!(tried.first(), Some(&100));
        assert_eq!(tried.last(), Some(&100), "{tried:?}");
        assert!(tried.iter().filter(|size| **size < 100).count() > 30, "slowly: {tried:?}");
        setup.target.has_once(0..40_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_record_that_is_too_large_now_waits_and_is_not_lost() {
        let setup = setup(Delivery::ExactlyOnce).await;
        setup.target.answers([Answer::TooLarge; 5]);
        setup.push(0..1).await;
        setup.buffer.flush().await.unwrap();
        setup.target.has_once(0..1);
    }
}

mod beginning_and_end {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_with_the_target_fails_init() {
        let setup = setup_with(Delivery::ExactlyOnce, usize::MAX, |writer| writer);
        setup.target.check_says(Error::new(ErrorKind::Config, "relation \"audit_log\" does not exist"));
        let error = setup.lifecycle.init().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("audit_log"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_checkout_that_hangs_fails_init_in_time() {
        let setup = setup_with(Delivery::ExactlyOnce, usize::MAX, |writer| writer);
        setup.target.checkouts_hang(1_000);
        let error = timeout(Duration::from_secs(120), setup.buffer.push(1)).await.expect("it ends").unwrap_err();
        assert!(error.to_string().contains("checkout"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn s5_an_end_without_a_drain_says_how_many_records_are_lost() {
        let lost = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&lost);
        let setup = setup_with(Delivery::ExactlyOnce, usize::MAX, move |writer| {
            writer
                .on_lost(move |records: &[u64], error| told.lock().unwrap().push((records.to_vec(), error.to_string())))
        });
        setup.lifecycle.init().await.unwrap();
        setup.target.answers([Answer::Hang { stored: false }]);
        setup.push(0..13).await;
        others().await;
        drop(setup);
        others().await;
        let lost = lost.lock().unwrap();
        assert_eq!(lost.len(), 1, "{lost:?}");
        assert_eq!(lost[0].0, [10, 11, 12]);
        assert!(lost[0].1.contains("without a drain"), "{lost:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn s5_records_are_in_one_column_at_every_moment() {
        let setup = setup(Delivery::AtMostOnce).await;
        setup.target.answers([Answer::Unknown { stored: false }, Answer::Store]);
        setup.push((0..20).chain([POISON])).await;
        for _ in 0..50 {
            let Records { accepted, written, spilled, lost, in_doubt, pending, .. } = setup.buffer.records();
            assert_eq!(accepted, written + spilled + lost + in_doubt + pending);
            sleep(Duration::from_millis(10)).await;
        }
        setup.buffer.flush().await.unwrap_err();
        let records = setup.buffer.records();
        assert_eq!((records.written, records.lost, records.in_doubt, records.pending), (10, 1, 10, 0));
        drop(setup.db);
    }
}
