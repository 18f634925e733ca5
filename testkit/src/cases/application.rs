//! Applications whose runtime does nothing any more when the drain begins.

use std::{sync::mpsc, thread};

use tokio::{
    runtime::{Builder, Runtime},
    task::block_in_place,
};

use super::scene::{BUDGET, Scene, assert_no_complaints, sessions};
use crate::{Harness, Need, Setup};

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

/// Uses five sessions on a runtime of its own, then does with that what this says, on a thread, until the drain is over.
async fn drain_beside<H, T>(harness: &H, then: T)
where
    H: Harness,
    T: FnOnce(Runtime, mpsc::Receiver<()>) + Send + 'static,
{
    const SIZE: usize = 5;
    let scene = Scene::with(harness, BUDGET, &Setup { size: SIZE, ..Setup::default() });
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    block_in_place(|| runtime.block_on(async { drop(scene.out(harness, SIZE).await) }));
    let (over, wait) = mpsc::channel();
    let application = thread::spawn(move || then(runtime, wait));
    let listed = sessions(harness).await;
    assert!(listed >= 1 && (listed == SIZE || H::lacks(Need::Slots)), "{listed} sessions");
    scene.drain(harness).await.assert_clean(listed);
    drop(over);
    application.join().expect("it does not panic");
    assert_no_complaints(harness).await;
}
