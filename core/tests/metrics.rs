//! The numbers that the recorder of the crate `metrics` gets: how resources stand, and what their drains did.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use metrics::Unit;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use winddown_core::{
    Capabilities, Error, Lifecycle, Resource, Retry,
    adapter::{Accounting, Drain, Ledger},
    memory::Memory,
};

fn lifecycle() -> Lifecycle {
    Lifecycle::builder().signals(false).budget(Duration::from_secs(60)).retry(Retry::never()).build().unwrap()
}

/// All that was recorded of a resource since this was last asked, by name and, where there is one, outcome.
fn recorded(snapshotter: &Snapshotter, resource: &str) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for (key, unit, description, value) in snapshotter.snapshot().into_vec() {
        let key = key.key();
        let labels: BTreeMap<_, _> = key.labels().map(|label| (label.key(), label.value())).collect();
        if labels.get("resource") != Some(&resource) {
            continue;
        }
        let is_time = key.name().ends_with("_seconds");
        assert_eq!(unit, Some(if is_time { Unit::Seconds } else { Unit::Count }), "{key}");
        assert!(description.is_some_and(|text| !text.is_empty()), "{key}");
        let name =
            labels.get("outcome").map_or_else(|| key.name().into(), |outcome| format!("{} {outcome}", key.name()));
        let number = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(gauge) => gauge.into_inner(),
            DebugValue::Histogram(taken) => {
                assert_eq!(taken.len(), 1, "{key}");
                taken[0].into_inner()
            }
        };
        found.insert(name, number);
    }
    found
}

/// Those of them that are counts, without the times.
fn counts(snapshotter: &Snapshotter, resource: &str) -> Vec<(String, u64)> {
    let found = recorded(snapshotter, resource).into_iter();
    found.filter(|(name, _)| !name.ends_with("_seconds")).map(|(name, number)| (name, number as u64)).collect()
}

fn expected(counts: &[(&str, u64)]) -> Vec<(String, u64)> {
    counts.iter().map(|(name, count)| (format!("winddown_{name}"), *count)).collect()
}

#[tokio::test]
async fn gauges_are_what_the_status_of_the_guard_says_when_they_are_asked_for() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _local = metrics::set_default_local_recorder(&recorder);
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db").size(2));
    lifecycle.record_metrics();
    let nothing = expected(&[("callers_waiting", 0), ("checkouts_out", 0)]);
    assert_eq!(counts(&snapshotter, "db"), nothing, "it is not initialised, so there is no pool to have a size");

    let (one, two) = (db.get().await.unwrap(), db.get().await.unwrap());
    let waits = tokio::spawn({
        let db = db.clone();
        async move { db.get().await.map(drop) }
    });
    tokio::task::yield_now().await;
    assert_eq!(counts(&snapshotter, "db"), nothing, "nobody has asked since");
    lifecycle.record_metrics();
    let all = expected(&[("callers_waiting", 1), ("checkouts_out", 2), ("sessions_idle", 0), ("sessions_open", 2)]);
    assert_eq!(counts(&snapshotter, "db"), all);
    let status = db.status();
    assert_eq!((status.waiting, status.out, status.idle, status.size), (1, 2, Some(0), Some(2)));

    drop((one, two));
    waits.await.unwrap().unwrap();
    lifecycle.flush().await.unwrap();
    let all = expected(&[("callers_waiting", 0), ("checkouts_out", 0), ("sessions_idle", 2), ("sessions_open", 2)]);
    assert_eq!(counts(&snapshotter, "db"), all, "a flush writes them too");
}

/// Holds records, and has them written, but for some.
struct Buffer(Arc<Ledger>);

impl Resource for Buffer {
    type Pool = ();

    fn name(&self) -> &str {
        "buffer"
    }
    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
        assert!(self.0.writing(4));
        self.0.written(3);
        self.0.spilled(1);
        Ok(())
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::NO_SESSIONS
    }
    fn ledger(&self) -> Option<Arc<dyn Accounting>> {
        Some(Arc::clone(&self.0) as _)
    }
}

#[tokio::test]
async fn a_drain_is_counted_from_its_report() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _local = metrics::set_default_local_recorder(&recorder);
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db"));
    let never = lifecycle.guard(Memory::new("never"));
    let ledger = Arc::new(Ledger::default());
    assert!(ledger.accepted(6));
    let buffer = lifecycle.guard(Buffer(ledger));
    let (one, two) = (db.get().await.unwrap(), db.get().await.unwrap());
    drop((one, two));
    buffer.pool().await.unwrap();
    lifecycle.record_metrics();
    assert_eq!(recorded(&snapshotter, "buffer")["winddown_records_pending"], 6.0);
    recorded(&snapshotter, "db");

    let report = lifecycle.drain_in_tasks().await;
    let sessions = [("sessions_closed_total", 2), ("sessions_cut_total", 0)];
    let others =
        [("sessions_left_behind_total", 0), ("sessions_unconfirmed_total", 0), ("statements_cancelled_total", 0)];
    // A snapshot takes the counts with it.
    let taken = snapshotter.snapshot().into_vec();
    let of = |resource: &str| -> BTreeMap<String, u64> {
        let of = taken.iter().filter(|(key, ..)| key.key().labels().any(|label| label.value() == resource));
        of.filter_map(|(key, _, _, value)| match value {
            DebugValue::Counter(count) => Some((key.key().name().to_owned(), *count)),
            _ => None,
        })
        .collect()
    };
    let mut db_counts: Vec<_> = of("db").into_iter().collect();
    db_counts.retain(|(name, _)| name != "winddown_drains_total");
    assert_eq!(db_counts, expected(&[&sessions[..], &others].concat()), "{report}");
    let buffer = of("buffer");
    let records = ["accepted", "written", "spilled", "lost", "in_doubt"];
    let records = records.map(|column| buffer[&format!("winddown_records_{column}_total")]);
    assert_eq!(records, [6, 3, 1, 2, 0], "{report}");
    let drains: Vec<_> = taken.iter().filter(|(key, ..)| key.key().name() == "winddown_drains_total").collect();
    let mut drains: Vec<_> = drains
        .iter()
        .map(|(key, ..)| key.key().labels().map(|label| label.value().to_owned()).collect::<Vec<_>>())
        .collect();
    drains.sort();
    assert_eq!(drains, [["buffer", "incomplete"], ["db", "drained"]]);
    assert!(of("never").is_empty(), "what is not initialised is not drained");
    drop(never);
}

#[test]
fn a_drain_on_threads_of_its_own_is_counted_once_before_its_report_is_there() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("of the process"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        drop(db.get().await.unwrap());
        lifecycle.drain().await;
    });
    let found = recorded(&snapshotter, "of the process");
    assert_eq!(found["winddown_drains_total drained"], 1.0, "{found:?}");
    assert_eq!(found["winddown_sessions_closed_total"], 1.0, "{found:?}");
    assert!((0.0..60.0).contains(&found["winddown_drain_seconds"]), "{found:?}");
}
