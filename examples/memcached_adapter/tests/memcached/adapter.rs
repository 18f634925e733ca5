//! What the suite does not ask: the commands.

use winddown_core::Lifecycle;
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
