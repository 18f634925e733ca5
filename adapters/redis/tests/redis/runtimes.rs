//! Guards that outlive the runtime that their sessions were opened in, as a static one does in tests that have one each.

use std::sync::Arc;

use tokio::time::timeout;
use winddown_redis::{Config, Redis};
use winddown_testkit::{
    Harness as _,
    scene::{on, runtimes},
};

use crate::scene::{QUICK, Scene, Server, Speaks, assert_nothing_left, config, config_at, redis_8};

async fn outlives(server: &Server, config: Config, sessions: usize) {
    let scene = Arc::new(Scene::new(Redis::new(config)));
    for _ in 0..3 {
        for runtime in runtimes() {
            let scene = Arc::clone(&scene);
            let out = async move { timeout(QUICK, scene.out(3)).await.expect("somebody polls them").len() };
            assert_eq!(on(runtime, out).await, 3);
        }
    }
    assert_eq!(server.sessions().await.unwrap(), sessions, "those that are there are used");
    scene.drain().await.assert_clean(sessions as u64);
    assert_nothing_left(server).await;
}

pub(crate) async fn a_pool_outlives_the_runtimes_that_its_sessions_were_opened_in() {
    let server = redis_8().await;
    outlives(&server, config(&server), 3).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_shared_session_outlives_the_runtime_that_it_was_opened_in() {
    let server = redis_8().await;
    outlives(&server, config_at(&server, server.server.address), 1).await;
    server.end().await.unwrap();
}
