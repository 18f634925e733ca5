//! A lifecycle that lives more than once: every invariant holds in each life.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;
use winddown_core::{
    Capabilities, Error, ErrorKind, Hook, Lifecycle, Outcome, Reason, Resource, State,
    adapter::Drain,
    memory::{Memory, Server},
};

fn lifecycle() -> Lifecycle {
    Lifecycle::builder().signals(false).budget(Duration::from_secs(10)).build().unwrap()
}

#[tokio::test]
async fn s1_s3_each_life_opens_its_own_sessions_and_drains_them_once() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    let unused = lifecycle.guard(Memory::on(&server, "unused"));
    for life in 1..=5 {
        assert_eq!(lifecycle.state(), State::Starting);
        let (one, other) = tokio::join!(db.get(), db.get());
        drop((one.unwrap(), other.unwrap()));
        assert!(server.sessions() > 0);
        assert_eq!(server.losses(), 0);
        let goodbyes = server.goodbyes();

        let report = lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(server.sessions(), 0);
        let closed = report.resource("db").unwrap().sessions.closed;
        assert_eq!(server.goodbyes() - goodbyes, usize::try_from(closed).unwrap());
        assert_eq!(report.resource("unused").unwrap().outcome, Outcome::NotInitialised, "in life {life}");
        assert!(db.get().await.is_err_and(|error| error.is_shutting_down()));
        assert!(unused.get().await.is_err_and(|error| error.is_shutting_down()));
        lifecycle.restart().unwrap();
    }
}

#[tokio::test]
async fn init_and_track_work_in_each_life() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db"));
    for _ in 0..2 {
        lifecycle.init().await.unwrap();
        assert_eq!(lifecycle.state(), State::Running);
        let tracked = lifecycle.track().unwrap();
        let (drained, ()) = tokio::join!(lifecycle.drain(), async {
            lifecycle.draining().await;
            assert!(lifecycle.track().is_err());
            // A dependent is let in until its own end.
            tracked.scope(async { drop(db.get().await.unwrap()) }).await;
        });
        assert!(drained.is_clean(), "{drained}");
        lifecycle.restart().unwrap();
    }
}

#[tokio::test]
async fn a_life_begins_when_the_one_before_is_over_and_once() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db"));
    let early = |error: Error| {
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("drain it first"), "{error}");
    };
    early(lifecycle.restart().unwrap_err());
    let held = db.get().await.unwrap();
    assert!(lifecycle.begin_drain());
    early(lifecycle.restart().unwrap_err());
    drop(held);
    lifecycle.drained().await;
    lifecycle.restart().unwrap();
    early(lifecycle.restart().unwrap_err());
}

#[tokio::test(start_paused = true)]
async fn a_straggler_of_a_life_that_is_over_is_no_business_of_the_next() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    let straggler = db.get().await.unwrap();
    let report = lifecycle.drain_in_tasks().await;
    assert_eq!(report.resource("db").unwrap().left_out, 1, "{report}");
    lifecycle.restart().unwrap();
    assert_eq!(db.out(), 0);
    drop(db.get().await.unwrap());
    // It comes back to the pool that it is of.
    drop(straggler);
    assert_eq!(db.out(), 0);
    let report = lifecycle.drain_in_tasks().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.resource("db").unwrap().sessions.closed, server.sessions()), (1, 0));
}

#[tokio::test]
async fn who_waits_for_something_of_a_life_waits_for_that_of_this_one() {
    let lifecycle = lifecycle();
    let _db = lifecycle.guard(Memory::new("db"));
    let draining = lifecycle.draining();
    let first = lifecycle.drain().await;
    lifecycle.restart().unwrap();
    draining.await;
    let mut next = pin!(lifecycle.draining());
    assert!(futures_are_pending(next.as_mut()).await);
    let second = lifecycle.drain().await;
    next.await;
    assert!(!Arc::ptr_eq(&first, &second));
}

async fn futures_are_pending(future: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(Duration::from_millis(20), future).await.is_err()
}

#[tokio::test]
async fn s4_hooks_run_in_their_life_or_in_each_before_what_they_use() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db"));
    let runs: [Arc<AtomicUsize>; 2] = std::array::from_fn(|_| Arc::default());
    let [once, each] = runs.clone();
    lifecycle.on_drain("once", async move || {
        once.fetch_add(1, Ordering::SeqCst);
    });
    let last_words = {
        let db = db.clone();
        move || {
            let (db, each) = (db.clone(), Arc::clone(&each));
            async move {
                drop(db.get().await?);
                each.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Error>(())
            }
        }
    };
    lifecycle.on_drain("each", Hook::on_every_drain(last_words).before(&db));
    for life in 1..=3 {
        let report = lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.resource("db").unwrap().sessions.closed, 1, "the hook used it");
        assert_eq!(report.resource("once").is_some(), life == 1);
        lifecycle.restart().unwrap();
    }
    assert_eq!(runs.map(|runs| runs.load(Ordering::SeqCst)), [1, 3]);
}

#[tokio::test]
async fn what_is_registered_in_a_later_life_is_of_that_life_and_those_after() {
    let lifecycle = lifecycle();
    lifecycle.drain().await;
    let between = lifecycle.guard(Memory::new("between"));
    lifecycle.restart().unwrap();
    let later = lifecycle.guard(Memory::new("later"));
    for _ in 0..2 {
        drop(later.get().await.unwrap());
        assert!(between.get().await.is_err_and(|error| error.is_shutting_down()));
        let report = lifecycle.drain().await;
        assert_eq!(report.resource("later").unwrap().sessions.closed, 1, "{report}");
        assert!(report.resource("between").is_none());
        lifecycle.restart().unwrap();
    }
}

/// A pool that the application has opened: nobody here can do that again.
struct Opened;

impl Resource for Opened {
    type Pool = ();

    fn name(&self) -> &str {
        "opened"
    }

    fn opened(&self) -> Option<()> {
        Some(())
    }

    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NO_SESSIONS
    }
}

#[tokio::test]
async fn what_the_application_opened_has_one_life() {
    let lifecycle = lifecycle();
    let opened = lifecycle.guard(Opened);
    let _db = lifecycle.guard(Memory::new("db"));
    opened.pool().await.unwrap();
    lifecycle.drain().await;
    lifecycle.restart().unwrap();
    assert!(opened.pool().await.is_err_and(|error| error.is_shutting_down()));
    lifecycle.init().await.unwrap();
    let report = lifecycle.drain().await;
    assert!(report.resource("opened").is_none() && report.resource("db").is_some(), "{report}");
}

#[tokio::test]
async fn a_failed_init_can_be_followed_by_a_life_that_succeeds() {
    let lifecycle = Lifecycle::builder().signals(false).retry(winddown_core::Retry::never()).build().unwrap();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    server.kill();
    assert_eq!(lifecycle.init().await.unwrap_err().kind(), ErrorKind::Init);
    server.start();
    assert_eq!(lifecycle.drained().await.reason, Reason::InitFailed);
    lifecycle.restart().unwrap();
    lifecycle.init().await.unwrap();
    drop(db.get().await.unwrap());
    assert!(lifecycle.drain().await.is_clean());
}

#[tokio::test]
async fn work_that_was_given_to_run_does_not_end_the_life_after_its_own() {
    let lifecycle = Lifecycle::builder().embedded().build().unwrap();
    let db = lifecycle.guard(Memory::new("db"));
    let work = async {
        lifecycle.begin_drain();
        Ok::<_, Error>(())
    };
    let report = lifecycle.run(work).await.unwrap();
    assert_eq!(report.reason, Reason::Requested);
    lifecycle.restart().unwrap();
    drop(db.get().await.unwrap());
    assert_eq!(lifecycle.state(), State::Starting);
    let report = lifecycle.run(async { Ok::<_, Error>(()) }).await.unwrap();
    assert_eq!((report.reason.clone(), report.resource("db").unwrap().sessions.closed), (Reason::WorkEnded, 1));
}

/// S2 and S3 while callers race with the ends and the beginnings of lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s2_s3_nothing_is_handed_out_between_two_lives() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    let handed_out = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (db, handed_out) = (db.clone(), Arc::clone(&handed_out));
            tokio::spawn(async move {
                loop {
                    match db.get().await {
                        Ok(_) => handed_out.fetch_add(1, Ordering::SeqCst),
                        Err(error) => {
                            assert!(error.is_shutting_down(), "{error}");
                            0
                        }
                    };
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for life in 0..200 {
        let before = handed_out.load(Ordering::SeqCst);
        while handed_out.load(Ordering::SeqCst) == before {
            sleep(Duration::from_micros(50)).await;
        }
        let report = lifecycle.drain().await;
        assert!(report.is_clean(), "in life {life}: {report}");
        // Those that had it have counted by now, and nobody gets it.
        assert_eq!((server.sessions(), server.losses()), (0, 0), "in life {life}");
        lifecycle.restart().unwrap();
    }
    for caller in callers {
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
    }
    assert!(lifecycle.drain().await.is_clean());
    assert_eq!(server.sessions(), 0);
}
