//! Applications whose runtime does nothing any more when the drain begins.

use std::{sync::mpsc, thread};

use tokio::runtime::{Builder, Runtime};
use winddown_postgres::Postgres;
use winddown_testkit::Harness as _;

use crate::scene::{Scene, Speaks, assert_nothing_left, config, seventeen};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// On a thread of its own: opens five sessions, then does with the runtime what this says, until the drain is over.
async fn drain_beside(then: impl FnOnce(Runtime, mpsc::Receiver<()>) + Send + 'static) {
    let server = seventeen().await;
    let mut config = config(&server);
    config.pool.max_size = 5;
    let scene = Scene::new(Postgres::new(config));
    let (opened, ready) = tokio::sync::oneshot::channel();
    let (over, wait) = mpsc::channel();
    let application = thread::spawn(move || {
        let runtime = runtime();
        runtime.block_on(async { drop(scene.out(5).await) });
        opened.send(scene).ok();
        then(runtime, wait);
    });
    let scene = ready.await.unwrap();
    assert_eq!(server.sessions().await.unwrap(), 5);
    scene.drain().await.assert_clean(5);
    assert_nothing_left(&server).await;
    drop(over);
    application.join().unwrap();
    server.end().await.unwrap();
}

pub(crate) async fn sessions_say_goodbye_when_the_runtime_is_not_polled_any_more() {
    drain_beside(|runtime, over| {
        let _ = over.recv();
        drop(runtime);
    })
    .await;
}

pub(crate) async fn sessions_say_goodbye_when_the_runtime_is_blocked() {
    drain_beside(|runtime, over| {
        runtime.block_on(async move {
            let _ = over.recv();
        });
    })
    .await;
}

pub(crate) async fn sessions_say_goodbye_when_the_runtime_is_gone() {
    drain_beside(|runtime, _| drop(runtime)).await;
}
