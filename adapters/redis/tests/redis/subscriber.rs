//! Whoever only listens, and what it learns of the end of its connection.

use std::{
    pin::pin,
    sync::{Arc, OnceLock},
    task::{Context, Waker},
    time::Duration,
};

use redis::{
    ProtocolVersion, PushInfo, PushKind,
    aio::{AsyncPushSender, SendError},
    cmd,
};
use tokio::{sync::mpsc, time::timeout};
use winddown_core::ShutdownGuard;
use winddown_redis::{Config, Redis, redis};
use winddown_testkit::{Directed, Harness as _, proxy::Proxy};

use crate::scene::{QUICK, Scene, Server, Speaks as _, assert_nothing_left, config_at, own, redis_8, until};

type Pushed = mpsc::UnboundedReceiver<PushInfo>;

/// Tells what is pushed, and never asks by itself.
fn telling(mut config: Config) -> (Config, Pushed) {
    let (pushes, pushed) = mpsc::unbounded_channel();
    let settings = config.driver.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    config.driver = config.driver.set_redis_settings(settings);
    config.push_sender = Some(Arc::new(pushes));
    config.check_after = Duration::from_secs(600);
    (config, pushed)
}

fn both(config: Config) -> [(Config, Pushed); 2] {
    let mut pooled = config.clone().pooled(2);
    pooled.response_timeout = config.response_timeout;
    [telling(config), telling(pooled)]
}

/// The next that is of this kind.
async fn next(pushed: &mut Pushed, kind: PushKind) -> PushInfo {
    let next = async {
        loop {
            let push = pushed.recv().await.expect("the sender is kept");
            if push.kind == kind {
                return push;
            }
        }
    };
    timeout(QUICK, next).await.unwrap_or_else(|_| panic!("nobody says {kind:?}"))
}

async fn publish(server: &Server, channel: &str) {
    let mut publish = cmd("PUBLISH");
    publish.arg(channel).arg("hello").exec_async(&mut server.superuser().await).await.unwrap();
}

pub(crate) async fn a_subscriber_learns_that_its_connection_has_ended_and_subscribes_again() {
    let server = redis_8().await;
    let channel = server.tenant.key("channel");
    for (has_own, (config, mut pushed)) in
        [false, true].into_iter().zip(both(config_at(&server, server.server.address)))
    {
        let scene = Scene::new(Redis::new(config));
        // A connection of its own loses its subscriptions with its checkout.
        let mut subscriber = scene.get().await;
        subscriber.subscribe(&channel).await.unwrap();
        next(&mut pushed, PushKind::Subscribe).await;
        server.end_sessions(|_| true).await.unwrap();
        next(&mut pushed, PushKind::Disconnection).await;
        drop(subscriber);
        let mut subscriber = scene.get().await;
        subscriber.subscribe(&channel).await.unwrap();
        next(&mut pushed, PushKind::Subscribe).await;
        publish(&server, &channel).await;
        next(&mut pushed, PushKind::Message).await;
        drop(subscriber);
        // At its end too, once for each session, and that is the last.
        if has_own {
            next(&mut pushed, PushKind::Disconnection).await;
        }
        let drained = scene.drain().await;
        if has_own {
            // It ended with its checkout, which may have been told a moment before it is in the book.
            drained.assert_clean(drained.ended().0);
            assert!(drained.ended().0 <= 1, "{}", drained.report);
        } else {
            drained.assert_clean(1);
            next(&mut pushed, PushKind::Disconnection).await;
        }
        assert!(pushed.try_recv().is_err());
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}

/// Asks for a session in the moment in which it is told of the end of another one.
struct AsksAtOnce {
    db: Arc<OnceLock<ShutdownGuard<Directed<Redis>>>>,
    /// Whether it was there at once: no session is open.
    had: mpsc::UnboundedSender<bool>,
}

impl AsyncPushSender for AsksAtOnce {
    fn send(&self, push: PushInfo) -> Result<(), SendError> {
        if push.kind == PushKind::Disconnection
            && let Some(db) = self.db.get()
        {
            let got = pin!(db.get()).poll(&mut Context::from_waker(Waker::noop()));
            self.had.send(got.is_ready()).map_err(|_| SendError)?;
        }
        Ok(())
    }
}

pub(crate) async fn who_is_told_of_the_end_of_a_session_does_not_get_it_again() {
    let server = redis_8().await;
    let (had, mut was_had) = mpsc::unbounded_channel();
    let db = Arc::new(OnceLock::new());
    let (mut config, _) = telling(config_at(&server, server.server.address));
    config.push_sender = Some(Arc::new(AsksAtOnce { db: Arc::clone(&db), had }));
    let scene = Scene::new(Redis::new(config));
    scene.ping().await;
    assert!(db.set(scene.db.clone()).is_ok());
    server.end_sessions(|_| true).await.unwrap();
    assert_eq!(timeout(QUICK, was_had.recv()).await.unwrap(), Some(false));
    scene.ping().await;
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn a_subscriber_learns_that_its_connection_was_replaced() {
    let server = own().await;
    let channel = server.tenant.key("channel");
    for way in ["swept", "asked in vain"] {
        let proxy = Proxy::start(server.server.address).await.unwrap();
        let (mut config, mut pushed) = telling(config_at(&server, proxy.address()));
        config.check_after = Duration::ZERO;
        config.check_timeout = Duration::from_millis(500);
        let scene = Scene::new(Redis::new(config));
        scene.get().await.subscribe(&channel).await.unwrap();
        next(&mut pushed, PushKind::Subscribe).await;
        if way == "swept" {
            server.end_sessions(|_| true).await.unwrap();
        } else {
            proxy.set_blackhole(true);
        }
        let replaced = scene.db.get().await.map(drop);
        assert!(way != "swept" || replaced.is_ok(), "{replaced:?}");
        next(&mut pushed, PushKind::Disconnection).await;
        proxy.set_blackhole(false);
        scene.ping().await;
        scene.drain().await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn who_only_listens_learns_of_a_server_that_says_nothing() {
    let server = own().await;
    let channel = server.tenant.key("channel");
    let proxy = Proxy::start(server.server.address).await.unwrap();
    for (mut config, mut pushed) in both(config_at(&server, proxy.address())) {
        config.listening_check = Some(Duration::from_millis(100));
        // Nobody is asked in vain by a server that answers.
        config.check_timeout = Duration::from_secs(5);
        let scene = Scene::new(Redis::new(config));
        let mut subscriber = scene.get().await;
        subscriber.subscribe(&channel).await.unwrap();
        next(&mut pushed, PushKind::Subscribe).await;
        // It is asked now and then, and stays.
        let before = proxy.round_trips();
        until("it is asked", || async { proxy.round_trips() > before + 3 }).await;
        publish(&server, &channel).await;
        next(&mut pushed, PushKind::Message).await;
        proxy.set_blackhole(true);
        next(&mut pushed, PushKind::Disconnection).await;
        proxy.set_blackhole(false);
        drop(subscriber);
        let mut subscriber = scene.get().await;
        subscriber.subscribe(&channel).await.unwrap();
        publish(&server, &channel).await;
        next(&mut pushed, PushKind::Message).await;
        drop(subscriber);
        scene.drain().await;
        proxy.wait_for_connections(0).await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn who_subscribes_to_nothing_is_not_asked() {
    let server = redis_8().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let (mut config, _pushed) = telling(config_at(&server, proxy.address()));
    config.listening_check = Some(Duration::from_millis(1));
    let scene = Scene::new(Redis::new(config));
    scene.ping().await;
    let before = proxy.round_trips();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(proxy.round_trips(), before);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}
