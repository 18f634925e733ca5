//! The accounting of the buffer under random faults, on simulated clocks: sinks that hang, panic, answer late, lose answers,
//! reject, find a batch too large; checkouts that hang; a spill that fails; an application runtime that is starved from a
//! random moment on; drains at random times, and ends without one. Every record is in exactly one column, and the columns are
//! true against what the target has.
//!
//! A few hundred cases, 100,000 with `WINDDOWN_SOAK`.

mod common;

use std::{
    collections::BTreeSet,
    env, panic,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proptest::{collection::vec, prelude::*};
use tokio::{
    runtime::Runtime,
    time::{sleep, timeout},
};
use winddown_buffer::{Batch, BatchWriter, Delivery, Push as _, Spill};
use winddown_core::{Lifecycle, Records};

use crate::common::{Answer, POISON, Target, Writes};

#[derive(Debug, Clone)]
struct Case {
    delivery: Delivery,
    in_flight: usize,
    batch_size: usize,
    capacity: usize,
    budget: Duration,
    steps: Vec<Step>,
    answers: Vec<Answer>,
    then: Answer,
    checkouts_hang: usize,
    /// From this call on it fails.
    spill: Option<usize>,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many at once, as far as there is room.
    Push(u64),
    /// One that the target rejects.
    Poison,
    Wait(Duration),
    Flush,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Drain,
    /// The application's runtime runs no more, and goes on after the drain, or ends.
    StarvedDrain {
        goes_on: bool,
    },
    Dropped,
}

fn milliseconds(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        4 => Just(Answer::Store),
        2 => milliseconds(1..3_000).prop_map(Answer::StoreAfter),
        2 => any::<bool>().prop_map(|stored| Answer::Unknown { stored }),
        1 => Just(Answer::Retry),
        1 => Just(Answer::Fail),
        2 => Just(Answer::TooLarge),
        2 => any::<bool>().prop_map(|stored| Answer::Hang { stored }),
        1 => any::<bool>().prop_map(|stored| Answer::Panic { stored }),
        2 => milliseconds(1..20_000).prop_map(Answer::CommitsLater),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let delivery = prop_oneof![Just(Delivery::ExactlyOnce), Just(Delivery::AtLeastOnce), Just(Delivery::AtMostOnce)];
    let step = prop_oneof![
        5 => (1_u64..40).prop_map(Step::Push),
        1 => Just(Step::Poison),
        3 => milliseconds(1..8_000).prop_map(Step::Wait),
        1 => Just(Step::Flush),
    ];
    let then = prop_oneof![
        4 => Just(Answer::Store),
        1 => Just(Answer::Retry),
        1 => Just(Answer::Hang { stored: true }),
        1 => Just(Answer::TooLarge),
    ];
    let end = prop_oneof![
        3 => Just(End::Drain),
        3 => any::<bool>().prop_map(|goes_on| End::StarvedDrain { goes_on }),
        1 => Just(End::Dropped),
    ];
    let settings = (delivery, 1_usize..4, 1_usize..12, 8_usize..200, milliseconds(300..10_000));
    let faults = (vec(answer(), 0..25), then, 0_usize..3, proptest::option::of(0_usize..4));
    (settings, vec(step, 1..30), faults, end).prop_map(|(settings, steps, faults, end)| {
        let (delivery, in_flight, batch_size, capacity, budget) = settings;
        let (answers, then, checkouts_hang, spill) = faults;
        let capacity = capacity * size_of::<u64>();
        Case { delivery, in_flight, batch_size, capacity, budget, steps, answers, then, checkouts_hang, spill, end }
    })
}

/// On a clock of its own, which stands still unless all wait.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// What the application was told of.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<u64>>>);

impl Told {
    fn add(&self, records: &[u64]) {
        self.0.lock().unwrap().extend(records);
    }

    /// Each of them once.
    fn once(&self) -> BTreeSet<u64> {
        let records = self.0.lock().unwrap();
        let set: BTreeSet<u64> = records.iter().copied().collect();
        assert_eq!(set.len(), records.len(), "told twice of a record");
        set
    }
}

fn run(case: &Case) {
    let application = runtime();
    let (target, lost, spilled) = (Target::default(), Told::default(), Told::default());
    let lifecycle = Lifecycle::builder().signals(false).budget(case.budget).build().unwrap();
    let db = lifecycle.guard(target.clone());
    let sink = Writes { target: target.clone(), delivery: case.delivery, largest: usize::MAX };
    let mut writer = BatchWriter::new(&db, sink).name("audit").batch_size(case.batch_size).in_flight(case.in_flight);
    writer = writer.capacity(case.capacity);
    writer = {
        let (one, other) = (lost.clone(), lost.clone());
        writer.on_lost(move |records, _| one.add(records)).on_rejected(move |record, _| other.add(&[*record]))
    };
    if let Some(good) = case.spill {
        let (spilled, calls) = (spilled.clone(), AtomicUsize::new(0));
        writer = writer.spill(Spill::with(move |_, batches: &[Batch<u64>], _| {
            if calls.fetch_add(1, Ordering::SeqCst) >= good {
                return Err("the disk is full".into());
            }
            batches.iter().for_each(|batch| spilled.add(batch));
            Ok(())
        }));
    }
    let buffer = lifecycle.guard(writer);

    let mut accepted = BTreeSet::new();
    application.block_on(async {
        lifecycle.init().await.unwrap();
        target.answers(case.answers.iter().copied());
        target.then(case.then);
        target.checkouts_hang(case.checkouts_hang);
        let mut next = 0;
        for step in &case.steps {
            match *step {
                Step::Push(count) => {
                    for record in next..next + count {
                        if buffer.try_push(record).is_ok() {
                            accepted.insert(record);
                        }
                    }
                    next += count;
                }
                Step::Poison => {
                    if buffer.try_push(POISON + next).is_ok() {
                        accepted.insert(POISON + next);
                    }
                    next += 1;
                }
                Step::Wait(time) => sleep(time).await,
                Step::Flush => drop(timeout(Duration::from_secs(1), buffer.flush()).await),
            }
            add_up(buffer.records(), accepted.len());
        }
    });

    let drained = match case.end {
        End::Drain => Some(application.block_on(lifecycle.drain_in_tasks())),
        End::StarvedDrain { .. } => Some(runtime().block_on(lifecycle.drain_in_tasks())),
        End::Dropped => None,
    };
    let Some(report) = drained else {
        application.block_on(async {
            drop((buffer, lifecycle, db));
            sleep(Duration::from_secs(60)).await;
        });
        return true_of_the_target(case, &target, &accepted, &lost);
    };
    let records = report.resource("audit").unwrap().records.unwrap();
    assert_eq!(records.pending, 0, "{report}");
    add_up(records, accepted.len());
    let rows = target.rows();
    assert!(records.written <= rows.len() as u64, "written, and not there: {report}");
    let (told, elsewhere) = (lost.once(), spilled.once());
    assert_eq!(records.lost, told.len() as u64, "what is lost is told: {report}");
    // What the target answered after all while it was spilled is written, and elsewhere too.
    assert!(records.spilled <= elsewhere.len() as u64, "{report}");
    assert!(told.is_disjoint(&elsewhere), "{report}");
    let nowhere = accepted
        .iter()
        .filter(|record| !rows.contains_key(*record) && !told.contains(*record) && !elsewhere.contains(*record));
    assert!(nowhere.count() as u64 <= records.in_doubt, "{report}");
    true_of_the_target(case, &target, &accepted, &lost);

    // What comes late changes nothing any more.
    if matches!(case.end, End::Drain | End::StarvedDrain { goes_on: true }) {
        application.block_on(async { sleep(Duration::from_secs(60)).await });
    }
    drop(application);
    assert_eq!(buffer.records(), records, "the report has been made");
    assert_eq!(lost.once(), told, "nobody is told of more than was reported");
    true_of_the_target(case, &target, &accepted, &lost);
}

fn add_up(records: Records, accepted: usize) {
    let Records { written, spilled, lost, in_doubt, pending, .. } = records;
    assert_eq!(records.accepted, accepted as u64, "{records:?}");
    assert_eq!(records.accepted, written + spilled + lost + in_doubt + pending, "{records:?}");
}

fn true_of_the_target(case: &Case, target: &Target, accepted: &BTreeSet<u64>, lost: &Told) {
    let (rows, lost) = (target.rows(), lost.once());
    for (record, times) in &rows {
        assert!(accepted.contains(record), "{record} was never accepted");
        assert!(!lost.contains(record), "{record} is called lost, and is there");
        assert!(*times == 1 || case.delivery == Delivery::AtLeastOnce, "{record} is there {times} times");
    }
    assert!(lost.is_subset(accepted));
}

/// Sinks panic here by design, and buffers are dropped: what they say is not printed a hundred thousand times.
fn quiet() {
    // Whoever was first is as quiet.
    let _ = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::default());
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&"sink") {
            print(info);
        }
    }));
}

#[test]
fn s5_every_record_is_in_one_column_and_the_columns_are_true_whatever_fails_soak() {
    quiet();
    let cases = if env::var_os("WINDDOWN_SOAK").is_some() { 100_000 } else { 400 };
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2_000, ..ProptestConfig::default() };
    proptest!(config, |(case in case())| run(&case));
}
