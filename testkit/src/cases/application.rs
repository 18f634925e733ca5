//! Applications whose runtime does nothing any more when the drain begins.

use std::{sync::mpsc, thread};

use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};

use super::scene::{BUDGET, Scene, assert_no_complaints, sessions};
use crate::{Harness, Setup};

/// Nobody is in `block_on`, and its sockets are open.
pub async fn idle_sessions_say_goodbye_when_the_runtime_is_not_polled_any_more<H: Harness>(harness: &H) {
    drain_beside(harness, |runtime, over| {
        let _ = over.recv();
        drop(runtime);
    })
    .await;
}

/// Its only thread waits for something else.
pub async fn idle_sessions_say_goodbye_when_the_runtime_is_blocked<H: Harness>(harness: &H) {
    drain_beside(harness, |runtime, over| {
        runtime.block_on(async move {
            let _ = over.recv();
        });
    })
    .await;
}

/// It was dropped.
pub async fn idle_sessions_say_goodbye_when_the_runtime_is_gone<H: Harness>(harness: &H) {
    drain_beside(harness, |runtime, over| {
        drop(runtime);
        let _ = over.recv();
    })
    .await;
}

/// On a thread and a runtime of its own: uses five sessions, then does with the runtime what this says, until the drain is over.
async fn drain_beside<H, T>(harness: &H, then: T)
where
    H: Harness,
    T: FnOnce(Runtime, mpsc::Receiver<()>) + Send + 'static,
{
    const SIZE: usize = 5;
    let scene = Scene::with(harness, BUDGET, &Setup { size: SIZE, ..Setup::default() });
    let (opened, are_open) = oneshot::channel();
    let (over, wait) = mpsc::channel();
    let db = scene.db.clone();
    let application = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
        let out = runtime.block_on(async {
            let mut out = Vec::new();
            for _ in 0..SIZE {
                out.push(db.get().await?);
            }
            Ok::<_, winddown_core::Error>(drop(out))
        });
        drop(db);
        let _ = opened.send(out);
        then(runtime, wait);
    });
    are_open.await.expect("it tells").unwrap_or_else(|error| panic!("no checkout: {error}"));
    let listed = sessions(harness).await;
    assert!((1..=SIZE).contains(&listed), "{listed} sessions");
    scene.drain(harness).await.assert_clean(listed);
    drop(over);
    application.join().expect("it does not panic");
    assert_no_complaints(harness).await;
}
