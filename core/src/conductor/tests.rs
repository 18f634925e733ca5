//! The drain's order and its limits, on a clock that the tests control: each limit is pinned 1 ms before and 1 ms
//! after. What threads and real signals do is tested in `tests/`.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{Place, conduct};
use crate::{
    Capabilities, Checkouts, Error, ErrorKind, Hook, Lifecycle, Outcome, Reason, Records, Report, Resource, ResourceId,
    Retry, ShutdownGuard, Step,
    accounting::{Accounting, Ledger},
    drain::{Drain, Ends},
    latency::Latency,
    memory::{Memory, Server},
};

/// 1000 ms: 100 ms of margin, so drains end at 900 ms; one resource's reserve is 50 ms, so settling ends at 850 ms and
/// the cut comes at 887.5 ms. What is drained before another one ends 25 ms earlier than that one's reserve: a quarter of
/// the margin, for its thread to answer.
const BUDGET: Duration = Duration::from_millis(1000);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn lifecycle() -> Lifecycle {
    Lifecycle::builder().signals(false).budget(BUDGET).retry(Retry::never()).build().unwrap()
}

/// Begins the drain in this runtime, on this clock.
fn drain(lifecycle: &Lifecycle) -> Draining {
    assert!(lifecycle.shared.life().refuse(Reason::Requested, Instant::now()));
    let shared = Arc::clone(&lifecycle.shared);
    let began = Instant::now();
    let task = tokio::spawn(async move {
        let begun = shared.life().begun().await;
        conduct(&shared, &begun, Place::Task, pending()).await
    });
    Draining { began, task }
}

struct Draining {
    began: Instant,
    task: JoinHandle<Report>,
}

impl Draining {
    async fn at(&self, milliseconds: u64) {
        sleep_until(self.began + ms(milliseconds)).await;
        // Whatever the clock woke runs before the test looks.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    async fn report(self) -> Report {
        self.task.await.unwrap()
    }
}

type Log = Arc<Mutex<Vec<(&'static str, u128)>>>;

/// A resource that does as it is told and writes down when.
struct Scripted {
    name: &'static str,
    goodbye: Goodbye,
    depends_on: Vec<ResourceId>,
    latency: Option<Arc<Latency>>,
    cancel_fails: bool,
    log: Log,
    start: Instant,
}

#[derive(Clone, Copy)]
enum Goodbye {
    Takes(Duration),
    TakesTheGrace,
    EndsWithThreeOpen,
    HangsWithThreeOpen,
    UntilCut,
    Hangs,
    Panics,
    Fails,
}

impl Scripted {
    fn new(name: &'static str, goodbye: Goodbye) -> Self {
        let (log, start) = (Log::default(), Instant::now());
        let depends_on = Vec::new();
        Self { name, goodbye, depends_on, latency: None, cancel_fails: false, log, start }
    }

    /// With a server whose answers take so long.
    fn with_server(mut self, answers: Duration) -> Self {
        let latency = Latency::default();
        latency.saw(answers);
        self.latency = Some(Arc::new(latency));
        self
    }

    fn on(mut self, guard: &ShutdownGuard<Self>) -> Self {
        self.depends_on.push(guard.id());
        self.log = Arc::clone(&guard.resource().log);
        self
    }

    fn log(&self, what: &'static str) {
        self.log.lock().unwrap().push((what, self.start.elapsed().as_millis()));
    }

    fn logged(&self, what: &str) -> Vec<u128> {
        self.log.lock().unwrap().iter().filter(|(w, _)| *w == what).map(|(_, at)| *at).collect()
    }
}

impl Resource for Scripted {
    type Pool = ();

    fn name(&self) -> &str {
        self.name
    }

    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn goodbye(&self, (): &(), drain: &Drain) -> Result<(), Error> {
        self.log(self.name);
        match self.goodbye {
            Goodbye::Takes(time) => sleep(time).await,
            Goodbye::TakesTheGrace => sleep(drain.grace()).await,
            Goodbye::EndsWithThreeOpen => drain.set_open(3),
            Goodbye::HangsWithThreeOpen => {
                drain.count(Ends { closed: 1, ..Ends::default() }, 3);
                pending().await
            }
            Goodbye::UntilCut => {
                drain.until_cut().await;
                drain.count_cut(1);
                self.log("cut");
            }
            Goodbye::Hangs => pending().await,
            Goodbye::Panics => panic!("scripted panic"),
            Goodbye::Fails => return Err(Error::new(ErrorKind::Work, "scripted failure")),
        }
        drain.count_closed(1);
        self.log("over");
        Ok(())
    }

    async fn cancel(&self, (): &(), drain: &Drain) -> Result<(), Error> {
        self.log("cancel");
        if self.cancel_fails {
            return Err(Error::new(ErrorKind::Work, "scripted refusal"));
        }
        drain.count_cancelled(1);
        Ok(())
    }

    fn latency(&self) -> Option<Arc<Latency>> {
        self.latency.clone()
    }

    fn depends_on(&self) -> Vec<ResourceId> {
        self.depends_on.clone()
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }
}

impl Checkouts for Scripted {
    type Checkout = ();

    async fn checkout(&self, (): &()) -> Result<(), Error> {
        Ok(())
    }
}

async fn in_use(lifecycle: &Lifecycle, resource: Scripted) -> ShutdownGuard<Scripted> {
    let guard = lifecycle.guard(resource);
    drop(guard.get().await.unwrap());
    guard
}

#[tokio::test(start_paused = true)]
async fn l3_with_nothing_checked_out_drain_takes_the_time_of_the_goodbyes_alone() {
    let lifecycle = lifecycle();
    let _a = in_use(&lifecycle, Scripted::new("a", Goodbye::Takes(ms(30)))).await;
    let _b = in_use(&lifecycle, Scripted::new("b", Goodbye::Takes(ms(20)))).await;
    let report = drain(&lifecycle).report().await;
    assert_eq!(report.took, ms(30), "both at once, and nothing else");
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn l1_a_resource_that_hangs_is_left_at_the_deadline() {
    let lifecycle = lifecycle();
    let _a = in_use(&lifecycle, Scripted::new("a", Goodbye::Hangs)).await;
    let draining = drain(&lifecycle);
    draining.at(899).await;
    assert!(!draining.is_over());
    draining.at(901).await;
    assert!(draining.is_over());
    let report = draining.report().await;
    let a = report.resource("a").unwrap();
    assert_eq!((a.outcome, a.step), (Outcome::Hung, Step::Goodbye));
}

#[tokio::test(start_paused = true)]
async fn s6_what_is_open_when_a_resource_is_left_counts_as_cut() {
    let lifecycle = lifecycle();
    let _a = in_use(&lifecycle, Scripted::new("a", Goodbye::HangsWithThreeOpen)).await;
    let report = drain(&lifecycle).report().await;
    let a = report.resource("a").unwrap();
    assert_eq!((a.outcome, a.sessions.closed, a.sessions.cut), (Outcome::Hung, 1, 3), "{report}");
}

#[tokio::test(start_paused = true)]
async fn one_that_has_come_to_its_end_has_accounted_for_all() {
    let lifecycle = lifecycle();
    let _a = in_use(&lifecycle, Scripted::new("a", Goodbye::EndsWithThreeOpen)).await;
    let report = drain(&lifecycle).report().await;
    let a = report.resource("a").unwrap();
    assert_eq!((a.outcome, a.sessions.closed, a.sessions.cut), (Outcome::Drained, 1, 0), "{report}");
}

#[tokio::test(start_paused = true)]
async fn settling_ends_and_cancelling_begins_when_the_reserve_is_left() {
    let lifecycle = lifecycle();
    let a = in_use(&lifecycle, Scripted::new("a", Goodbye::Takes(ms(0)))).await;
    let straggler = a.get().await.unwrap();
    let draining = drain(&lifecycle);
    draining.at(849).await;
    assert_eq!(a.resource().logged("cancel"), []);
    draining.at(851).await;
    assert_eq!(a.resource().logged("cancel"), [850]);
    drop(straggler);
    let report = draining.report().await;
    assert_eq!(report.took, ms(851), "the straggler came back, nothing else is waited for");
    let a = report.resource("a").unwrap();
    assert_eq!((a.outcome, a.sessions.cancelled, a.left_out), (Outcome::Drained, 1, 0));
    assert_eq!(a.stragglers.len(), 1);
    assert!(a.stragglers[0].site.contains("tests.rs"), "{:?}", a.stragglers);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_fails_is_quoted_and_the_outcome_stays_that_of_the_goodbye() {
    let lifecycle = lifecycle();
    let resource = Scripted { cancel_fails: true, ..Scripted::new("a", Goodbye::Takes(ms(860))) };
    let _a = in_use(&lifecycle, resource).await;
    let report = drain(&lifecycle).report().await;
    let a = report.resource("a").unwrap();
    assert_eq!((a.outcome, a.sessions.closed), (Outcome::Drained, 1), "{report}");
    assert_eq!(a.error.as_deref(), Some("scripted refusal"));
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_is_given_a_larger_reserve() {
    let lifecycle = Lifecycle::builder().signals(false).budget(ms(10_000)).build().unwrap();
    let a = in_use(&lifecycle, Scripted::new("a", Goodbye::Hangs).with_server(ms(100))).await;
    let draining = drain(&lifecycle);
    draining.at(8949).await;
    assert_eq!(a.resource().logged("cancel"), []);
    draining.at(8951).await;
    assert_eq!(a.resource().logged("cancel"), [8950], "8 answers of 100 ms before 9750 ms");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_become_slow_since_init_is_given_more() {
    let lifecycle = Lifecycle::builder().signals(false).budget(ms(10_000)).build().unwrap();
    let a = in_use(&lifecycle, Scripted::new("a", Goodbye::Hangs).with_server(ms(1))).await;
    a.resource().latency.as_ref().unwrap().saw(ms(200));
    let draining = drain(&lifecycle);
    draining.at(8151).await;
    assert_eq!(a.resource().logged("cancel"), [8150], "8 answers of 200 ms before 9750 ms");
}

#[tokio::test(start_paused = true)]
async fn a_quick_server_is_given_half_a_second_for_it_may_be_slow_then() {
    let lifecycle = Lifecycle::builder().signals(false).budget(ms(10_000)).build().unwrap();
    let a = in_use(&lifecycle, Scripted::new("a", Goodbye::Hangs).with_server(ms(1))).await;
    let draining = drain(&lifecycle);
    draining.at(9249).await;
    assert_eq!(a.resource().logged("cancel"), []);
    draining.at(9251).await;
    assert_eq!(a.resource().logged("cancel"), [9250], "half a second before 9750 ms");
}

#[tokio::test(start_paused = true)]
async fn a_server_is_given_half_of_a_short_budget() {
    let lifecycle = Lifecycle::builder().signals(false).budget(ms(500)).build().unwrap();
    let resource = Scripted::new("a", Goodbye::UntilCut).with_server(ms(1));
    let a = in_use(&lifecycle, resource).await;
    let draining = drain(&lifecycle);
    draining.at(237).await;
    assert_eq!(a.resource().logged("cancel"), []);
    draining.at(239).await;
    assert_eq!(a.resource().logged("cancel"), [238], "half of 450 ms, less 12.5 ms for the answer of tracked work");
    draining.at(396).await;
    assert_eq!(a.resource().logged("cut"), []);
    draining.at(398).await;
    assert_eq!(a.resource().logged("cut"), [397], "a quarter of 212.5 ms before 450 ms");
}

#[tokio::test(start_paused = true)]
async fn what_a_server_is_given_besides_costs_nobody_else_what_it_needs() {
    let lifecycle = Lifecycle::builder().signals(false).budget(ms(500)).build().unwrap();
    let db = in_use(&lifecycle, Scripted::new("db", Goodbye::Takes(ms(0))).with_server(ms(1))).await;
    let _buffer = in_use(&lifecycle, Scripted::new("buffer", Goodbye::Hangs).on(&db)).await;
    let draining = drain(&lifecycle);
    draining.at(239).await;
    assert_eq!(db.resource().logged("cancel"), [238], "the buffer's own, with the 50 ms that it needs");
    let report = draining.report().await;
    // Of the half, 225 ms, the buffer has these 50 ms, and two threads 12.5 ms each to answer.
    let took = report.resource("buffer").unwrap().took;
    assert_eq!(took, ms(288), "150 ms for db and 12.5 ms before 450 ms");
}

#[tokio::test(start_paused = true)]
async fn l6_what_nobody_waits_for_is_given_some_answers_of_the_server_and_not_much_of_the_time() {
    for (answers, grace) in [(None, 10), (Some(ms(1)), 10), (Some(ms(20)), 80), (Some(ms(1000)), 113)] {
        let lifecycle = lifecycle();
        let resource = Scripted::new("a", Goodbye::TakesTheGrace);
        let resource = match answers {
            None => resource,
            Some(answers) => resource.with_server(answers),
        };
        let a = in_use(&lifecycle, resource).await;
        drain(&lifecycle).report().await;
        assert_eq!(a.resource().logged("over"), [grace], "{answers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_cut_comes_when_a_quarter_of_the_reserve_is_left() {
    let lifecycle = lifecycle();
    let a = in_use(&lifecycle, Scripted::new("a", Goodbye::UntilCut)).await;
    let draining = drain(&lifecycle);
    draining.at(886).await;
    assert_eq!(a.resource().logged("cut"), []);
    draining.at(889).await;
    assert_eq!(a.resource().logged("cut"), [888], "a quarter of 50 ms before 900 ms");
    let report = draining.report().await;
    let a = report.resource("a").unwrap();
    assert_eq!((a.outcome, a.sessions.cut), (Outcome::Incomplete, 1));
}

#[tokio::test(start_paused = true)]
async fn a_checkout_that_never_comes_back_is_waited_for_until_the_cut() {
    let lifecycle = lifecycle();
    let a = in_use(&lifecycle, Scripted::new("a", Goodbye::Takes(ms(5)))).await;
    let _straggler = a.get().await.unwrap();
    let draining = drain(&lifecycle);
    draining.at(887).await;
    assert!(!draining.is_over());
    draining.at(889).await;
    assert!(draining.is_over());
    let report = draining.report().await;
    let a = report.resource("a").unwrap();
    assert_eq!((a.outcome, a.left_out), (Outcome::Incomplete, 1));
}

#[tokio::test(start_paused = true)]
async fn s4_l4_a_resource_is_drained_after_its_dependents_and_at_once() {
    let lifecycle = lifecycle();
    let db = in_use(&lifecycle, Scripted::new("db", Goodbye::Takes(ms(10)))).await;
    let buffer = in_use(&lifecycle, Scripted::new("buffer", Goodbye::Takes(ms(40))).on(&db)).await;
    let _outer = in_use(&lifecycle, Scripted::new("outer", Goodbye::Takes(ms(5))).on(&buffer)).await;
    let draining = drain(&lifecycle);
    let report = draining.report().await;
    assert_eq!(report.took, ms(55), "each begins when the one before ends");
    let began = |name| db.resource().logged(name);
    assert_eq!((began("outer"), began("buffer"), began("db")), (vec![0], vec![5], vec![45]));
}

#[tokio::test(start_paused = true)]
async fn s4_l2_a_dependent_that_hangs_leaves_its_resource_time_for_its_goodbye() {
    let lifecycle = lifecycle();
    let db = in_use(&lifecycle, Scripted::new("db", Goodbye::Takes(ms(10)))).await;
    let _buffer = in_use(&lifecycle, Scripted::new("buffer", Goodbye::Hangs).on(&db)).await;
    let draining = drain(&lifecycle);
    draining.at(824).await;
    assert_eq!(db.resource().logged("db"), []);
    draining.at(826).await;
    assert_eq!(db.resource().logged("db"), [825], "the reserve of db and the answer before 900 ms");
    let report = draining.report().await;
    assert_eq!(report.took, ms(835));
    assert_eq!(report.resource("buffer").unwrap().outcome, Outcome::Hung);
    assert_eq!(report.resource("db").unwrap().outcome, Outcome::Drained);
}

#[tokio::test(start_paused = true)]
async fn l2_one_that_panics_and_one_that_fails_cost_only_themselves() {
    let lifecycle = lifecycle();
    let _a = in_use(&lifecycle, Scripted::new("panics", Goodbye::Panics)).await;
    let _b = in_use(&lifecycle, Scripted::new("fails", Goodbye::Fails)).await;
    let _c = in_use(&lifecycle, Scripted::new("works", Goodbye::Takes(ms(10)))).await;
    let report = drain(&lifecycle).report().await;
    assert_eq!(report.took, ms(10));
    let row = |name| report.resource(name).unwrap();
    assert_eq!(row("panics").outcome, Outcome::Panicked);
    assert!(row("panics").error.as_ref().unwrap().contains("scripted panic"));
    assert_eq!(row("fails").outcome, Outcome::Failed);
    assert!(row("fails").error.as_ref().unwrap().contains("scripted failure"));
    assert_eq!(row("works").outcome, Outcome::Drained);
    assert!(!report.is_clean());
}

#[tokio::test(start_paused = true)]
async fn s3_one_that_never_initialised_is_not_drained() {
    let lifecycle = lifecycle();
    let a = lifecycle.guard(Scripted::new("a", Goodbye::Takes(ms(10))));
    let report = drain(&lifecycle).report().await;
    assert_eq!(report.resource("a").unwrap().outcome, Outcome::NotInitialised);
    assert_eq!(a.resource().logged("a"), []);
    assert!(report.is_clean());
}

#[tokio::test(start_paused = true)]
async fn tracked_work_is_waited_for_before_anything_is_drained_and_may_check_out() {
    let lifecycle = lifecycle();
    let db = in_use(&lifecycle, Scripted::new("db", Goodbye::Takes(ms(10)))).await;
    let work = lifecycle.track().unwrap();
    let request = tokio::spawn({
        let db = db.clone();
        work.scope(async move {
            sleep(ms(100)).await;
            db.get().await.map(drop)
        })
    });
    let draining = drain(&lifecycle);
    draining.at(50).await;
    assert!(db.get().await.unwrap_err().is_shutting_down(), "s2: other code is refused");
    assert!(lifecycle.track().unwrap_err().is_shutting_down());
    let report = draining.report().await;
    assert!(request.await.unwrap().is_ok(), "tracked work is a dependent");
    assert_eq!(db.resource().logged("db"), [100]);
    assert!(report.resource("tracked work").is_none(), "nothing to say about it");
}

#[tokio::test(start_paused = true)]
async fn tracked_work_that_hangs_keeps_the_resources_for_its_share_of_the_budget_and_is_named() {
    let lifecycle = lifecycle();
    let db = in_use(&lifecycle, Scripted::new("db", Goodbye::Takes(ms(10)))).await;
    let work = lifecycle.track_as("GET /events").unwrap();
    let request = tokio::spawn({
        let db = db.clone();
        work.scope(async move {
            sleep(ms(670)).await;
            db.get().await.map(drop)?;
            sleep(ms(10)).await;
            assert!(db.get().await.is_err_and(|error| error.is_shutting_down()));
            pending::<()>().await;
            Ok::<_, Error>(())
        })
    });
    let draining = drain(&lifecycle);
    draining.at(674).await;
    assert_eq!(db.resource().logged("db"), []);
    draining.at(676).await;
    assert_eq!(db.resource().logged("db"), [675], "three quarters of 900 ms");
    draining.at(800).await;
    assert!(!draining.is_over(), "the work goes on");
    let report = draining.report().await;
    assert!(!request.is_finished());
    let work = report.resource("tracked work").unwrap();
    assert_eq!((work.outcome, work.left_out), (Outcome::Incomplete, 1), "{report}");
    assert_eq!(work.stragglers[0].names, ["GET /events"]);
    let db = report.resource("db").unwrap();
    assert_eq!((db.outcome, db.refused_tracked), (Outcome::Drained, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn tracked_work_that_ends_after_its_share_has_drained_and_is_named() {
    let lifecycle = lifecycle();
    let _db = in_use(&lifecycle, Scripted::new("db", Goodbye::Takes(ms(10)))).await;
    let telemetry = Scripted::new("telemetry", Goodbye::Takes(ms(10)));
    let log = Arc::clone(&telemetry.log);
    lifecycle.on_drain("last", {
        let (log, start) = (Arc::clone(&log), telemetry.start);
        Hook::new(async move || log.lock().unwrap().push(("last", start.elapsed().as_millis()))).last()
    });
    let work = lifecycle.track_as("GET /download").unwrap();
    tokio::spawn(work.scope(sleep(ms(700))));
    let report = drain(&lifecycle).report().await;
    assert!(report.is_clean(), "{report}");
    let work = report.resource("tracked work").unwrap();
    assert_eq!((work.outcome, work.left_out, work.took), (Outcome::Drained, 0, ms(700)), "{report}");
    assert_eq!(work.stragglers[0].names, ["GET /download"]);
    assert_eq!(work.reasons, ["still there after its share of 675 ms: the resources were drained beside it"]);
    assert_eq!(*log.lock().unwrap(), [("last", 700)], "telemetry tells of the work, too");
}

#[tokio::test(start_paused = true)]
async fn the_share_of_tracked_work_is_settable_and_leaves_the_resources_their_reserve() {
    for (share, begins) in [(0.0, 0), (0.5, 450), (1.0, 825)] {
        let builder = Lifecycle::builder().signals(false).budget(BUDGET).retry(Retry::never());
        let lifecycle = builder.work_share(share).build().unwrap();
        let db = in_use(&lifecycle, Scripted::new("db", Goodbye::Takes(ms(10)))).await;
        let _work = lifecycle.track().unwrap();
        let report = drain(&lifecycle).report().await;
        assert_eq!(db.resource().logged("db"), [begins], "{share}: {report}");
        let work = report.resource("tracked work").unwrap();
        assert_eq!((work.outcome, work.left_out, work.stragglers.len()), (Outcome::Incomplete, 1, 1));
    }
    for share in [-0.1, 1.1, f64::NAN] {
        let error = Lifecycle::builder().signals(false).work_share(share).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_run_beside_the_resources_or_before_one_or_last() {
    let lifecycle = lifecycle();
    let db = in_use(&lifecycle, Scripted::new("db", Goodbye::Takes(ms(10)))).await;
    let log = |what| {
        let db = db.clone();
        move || async move {
            db.resource().log(what);
            sleep(ms(20)).await;
        }
    };
    lifecycle.on_drain("beside", log("beside"));
    lifecycle.on_drain("before", Hook::new(log("before")).before(&db));
    lifecycle.on_drain("last", Hook::new(log("last")).last());
    lifecycle.on_drain("fails", async || Err::<(), _>("no disk"));
    let report = drain(&lifecycle).report().await;
    let began = |name| db.resource().logged(name);
    assert_eq!((began("beside"), began("before"), began("db"), began("last")), (vec![0], vec![0], vec![20], vec![30]));
    assert_eq!(report.took, ms(50));
    let fails = report.resource("fails").unwrap();
    assert_eq!(fails.outcome, Outcome::Failed);
    assert!(fails.error.as_ref().unwrap().contains("no disk"));
}

#[tokio::test(start_paused = true)]
async fn the_time_of_the_last_hook_is_kept_for_it() {
    let lifecycle = lifecycle();
    let db = in_use(&lifecycle, Scripted::new("db", Goodbye::Hangs)).await;
    lifecycle.on_drain(
        "last",
        Hook::new({
            let db = db.clone();
            async move || db.resource().log("last")
        })
        .last(),
    );
    let draining = drain(&lifecycle);
    draining.at(824).await;
    assert_eq!(db.resource().logged("last"), []);
    draining.at(826).await;
    assert_eq!(db.resource().logged("last"), [825]);
    assert!(draining.is_over());
}

#[tokio::test(start_paused = true)]
async fn an_initialisation_under_way_is_waited_for_until_settling_ends_and_then_drained_or_ended() {
    for (takes, outcome) in [(849, Outcome::Drained), (901, Outcome::NotInitialised)] {
        let lifecycle = lifecycle();
        let server = Server::new();
        let slow = lifecycle.guard(Slow { takes: ms(takes), memory: Memory::on(&server, "slow") });
        let waiter = tokio::spawn(async move { slow.get().await.map(drop) });
        tokio::task::yield_now().await;
        let draining = drain(&lifecycle);
        draining.at(1).await;
        assert!(waiter.is_finished(), "s2: a waiter is woken at once");
        assert!(waiter.await.unwrap().unwrap_err().is_shutting_down());
        let report = draining.report().await;
        assert_eq!(report.resource("slow").unwrap().outcome, outcome, "{takes}: {report}");
        assert_eq!(server.sessions(), 0, "{takes}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_initialisation_under_way_gets_a_second_at_most() {
    for (takes, outcome) in [(999, Outcome::Drained), (1001, Outcome::NotInitialised)] {
        let lifecycle = Lifecycle::builder().signals(false).budget(ms(30_000)).build().unwrap();
        let server = Server::new();
        let slow = lifecycle.guard(Slow { takes: ms(takes), memory: Memory::on(&server, "slow") });
        tokio::spawn(async move { slow.get().await.map(drop) });
        tokio::task::yield_now().await;
        let report = drain(&lifecycle).report().await;
        assert_eq!(report.resource("slow").unwrap().outcome, outcome, "{takes}: {report}");
        assert!(report.took <= ms(1001), "{report}");
        assert_eq!(server.sessions(), 0, "{takes}");
    }
}

/// Opens its session first and then takes its time, or opens it too late.
struct Slow {
    takes: Duration,
    memory: Memory,
}

impl Resource for Slow {
    type Pool = crate::memory::MemoryPool;

    fn name(&self) -> &str {
        self.memory.name()
    }
    async fn init(&self) -> Result<Self::Pool, Error> {
        sleep(self.takes).await;
        self.memory.init().await
    }
    async fn goodbye(&self, pool: &Self::Pool, drain: &Drain) -> Result<(), Error> {
        self.memory.goodbye(pool, drain).await
    }
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
}

impl Checkouts for Slow {
    type Checkout = crate::memory::MemorySession;
    async fn checkout(&self, pool: &Self::Pool) -> Result<Self::Checkout, Error> {
        self.memory.checkout(pool).await
    }
    fn give_back(&self, pool: &Self::Pool, session: Self::Checkout) {
        self.memory.give_back(pool, session);
    }
}

/// A buffer that was writing three of its ten records when it hung.
struct Hoard(Arc<Ledger>);

impl Resource for Hoard {
    type Pool = ();

    fn name(&self) -> &str {
        "hoard"
    }
    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
        self.0.writing(2);
        self.0.written(2);
        self.0.writing(3);
        pending().await
    }
    fn ledger(&self) -> Option<Arc<dyn Accounting>> {
        Some(Arc::clone(&self.0) as Arc<dyn Accounting>)
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::NO_SESSIONS
    }
}

#[tokio::test(start_paused = true)]
async fn s6_the_report_of_a_buffer_that_hung_accounts_for_every_record() {
    let lifecycle = lifecycle();
    let ledger = Arc::new(Ledger::default());
    let hoard = lifecycle.guard(Hoard(Arc::clone(&ledger)));
    hoard.pool().await.unwrap();
    assert!(ledger.accepted(10));
    let report = drain(&lifecycle).report().await;
    let row = report.resource("hoard").unwrap();
    assert_eq!(row.outcome, Outcome::Hung);
    assert_eq!(row.records, Some(Records { accepted: 10, written: 2, spilled: 0, lost: 5, in_doubt: 3, pending: 0 }));
}

#[tokio::test(start_paused = true)]
async fn l5_a_second_signal_ends_the_wait_at_once_and_the_report_says_who_was_running() {
    let lifecycle = lifecycle();
    let db = in_use(&lifecycle, Scripted::new("db", Goodbye::Takes(ms(10)))).await;
    let _buffer = in_use(&lifecycle, Scripted::new("buffer", Goodbye::Hangs).on(&db)).await;
    assert!(lifecycle.shared.life().refuse(Reason::Signal("SIGTERM".into()), Instant::now()));
    let begun = lifecycle.shared.life().begun().await;
    let report = conduct(&lifecycle.shared, &begun, Place::Task, sleep(ms(123))).await;
    assert_eq!(report.took, ms(123));
    assert!(report.forced && !report.is_clean());
    assert_eq!(report.resource("buffer").unwrap().outcome, Outcome::Hung);
    assert_eq!(report.resource("db").unwrap().outcome, Outcome::NotReached);
}
