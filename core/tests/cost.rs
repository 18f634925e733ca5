//! C1 and C2: what a checkout costs, and what an idle lifecycle costs. One test at a time looks at the process, so they
//! share a lock.

use std::{
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use winddown_core::{Lifecycle, memory::Memory};

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn c1_a_checkout_through_the_guard_allocates_nothing() {
    let _alone = alone();
    let runtime = runtime();
    let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
    let db = lifecycle.guard(Memory::new("db"));
    let check_out = || runtime.block_on(async { drop(db.get().await.unwrap()) });
    // The first one initialises.
    check_out();
    let allocations = allocation_counter::measure(|| {
        for _ in 0..1000 {
            check_out();
        }
    });
    assert_eq!(allocations.count_total, 0);
}

/// The threads of this process, by name and id, with how often each was put on a processor.
fn threads(named: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/task").unwrap() {
        let path = entry.unwrap().path();
        // A thread may end between the listing and the reading.
        let Ok(status) = fs::read_to_string(path.join("status")) else { continue };
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        if let Some(name) = field("Name:").filter(|name| name.starts_with(named)) {
            let switches = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
            let switches = switches.iter().filter_map(|name| field(name)?.parse::<u64>().ok()).sum();
            found.push((format!("{name} {}", path.file_name().unwrap().display()), switches));
        }
    }
    found
}

/// The same once none comes, goes or runs any more: their first moments, and their last, may take seconds on a busy machine.
#[cfg(target_os = "linux")]
fn at_rest() -> Vec<(String, u64)> {
    let patience = Instant::now() + Duration::from_secs(60);
    let mut before = threads("winddown");
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = threads("winddown");
        if now == before {
            return now;
        }
        assert!(Instant::now() < patience, "they do not come to rest: {now:?}");
        before = now;
    }
}

#[cfg(target_os = "linux")]
#[test]
fn c2_an_idle_lifecycle_never_wakes_up() {
    let _alone = alone();
    let runtime = runtime();
    // The one with signals: its thread is there from the start.
    let lifecycle = Lifecycle::builder().build().unwrap();
    let db = lifecycle.guard(Memory::new("db"));
    runtime.block_on(async { drop(db.get().await.unwrap()) });
    let before = at_rest();
    // The one that owns the deadline, and those that sleep until a drain: for each resource, for tracked work, for wakers at its
    // beginning and at its end, and for the report.
    let mut names: Vec<&str> = before.iter().filter_map(|(name, _)| name.split(' ').next()).collect();
    names.sort_unstable();
    let drains = ["winddown-drain"; 2];
    let wakes = ["winddown-wake"; 2];
    assert_eq!(names, [&["winddown"][..], &drains, &["winddown-report"], &wakes].concat(), "{before:?}");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(threads("winddown"), before, "it was put on a processor");
}

#[cfg(target_os = "linux")]
#[test]
fn a_drained_lifecycle_leaves_no_thread_and_no_file_behind() {
    let _alone = alone();
    let runtime = runtime();
    let files = || fs::read_dir("/proc/self/fd").unwrap().count();
    let threads_before = at_rest().len();
    let files_before = files();
    for _ in 0..200 {
        let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
        let db = lifecycle.guard(Memory::new("db"));
        let report = runtime.block_on(async {
            drop(db.get().await.unwrap());
            lifecycle.drain().await
        });
        assert!(report.is_clean(), "{report}");
    }
    // The last thread ends by itself, some time after the report is there.
    let patience = Instant::now() + Duration::from_secs(60);
    while (threads("winddown").len(), files()) != (threads_before, files_before) && Instant::now() < patience {
        thread::yield_now();
    }
    assert_eq!((threads("winddown").len(), files()), (threads_before, files_before));
}

#[cfg(target_os = "linux")]
#[test]
fn l7_what_a_drain_needs_is_there_from_the_start_and_goes_with_a_lifecycle_that_is_never_drained() {
    let _alone = alone();
    let runtime = runtime();
    let files = || fs::read_dir("/proc/self/fd").unwrap().count();
    let (threads_before, files_before) = (at_rest().len(), files());
    let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
    let db = lifecycle.guard(Memory::new("db"));
    // The one who conducts, tracked work and the resource, and a runtime with sockets for the resource.
    assert_eq!(at_rest().len(), threads_before + 3);
    let files_made = files() - files_before;
    assert!((1..=4).contains(&files_made), "{files_made}");
    runtime.block_on(async { drop(db.get().await.unwrap()) });
    assert_eq!((threads("winddown").len(), files()), (threads_before + 3, files_before + files_made));
    drop((db, lifecycle));
    let patience = Instant::now() + Duration::from_secs(60);
    while (threads("winddown").len(), files()) != (threads_before, files_before) && Instant::now() < patience {
        thread::yield_now();
    }
    assert_eq!((threads("winddown").len(), files()), (threads_before, files_before));
}
