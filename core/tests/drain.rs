//! The drain as an application sees it, with the in-memory server as the judge: real threads and real time, where what must
//! end by itself has time that no machine uses up. What uses its budget up, and has a part of a reserve for it, is on
//! tokio's paused clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Hook, Lifecycle, Outcome, Report, Resource, ResourceId, ShutdownGuard,
    State, Step,
    adapter::Drain,
    memory::{Memory, MemoryPool, MemorySession, Server},
};

/// Not used up by any machine.
const BUDGET: Duration = Duration::from_secs(60);

/// Used up, and waited for: long enough for what blocks nobody.
const USED_UP: Duration = Duration::from_secs(5);

/// So late does a busy machine run a thread that has to see a deadline.
const LATE: Duration = Duration::from_secs(5);

fn lifecycle() -> Lifecycle {
    Lifecycle::builder().signals(false).budget(BUDGET).build().unwrap()
}

/// One that something else stops: here the test.
fn embedded() -> Lifecycle {
    Lifecycle::builder().embedded().budget(BUDGET).build().unwrap()
}

#[tokio::test]
async fn s6_what_the_report_calls_closed_the_server_no_longer_lists() {
    for (held, idle) in [(0, 0), (0, 10), (4, 6), (10, 0)] {
        let lifecycle = lifecycle();
        let server = Server::new();
        let db = lifecycle.guard(Memory::on(&server, "db"));
        let mut checkouts = Vec::new();
        for _ in 0..held + idle {
            checkouts.push(db.get().await.unwrap());
        }
        if held + idle == 0 {
            db.pool().await.unwrap();
        }
        checkouts.truncate(held);
        let open = server.sessions();
        let draining = lifecycle.draining();
        let report = tokio::spawn({
            let lifecycle = lifecycle.clone();
            async move { lifecycle.drain().await }
        });
        draining.await;
        drop(checkouts);
        let report = report.await.unwrap();
        assert_eq!(server.sessions(), 0, "{held} held, {idle} idle");
        assert_eq!(server.goodbyes(), open);
        let row = report.resource("db").unwrap();
        assert_eq!((row.outcome, row.sessions.closed), (Outcome::Drained, open as u64), "{report}");
    }
}

#[tokio::test]
async fn idle_sessions_say_goodbye_at_once_and_returned_ones_when_they_return() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    let (held, idle) = (db.get().await.unwrap(), db.get().await.unwrap());
    drop(idle);
    let drain = tokio::spawn({
        let lifecycle = lifecycle.clone();
        async move { lifecycle.drain().await }
    });
    while server.goodbyes() < 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.sessions(), 1, "the one that is out");
    drop(held);
    let report = drain.await.unwrap();
    assert_eq!((server.sessions(), server.goodbyes()), (0, 2));
    assert!(report.is_clean() && report.took < BUDGET / 2, "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_stragglers_statement_is_cancelled_on_the_server() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    let session = db.get().await.unwrap();
    let straggler = tokio::spawn(async move { session.run(Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    assert_eq!(server.running(), 1);
    let report = lifecycle.drain_in_tasks().await;
    assert!(straggler.await.unwrap().unwrap_err().to_string().contains("cancelled"));
    assert_eq!((server.running(), server.sessions()), (0, 0));
    let row = report.resource("db").unwrap();
    assert_eq!((row.outcome, row.sessions.cancelled, row.stragglers.len()), (Outcome::Drained, 1, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_statement_whose_future_was_dropped_is_cancelled_too() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    let session = db.get().await.unwrap();
    tokio::time::timeout(Duration::from_millis(1), session.run(Duration::from_secs(60))).await.unwrap_err();
    drop(session);
    assert_eq!((db.out(), server.running()), (0, 1));
    let report = lifecycle.drain_in_tasks().await;
    assert_eq!((server.running(), server.sessions()), (0, 0));
    let row = report.resource("db").unwrap();
    assert_eq!((row.outcome, row.sessions.cancelled), (Outcome::Drained, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn l1_a_server_that_does_not_answer_is_cut_by_the_deadline_and_named() {
    let lifecycle = lifecycle();
    let (up, paused) = (Server::new(), Server::new());
    let a = lifecycle.guard(Memory::on(&up, "up"));
    let b = lifecycle.guard(Memory::on(&paused, "paused"));
    drop((a.get().await.unwrap(), b.get().await.unwrap()));
    paused.pause();
    let report = lifecycle.drain_in_tasks().await;
    // 250 ms of margin, and a quarter of the 50 ms in reserve; a timer is never early, and to the millisecond.
    assert_eq!(report.took, BUDGET - Duration::from_millis(250 + 12), "{report}");
    assert_eq!(report.resource("up").unwrap().outcome, Outcome::Drained);
    let row = report.resource("paused").unwrap();
    assert_eq!((row.outcome, row.sessions.cut, row.sessions.closed), (Outcome::Incomplete, 1, 0), "{report}");
}

#[tokio::test(flavor = "current_thread")]
async fn l1_l2_one_that_blocks_its_thread_costs_only_itself_on_a_single_threaded_runtime_too() {
    struct Blocks;
    impl Resource for Blocks {
        type Pool = ();
        fn name(&self) -> &str {
            "blocks"
        }
        async fn init(&self) -> Result<(), Error> {
            Ok(())
        }
        async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
            thread::sleep(BUDGET);
            Ok(())
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities::NO_SESSIONS
        }
    }
    let lifecycle = Lifecycle::builder().signals(false).budget(USED_UP).build().unwrap();
    let server = Server::new();
    let _blocks = lifecycle.guard(Blocks);
    let _db = lifecycle.guard(Memory::on(&server, "db"));
    lifecycle.init().await.unwrap();
    let began = Instant::now();
    let report = lifecycle.drain().await;
    assert!(began.elapsed() < USED_UP + LATE, "{report}");
    assert_eq!(report.resource("blocks").unwrap().outcome, Outcome::Hung);
    let db = report.resource("db").unwrap();
    assert_eq!((db.outcome, server.sessions()), (Outcome::Drained, 0));
    assert!(db.took < USED_UP / 2, "{report}");
}

/// A database that keeps so much of the budget for itself, and may be drained last.
struct Keeps {
    memory: Memory,
    reserve: Duration,
    is_last: bool,
}

impl Resource for Keeps {
    type Pool = MemoryPool;
    fn name(&self) -> &str {
        self.memory.name()
    }
    async fn init(&self) -> Result<MemoryPool, Error> {
        self.memory.init().await
    }
    async fn goodbye(&self, pool: &MemoryPool, drain: &Drain) -> Result<(), Error> {
        self.memory.goodbye(pool, drain).await
    }
    fn reserve(&self, _: &MemoryPool) -> Duration {
        self.reserve
    }
    fn drains_last(&self) -> bool {
        self.is_last
    }
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
}

impl Checkouts for Keeps {
    type Checkout = MemorySession;
    async fn checkout(&self, pool: &MemoryPool) -> Result<MemorySession, Error> {
        self.memory.checkout(pool).await
    }
    fn give_back(&self, pool: &MemoryPool, session: MemorySession) {
        self.memory.give_back(pool, session);
    }
}

#[tokio::test]
async fn l2_one_that_blocks_leaves_what_is_drained_after_it_time_for_its_goodbye() {
    // 11.75 s, of which the two that come after the one that blocks have 2.5 s each.
    let lifecycle = Lifecycle::builder().signals(false).budget(Duration::from_secs(12)).build().unwrap();
    let server = Server::new();
    let keeps =
        |name, is_last| Keeps { memory: Memory::on(&server, name), reserve: Duration::from_millis(2500), is_last };
    let db = lifecycle.guard(keeps("db", false));
    let telemetry = lifecycle.guard(keeps("telemetry", true));
    drop((db.get().await.unwrap(), telemetry.get().await.unwrap()));
    let blocks = async || thread::sleep(BUDGET);
    lifecycle.on_drain("blocks", Hook::new(blocks).before(&db));
    let report = lifecycle.drain().await;
    assert_eq!(report.resource("blocks").unwrap().outcome, Outcome::Hung);
    assert_eq!(report.resource("db").unwrap().outcome, Outcome::Drained, "{report}");
    assert_eq!(report.resource("telemetry").unwrap().outcome, Outcome::Drained, "{report}");
    assert_eq!(server.sessions(), 0, "{report}");
}

#[test]
fn l2_a_starved_application_does_not_keep_the_others_from_their_goodbye() {
    let server = Server::new();
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let application = thread::spawn({
        let lifecycle = lifecycle.clone();
        move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                drop(db.get().await.unwrap());
                lifecycle.init().await.unwrap();
                // From here on nothing of this runtime runs.
                stopped.recv().unwrap();
            });
        }
    });
    while lifecycle.state() != State::Running {
        thread::yield_now();
    }
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let report = other.block_on(lifecycle.drain());
    assert!(report.is_clean(), "{report}");
    assert_eq!(server.sessions(), 0);
    stop.send(()).unwrap();
    application.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_however_many_ask_and_however_often_it_is_drained_once() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    drop(db.get().await.unwrap());
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let lifecycle = lifecycle.clone();
        callers.spawn(async move { lifecycle.drain().await });
    }
    let first = lifecycle.drain().await;
    while let Some(report) = callers.join_next().await {
        assert!(Arc::ptr_eq(&first, &report.unwrap()));
    }
    assert_eq!(server.goodbyes(), 1);
    assert!(Arc::ptr_eq(&first, &lifecycle.drain().await), "quiet the second time");
}

#[tokio::test]
async fn s3_dropped_without_a_drain_nothing_is_drained() {
    let server = Server::new();
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    drop(db.get().await.unwrap());
    drop((db, lifecycle));
    assert_eq!((server.goodbyes(), server.losses()), (0, 1));
}

#[tokio::test]
async fn the_report_is_a_table_for_people_and_a_line_for_machines() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db"));
    let _unused = lifecycle.guard_as("spare", Memory::new("db"));
    drop(db.get().await.unwrap());
    let report = lifecycle.drain().await;
    let table = report.to_string();
    assert!(table.contains("db") && table.contains("drained") && table.contains("1 closed"), "{table}");
    let line = report.to_json_line();
    assert!(!line.contains('\n'));
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((json["type"].as_str(), json["clean"].as_bool()), (Some("winddown.report"), Some(true)));
    assert_eq!(json["reason"], "requested");
    assert_eq!(json["resources"][0]["outcome"], "drained");
    assert_eq!(json["resources"][0]["closed"], 1);
    assert_eq!(json["resources"][1]["outcome"], "not_initialised");
    assert_eq!(report.resource("db").unwrap().step, Step::Done);
    let read: Report = serde_json::from_str(&line).unwrap();
    assert_eq!(read.to_json_line(), line);
}

#[tokio::test]
async fn s4_what_tracked_work_uses_for_the_first_time_while_draining_may_use_its_own_dependency() {
    /// Initialised through another guard, as a buffer is.
    struct Outer(ShutdownGuard<Memory>);
    impl Resource for Outer {
        type Pool = ();
        fn name(&self) -> &str {
            "outer"
        }
        async fn init(&self) -> Result<(), Error> {
            self.0.get().await.map(drop)
        }
        async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
            Ok(())
        }
        fn depends_on(&self) -> Vec<ResourceId> {
            vec![self.0.id()]
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities::NO_SESSIONS
        }
    }
    let lifecycle = lifecycle();
    let inner = lifecycle.guard(Memory::new("inner"));
    let outer = lifecycle.guard(Outer(inner));
    let tracked = lifecycle.track().unwrap();
    let work = tokio::spawn({
        let draining = lifecycle.draining();
        tracked.scope(async move {
            draining.await;
            outer.pool().await.map(drop)
        })
    });
    let report = lifecycle.drain().await;
    work.await.unwrap().unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.resource("outer").unwrap().outcome, Outcome::Drained);
}

#[tokio::test]
async fn what_is_registered_after_draining_began_is_refused_and_not_drained() {
    let lifecycle = lifecycle();
    assert!(lifecycle.begin_drain());
    assert!(!lifecycle.begin_drain(), "once");
    let server = Server::new();
    let late = lifecycle.guard(Memory::on(&server, "late"));
    let ran = Arc::new(AtomicBool::new(false));
    lifecycle.on_drain("too late", {
        let ran = Arc::clone(&ran);
        async move || ran.store(true, Ordering::SeqCst)
    });
    assert!(late.get().await.unwrap_err().is_shutting_down());
    let report = lifecycle.drain().await;
    assert!(report.resources.is_empty() && report.is_clean(), "{report}");
    assert!(lifecycle.init().await.unwrap_err().is_shutting_down());
    assert!(!ran.load(Ordering::SeqCst));
    assert_eq!(server.sessions(), 0);
}

#[tokio::test]
async fn l3_a_caller_that_nobody_polls_any_more_holds_up_nothing() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db").size(1));
    let held = db.get().await.unwrap();
    let mut parked = std::pin::pin!(db.get());
    let poll = std::future::poll_fn(|context| std::task::Poll::Ready(parked.as_mut().poll(context).is_pending()));
    assert!(poll.await, "there is no slot");
    drop(held);
    let report = lifecycle.drain().await;
    assert!(report.is_clean() && report.took < BUDGET / 2, "{report}");
}

#[test]
fn an_initialisation_on_a_runtime_that_has_ended_is_an_error_and_can_be_tried_again() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = {
        let runtime = runtime();
        runtime.handle().clone()
    };
    let db = lifecycle().guard(Memory::new("db"));
    {
        let _inside = ended.enter();
        let error = runtime_free_block_on(db.get()).unwrap_err();
        assert!(error.to_string().contains("the runtime ended"), "{error}");
    }
    runtime().block_on(async { drop(db.get().await.unwrap()) });
}

/// Polls until it is ready, without a runtime of its own.
fn runtime_free_block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        thread::yield_now();
    }
}

#[tokio::test]
async fn run_ends_when_the_work_ends_and_drains() {
    let lifecycle = embedded();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    let work = async { db.get().await.map(drop) };
    let report = lifecycle.run(work).await.unwrap();
    assert_eq!(report.resource("db").unwrap().outcome, Outcome::Drained);
    assert_eq!(server.sessions(), 0);

    let error = embedded().run(async { Err("out of paper") }).await.unwrap_err();
    assert_eq!(error.to_string(), "the work failed: out of paper");
}

#[tokio::test]
async fn run_lets_the_work_end_by_itself_when_draining_begins() {
    let lifecycle = embedded();
    let db = lifecycle.guard(Memory::new("db"));
    let server = {
        let (stop, db) = (lifecycle.draining(), db.clone());
        async move {
            stop.await;
            // The last request needs its session, and gets it: the work is drained before the pool.
            db.get().await.map(drop)
        }
    };
    let stop = tokio::spawn({
        let lifecycle = lifecycle.clone();
        async move {
            while lifecycle.state() != State::Running {
                tokio::task::yield_now().await;
            }
            lifecycle.drain().await
        }
    });
    let report = lifecycle.run(server).await.unwrap();
    assert!(report.is_clean(), "{report}");
    stop.await.unwrap();
}

#[tokio::test]
async fn run_is_refused_where_nothing_would_ever_say_stop() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db"));
    let error = lifecycle.run(async { Ok::<_, Error>(()) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("`embedded()` where something else calls `begin_drain`"), "{error}");
    assert_eq!((lifecycle.state(), db.resource().server().sessions()), (State::Starting, 0), "nothing was begun");
}
