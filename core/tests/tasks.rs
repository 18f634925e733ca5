//! What code that loops, spawns or takes a token sees of a drain.

use std::time::Duration;

use tokio::sync::oneshot;
use winddown_core::{Lifecycle, memory::Memory};

fn lifecycle() -> Lifecycle {
    Lifecycle::builder().signals(false).budget(Duration::from_secs(5)).build().unwrap()
}

#[tokio::test]
async fn a_token_is_cancelled_when_draining_begins_and_cancels_nothing_else() {
    let lifecycle = lifecycle();
    let (token, other) = (lifecycle.token(), lifecycle.token());
    assert!(!lifecycle.is_draining() && !token.is_cancelled());
    other.cancel();
    assert!(!token.is_cancelled() && !lifecycle.is_draining(), "it is a child");
    lifecycle.begin_drain();
    token.cancelled().await;
    assert!(lifecycle.is_draining() && lifecycle.token().is_cancelled());
    lifecycle.drained().await;
    lifecycle.restart().unwrap();
    assert!(!lifecycle.is_draining() && !lifecycle.token().is_cancelled(), "each life has its own");
    assert!(token.is_cancelled());
}

#[tokio::test]
async fn s4_a_spawned_task_is_waited_for_and_handed_out_to_until_its_end() {
    let lifecycle = lifecycle();
    let db = lifecycle.guard(Memory::new("db"));
    lifecycle.init().await.unwrap();
    let (go_on, wait) = oneshot::channel::<()>();
    let task = lifecycle
        .spawn(async move {
            wait.await.unwrap();
            db.get().await.map(drop)
        })
        .unwrap();
    lifecycle.begin_drain();
    assert!(lifecycle.spawn(async {}).unwrap_err().is_shutting_down());
    go_on.send(()).unwrap();
    task.await.unwrap().unwrap();
    let report = lifecycle.drained().await;
    assert!(report.is_clean(), "{report}");
}
