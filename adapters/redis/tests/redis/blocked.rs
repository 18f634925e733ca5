//! Applications whose runtime does nothing any more when the drain begins.

use std::{sync::mpsc, thread};

use redis::cmd;
use tokio::runtime::{Builder, Runtime};
use winddown_redis::{Redis, redis};
use winddown_testkit::Harness as _;

use crate::scene::{Scene, Speaks as _, assert_nothing_left, config, number, redis_8};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// On a thread of its own: opens four sessions and sends on each what nobody waits for, then does with the runtime what this
/// says, until the drain is over.
async fn drain_beside(then: impl FnOnce(Runtime, mpsc::Receiver<()>) + Send + 'static) {
    let server = redis_8().await;
    let scene = Scene::new(Redis::new(config(&server)));
    let key = server.tenant.key("counter");
    let (opened, ready) = tokio::sync::oneshot::channel();
    let (over, wait) = mpsc::channel();
    let application = thread::spawn({
        let key = key.clone();
        move || {
            let runtime = runtime();
            runtime.block_on(async {
                let mut increment = cmd("INCR");
                increment.arg(key).set_no_response(true);
                for mut connection in scene.out(4).await {
                    for _ in 0..100 {
                        increment.exec_async(&mut *connection).await.unwrap();
                    }
                }
            });
            opened.send(scene).ok();
            then(runtime, wait);
        }
    });
    let scene = ready.await.unwrap();
    assert_eq!(server.sessions().await.unwrap(), 4);
    let drained = scene.drain().await;
    drained.assert_clean(4);
    let records = drained.row().records.unwrap();
    assert_eq!((records.accepted, records.written), (400, 400), "{}", drained.report);
    assert_eq!(number(&mut server.superuser().await, &key).await, 400);
    assert_nothing_left(&server).await;
    drop(over);
    application.join().unwrap();
    server.end().await.unwrap();
}

pub(crate) async fn what_nobody_waits_for_is_executed_when_the_runtime_is_not_polled_any_more() {
    drain_beside(|runtime, over| {
        let _ = over.recv();
        drop(runtime);
    })
    .await;
}

pub(crate) async fn what_nobody_waits_for_is_executed_when_the_runtime_is_blocked() {
    drain_beside(|runtime, over| {
        runtime.block_on(async move {
            let _ = over.recv();
        });
    })
    .await;
}

pub(crate) async fn what_nobody_waits_for_is_executed_when_the_runtime_is_gone() {
    drain_beside(|runtime, _| drop(runtime)).await;
}
