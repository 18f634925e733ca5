//! The buffer over the in-memory resource: when it writes, what it counts, and how it drains. Times are those of tokio's
//! paused clock, and are asserted to the millisecond. What needs threads of its own has seconds, and is held to what is true
//! however late a thread runs.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Waker},
    thread,
    time::Duration,
};

use tokio::time::{Instant, advance, sleep, timeout};
use winddown_buffer::{Batch, BatchWriter, Delivery, Push, Sink, WriteError};
use winddown_core::{
    Checkout, Error, ErrorKind, Lifecycle, Outcome, Records, Report, ShutdownGuard,
    memory::{Memory, Server},
};

/// What the far side has, and how it answers. A clone is the same.
#[derive(Clone, Default)]
struct Far(Arc<FarInner>);

#[derive(Default)]
struct FarInner {
    stored: Mutex<Vec<u64>>,
    /// The size of each batch that was stored.
    batches: Mutex<Vec<usize>>,
    /// Answers to come; after them, `then`.
    script: Mutex<VecDeque<Answer>>,
    then: Mutex<Answer>,
    calls: AtomicUsize,
    /// How many sessions had said goodbye when a batch came.
    goodbyes_seen: AtomicUsize,
    /// Whether those who block may go on.
    released: (Mutex<bool>, Condvar),
    server: Server,
}

#[derive(Clone, Copy, Default)]
enum Answer {
    #[default]
    Store,
    StoreAfter(Duration),
    Later,
    Refuse,
    Hang,
    /// So much time passes, and nobody else runs meanwhile.
    Work(Duration),
    /// Blocks its thread until [`Far::release`].
    Block,
    Panic,
}

impl Far {
    fn answers(&self, script: impl IntoIterator<Item = Answer>) -> Self {
        self.0.script.lock().unwrap().extend(script);
        self.clone()
    }

    fn then(&self, answer: Answer) -> Self {
        *self.0.then.lock().unwrap() = answer;
        self.clone()
    }

    fn stored(&self) -> Vec<u64> {
        self.0.stored.lock().unwrap().clone()
    }

    fn batches(&self) -> Vec<usize> {
        self.0.batches.lock().unwrap().clone()
    }

    fn calls(&self) -> usize {
        self.0.calls.load(Ordering::SeqCst)
    }

    fn release(&self) {
        let (released, changed) = &self.0.released;
        *released.lock().unwrap() = true;
        changed.notify_all();
    }
}

impl Sink<u64> for Far {
    type Target = Memory;

    fn delivery(&self) -> Delivery {
        Delivery::AtMostOnce
    }

    async fn write(&self, session: &mut Checkout<Memory>, batch: &Batch<u64>) -> Result<(), WriteError> {
        assert!(!batch.is_empty());
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        self.0.goodbyes_seen.fetch_max(self.0.server.goodbyes(), Ordering::SeqCst);
        let scripted = self.0.script.lock().unwrap().pop_front();
        let answer = scripted.unwrap_or_else(|| *self.0.then.lock().unwrap());
        match answer {
            Answer::Store => {}
            Answer::StoreAfter(takes) => session.run(takes).await?,
            Answer::Later => return Err(Error::new(ErrorKind::Write, "not now").retryable().into()),
            Answer::Refuse => return Err(Error::new(ErrorKind::Write, "no such table").into()),
            Answer::Hang => std::future::pending().await,
            Answer::Work(time) => {
                // The first poll moves the clock; what would wait after that is dropped.
                assert!(pin!(advance(time)).poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
            Answer::Block => {
                let (released, changed) = &self.0.released;
                drop(changed.wait_while(released.lock().unwrap(), |released| !*released).unwrap());
            }
            Answer::Panic => panic!("sink"),
        }
        self.0.stored.lock().unwrap().extend(batch);
        self.0.batches.lock().unwrap().push(batch.len());
        Ok(())
    }
}

/// How many bytes one takes.
const RECORD: usize = size_of::<u64>();

type Writer = BatchWriter<u64, Far>;
type Buffer = ShutdownGuard<Writer>;

struct Setup {
    lifecycle: Lifecycle,
    server: Server,
    db: ShutdownGuard<Memory>,
    far: Far,
    buffer: Buffer,
}

/// Lambda's with an external extension. Drains have 270 ms of it, and the pool keeps the last 50 ms of these and 7.5 ms for
/// the buffer's answer: the buffer ends at 212.5 ms, and what it cannot write is cut when a quarter of its own 50 ms is left.
const BUDGET: Duration = Duration::from_millis(300);
const CUT: Duration = Duration::from_millis(200);

/// For what has threads of its own: an idle machine needs milliseconds of it.
const SECONDS: Duration = Duration::from_secs(10);

/// The same for a drain that uses it up, and is waited for.
const USED_UP: Duration = Duration::from_secs(5);

/// So late does a busy machine run a thread that has to see a deadline.
const LATE: Duration = Duration::from_secs(5);

fn setup_with(budget: Duration, settings: impl FnOnce(Writer) -> Writer) -> Setup {
    let lifecycle = Lifecycle::builder().signals(false).budget(budget).build().unwrap();
    let db = lifecycle.guard(Memory::new("db"));
    let server = db.resource().server().clone();
    let far = Far(Arc::new(FarInner { server: server.clone(), ..FarInner::default() }));
    let buffer = lifecycle.guard(settings(BatchWriter::new(&db, far.clone()).name("audit")));
    Setup { lifecycle, server, db, far, buffer }
}

async fn setup(settings: impl FnOnce(Writer) -> Writer) -> Setup {
    let setup = setup_with(BUDGET, settings);
    setup.lifecycle.init().await.unwrap();
    setup
}

/// Written by nothing but a full batch, a flush, or the drain.
fn only_when_asked(writer: Writer) -> Writer {
    writer.max_age(Duration::MAX)
}

async fn push_all(buffer: &Buffer, records: impl IntoIterator<Item = u64>) {
    for record in records {
        buffer.push(record).await.unwrap();
    }
}

fn accounting(report: &Report) -> Records {
    let records = report.resource("audit").unwrap().records.unwrap();
    assert_eq!(records.pending, 0, "{report}");
    assert_eq!(records.accepted, records.written + records.lost + records.in_doubt, "{report}");
    records
}

fn outcome(report: &Report, name: &str) -> Outcome {
    report.resource(name).unwrap().outcome
}

/// How long the buffer's own drain took.
fn took(report: &Report) -> Duration {
    report.resource("audit").unwrap().took
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Lets every task run that can.
async fn others() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

mod running {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_batch_is_written_at_once() {
        let Setup { far, buffer, .. } = setup(|writer| only_when_asked(writer).batch_size(10)).await;
        push_all(&buffer, 0..9).await;
        others().await;
        assert_eq!(far.calls(), 0);
        push_all(&buffer, 9..25).await;
        others().await;
        assert_eq!(far.stored(), Vec::from_iter(0..20));
        assert_eq!(far.batches(), [10, 10]);
        let records = buffer.records();
        assert_eq!((records.accepted, records.written, records.pending), (25, 20, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_never_larger_than_the_capacity() {
        let Setup { far, buffer, .. } = setup(|writer| only_when_asked(writer).capacity(3 * RECORD)).await;
        push_all(&buffer, 0..12).await;
        others().await;
        assert_eq!(far.batches(), [3, 3, 3, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_record_is_written_at_its_age_and_not_before() {
        let Setup { far, buffer, .. } = setup(|writer| writer.max_age(Duration::from_secs(1))).await;
        // Long idle: the clock starts with the first record.
        advance(Duration::from_secs(10)).await;
        buffer.push(1).await.unwrap();
        others().await;
        advance(Duration::from_millis(600)).await;
        buffer.push(2).await.unwrap();
        advance(Duration::from_millis(399)).await;
        others().await;
        assert_eq!(far.calls(), 0, "1 ms before");
        advance(Duration::from_millis(2)).await;
        others().await;
        assert_eq!(far.stored(), [1, 2], "1 ms after");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_full_batch_leaves_behind_keeps_its_own_age() {
        let Setup { far, buffer, .. } = setup(|writer| writer.max_age(Duration::from_secs(1)).batch_size(2)).await;
        far.answers([Answer::StoreAfter(Duration::from_millis(700))]);
        push_all(&buffer, 0..2).await;
        others().await;
        // While that batch is out, at 300 ms: three more, of which the last has to wait for its age.
        advance(Duration::from_millis(300)).await;
        push_all(&buffer, 2..5).await;
        advance(Duration::from_millis(401)).await;
        others().await;
        assert_eq!(far.batches(), [2, 2]);
        advance(Duration::from_millis(598)).await;
        others().await;
        assert_eq!(far.batches(), [2, 2], "999 ms old");
        advance(Duration::from_millis(2)).await;
        others().await;
        assert_eq!(far.batches(), [2, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn flush_returns_when_what_was_accepted_before_is_written() {
        let Setup { far, buffer, .. } = setup(|writer| only_when_asked(writer).batch_size(10)).await;
        buffer.flush().await.unwrap();
        assert_eq!(far.calls(), 0, "nothing to flush");
        push_all(&buffer, 0..25).await;
        let (a, b) = tokio::join!(buffer.flush(), buffer.flush());
        a.unwrap();
        b.unwrap();
        assert_eq!(far.stored(), Vec::from_iter(0..25));
        assert_eq!(far.batches(), [10, 10, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn flush_says_when_something_was_lost_and_only_to_those_it_concerns() {
        let Setup { far, buffer, .. } = setup(|writer| only_when_asked(writer).batch_size(2)).await;
        far.answers([Answer::Refuse, Answer::Store]);
        push_all(&buffer, 0..4).await;
        let error = buffer.flush().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Write);
        assert!(error.to_string().contains("no such table"), "{error}");
        assert_eq!(far.stored(), [2, 3]);
        buffer.push(4).await.unwrap();
        buffer.flush().await.unwrap();
        let records = buffer.records();
        assert_eq!((records.accepted, records.written, records.lost, records.pending), (5, 3, 2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_flush_is_done_all_the_same() {
        let Setup { far, buffer, .. } = setup(only_when_asked).await;
        far.answers([Answer::StoreAfter(Duration::from_secs(1))]);
        push_all(&buffer, 0..3).await;
        assert!(timeout(Duration::from_millis(100), buffer.flush()).await.is_err());
        sleep(Duration::from_secs(1)).await;
        assert_eq!(far.stored(), [0, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_retryable_error_keeps_the_batch_in_its_place() {
        let Setup { far, buffer, lifecycle, .. } = setup(|writer| only_when_asked(writer).batch_size(10)).await;
        far.answers([Answer::Later, Answer::Later, Answer::Later]);
        push_all(&buffer, 0..15).await;
        let began = Instant::now();
        buffer.flush().await.unwrap();
        // 50 ms, 100 ms and 200 ms, each with jitter up to its own length.
        let took = began.elapsed();
        assert!((Duration::from_millis(350)..Duration::from_millis(720)).contains(&took), "{took:?}");
        assert_eq!(far.stored(), Vec::from_iter(0..15), "in order, once");
        assert_eq!(far.calls(), 5);
        let report = lifecycle.drain_in_tasks().await;
        assert!(report.is_clean(), "{report}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_gives_no_checkout_costs_no_record() {
        let Setup { far, buffer, server, db, .. } = setup(only_when_asked).await;
        // The session that init opened is out, and the next ones are refused.
        let held = db.get().await.unwrap();
        server.refuse(2);
        push_all(&buffer, 0..3).await;
        buffer.flush().await.unwrap();
        assert_eq!(far.stored(), [0, 1, 2]);
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_buffer_makes_pushes_wait_in_their_order() {
        let Setup { far, buffer, .. } = setup(|writer| only_when_asked(writer).capacity(2 * RECORD)).await;
        far.answers([Answer::StoreAfter(Duration::from_secs(1))]);
        push_all(&buffer, 0..2).await;
        others().await;
        assert_eq!(far.calls(), 1, "being written, and still counted against the capacity");
        let waiting: Vec<_> = (2..4)
            .map(|record| {
                let buffer = buffer.clone();
                tokio::spawn(async move { buffer.push(record).await.map(|()| Instant::now()) })
            })
            .collect();
        let began = Instant::now();
        others().await;
        assert!(waiting.iter().all(|push| !push.is_finished()));
        for push in waiting {
            let when = push.await.unwrap().unwrap();
            assert!(when - began >= Duration::from_secs(1));
        }
        buffer.flush().await.unwrap();
        assert_eq!(far.stored(), [0, 1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_push_is_not_accepted_and_takes_no_room() {
        let Setup { far, buffer, .. } = setup(|writer| only_when_asked(writer).capacity(RECORD)).await;
        far.answers([Answer::StoreAfter(Duration::from_secs(1))]);
        buffer.push(0).await.unwrap();
        assert!(timeout(Duration::from_millis(100), buffer.push(1)).await.is_err());
        assert_eq!(buffer.records().accepted, 1);
        push_all(&buffer, 2..4).await;
        buffer.flush().await.unwrap();
        assert_eq!(far.stored(), [0, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn room_comes_back_from_a_checkout_that_is_not_used_and_from_records_that_are_lost() {
        let Setup { far, buffer, .. } = setup(|writer| only_when_asked(writer).capacity(2 * RECORD)).await;
        far.answers([Answer::Refuse, Answer::Panic]);
        drop((buffer.get().await.unwrap(), buffer.get().await.unwrap()));
        timeout(Duration::from_secs(1), push_all(&buffer, 0..6)).await.unwrap();
        buffer.flush().await.unwrap_or_default();
        assert_eq!(far.stored(), [4, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn try_push_gives_the_record_back() {
        let Setup { far, buffer, lifecycle, .. } = setup(|writer| only_when_asked(writer).capacity(RECORD)).await;
        far.answers([Answer::StoreAfter(Duration::from_secs(1))]);
        buffer.try_push(0).unwrap();
        let full = buffer.try_push(1).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::Full);
        assert_eq!(full.to_string(), "audit: the buffer is full");
        assert_eq!(full.into_record(), 1);
        buffer.flush().await.unwrap();
        buffer.try_push(2).unwrap();
        let report = lifecycle.drain_in_tasks().await;
        let refused = buffer.try_push(3).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ShuttingDown);
        assert_eq!(refused.into_record(), 3);
        assert_eq!(accounting(&report).accepted, 2);
        assert_eq!(far.stored(), [0, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_exhausted_task_is_not_a_full_buffer() {
        let Setup { buffer, .. } = setup(only_when_asked).await;
        let exhausted = async {
            while tokio::task::coop::has_budget_remaining() {
                tokio::task::coop::poll_proceed(&mut Context::from_waker(Waker::noop()))
                    .map(|restore| restore.made_progress())
                    .is_ready();
            }
            buffer.try_push(5_000)
        };
        exhausted.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn before_init_a_push_initialises_the_target_too_and_try_push_says_so() {
        let Setup { buffer, server, far, .. } = setup_with(BUDGET, |writer| writer);
        let early = buffer.try_push(0).unwrap_err();
        assert_eq!(early.kind(), ErrorKind::Init);
        assert!(early.error().is_retryable());
        assert_eq!(buffer.records(), Records::default());
        buffer.push(early.into_record()).await.unwrap();
        assert_eq!(server.sessions(), 1);
        buffer.flush().await.unwrap();
        assert_eq!(far.stored(), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn settings_that_cannot_be_used_are_errors() {
        let settings: [fn(Writer) -> Writer; 3] =
            [|writer| writer.capacity(0), |writer| writer.capacity(usize::MAX), |writer| writer.batch_size(0)];
        for settings in settings {
            let Setup { lifecycle, buffer, .. } = setup_with(BUDGET, settings);
            assert_eq!(buffer.push(7).await.unwrap_err().kind(), ErrorKind::Config);
            let error = lifecycle.init().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().starts_with("audit: the "), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_panics_costs_its_batch_only() {
        let Setup { far, buffer, lifecycle, .. } = setup(|writer| only_when_asked(writer).batch_size(2)).await;
        far.answers([Answer::Panic]);
        push_all(&buffer, 0..5).await;
        let error = buffer.flush().await.unwrap_err();
        assert!(error.to_string().contains("panicked: sink"), "{error}");
        assert_eq!(far.stored(), [2, 3, 4]);
        let report = lifecycle.drain_in_tasks().await;
        assert_eq!(accounting(&report), records(5, 3, 0, 2));
        assert_eq!(outcome(&report, "audit"), Outcome::Incomplete);
        assert_eq!(outcome(&report, "db"), Outcome::Drained);
    }

    #[tokio::test(start_paused = true)]
    async fn lost_records_are_given_to_the_callback_and_its_panic_is_nobodys() {
        let given = Arc::new(Mutex::new(Vec::new()));
        let callback = {
            let given = Arc::clone(&given);
            move |records: &[u64], error: &Error| {
                given.lock().unwrap().push((records.to_vec(), error.to_string()));
                panic!("callback");
            }
        };
        let Setup { far, buffer, .. } = setup(|writer| only_when_asked(writer).batch_size(2).on_lost(callback)).await;
        far.answers([Answer::Refuse]);
        push_all(&buffer, 0..3).await;
        buffer.flush().await.unwrap_err();
        assert_eq!(*given.lock().unwrap(), [(vec![0, 1], "no such table".to_owned())]);
        assert_eq!(far.stored(), [2]);
    }

    #[test]
    fn c2_while_nothing_is_buffered_nothing_wakes_up() {
        let parks = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&parks);
        let count = move || {
            counter.fetch_add(1, Ordering::SeqCst);
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(count).build().unwrap();
        // A timer of this age would wake 200 times in the time that is watched, and wakes less often on a busy machine: a claim
        // that noise cannot break.
        let watched = Duration::from_millis(200);
        let quiet = |state: &str| {
            let before = parks.load(Ordering::SeqCst);
            runtime.block_on(async { sleep(watched).await });
            let parked = parks.load(Ordering::SeqCst) - before;
            assert!(parked <= 4, "{state}: woke {parked} times");
        };
        let Setup { buffer, far, .. } = runtime.block_on(setup(|writer| writer.max_age(Duration::from_millis(1))));
        quiet("before the first record");
        runtime.block_on(async {
            push_all(&buffer, 0..3).await;
            buffer.flush().await.unwrap();
        });
        assert_eq!(far.stored(), [0, 1, 2]);
        quiet("after all was written");
    }

    #[test]
    fn when_the_runtime_of_the_flusher_ends_the_caller_is_told_and_the_drain_writes() {
        let first = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let Setup { buffer, far, lifecycle, .. } = first.block_on(async {
            let setup = setup(|writer| only_when_asked(writer).batch_size(2)).await;
            setup.far.answers([Answer::Hang]);
            push_all(&setup.buffer, 0..3).await;
            others().await;
            setup
        });
        drop(first);
        let second = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        second.block_on(async {
            assert_eq!(buffer.flush().await.unwrap_err().kind(), ErrorKind::Checkout);
            assert_eq!(buffer.push(3).await.unwrap_err().kind(), ErrorKind::Checkout);
            let report = lifecycle.drain_in_tasks().await;
            assert_eq!(accounting(&report), records(3, 1, 0, 2));
            assert_eq!(far.stored(), [2]);
            assert_eq!(report.took, ms(0), "it does not wait for an answer that cannot come: {report}");
        });
    }
}

fn records(accepted: u64, written: u64, lost: u64, in_doubt: u64) -> Records {
    let mut records = Records::default();
    (records.accepted, records.written, records.lost, records.in_doubt) = (accepted, written, lost, in_doubt);
    records
}

mod draining {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn everything_is_written_before_the_pool_says_goodbye() {
        let Setup { far, buffer, lifecycle, server, .. } =
            setup(|writer| only_when_asked(writer).batch_size(500)).await;
        push_all(&buffer, 0..499).await;
        for record in 499..9_999 {
            // No yields: the flusher has no chance.
            buffer.try_push(record).unwrap();
        }
        far.then(Answer::StoreAfter(Duration::from_millis(2)));
        let report = lifecycle.drain_in_tasks().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(accounting(&report), records(9_999, 9_999, 0, 0));
        assert_eq!(far.stored(), Vec::from_iter(0..9_999));
        assert_eq!(far.0.goodbyes_seen.load(Ordering::SeqCst), 0, "the pool waited (S4)");
        assert_eq!(server.sessions(), 0);
        assert_eq!(report.took, ms(40), "20 batches of 2 ms, and nothing else: {report}");
    }

    /// The drain as an application has it, on threads of its own.
    #[tokio::test]
    async fn a_drain_on_its_own_threads_writes_everything() {
        let Setup { far, buffer, lifecycle, server, .. } = setup_with(SECONDS, only_when_asked);
        lifecycle.init().await.unwrap();
        for record in 0..1_050 {
            buffer.try_push(record).unwrap();
        }
        let report = lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(accounting(&report), records(1_050, 1_050, 0, 0));
        assert_eq!((far.stored(), server.sessions()), (Vec::from_iter(0..1_050), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn s5_each_life_has_a_queue_and_books_of_its_own() {
        let Setup { far, buffer, lifecycle, server, .. } = setup(only_when_asked).await;
        for life in 0..3 {
            push_all(&buffer, life * 10..life * 10 + 5).await;
            let report = lifecycle.drain_in_tasks().await;
            assert!(report.is_clean(), "{report}");
            assert_eq!(accounting(&report), records(5, 5, 0, 0), "in life {life}");
            assert_eq!(server.sessions(), 0);
            assert!(buffer.push(99).await.is_err());
            lifecycle.restart().unwrap();
        }
        assert_eq!(far.stored(), [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn s5_what_comes_late_in_a_life_that_is_over_changes_no_books() {
        let Setup { far, buffer, lifecycle, .. } = setup_with(USED_UP, |writer| only_when_asked(writer).batch_size(2));
        lifecycle.init().await.unwrap();
        far.answers([Answer::Block]).then(Answer::Later);
        push_all(&buffer, 0..3).await;
        let first = lifecycle.drain().await;
        assert_eq!(accounting(&first), records(3, 0, 1, 2), "{first}");
        far.then(Answer::Store);
        lifecycle.restart().unwrap();
        push_all(&buffer, 10..13).await;
        far.release();
        // The sink of the first life answers now, before or after the second life has written.
        while !far.stored().contains(&0) {
            tokio::task::yield_now().await;
        }
        let second = lifecycle.drain().await;
        assert_eq!(accounting(&second), records(3, 3, 0, 0), "{second}");
        let mut stored = far.stored();
        stored.sort_unstable();
        assert_eq!(stored, [0, 1, 10, 11, 12], "what was reported lost is not written afterwards");
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_buffer_takes_no_time() {
        let Setup { lifecycle, .. } = setup(|writer| writer).await;
        let report = lifecycle.drain_in_tasks().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.took, ms(0), "{report}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_buffer_that_was_never_used_is_not_initialised_by_its_drain() {
        let Setup { lifecycle, server, .. } = setup_with(BUDGET, |writer| writer);
        let report = lifecycle.drain_in_tasks().await;
        assert_eq!(outcome(&report, "audit"), Outcome::NotInitialised);
        assert_eq!(outcome(&report, "db"), Outcome::NotInitialised);
        assert_eq!(server.goodbyes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn s2_a_push_that_waits_for_room_is_refused_and_not_counted() {
        let Setup { far, buffer, lifecycle, .. } = setup(|writer| only_when_asked(writer).capacity(RECORD)).await;
        far.then(Answer::Later);
        buffer.push(0).await.unwrap();
        let waiting = {
            let buffer = buffer.clone();
            tokio::spawn(async move {
                let refused = buffer.push(1).await.unwrap_err();
                (refused.kind(), refused.into_record(), Instant::now())
            })
        };
        sleep(ms(20)).await;
        assert!(!waiting.is_finished());
        let began = Instant::now();
        let report = lifecycle.drain_in_tasks().await;
        let (kind, record, when) = waiting.await.unwrap();
        assert_eq!((kind, record), (ErrorKind::ShuttingDown, 1));
        assert_eq!(when, began, "at once");
        assert_eq!(accounting(&report), records(1, 0, 1, 0));
        let row = report.resource("audit").unwrap();
        assert_eq!(row.outcome, Outcome::Failed, "{report}");
        assert_eq!(row.error.as_deref(), Some("not now"), "the report says what kept it");
    }

    #[tokio::test(start_paused = true)]
    async fn tracked_work_pushes_until_it_ends() {
        let Setup { far, buffer, lifecycle, .. } = setup(|writer| only_when_asked(writer).capacity(2 * RECORD)).await;
        let work = tokio::spawn({
            let (tracked, draining) = (lifecycle.track().unwrap(), lifecycle.draining());
            let buffer = buffer.clone();
            tracked.scope(async move {
                draining.await;
                sleep(Duration::from_millis(20)).await;
                // More than there is room for: the flusher still writes.
                push_all(&buffer, 0..10).await;
            })
        });
        let report = lifecycle.drain_in_tasks().await;
        work.await.unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!(far.stored(), Vec::from_iter(0..10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_is_being_written_is_waited_for_and_stays_first() {
        let Setup { far, buffer, lifecycle, .. } = setup(|writer| only_when_asked(writer).batch_size(2)).await;
        far.answers([Answer::StoreAfter(ms(60))]);
        push_all(&buffer, 0..3).await;
        others().await;
        assert_eq!(far.calls(), 1);
        let report = lifecycle.drain_in_tasks().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.took, ms(60), "{report}");
        assert_eq!(far.stored(), [0, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_refuses_for_good_loses_its_batches_and_says_so() {
        let Setup { far, buffer, lifecycle, .. } = setup(|writer| only_when_asked(writer).batch_size(100)).await;
        far.answers([Answer::Store, Answer::Refuse, Answer::Store]);
        for record in 0..250 {
            buffer.try_push(record).unwrap();
        }
        let report = lifecycle.drain_in_tasks().await;
        assert_eq!(accounting(&report), records(250, 150, 100, 0));
        assert_eq!(outcome(&report, "audit"), Outcome::Incomplete);
        assert_eq!(outcome(&report, "db"), Outcome::Drained);
        assert_eq!(report.took, ms(0), "{report}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_recovers_loses_and_doubles_nothing() {
        let Setup { far, buffer, lifecycle, .. } = setup(|writer| only_when_asked(writer).batch_size(100)).await;
        far.answers([Answer::Later, Answer::Store, Answer::Later, Answer::Later]);
        for record in 0..250 {
            buffer.try_push(record).unwrap();
        }
        let report = lifecycle.drain_in_tasks().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(far.stored(), Vec::from_iter(0..250));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_the_flusher_does_not_hold_up_the_drain() {
        let Setup { far, buffer, lifecycle, .. } =
            setup_with(Duration::from_secs(10), |writer| only_when_asked(writer).batch_size(2));
        lifecycle.init().await.unwrap();
        // 50 + 100 + 200 + 400 ms are over before the flusher is in a pause of 800 ms at least.
        far.answers([Answer::Later; 5]);
        push_all(&buffer, 0..3).await;
        while far.calls() < 5 {
            sleep(ms(5)).await;
        }
        let report = lifecycle.drain_in_tasks().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(far.stored(), [0, 1, 2]);
        assert_eq!(report.took, ms(0), "{report}");
    }

    #[tokio::test(start_paused = true)]
    async fn l1_a_sink_that_hangs_in_the_drain_is_left_in_time() {
        let Setup { far, buffer, lifecycle, server, .. } = setup(|writer| only_when_asked(writer).batch_size(20)).await;
        far.answers([Answer::Store]).then(Answer::Hang);
        for record in 0..55 {
            buffer.try_push(record).unwrap();
        }
        let report = lifecycle.drain_in_tasks().await;
        assert_eq!(took(&report), CUT, "{report}");
        // What comes behind is tried over another session, once: what hangs is in doubt here.
        assert_eq!(accounting(&report), records(55, 20, 0, 35));
        assert_eq!(outcome(&report, "audit"), Outcome::Incomplete, "{report}");
        assert_eq!(outcome(&report, "db"), Outcome::Drained, "{report}");
        assert_eq!(server.sessions(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn l1_a_batch_that_hung_before_the_drain_is_in_doubt_and_gives_its_checkout_back() {
        let Setup { far, buffer, lifecycle, server, .. } = setup(|writer| only_when_asked(writer).batch_size(20)).await;
        far.answers([Answer::Hang]).then(Answer::Later);
        push_all(&buffer, 0..35).await;
        others().await;
        assert_eq!(far.calls(), 1);
        let flush = tokio::spawn({
            let buffer = buffer.clone();
            async move { buffer.flush().await }
        });
        others().await;
        let report = lifecycle.drain_in_tasks().await;
        assert_eq!(took(&report), CUT, "{report}");
        assert_eq!(accounting(&report), records(35, 0, 15, 20));
        assert_eq!(outcome(&report, "db"), Outcome::Drained, "{report}");
        assert_eq!(server.sessions(), 0);
        let error = flush.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Write, "{error}");
    }

    /// A sink that is over 1 ms before the cut is waited for, one that is over 1 ms after it is not.
    #[tokio::test(start_paused = true)]
    async fn a_batch_is_written_until_the_cut_and_no_longer() {
        for (takes, written) in [(CUT - ms(1), 1), (CUT + ms(1), 0)] {
            let Setup { far, buffer, lifecycle, .. } = setup(only_when_asked).await;
            far.then(Answer::StoreAfter(takes));
            buffer.try_push(0).unwrap();
            let report = lifecycle.drain_in_tasks().await;
            assert_eq!(accounting(&report), records(1, written, 0, 1 - written), "{report}");
            assert_eq!(took(&report), takes.min(CUT), "{report}");
            assert_eq!(outcome(&report, "db"), Outcome::Drained, "{report}");
        }
    }

    #[tokio::test]
    async fn l2_a_sink_that_blocks_its_thread_costs_only_the_buffer() {
        let Setup { far, buffer, lifecycle, server, .. } = setup_with(USED_UP, only_when_asked);
        lifecycle.init().await.unwrap();
        far.then(Answer::Block);
        for record in 0..5 {
            buffer.try_push(record).unwrap();
        }
        let report = lifecycle.drain().await;
        assert!(report.took < USED_UP + LATE, "{report}");
        assert_eq!(outcome(&report, "audit"), Outcome::Hung, "{report}");
        assert_eq!(accounting(&report), records(5, 0, 0, 5));
        // The checkout is with the thread that blocks; everything else said goodbye.
        assert_eq!(server.sessions(), 1, "{report}");
        far.release();
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_never_waits_does_not_hide_the_cut() {
        let Setup { far, buffer, lifecycle, .. } =
            setup(|writer| only_when_asked(writer).batch_size(1).capacity(100 * RECORD)).await;
        far.then(Answer::Work(ms(8)));
        for record in 0..100 {
            buffer.try_push(record).unwrap();
        }
        let report = lifecycle.drain_in_tasks().await;
        assert_eq!(report.took, CUT, "{report}");
        assert_eq!(outcome(&report, "audit"), Outcome::Incomplete, "{report}");
        assert_eq!(accounting(&report), records(100, 25, 75, 0), "{report}");
        assert_eq!(far.stored(), Vec::from_iter(0..25));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_panics_in_the_drain_costs_its_batch_only() {
        let Setup { far, buffer, lifecycle, .. } = setup(|writer| only_when_asked(writer).batch_size(2)).await;
        far.answers([Answer::Panic]);
        for record in 0..5 {
            buffer.try_push(record).unwrap();
        }
        let report = lifecycle.drain_in_tasks().await;
        assert_eq!(accounting(&report), records(5, 3, 0, 2));
        assert_eq!(outcome(&report, "audit"), Outcome::Incomplete);
        assert_eq!(outcome(&report, "db"), Outcome::Drained);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_cut_loses_is_given_to_the_callback() {
        let given = Arc::new(Mutex::new(Vec::new()));
        let callback = {
            let given = Arc::clone(&given);
            move |records: &[u64], _: &Error| given.lock().unwrap().extend_from_slice(records)
        };
        let Setup { far, buffer, lifecycle, .. } =
            setup(|writer| only_when_asked(writer).batch_size(2).on_lost(callback)).await;
        far.then(Answer::Later);
        for record in 0..5 {
            buffer.try_push(record).unwrap();
        }
        let report = lifecycle.drain_in_tasks().await;
        assert_eq!(accounting(&report), records(5, 0, 5, 0));
        assert_eq!(*given.lock().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_starved_runtime_does_not_keep_the_buffer_from_being_written() {
        let (sender, receiver) = mpsc::channel();
        let over = Arc::new(AtomicBool::new(false));
        let application = thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let setup = setup_with(SECONDS, |writer| only_when_asked(writer).batch_size(100));
                    setup.lifecycle.init().await.unwrap();
                    for record in 0..1_050 {
                        setup.buffer.try_push(record).unwrap();
                    }
                    sender.send((setup.lifecycle, setup.far, setup.buffer)).unwrap();
                    while !over.load(Ordering::SeqCst) {
                        std::hint::spin_loop();
                    }
                });
            }
        });
        let (lifecycle, far, buffer) = receiver.recv().unwrap();
        let report = lifecycle.drain().await;
        over.store(true, Ordering::SeqCst);
        application.join().unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!(far.stored(), Vec::from_iter(0..1_050));
        assert_eq!(buffer.records(), records(1_050, 1_050, 0, 0));
    }
}

/// Many pushers with cancelled pushes, a sink that fails at random, and a drain at a random moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s5_stress_every_record_is_accounted_for() {
    for round in 0..200 {
        let mut random = Random(round * 7919 + 1);
        let given = Arc::new(Mutex::new(Vec::new()));
        let callback = {
            let given = Arc::clone(&given);
            move |records: &[u64], _: &Error| given.lock().unwrap().extend_from_slice(records)
        };
        let settings = |writer: Writer| {
            writer.capacity(16 * RECORD).batch_size(5).max_age(Duration::from_millis(1)).on_lost(callback)
        };
        let Setup { far, buffer, lifecycle, server, .. } = setup_with(SECONDS, settings);
        lifecycle.init().await.unwrap();
        far.answers((0..10_000).map(|_| match random.below(20) {
            0 => Answer::Later,
            1 => Answer::Refuse,
            2 => Answer::StoreAfter(Duration::from_micros(300)),
            _ => Answer::Store,
        }));
        let pushers: Vec<_> = (0..8)
            .map(|pusher| {
                let buffer = buffer.clone();
                let mut random = Random(round * 31 + pusher + 1);
                tokio::spawn(async move {
                    let mut accepted = Vec::new();
                    for number in 0.. {
                        let record = pusher << 32 | number;
                        let outcome = match random.below(8) {
                            0 => buffer.try_push(record),
                            1 => match timeout(Duration::from_micros(random.below(50)), buffer.push(record)).await {
                                Ok(outcome) => outcome,
                                Err(_) => continue,
                            },
                            _ => buffer.push(record).await,
                        };
                        match outcome {
                            Ok(()) => accepted.push(record),
                            Err(error) if error.kind() == ErrorKind::Full => assert_eq!(error.into_record(), record),
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::ShuttingDown);
                                break;
                            }
                        }
                        if random.below(4) == 0 {
                            tokio::task::yield_now().await;
                        }
                    }
                    accepted
                })
            })
            .collect();
        sleep(Duration::from_micros(random.below(3_000))).await;
        let report = lifecycle.drain().await;
        let mut accepted = Vec::new();
        for pusher in pushers {
            accepted.extend(pusher.await.unwrap());
        }
        let accounting = accounting(&report);
        let (stored, mut lost) = (far.stored(), given.lock().unwrap().clone());
        assert_eq!(
            accounting,
            records(accepted.len() as u64, stored.len() as u64, lost.len() as u64, 0),
            "round {round}"
        );
        for pusher in 0..8 {
            let own: Vec<u64> = stored.iter().copied().filter(|record| record >> 32 == pusher).collect();
            assert!(own.is_sorted(), "round {round}: written in order");
        }
        lost.extend(stored);
        lost.sort_unstable();
        accepted.sort_unstable();
        assert_eq!(accepted, lost, "round {round}: accepted once, left once");
        assert_eq!(outcome(&report, "db"), Outcome::Drained, "round {round}: {report}");
        assert_eq!(server.sessions(), 0, "round {round}");
    }
}

/// A linear congruential generator: enough to vary, and a failing round is the same again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
