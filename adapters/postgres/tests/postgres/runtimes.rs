//! Pools that outlive the runtime that their sessions were opened in, as a static one does in tests that have one each.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::spawn_blocking, time::timeout};
use winddown_postgres::Postgres;
use winddown_testkit::{
    Harness as _,
    scene::{on, runtimes},
};

use crate::{
    scene::{QUICK, Scene, Speaks, assert_nothing_left, config, config_at, seventeen, text, until_running},
    server::run,
};

pub(crate) async fn a_guard_outlives_the_runtimes_that_its_sessions_were_opened_in() {
    let server = seventeen().await;
    let mut config = config(&server);
    config.pool.max_size = 3;
    let scene = Arc::new(Scene::new(Postgres::new(config)));
    for sessions in [1, 2, 3] {
        for runtime in runtimes() {
            let scene = Arc::clone(&scene);
            let out = async move { timeout(QUICK, scene.out(sessions)).await.expect("somebody polls them").len() };
            assert_eq!(on(runtime, out).await, sessions);
        }
        assert_eq!(server.sessions().await.unwrap(), sessions, "those that are there are used");
    }
    scene.drain().await.assert_clean(3);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_goes_on_when_the_runtime_ends_that_its_session_was_opened_in() {
    for runtime in runtimes() {
        let server = seventeen().await;
        let scene = Arc::new(Scene::new(Postgres::new(config(&server))));
        let opens = {
            let scene = Arc::clone(&scene);
            runtime.spawn(async move { drop(scene.out(1).await) })
        };
        let runtime = spawn_blocking(move || {
            runtime.block_on(opens).unwrap();
            runtime
        });
        let runtime = runtime.await.unwrap();
        let client = scene.get().await;
        let under_way = async { timeout(QUICK, run(&client, Duration::from_secs(1))).await.expect("it is polled") };
        let ending = async {
            // A current-thread runtime does nothing while nobody is in it.
            let ended = spawn_blocking(move || {
                runtime.block_on(tokio::time::sleep(Duration::from_millis(300)));
                drop(runtime);
            });
            ended.await.unwrap();
        };
        let (written, ()) = tokio::join!(under_way, ending);
        written.unwrap();
        assert_eq!(text(&client, "SELECT 'there'").await, "there");
        drop(client);
        assert_eq!(server.rows().await.unwrap(), 1);
        scene.drain().await.assert_clean(1);
        assert_nothing_left(&server).await;
        until_running(&server, 0).await;
        server.end().await.unwrap();
    }
}

pub(crate) async fn what_is_being_opened_when_its_runtime_ends_holds_up_no_drain() {
    let server = seventeen().await;
    for runtime in runtimes() {
        let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scene = Arc::new(Scene::new(Postgres::new(config_at(&server, mute.local_addr().unwrap()))));
        let (accepted, ready) = std::sync::mpsc::channel();
        let kept = tokio::spawn(async move {
            let connected = mute.accept().await.unwrap();
            accepted.send(()).unwrap();
            connected
        });
        let opens = Arc::clone(&scene);
        spawn_blocking(move || {
            runtime.spawn(async move { opens.db.get().await.map(drop) });
            runtime.block_on(async {
                while ready.try_recv().is_err() {
                    tokio::task::yield_now().await;
                }
            });
        })
        .await
        .unwrap();
        let drained = scene.drain().await;
        assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
        drop(kept);
    }
    server.end().await.unwrap();
}
