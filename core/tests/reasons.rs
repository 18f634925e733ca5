//! A report gives its reasons: who did not answer, what is out, who was refused, and what nobody could see.

use std::{future::pending, time::Duration};

use winddown_core::{
    Capabilities, Error, ErrorKind, Lifecycle, Outcome, Report, Resource, ResourceReport,
    adapter::{Drain, Ends},
    memory::{Memory, Server},
};

/// 10 s: 250 ms of margin, 50 ms in reserve, and of that the last quarter for the cut.
const BUDGET: Duration = Duration::from_secs(10);

fn lifecycle() -> Lifecycle {
    Lifecycle::builder().signals(false).budget(BUDGET).build().unwrap()
}

fn row<'a>(report: &'a Report, name: &str) -> &'a ResourceReport {
    report.resource(name).unwrap_or_else(|| panic!("no {name} in\n{report}"))
}

/// Says of its sessions what it is told to.
struct Says {
    address: Option<&'static str>,
    capabilities: Capabilities,
    closed: usize,
    unconfirmed: usize,
    open: usize,
    notes: Vec<&'static str>,
    cancel_hangs: bool,
}

impl Default for Says {
    fn default() -> Self {
        Self {
            address: None,
            capabilities: Capabilities::ALL,
            closed: 0,
            unconfirmed: 0,
            open: 0,
            notes: Vec::new(),
            cancel_hangs: false,
        }
    }
}

impl Resource for Says {
    type Pool = ();

    fn name(&self) -> &str {
        "says"
    }
    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn goodbye(&self, (): &(), drain: &Drain) -> Result<(), Error> {
        drain.count_closed(self.closed);
        drain.count_unconfirmed(self.unconfirmed);
        for note in &self.notes {
            drain.note(&Error::new(ErrorKind::Work, *note));
        }
        if self.open > 0 {
            drain.set_open(self.open);
            drain.until_cut().await;
            drain.count(Ends { cut: self.open, ..Ends::default() }, 0);
        }
        Ok(())
    }
    async fn cancel(&self, (): &(), _: &Drain) -> Result<(), Error> {
        if self.cancel_hangs { pending().await } else { Ok(()) }
    }
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
    fn address(&self) -> Option<String> {
        self.address.map(Into::into)
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_says_who_did_not_answer_and_for_how_long() {
    let lifecycle = lifecycle();
    let silent = lifecycle.guard(Says { open: 2, address: Some("db.example:5432"), ..Says::default() });
    silent.pool().await.unwrap();
    let report = lifecycle.drain_in_tasks().await;
    let said = ["2 cut since db.example:5432 had not ended its side after 9.738 s"];
    assert_eq!(row(&report, "says").reasons[..1], said, "{report}");
    assert!(report.to_string().contains(said[0]), "{report}");
    let read: Report = serde_json::from_str(&report.to_json_line()).unwrap();
    assert_eq!(row(&read, "says").reasons, row(&report, "says").reasons);
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_under_its_holder_says_so() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    let _held = db.get().await.unwrap();
    let report = lifecycle.drain_in_tasks().await;
    let db = row(&report, "db");
    assert_eq!((db.outcome, db.sessions.cut, db.left_out), (Outcome::Incomplete, 1, 1), "{report}");
    assert_eq!(db.reasons, ["1 cut while checked out, after 9.738 s"], "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_ran_out_of_time_says_so() {
    let lifecycle = lifecycle();
    let hangs = lifecycle.guard(Says { open: 1, cancel_hangs: true, ..Says::default() });
    hangs.pool().await.unwrap();
    let report = lifecycle.drain_in_tasks().await;
    let reasons = &row(&report, "says").reasons;
    assert!(reasons.contains(&"cancelling ran out of time: the server did not answer within 38 ms".into()), "{report}");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_can_confirm_is_neither_closed_nor_cut_and_no_failure() {
    for (capabilities, expected) in
        [(Capabilities::ALL, (3, 2)), (Capabilities::ALL.without_confirmed_end(), (0, 5)), (Capabilities::NONE, (0, 5))]
    {
        let lifecycle = lifecycle();
        let wrapped = lifecycle.guard(Says { closed: 3, unconfirmed: 2, capabilities, ..Says::default() });
        wrapped.pool().await.unwrap();
        let report = lifecycle.drain_in_tasks().await;
        let sessions = row(&report, "says").sessions;
        assert_eq!((sessions.closed, sessions.unconfirmed), expected, "{report}");
        assert_eq!((row(&report, "says").outcome, sessions.cut), (Outcome::Drained, 0), "{report}");
        assert!(report.is_clean() && report.to_string().contains("ended, unconfirmed"), "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn several_errors_are_quoted_each_once() {
    let lifecycle = lifecycle();
    let notes = vec!["reset by peer", "timed out", "reset by peer"];
    let fails = lifecycle.guard(Says { notes, ..Says::default() });
    fails.pool().await.unwrap();
    let report = lifecycle.drain_in_tasks().await;
    assert_eq!(row(&report, "says").error.as_deref(), Some("reset by peer; timed out"), "{report}");
}

/// What claims nothing has claimed nothing.
#[tokio::test]
async fn a_resource_that_says_nothing_of_its_capabilities_can_nothing() {
    struct Plain;
    impl Resource for Plain {
        type Pool = ();
        fn name(&self) -> &str {
            "plain"
        }
        async fn init(&self) -> Result<(), Error> {
            Ok(())
        }
        async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
            Ok(())
        }
    }
    let lifecycle = lifecycle();
    let plain = lifecycle.guard(Plain);
    plain.pool().await.unwrap();
    lifecycle.on_drain("hook", async || ());
    let report = lifecycle.drain().await;
    let cannot = ["say goodbye", "see the server's end", "cancel statements", "see every session"];
    assert_eq!(row(&report, "plain").cannot, cannot);
    assert!(row(&report, "hook").cannot.is_empty(), "it has no sessions");
}

#[tokio::test(start_paused = true)]
async fn tracked_work_that_does_not_end_is_named() {
    let lifecycle = lifecycle();
    let mut tracked: Vec<_> = ["GET /orders", "request 17"].map(|name| lifecycle.track_as(name).unwrap()).into();
    tracked.push(lifecycle.track().unwrap());
    let report = lifecycle.drain_in_tasks().await;
    let work = row(&report, "tracked work");
    let mut names: Vec<_> = work.stragglers.iter().flat_map(|straggler| straggler.names.clone()).collect();
    names.sort();
    assert_eq!(names, ["GET /orders", "request 17"], "{report}");
    assert_eq!(work.stragglers.iter().map(|straggler| straggler.count).sum::<usize>(), 3);
    assert!(report.to_string().contains("GET /orders"), "{report}");
}

#[tokio::test]
async fn refusals_are_counted_by_who_was_refused() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db").size(1));
    let held = db.get().await.unwrap();
    // Waits for a slot.
    let waits = tokio::spawn({
        let db = db.clone();
        async move { db.get().await.map(drop) }
    });
    let work = lifecycle.track_as("late").unwrap();
    let late = tokio::spawn({
        let (db, lifecycle) = (db.clone(), lifecycle.clone());
        work.scope(async move {
            lifecycle.draining().await;
            for _ in 0..2 {
                assert!(tokio::spawn(refused(db.clone())).await.unwrap(), "in a task of its own it is nobody's");
            }
            drop(held);
            db.get().await.map(drop)
        })
    });
    tokio::task::yield_now().await;
    let last_words = {
        let db = db.clone();
        async move || {
            while !refused(db.clone()).await {
                tokio::task::yield_now().await;
            }
        }
    };
    lifecycle.on_drain("last words", last_words);
    let report = lifecycle.drain().await;
    assert!(waits.await.unwrap().unwrap_err().is_shutting_down());
    late.await.unwrap().unwrap();
    let db = row(&report, "db");
    assert_eq!((db.refused, db.refused_tracked), (3, 1), "{report}");
    assert!(report.to_string().contains("3 checkouts refused, 1 checkouts of tracked work refused"), "{report}");
}

async fn refused(db: winddown_core::ShutdownGuard<Memory>) -> bool {
    db.get().await.is_err_and(|error| error.is_shutting_down())
}
