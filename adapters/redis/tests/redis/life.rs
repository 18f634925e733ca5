//! How long sessions live, and how long they may be idle.

use std::time::Duration;

use tokio::time::sleep;
use winddown_redis::{Connection, Redis, redis::cmd};
use winddown_testkit::{
    Harness as _,
    life::{LIMIT, Limits, Lives, assert_drains_clean},
};

use crate::scene::{Scene, Server, Speaks as _, config_at, redis_8, until};

/// With a connection for each checkout.
impl Lives for Server {
    const FLUSH_SEES_THE_END: bool = true;

    fn limited(&self, size: usize, limits: Limits) -> Redis {
        let mut config = config_at(self, self.server.address).pooled(size);
        config.max_lifetime = limits.max_lifetime;
        config.idle_timeout = limits.idle_timeout;
        config.idle_at_flush = limits.idle_at_flush;
        Redis::new(config)
    }

    async fn session(connection: &mut Connection) -> i64 {
        cmd("CLIENT").arg("ID").query_async(connection).await.unwrap()
    }
}

pub(crate) async fn the_connection_that_all_share_says_goodbye_before_the_process_is_frozen() {
    let server = redis_8().await;
    let mut config = config_at(&server, server.server.address);
    config.idle_at_flush = Some(Duration::ZERO);
    let scene = Scene::new(Redis::new(config));
    scene.ping().await;
    scene.lifecycle.flush().await.unwrap();
    assert_eq!(server.sessions().await.unwrap(), 0, "it was seen to end");
    scene.ping().await;
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

/// Whoever has a checkout meanwhile goes on with the new one.
pub(crate) async fn the_connection_that_all_share_is_replaced_too() {
    let server = redis_8().await;
    let mut config = config_at(&server, server.server.address);
    config.max_lifetime = Some(LIMIT);
    let scene = Scene::new(Redis::new(config));
    let mut holder = scene.get().await;
    let first = Server::session(&mut holder).await;
    sleep(LIMIT).await;
    assert_eq!(Server::session(&mut holder).await, first, "nobody has checked out since");
    let second = Server::session(&mut *scene.get().await).await;
    assert_ne!(second, first);
    assert_eq!(Server::session(&mut holder).await, second);
    until("the server lists the new one alone", || async { server.sessions().await.unwrap() == 1 }).await;
    drop(holder);
    assert_drains_clean(&scene).await;
    server.end().await.unwrap();
}
