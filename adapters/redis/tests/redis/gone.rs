//! Callers that do not wait for the session they wanted.

use std::time::Duration;

use winddown_redis::Redis;
use winddown_testkit::{Harness as _, proxy::Proxy};

use crate::scene::{Scene, Speaks as _, assert_nothing_left, config_at, redis_8, until};

pub(crate) async fn a_checkout_that_was_dropped_while_connecting_leaves_no_session() {
    let server = redis_8().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let scene = Scene::new(Redis::new(config_at(&server, proxy.address()).pooled(3)));
    let first = scene.get().await;

    // Given up on before and in the middle of the log-in, which takes one round trip.
    proxy.set_delay(Duration::from_millis(50));
    for stage in 0..2 {
        let (sent, accepted) = (proxy.bytes_up(), proxy.accepted());
        tokio::select! {
            got = scene.db.get() => panic!("it was quicker than the proxy: {got:?}"),
            () = until("the log-in has come that far", || async {
                proxy.accepted() > accepted && proxy.bytes_up() >= sent + stage
            }) => {}
        }
    }
    proxy.set_delay(Duration::ZERO);
    until("only the first is listed", || async { server.sessions().await.unwrap() == 1 }).await;
    proxy.wait_for_connections(1).await;
    assert_eq!(proxy.accepted(), 3, "each of the two had begun");

    // Neither are their places lost.
    let others = scene.out(2).await;
    assert_eq!(server.sessions().await.unwrap(), 3);
    drop((first, others));
    scene.drain().await.assert_clean(3);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}
