//! S2: what a caller gets when draining begins around it.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Lifecycle, Outcome, Resource,
    adapter::Drain,
    memory::{Memory, MemoryPool, MemorySession, Server},
};

fn lifecycle() -> Lifecycle {
    Lifecycle::builder().signals(false).budget(Duration::from_secs(5)).build().unwrap()
}

#[tokio::test]
async fn s2_a_checkout_after_the_drain_began_is_refused() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db"));
    drop(db.get().await.unwrap());
    lifecycle.drain().await;
    let error = db.get().await.unwrap_err();
    assert_eq!((error.kind(), error.resource()), (ErrorKind::ShuttingDown, Some("db")));
    assert!(db.pool().await.unwrap_err().is_shutting_down());
    let late = lifecycle.guard(Memory::new("late"));
    assert!(late.get().await.unwrap_err().is_shutting_down(), "born refused");
}

#[tokio::test]
async fn s2_a_caller_that_waits_for_a_slot_is_woken_with_the_refusal() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db").size(1));
    let held = db.get().await.unwrap();
    let waiter = tokio::spawn({
        let db = db.clone();
        async move { db.get().await.map(drop) }
    });
    tokio::task::yield_now().await;
    let drain = tokio::spawn({
        let lifecycle = lifecycle.clone();
        async move { lifecycle.drain().await }
    });
    // The slot is still taken: only the refusal can end this wait.
    assert!(waiter.await.unwrap().unwrap_err().is_shutting_down());
    drop(held);
    assert!(drain.await.unwrap().is_clean());
}

/// Connects only when it gets a permit, and does not care who is draining: as a bare pool does.
struct Connecting {
    memory: Memory,
    permits: Arc<Semaphore>,
}

impl Resource for Connecting {
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
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
}

impl Checkouts for Connecting {
    type Checkout = MemorySession;
    async fn checkout(&self, pool: &MemoryPool) -> Result<MemorySession, Error> {
        self.permits.acquire().await.unwrap().forget();
        self.memory.checkout(pool).await
    }
    fn give_back(&self, pool: &MemoryPool, session: MemorySession) {
        self.memory.give_back(pool, session);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_a_checkout_that_was_connecting_when_draining_began_is_never_handed_out() {
    for _ in 0..200 {
        let lifecycle = lifecycle();
        let server = Server::new();
        let permits = Arc::new(Semaphore::new(0));
        let db = lifecycle.guard(Connecting { memory: Memory::on(&server, "db"), permits: Arc::clone(&permits) });
        db.pool().await.unwrap();
        let connecting = tokio::spawn({
            let db = db.clone();
            async move { db.get().await.map(drop) }
        });
        tokio::task::yield_now().await;
        // Both at once: either it is refused, or it was handed out first and is back before the drain ends.
        let (report, ()) = tokio::join!(lifecycle.drain(), async { permits.add_permits(1) });
        if let Err(error) = connecting.await.unwrap() {
            assert!(error.is_shutting_down(), "{error}");
        }
        assert_eq!(server.sessions(), 0, "{report}");
        assert_eq!(report.resource("db").unwrap().outcome, Outcome::Drained);
    }
}

#[tokio::test]
async fn the_drivers_error_is_the_source_and_the_resource_is_named() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    let _held = db.get().await.unwrap();
    server.refuse(1);
    let error = db.get().await.unwrap_err();
    assert_eq!(error.to_string(), "db: too many connections");
}

#[tokio::test]
async fn debug_shows_the_name_and_the_state_and_nothing_of_the_resource() {
    struct Secret;
    impl std::fmt::Debug for Secret {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("hunter2")
        }
    }
    impl Resource for Secret {
        type Pool = &'static str;
        fn name(&self) -> &str {
            "vault"
        }
        async fn init(&self) -> Result<&'static str, Error> {
            Ok("hunter2")
        }
        async fn goodbye(&self, _: &&'static str, _: &Drain) -> Result<(), Error> {
            Ok(())
        }
    }

    impl Checkouts for Secret {
        type Checkout = &'static str;
        async fn checkout(&self, pool: &&'static str) -> Result<&'static str, Error> {
            Ok(pool)
        }
    }
    let lifecycle = lifecycle();
    let vault = lifecycle.guard(Secret);
    let checkout = vault.get().await.unwrap();
    let shown = format!("{vault:?} {checkout:?} {lifecycle:?}");
    assert!(shown.contains("vault"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn a_checkout_that_is_not_to_be_waited_for_is_had_or_not() {
    let lifecycle = lifecycle();
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db").size(1));
    assert!(db.try_get().unwrap().is_none(), "it is not initialised, and that is not begun");
    assert_eq!(server.sessions(), 0);
    lifecycle.init().await.unwrap();
    let held = db.try_get().unwrap().unwrap();
    assert!(db.try_get().unwrap().is_none());
    assert_eq!(db.out(), 1, "who got nothing is not counted");
    drop(held);
    assert!(db.try_get().unwrap().is_some());
    lifecycle.drain().await;
    assert!(db.try_get().unwrap_err().is_shutting_down());
}

#[tokio::test(start_paused = true)]
async fn a_checkout_that_takes_too_long_says_how_the_pool_stands() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db").size(1));
    let limit = Duration::from_secs(3);
    let held = db.get_timeout(limit).await.unwrap();
    let began = tokio::time::Instant::now();
    let error = db.get_timeout(limit).await.unwrap_err();
    assert_eq!(began.elapsed(), limit);
    assert_eq!((error.kind(), error.resource()), (ErrorKind::Timeout, Some("db")));
    assert!(error.to_string().contains("1 are out, 0 wait, 1 sessions are open, 0 idle"), "{error}");
    assert_eq!(db.out(), 1);
    drop(held);
}

#[tokio::test]
async fn a_guard_tells_how_its_pool_stands() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db").size(2));
    let stands = || {
        let status = db.status();
        (status.size, status.idle, status.out, status.waiting)
    };
    assert_eq!(stands(), (None, None, 0, 0));
    let (first, second) = (db.get().await.unwrap(), db.get().await.unwrap());
    drop(first);
    assert_eq!(stands(), (Some(2), Some(1), 1, 0));
    let third = db.get().await.unwrap();
    let mut waits = std::pin::pin!(db.get());
    assert!(waits.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending());
    assert_eq!(stands(), (Some(2), Some(0), 2, 1));
    drop((second, third));
    drop(waits.await.unwrap());
    assert_eq!(stands(), (Some(2), Some(2), 0, 0));
}

#[tokio::test]
async fn who_waits_for_the_initialisation_is_counted_and_that_itself_is_not() {
    let lifecycle = lifecycle();
    let server = Server::new();
    server.pause();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    let mut waits = std::pin::pin!(db.get());
    assert!(waits.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending());
    tokio::task::yield_now().await;
    let status = db.status();
    assert_eq!((status.waiting, status.out), (1, 0));
    server.resume();
    drop(waits.await.unwrap());
    assert_eq!((db.status().waiting, db.status().out), (0, 0));
}
