//! What the suite does not ask: the commands, and a session that nobody has begun to open.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    task::Poll,
    thread,
    time::Duration,
};

use tokio::{runtime::Builder, task::spawn_blocking};
use winddown_core::{Lifecycle, Outcome};
use winddown_memcached_adapter::Memcached;

use crate::harness::Server;

pub(crate) async fn values_are_stored_and_found() {
    let server = Server::lease().await.unwrap();
    let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
    let cache = lifecycle.guard(Memcached::new(server.address.to_string()));
    let mut session = cache.get().await.unwrap();
    assert_eq!(session.get("greeting").await.unwrap(), None);
    for value in [&b"good morning"[..], b"", b"two\r\nEND\r\nlines"] {
        session.set("greeting", value).await.unwrap();
        assert_eq!(session.get("greeting").await.unwrap().as_deref(), Some(value));
    }
    for key in ["", "two words", "a\r\nflush_all", &"k".repeat(251)] {
        session.get(key).await.unwrap_err();
    }
    drop(session);
    let report = lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.resource("memcached").unwrap().sessions.closed, 1, "{report}");
}

/// The task that opens it is spawned, and its runtime does something else: it is open as far as anybody knows.
pub(crate) async fn what_is_about_to_be_opened_is_in_the_book() {
    let server = Server::lease().await.unwrap();
    let address = server.address.to_string();
    let blocked = spawn_blocking(move || {
        let lifecycle = Lifecycle::builder().signals(false).budget(Duration::from_secs(2)).build().unwrap();
        let cache = lifecycle.guard(Memcached::new(address));
        let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
        runtime().block_on(async {
            let held = cache.get().await.unwrap();
            let mut connecting = pin!(cache.get());
            assert!(poll_fn(|context| Poll::Ready(connecting.as_mut().poll(context).is_pending())).await);
            drop(held);
            thread::scope(|scope| scope.spawn(|| runtime().block_on(lifecycle.drain())).join().unwrap())
        })
    });
    let report = blocked.await.unwrap();
    let row = report.resource("memcached").unwrap();
    assert_eq!((row.outcome, row.sessions.closed, row.sessions.cut), (Outcome::Incomplete, 1, 1), "{report}");
}
