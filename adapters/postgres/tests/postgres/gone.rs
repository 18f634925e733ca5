//! Callers that do not wait for the session they wanted.

use std::time::Duration;

use winddown_postgres::Postgres;
use winddown_testkit::{Harness as _, proxy::Proxy};

use crate::scene::{Scene, Speaks, assert_nothing_left, config_at, seventeen, until};

pub(crate) async fn a_checkout_that_was_dropped_while_connecting_leaves_no_session() {
    let server = seventeen().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address());
    config.pool.max_size = 3;
    let scene = Scene::new(Postgres::new(config));
    let first = scene.get().await;

    // Given up on at each stage of the log-in, which takes three round trips: those that the proxy has seen by then.
    proxy.set_delay(Duration::from_millis(20));
    for stage in 0..3 {
        let seen = proxy.round_trips();
        let accepted = proxy.accepted();
        tokio::select! {
            got = scene.db.get() => panic!("it was quicker than the proxy: {got:?}"),
            () = until("the log-in has come that far", || async {
                proxy.accepted() > accepted && proxy.round_trips() >= seen + stage
            }) => {}
        }
    }
    proxy.set_delay(Duration::ZERO);
    until("only the first is listed", || async { server.sessions().await.unwrap() == 1 }).await;
    proxy.wait_for_connections(1).await;
    assert_eq!(proxy.accepted(), 4, "each of the three had begun");

    // Neither are their places lost.
    let others = scene.out(2).await;
    assert_eq!(server.sessions().await.unwrap(), 3);
    drop((first, others));
    scene.drain().await.assert_clean(3);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}
