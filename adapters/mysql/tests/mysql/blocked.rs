//! Applications whose runtime does nothing any more when the drain begins.

use std::{sync::mpsc, thread};

use tokio::runtime::{Builder, Runtime};
use winddown_mysql::Mysql;
use winddown_testkit::Harness as _;

use crate::{
    scene::{Drained, Scene, Speaks, config, mysql},
    server::{MySql, Tenancy},
};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// On a thread of its own: opens five sessions, then does with the runtime what this says, until the drain is over.
async fn drain_beside(then: impl FnOnce(Runtime, mpsc::Receiver<()>) + Send + 'static) -> (Tenancy<MySql>, Drained) {
    let server = mysql().await;
    let mut config = config(&server);
    config.pool.max_size = 5;
    let scene = Scene::new(Mysql::new(config));
    let (opened, ready) = tokio::sync::oneshot::channel();
    let (over, wait) = mpsc::channel();
    let application = thread::spawn(move || {
        let runtime = runtime();
        runtime.block_on(async { drop(scene.out(5).await) });
        opened.send(scene).ok();
        then(runtime, wait);
    });
    let scene = ready.await.unwrap();
    let drained = scene.drain().await;
    drop(over);
    application.join().unwrap();
    (server, drained)
}

/// The driver's sockets are the runtime's, and nothing can be said on them without it: some say goodbye before, some are in the
/// drain's hands by then.
pub(crate) async fn sessions_are_gone_when_the_runtime_goes_as_the_drain_begins() {
    let (server, drained) = drain_beside(|runtime, over| {
        drop(runtime);
        let _ = over.recv();
    })
    .await;
    let (closed, cut) = drained.ended();
    assert!(closed + cut <= 5, "{}", drained.report);
    assert_eq!(server.sessions().await.unwrap(), 0, "{}", drained.report);
    server.end().await.unwrap();
}
