//! What the driver can do, through a checkout.

use std::sync::Arc;

use redis::{AsyncCommands as _, AsyncConnectionConfig, ProtocolVersion, PushInfo, PushKind, cmd, pipe};
use winddown_redis::{Config, Redis, redis};
use winddown_testkit::{Harness as _, scene::until};

use crate::{
    outage::until_seen,
    scene::{Scene, Server, Speaks as _, assert_nothing_left, config, config_at, redis_8, start},
    server::{Redis8, Valkey8, Version},
};

fn speaking(mut config: Config, protocol: ProtocolVersion) -> Config {
    let settings = config.driver.redis_settings().clone().set_protocol(protocol);
    config.driver = config.driver.set_redis_settings(settings);
    config
}

async fn names(server: &Server) -> Vec<String> {
    server.listed().await.unwrap().into_iter().map(|session| session.name).collect()
}

pub(crate) async fn sessions_are_listed_under_the_programs_name_or_the_one_that_is_configured() {
    let server = redis_8().await;
    let program = std::env::args().next().unwrap();
    let program = program.rsplit('/').next().unwrap().to_owned();
    for (name, expected) in [(None, program.as_str()), (Some("orders worker"), "orders_worker")] {
        let mut config = config(&server);
        config.client_name = name.map(ToOwned::to_owned);
        let scene = Scene::new(Redis::new(config));
        drop(scene.out(2).await);
        assert_eq!(names(&server).await, [expected, expected]);
        scene.drain().await.assert_clean(2);
    }
    server.end().await.unwrap();
}

pub(crate) async fn pipelines_transactions_and_databases_work_on_a_checkout() {
    let server = redis_8().await;
    for own in [true, false] {
        let mut config = if own { config(&server) } else { config_at(&server, server.server.address) };
        let settings = config.driver.redis_settings().clone().set_db(3);
        config.driver = config.driver.set_redis_settings(settings);
        let scene = Scene::new(Redis::new(config));
        let mut connection = scene.get().await;
        assert_eq!(redis::aio::ConnectionLike::get_db(&*connection), 3);
        let (one, other) = (server.tenant.key("one"), server.tenant.key("other"));
        let mut pipeline = pipe();
        pipeline.set(&one, 1).ignore().incr(&one, 4).get(&one);
        let answers: (i64, i64) = pipeline.query_async(&mut *connection).await.unwrap();
        assert_eq!(answers, (5, 5));
        let mut transaction = pipe();
        transaction.atomic().incr(&one, 1).set(&other, "x").ignore().get(&other);
        let answers: (i64, String) = transaction.query_async(&mut *connection).await.unwrap();
        assert_eq!(answers, (6, "x".to_owned()));
        let keys: Vec<String> = connection.keys(server.tenant.key("*")).await.unwrap();
        assert_eq!(keys.len(), 2, "those of this database");
        let () = connection.del(&[one, other]).await.unwrap();
        drop(connection);
        scene.drain().await.assert_clean(1);
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_transaction_that_fails_says_what_the_driver_says() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::new(config(&server)));
    let mut connection = scene.get().await;
    let key = server.tenant.key("text");
    let () = connection.set(&key, "no number").await.unwrap();
    let client = redis::Client::open(config(&server).driver).unwrap();
    let plain = AsyncConnectionConfig::new();
    let mut plain = client.get_multiplexed_async_connection_with_config(&plain).await.unwrap();
    for atomic in [false, true] {
        let mut failing = pipe();
        failing.incr(&key, 1).get(&key);
        let mut refused = pipe();
        refused.cmd("NOSUCH").get(&key);
        for pipeline in [&mut failing, &mut refused] {
            if atomic {
                pipeline.atomic();
            }
            let ours = pipeline.query_async::<(i64, String)>(&mut *connection).await.unwrap_err();
            let drivers = pipeline.query_async::<(i64, String)>(&mut plain).await.unwrap_err();
            assert_eq!((ours.to_string(), ours.kind()), (drivers.to_string(), drivers.kind()));
        }
    }
    drop((connection, plain));
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn subscriptions_get_their_messages_and_end_with_the_drain() {
    let server = redis_8().await;
    for own in [true, false] {
        let (pushes, mut pushed) = tokio::sync::mpsc::unbounded_channel::<PushInfo>();
        let config = if own { config(&server) } else { config_at(&server, server.server.address) };
        let mut config = speaking(config, ProtocolVersion::RESP3);
        config.push_sender = Some(Arc::new(pushes));
        let scene = Scene::new(Redis::new(config));
        let mut connection = scene.get().await;
        let channel = server.tenant.key("channel");
        connection.subscribe(&[channel.as_str(), "another"]).await.unwrap();
        connection.psubscribe("pattern*").await.unwrap();
        connection.unsubscribe("another").await.unwrap();
        let mut publish = cmd("PUBLISH");
        publish.arg(&channel).arg("hello");
        let heard: usize = publish.query_async(&mut server.superuser().await).await.unwrap();
        assert_eq!(heard, 1);
        let message = loop {
            let push = pushed.recv().await.unwrap();
            if push.kind == PushKind::Message {
                break push;
            }
        };
        assert!(format!("{message:?}").contains("hello"));
        drop(connection);
        if own {
            // It ends with the checkout, since it is subscribed. One that is shared stays.
            until("the subscription has ended", async || {
                publish.query_async::<usize>(&mut server.superuser().await).await.unwrap() == 0
            })
            .await;
            // The server has let it go before it has closed its side.
            until_seen(&scene).await;
        }
        scene.drain().await.assert_clean(if own { 0 } else { 1 });
        let heard: usize = publish.query_async(&mut server.superuser().await).await.unwrap();
        assert_eq!(heard, 0);
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn both_versions_of_the_protocol_are_drained() {
    on::<Redis8>().await;
    on::<Valkey8>().await;
}

async fn on<V: Version>() {
    let server = start::<V>().await;
    for protocol in [ProtocolVersion::RESP2, ProtocolVersion::RESP3] {
        let scene = Scene::new(Redis::new(speaking(config(&server), protocol)));
        for mut connection in scene.out(3).await {
            let mut info = cmd("CLIENT");
            let info: String = info.arg("INFO").query_async(&mut *connection).await.unwrap();
            let expected = if protocol == ProtocolVersion::RESP3 { "resp=3" } else { "resp=2" };
            assert!(info.contains(expected), "{info}");
        }
        scene.drain().await.assert_clean(3);
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}
