//! Clients that are described by closures: what core can promise of them.

use std::{
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use winddown_core::{Checkouts, Client, ErrorKind, Lifecycle, Outcome, Retry, ShutdownGuard};

/// A pool as drivers have them: closing waits for what is out, and has no limit.
#[derive(Clone)]
struct Pool {
    permits: Arc<Semaphore>,
    open: Arc<AtomicUsize>,
    flushes: Arc<AtomicUsize>,
}

impl Pool {
    async fn connect() -> io::Result<Self> {
        Ok(Self { permits: Arc::new(Semaphore::new(3)), open: Arc::new(AtomicUsize::new(3)), flushes: Arc::default() })
    }

    async fn acquire(&self) -> io::Result<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).acquire_owned().await.map_err(io::Error::other)
    }

    async fn close(&self) {
        let all = self.permits.acquire_many(3).await.unwrap();
        self.open.store(0, Ordering::SeqCst);
        all.forget();
    }

    fn size(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

fn lifecycle() -> Lifecycle {
    Lifecycle::builder().signals(false).budget(Duration::from_secs(2)).retry(Retry::never()).build().unwrap()
}

/// A pool with all that can be said of it.
fn orders(lifecycle: &Lifecycle) -> ShutdownGuard<impl Checkouts<Checkout = OwnedSemaphorePermit> + use<>> {
    let client = Client::new("orders", Pool::connect)
        .checkout(|pool| async move { pool.acquire().await })
        .open(Pool::size)
        .close(|pool| async move { pool.close().await });
    lifecycle.guard(client)
}

#[tokio::test]
async fn s6_what_it_closes_is_called_unconfirmed_and_is_no_failure() {
    let lifecycle = lifecycle();
    let orders = orders(&lifecycle);
    drop(orders.get().await.unwrap());
    assert_eq!(orders.status().size, Some(3));
    let report = lifecycle.drain().await;
    let row = report.resource("orders").unwrap();
    assert_eq!((row.outcome, row.sessions.unconfirmed), (Outcome::Drained, 3), "{report}");
    assert_eq!((row.sessions.closed, row.sessions.cut), (0, 0), "{report}");
    assert_eq!(row.cannot, ["say goodbye", "see the server's end", "cancel statements", "see every session"]);
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn l1_what_does_not_close_is_cut_by_the_deadline() {
    let lifecycle = lifecycle();
    let orders = orders(&lifecycle);
    let held = orders.get().await.unwrap();
    let report = lifecycle.drain().await;
    assert!(report.took < report.budget, "{report}");
    let row = report.resource("orders").unwrap();
    assert_eq!((row.outcome, row.sessions.cut, row.left_out), (Outcome::Incomplete, 3, 1), "{report}");
    assert_eq!(row.stragglers.len(), 1, "{report}");
    drop(held);
}

#[tokio::test]
async fn l3_it_is_closed_as_soon_as_its_last_checkout_is_back() {
    let lifecycle = lifecycle();
    let orders = orders(&lifecycle);
    let held = orders.get().await.unwrap();
    lifecycle.begin_drain();
    drop(held);
    let report = lifecycle.drained().await;
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn a_client_without_a_way_to_check_out_hands_out_itself_counted() {
    let lifecycle = lifecycle();
    let nats = lifecycle.guard(Client::opened("nats", Arc::new(Notify::new())));
    let handle = nats.get().await.unwrap();
    assert_eq!(nats.status().out, 1);
    lifecycle.begin_drain();
    assert_eq!(nats.get().await.unwrap_err().kind(), ErrorKind::ShuttingDown);
    drop(handle);
    let report = lifecycle.drained().await;
    let row = report.resource("nats").unwrap();
    assert_eq!((row.outcome, row.sessions.unconfirmed), (Outcome::Drained, 1), "{report}");
}

#[tokio::test]
async fn s5_it_is_flushed_before_it_is_closed_and_whenever_the_lifecycle_is() {
    let lifecycle = lifecycle();
    let client = Client::new("events", Pool::connect)
        .flush(|pool: Pool| async move {
            pool.flushes.fetch_add(1, Ordering::SeqCst);
        })
        .close(|pool: Pool| async move {
            if pool.flushes.load(Ordering::SeqCst) == 2 { Ok(()) } else { Err("it was not flushed twice") }
        });
    let events = lifecycle.guard(client);
    let flushes = Arc::clone(&events.pool().await.unwrap().flushes);
    lifecycle.flush().await.unwrap();
    assert_eq!(flushes.load(Ordering::SeqCst), 1);
    let report = lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn what_fails_says_so_with_its_own_words() {
    let lifecycle = lifecycle();
    let refused = lifecycle.guard(Client::new("refused", || async { Err::<Pool, _>(io::Error::other("not today")) }));
    let error = refused.get().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Init);
    assert!(error.to_string().contains("not today"), "{error}");
    let stuck = Client::opened("stuck", ()).close(|()| async { Err("it is on fire") });
    let _stuck = lifecycle.guard(stuck);
    let report = lifecycle.drain().await;
    let row = report.resource("stuck").unwrap();
    assert_eq!((row.outcome, row.sessions.cut), (Outcome::Failed, 1), "{report}");
    assert!(row.error.as_deref().is_some_and(|error| error.contains("it is on fire")), "{report}");
}

#[tokio::test]
async fn s3_what_was_opened_by_the_application_has_one_life_and_what_connects_has_many() {
    let lifecycle = lifecycle();
    let opened = lifecycle.guard(Client::opened("opened", Pool::connect().await.unwrap()));
    let connects = lifecycle.guard(Client::new("connects", Pool::connect));
    connects.pool().await.unwrap();
    assert!(lifecycle.drain().await.is_clean());
    lifecycle.restart().unwrap();
    assert!(opened.get().await.unwrap_err().is_shutting_down());
    connects.get().await.unwrap();
    assert!(lifecycle.drain().await.is_clean());
}

#[tokio::test]
async fn l2_one_that_hangs_in_its_close_costs_only_itself() {
    let lifecycle = lifecycle();
    let _hangs = lifecycle.guard(Client::opened("hangs", ()).close(|()| pending::<()>()));
    let _fine = lifecycle.guard(Client::opened("fine", ()).close(|()| async {}));
    let report = lifecycle.drain().await;
    assert_eq!(report.resource("hangs").unwrap().sessions.cut, 1, "{report}");
    assert_eq!(report.resource("fine").unwrap().outcome, Outcome::Drained, "{report}");
}
