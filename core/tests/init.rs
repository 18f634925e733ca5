//! S1: initialised once, whoever asks, fails, panics or gives up. And what `Lifecycle::init` makes of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, task::JoinSet};
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Lifecycle, Outcome, Reason, Resource, ResourceId, Retry, State,
    adapter::Drain,
    memory::{Memory, MemoryPool, MemorySession, Server},
};

fn lifecycle() -> Lifecycle {
    let retry = Retry::new(3, Duration::from_millis(10), Duration::from_millis(100));
    Lifecycle::builder().signals(false).budget(Duration::from_secs(5)).retry(retry).build().unwrap()
}

/// Counts its initialisations, holds each until it gets a permit, and does what `then` says with the n-th.
struct Counted {
    begun: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
    then: fn(usize) -> Result<(), Error>,
    memory: Memory,
}

impl Counted {
    fn new(then: fn(usize) -> Result<(), Error>) -> Self {
        Self { begun: Arc::default(), permits: Arc::new(Semaphore::new(0)), then, memory: Memory::new("counted") }
    }
}

impl Resource for Counted {
    type Pool = MemoryPool;

    fn name(&self) -> &str {
        self.memory.name()
    }
    async fn init(&self) -> Result<MemoryPool, Error> {
        let attempt = self.begun.fetch_add(1, Ordering::SeqCst);
        self.permits.acquire().await.unwrap().forget();
        (self.then)(attempt)?;
        self.memory.init().await
    }
    async fn goodbye(&self, pool: &MemoryPool, drain: &Drain) -> Result<(), Error> {
        self.memory.goodbye(pool, drain).await
    }
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
}

impl Checkouts for Counted {
    type Checkout = MemorySession;
    async fn checkout(&self, pool: &MemoryPool) -> Result<MemorySession, Error> {
        self.memory.checkout(pool).await
    }
    fn give_back(&self, pool: &MemoryPool, session: MemorySession) {
        self.memory.give_back(pool, session);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_hundred_concurrent_first_uses_initialise_once() {
    let lifecycle = lifecycle();
    let counted = Counted::new(|_| Ok(()));
    let (begun, permits, server) =
        (Arc::clone(&counted.begun), Arc::clone(&counted.permits), counted.memory.server().clone());
    let guard = lifecycle.guard(counted);
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let guard = guard.clone();
        callers.spawn(async move { guard.get().await.map(drop) });
    }
    // More than one permit: only the promise keeps a second initialisation away.
    permits.add_permits(100);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap().unwrap();
    }
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    assert!(server.sessions() <= 10);
    lifecycle.drain().await;
}

#[tokio::test]
async fn s1_a_failure_reaches_all_who_waited_and_the_next_caller_tries_again() {
    let lifecycle = lifecycle();
    let counted = Counted::new(|attempt| match attempt {
        0 => Err(Error::new(ErrorKind::Init, "the disk is full")),
        _ => Ok(()),
    });
    let (begun, permits) = (Arc::clone(&counted.begun), Arc::clone(&counted.permits));
    let guard = lifecycle.guard(counted);
    let mut waiters = JoinSet::new();
    for _ in 0..10 {
        let guard = guard.clone();
        waiters.spawn(async move { guard.get().await.map(drop) });
    }
    tokio::task::yield_now().await;
    permits.add_permits(1);
    while let Some(waiter) = waiters.join_next().await {
        assert_eq!(waiter.unwrap().unwrap_err().to_string(), "counted: the disk is full");
    }
    assert_eq!(begun.load(Ordering::SeqCst), 1, "nobody tried again by themselves");
    permits.add_permits(1);
    guard.get().await.unwrap();
    assert_eq!(begun.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn s1_a_caller_that_is_cancelled_neither_cancels_nor_repeats_it_for_others() {
    let lifecycle = lifecycle();
    let counted = Counted::new(|_| Ok(()));
    let (begun, permits) = (Arc::clone(&counted.begun), Arc::clone(&counted.permits));
    let guard = lifecycle.guard(counted);
    let spawn = || {
        let guard = guard.clone();
        tokio::spawn(async move { guard.get().await.map(drop) })
    };
    let (first, second) = (spawn(), spawn());
    tokio::task::yield_now().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    permits.add_permits(1);
    second.await.unwrap().unwrap();
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn s1_a_panic_is_an_error_and_can_be_tried_again() {
    let lifecycle = lifecycle();
    let counted = Counted::new(|attempt| match attempt {
        0 => panic!("no such table"),
        _ => Ok(()),
    });
    counted.permits.add_permits(2);
    let guard = lifecycle.guard(counted);
    let error = guard.get().await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Panicked, "counted: panicked: no such table"));
    guard.get().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn retryable_errors_are_tried_again_after_a_pause_and_others_are_not() {
    let lifecycle = lifecycle();
    let server = Server::new();
    server.refuse(3);
    let full = lifecycle.guard(Memory::on(&server, "full"));
    let began = tokio::time::Instant::now();
    full.get().await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(10 + 20 + 40), "{:?}", began.elapsed());

    server.refuse(4);
    let fuller = lifecycle.guard(Memory::on(&server, "fuller"));
    let error = fuller.get().await.unwrap_err();
    assert!(error.is_retryable(), "the tries are used up, the caller may go on: {error}");

    let counted = Counted::new(|_| Err(Error::new(ErrorKind::Init, "wrong password")));
    let begun = Arc::clone(&counted.begun);
    counted.permits.add_permits(10);
    lifecycle.guard(counted).get().await.unwrap_err();
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn init_starts_everything_at_once_and_takes_it_back_when_one_fails() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let counted = Counted::new(|_| Err(Error::new(ErrorKind::Init, "wrong password")));
    let permits = Arc::clone(&counted.permits);
    let _a = lifecycle.guard(Memory::on(&server, "a"));
    let _bad = lifecycle.guard(counted);
    let b = lifecycle.guard(Memory::on(&server, "b"));
    let init = tokio::spawn({
        let lifecycle = lifecycle.clone();
        async move { lifecycle.init().await }
    });
    // Both are open while the third one waits.
    while server.sessions() < 2 {
        tokio::task::yield_now().await;
    }
    permits.add_permits(1);
    let error = init.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "counted: wrong password");
    assert_eq!((server.sessions(), server.goodbyes()), (0, 2), "rolled back, with goodbyes");
    assert_eq!(lifecycle.state(), State::Drained);
    let report = lifecycle.drained().await;
    assert_eq!(report.resource("a").unwrap().outcome, Outcome::Drained);
    assert_eq!(report.resource("counted").unwrap().outcome, Outcome::NotInitialised);
    assert!(b.get().await.unwrap_err().is_shutting_down());
}

#[tokio::test]
async fn a_stop_that_arrives_during_init_ends_the_retries_and_drains_what_is_open() {
    let lifecycle = lifecycle();
    let (up, down) = (Server::new(), Server::new());
    down.refuse(usize::MAX);
    let _up = lifecycle.guard(Memory::on(&up, "up"));
    let _down = lifecycle.guard(Memory::on(&down, "down"));
    let init = tokio::spawn({
        let lifecycle = lifecycle.clone();
        async move { lifecycle.init().await }
    });
    while up.sessions() < 1 {
        tokio::task::yield_now().await;
    }
    let report = lifecycle.drain().await;
    assert!(init.await.unwrap().unwrap_err().is_shutting_down());
    assert_eq!(up.sessions(), 0);
    assert_eq!(report.resource("down").unwrap().outcome, Outcome::NotInitialised);
    assert!(report.is_clean(), "{report}");
    assert!(report.took < Duration::from_secs(1), "not the retries' time: {report}");
}

#[tokio::test]
async fn a_dependency_of_another_lifecycle_is_an_error_that_says_what_to_do() {
    struct Holds(ResourceId);
    impl Resource for Holds {
        type Pool = ();
        fn name(&self) -> &str {
            "holds"
        }
        async fn init(&self) -> Result<(), Error> {
            Ok(())
        }
        async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
            Ok(())
        }
        fn depends_on(&self) -> Vec<ResourceId> {
            vec![self.0]
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities::NO_SESSIONS
        }
    }
    let (one, other) = (lifecycle(), lifecycle());
    let db = one.guard(Memory::new("db"));
    let _holds = other.guard(Holds(db.id()));
    let error = other.init().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("make both guards with the same one"), "{error}");
}

/// Takes so long to be there.
struct Slow {
    takes: Duration,
    memory: Memory,
}

impl Slow {
    fn new(name: &str, takes: Duration) -> Self {
        Self { takes, memory: Memory::new(name) }
    }
}

impl Resource for Slow {
    type Pool = MemoryPool;

    fn name(&self) -> &str {
        self.memory.name()
    }
    async fn init(&self) -> Result<MemoryPool, Error> {
        tokio::time::sleep(self.takes).await;
        self.memory.init().await
    }
    async fn goodbye(&self, pool: &MemoryPool, drain: &Drain) -> Result<(), Error> {
        self.memory.goodbye(pool, drain).await
    }
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
    fn address(&self) -> Option<String> {
        Some("db.example:5432".into())
    }
}

impl Checkouts for Slow {
    type Checkout = MemorySession;
    async fn checkout(&self, pool: &MemoryPool) -> Result<MemorySession, Error> {
        self.memory.checkout(pool).await
    }
    fn give_back(&self, pool: &MemoryPool, session: MemorySession) {
        self.memory.give_back(pool, session);
    }
}

#[tokio::test(start_paused = true)]
async fn init_is_given_up_a_second_before_its_limit_and_names_who_was_waited_for() {
    for (limit, takes, in_time) in
        [(10_000, 8_999, true), (10_000, 9_001, false), (2_000, 1_499, true), (2_000, 1_501, false)]
    {
        let lifecycle = lifecycle();
        let _quick = lifecycle.guard(Memory::new("quick"));
        let _slow = lifecycle.guard(Slow::new("slow", Duration::from_millis(takes)));
        let began = tokio::time::Instant::now();
        let result = lifecycle.init_within(Duration::from_millis(limit)).await;
        assert_eq!(result.is_ok(), in_time, "{limit} {takes} {result:?}");
        if let Err(error) = result {
            let given_up = Duration::from_millis(limit - (limit / 4).min(1000));
            assert_eq!(began.elapsed(), given_up);
            let text = format!("slow: not initialised after {given_up:.1?} (db.example:5432)");
            assert_eq!((error.kind(), error.to_string()), (ErrorKind::Timeout, text));
        }
    }
}

#[tokio::test]
async fn what_was_not_initialised_in_time_says_why_in_the_report_and_the_rest_is_drained_in_what_is_left() {
    let lifecycle = lifecycle();
    let server = Server::new();
    server.refuse(usize::MAX);
    let quick = lifecycle.guard(Memory::new("quick"));
    let _slow = lifecycle.guard(Slow::new("slow", Duration::from_secs(600)));
    let _refused = lifecycle.guard(Counted { memory: Memory::on(&server, "refused"), ..Counted::new(|_| Ok(())) });
    let error = lifecycle.init_within(Duration::from_secs(2)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("not initialised after "), "{text}");
    assert!(text.contains("slow (db.example:5432), refused"), "{text}");
    let report = lifecycle.drained().await;
    assert_eq!(report.reason, Reason::InitFailed);
    assert_eq!(report.error.as_deref(), Some(text.as_str()));
    assert!(report.budget <= Duration::from_millis(500), "{report}");
    let row = |name| report.resource(name).unwrap();
    assert_eq!(row("slow").outcome, Outcome::NotInitialised);
    assert!(row("slow").error.as_deref().unwrap().starts_with("not initialised after "), "{report}");
    assert_eq!((row("quick").outcome, quick.resource().server().sessions()), (Outcome::Drained, 0));
}

#[tokio::test]
async fn a_failed_init_says_why_in_its_report() {
    let lifecycle = lifecycle();
    let counted = Counted::new(|_| Err(Error::new(ErrorKind::Init, "wrong password")));
    counted.permits.add_permits(1);
    let _bad = lifecycle.guard(counted);
    let error = lifecycle.init().await.unwrap_err();
    let report = lifecycle.drained().await;
    assert_eq!(report.error, Some(error.to_string()));
    assert_eq!(report.resource("counted").unwrap().error.as_deref(), Some("wrong password"));
    assert!(report.to_string().starts_with("winddown: init failed: counted: wrong password"), "{report}");
}

#[tokio::test]
async fn init_returns_its_refusal_when_the_drain_is_over() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db"));
    let session = db.get().await.unwrap();
    let _slow = lifecycle.guard(Slow::new("slow", Duration::from_secs(600)));
    let init = tokio::spawn({
        let lifecycle = lifecycle.clone();
        async move {
            let error = lifecycle.init().await.unwrap_err();
            (error, lifecycle.state())
        }
    });
    tokio::task::yield_now().await;
    assert!(lifecycle.begin_drain());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!init.is_finished(), "the drain waits for a checkout");
    drop(session);
    let (error, state) = init.await.unwrap();
    assert!(error.is_shutting_down(), "{error}");
    assert_eq!(state, State::Drained);
    // Also when it is asked after the beginning.
    assert!(lifecycle.init().await.unwrap_err().is_shutting_down());
}

#[tokio::test]
async fn whom_the_drain_waits_for_does_not_wait_for_it_in_init() {
    let lifecycle = lifecycle();
    let _slow = lifecycle.guard(Slow::new("slow", Duration::from_secs(600)));
    let work = lifecycle.track().unwrap();
    let request = tokio::spawn({
        let lifecycle = lifecycle.clone();
        work.scope(async move {
            let during = lifecycle.init().await;
            let after = lifecycle.init().await;
            (during.unwrap_err(), after.unwrap_err(), lifecycle.state())
        })
    });
    tokio::task::yield_now().await;
    assert!(lifecycle.begin_drain());
    let (during, after, state) = request.await.unwrap();
    assert!(during.is_shutting_down() && after.is_shutting_down());
    assert_eq!(state, State::Draining);
    let report = lifecycle.drained().await;
    assert!(report.is_clean(), "{report}");
}
