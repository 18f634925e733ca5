//! What does a checkout through the guard cost over the driver's own? (C1)
//!
//! Targets: at most 1.10 times deadpool's `get()` on SQLite, and on the in-memory resource at most 60 ns more than
//! counting up and down in an atomic. `cargo xtask bench checkout` prints both at the end, from one run.

use std::{
    fs,
    hint::black_box,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group};
use tokio::runtime::{Builder, Runtime};
use winddown::{Checkouts, Lifecycle, ShutdownGuard, memory::Memory, sqlite::Sqlite};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn guarded<R: Checkouts>(runtime: &Runtime, resource: R) -> ShutdownGuard<R> {
    let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
    let guard = lifecycle.guard(resource);
    runtime.block_on(async { drop(guard.get().await.unwrap()) });
    guard
}

fn memory(criterion: &mut Criterion) {
    let runtime = runtime();
    let guard = guarded(&runtime, Memory::new("db"));
    let mut group = criterion.benchmark_group("memory");
    let counter = AtomicUsize::new(0);
    group.bench_function("atomic", |bencher| {
        bencher.iter(|| {
            black_box(&counter).fetch_add(1, Ordering::AcqRel);
            black_box(&counter).fetch_sub(1, Ordering::AcqRel);
        });
    });
    let pool = runtime.block_on(guard.pool()).unwrap();
    // Loops of our own: criterion's asynchronous ones add a future round each checkout, which here is not little.
    let bare = async |rounds: u64| {
        let began = Instant::now();
        for _ in 0..rounds {
            pool.put(black_box(pool.get().await.unwrap()));
        }
        began.elapsed()
    };
    let guarded = async |rounds: u64| {
        let began = Instant::now();
        for _ in 0..rounds {
            drop(black_box(guard.get().await.unwrap()));
        }
        began.elapsed()
    };
    group.bench_function("bare", |bencher| bencher.iter_custom(|rounds| runtime.block_on(bare(rounds))));
    group.bench_function("guard", |bencher| bencher.iter_custom(|rounds| runtime.block_on(guarded(rounds))));
    group.finish();
}

fn sqlite(criterion: &mut Criterion) {
    let runtime = runtime();
    // deadpool closes what is dropped on a thread of the runtime it finds itself in.
    let _inside = runtime.enter();
    let folder = tempfile::tempdir().unwrap();
    let guard = guarded(&runtime, Sqlite::open(folder.path().join("app.db")));
    let pool = runtime.block_on(guard.pool()).unwrap();
    let mut group = criterion.benchmark_group("sqlite");
    group.bench_function("bare", |bencher| {
        bencher.to_async(&runtime).iter(|| async { drop(black_box(pool.get().await.unwrap())) });
    });
    group.bench_function("guard", |bencher| {
        bencher.to_async(&runtime).iter(|| async { drop(black_box(guard.get().await.unwrap())) });
    });
    group.finish();
}

/// Both in turns, and the ratio of their sums. deadpool checks each connection on another thread, and how quickly that
/// thread wakes up changes from one second to the next by far more than what is measured here: two benchmarks one after
/// the other compare the seconds, not the checkouts.
fn sqlite_in_turns() -> f64 {
    const ROUNDS: u32 = 50_000;
    let runtime = runtime();
    let _inside = runtime.enter();
    let folder = tempfile::tempdir().unwrap();
    let guarded = guarded(&runtime, Sqlite::open(folder.path().join("app.db")));
    let pool = runtime.block_on(guarded.pool()).unwrap();
    let (mut bare, mut guard) = (Duration::ZERO, Duration::ZERO);
    runtime.block_on(async {
        for round in 0..2 * ROUNDS {
            let began = Instant::now();
            // The one that comes second finds the thread awake: each does so half of the time.
            if matches!(round % 4, 0 | 3) {
                drop(black_box(pool.get().await.unwrap()));
                bare += began.elapsed();
            } else {
                drop(black_box(guarded.get().await.unwrap()));
                guard += began.elapsed();
            }
        }
    });
    guard.as_secs_f64() / bare.as_secs_f64()
}

fn results() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("criterion")
}

/// The median of one benchmark of this run in nanoseconds; none when criterion only tried whether it runs.
fn median(group: &str, function: &str) -> Option<f64> {
    let estimates = fs::read(results().join(group).join(function).join("new/estimates.json")).ok()?;
    serde_json::from_slice::<serde_json::Value>(&estimates).ok()?["median"]["point_estimate"].as_f64()
}

criterion_group! {
    name = checkouts;
    config = Criterion::default().output_directory(&results());
    targets = memory, sqlite
}

fn main() {
    // What an earlier run left must not be taken for this one's.
    let _ = fs::remove_dir_all(results());
    checkouts();
    Criterion::default().configure_from_args().final_summary();
    if let (Some(bare), Some(guard)) = (median("sqlite", "bare"), median("sqlite", "guard")) {
        println!("sqlite: guard {guard:.0} ns, bare {bare:.0} ns, one after the other");
        println!("sqlite: guard / bare = {:.3} in turns (target: at most 1.10)", sqlite_in_turns());
    }
    if let (Some(atomic), Some(bare), Some(guard)) =
        (median("memory", "atomic"), median("memory", "bare"), median("memory", "guard"))
    {
        println!(
            "memory: guard {guard:.1} ns - atomic {atomic:.1} ns = {:.1} ns (target: at most 60 ns)",
            guard - atomic
        );
        println!("memory: guard {guard:.1} ns - bare {bare:.1} ns = {:.1} ns", guard - bare);
    }
}
