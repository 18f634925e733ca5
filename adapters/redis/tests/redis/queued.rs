//! Commands that nobody waits for.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use redis::{AsyncCommands as _, Cmd, cmd, pipe};
use winddown_core::{Outcome, Records};
use winddown_redis::{Redis, redis};
use winddown_testkit::{Harness as _, proxy::Proxy};

use crate::scene::{Drained, Scene, Speaks as _, assert_nothing_left, config, config_at, number, redis_8};

fn silently(mut command: Cmd) -> Cmd {
    command.set_no_response(true);
    command
}

fn increment(key: &str) -> Cmd {
    cmd("INCR").arg(key).take()
}

fn records(drained: &Drained) -> Records {
    drained.row().records.unwrap()
}

pub(crate) async fn commands_that_nobody_waits_for_are_executed_before_the_goodbye() {
    const COMMANDS: u64 = 20_000;
    let server = redis_8().await;
    for own in [true, false] {
        let config = if own { config(&server) } else { config_at(&server, server.server.address) };
        let scene = Scene::new(Redis::new(config));
        let key = server.tenant.key(if own { "own" } else { "shared" });
        let command = silently(increment(&key));
        let mut connection = scene.get().await;
        for _ in 0..COMMANDS {
            command.exec_async(&mut *connection).await.unwrap();
        }
        drop(connection);
        let drained = scene.drain().await;
        drained.assert_clean(1);
        assert_eq!((records(&drained).accepted, records(&drained).written), (COMMANDS, COMMANDS), "{}", drained.report);
        assert_eq!(number(&mut server.superuser().await, &key).await, COMMANDS);
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}

/// Polls once, and gives up.
async fn begin(work: impl Future) {
    let mut work = pin!(work);
    poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx).is_ready())).await;
}

pub(crate) async fn commands_whose_futures_were_dropped_are_executed_before_the_goodbye() {
    let server = redis_8().await;
    for own in [true, false] {
        let config = if own { config(&server) } else { config_at(&server, server.server.address) };
        let scene = Scene::new(Redis::new(config));
        let key = server.tenant.key(if own { "own" } else { "shared" });
        let mut connection = scene.get().await;
        for _ in 0..100 {
            begin(connection.incr::<_, _, ()>(&key, 1)).await;
            let mut pipeline = pipe();
            pipeline.atomic().incr(&key, 1).incr(&key, 1);
            begin(pipeline.exec_async(&mut *connection)).await;
        }
        drop(connection);
        let drained = scene.drain().await;
        drained.assert_clean(1);
        assert_eq!(number(&mut server.superuser().await, &key).await, 300);
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_command_that_the_server_refuses_is_reported_lost() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::new(config(&server)));
    let key = server.tenant.key("text");
    let mut connection = scene.get().await;
    let () = connection.set(&key, "no number").await.unwrap();
    for _ in 0..3 {
        silently(increment(&key)).exec_async(&mut *connection).await.unwrap();
    }
    silently(cmd("APPEND").arg(&key).arg("!").take()).exec_async(&mut *connection).await.unwrap();
    drop(connection);
    let drained = scene.drain().await;
    let Records { accepted, written, lost, in_doubt, .. } = records(&drained);
    assert_eq!((accepted, written, lost, in_doubt), (4, 1, 3, 0), "{}", drained.report);
    assert_eq!((drained.row().outcome, drained.ended()), (Outcome::Incomplete, (1, 0)), "{}", drained.report);
    server.end().await.unwrap();
}

pub(crate) async fn what_a_broken_connection_did_not_get_is_reported() {
    let server = redis_8().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let scene = Scene::new(Redis::new(config_at(&server, proxy.address()).pooled(1)));
    let key = server.tenant.key("counter");
    let mut connection = scene.get().await;
    silently(increment(&key)).exec_async(&mut *connection).await.unwrap();
    // Answered, and so is what was sent before it.
    cmd("PING").exec_async(&mut *connection).await.unwrap();
    assert_eq!(number(&mut server.superuser().await, &key).await, 1);
    // What is sent now arrives nowhere, and what is too much for the kernel is not sent.
    proxy.set_blackhole(true);
    let value = vec![b'x'; 100_000];
    let mut accepted = 1;
    let append = silently(cmd("SET").arg(server.tenant.key("text")).arg(&value).take());
    while tokio::time::timeout(Duration::from_millis(300), append.exec_async(&mut *connection)).await.is_ok() {
        accepted += 1;
    }
    drop(connection);
    drop(proxy);
    let drained = scene.drain().await;
    let records = records(&drained);
    assert_eq!(records.accepted, accepted, "{}", drained.report);
    assert_eq!(records.written, 1, "{}", drained.report);
    assert_eq!(records.lost + records.in_doubt, accepted - 1, "{}", drained.report);
    assert_eq!(drained.row().outcome, Outcome::Incomplete, "{}", drained.report);
    server.end().await.unwrap();
}

pub(crate) async fn an_unfinished_caller_is_told_when_its_time_is_up() {
    const LIMIT: Duration = Duration::from_secs(5);
    let server = redis_8().await;
    let mut config = config_at(&server, server.server.address);
    config.response_timeout = Some(LIMIT);
    let scene = Scene::patient(Redis::new(config));
    let mut connection = scene.get().await;
    let key = server.tenant.key("queue");
    let error = connection.blpop::<_, ()>(&key, 0.0).await.unwrap_err();
    assert!(error.is_timeout() && error.to_string().contains("response_timeout of 5s"), "{error}");
    // It waits on, and what is sent after it waits with it; all of that ends with the drain.
    let counter = server.tenant.key("counter");
    silently(increment(&counter)).exec_async(&mut *connection).await.unwrap();
    drop(connection);
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((1, 0), 1), "{}", drained.report);
    assert_eq!((records(&drained).accepted, records(&drained).written), (1, 1), "{}", drained.report);
    assert_eq!(number(&mut server.superuser().await, &counter).await, 1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn commands_keep_their_order() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::new(config_at(&server, server.server.address)));
    scene.ping().await;
    let list = server.tenant.key("list");
    let mut connection = scene.get().await;
    for number in 0..5000_u32 {
        let push = cmd("RPUSH").arg(&list).arg(number).take();
        match number % 3 {
            0 => silently(push).exec_async(&mut *connection).await.unwrap(),
            1 => begin(push.exec_async(&mut *connection)).await,
            _ => push.exec_async(&mut *connection).await.unwrap(),
        }
    }
    let numbers: Vec<u32> = connection.lrange(&list, 0, -1).await.unwrap();
    assert!(numbers.iter().copied().eq(0..5000), "{} of 5000, or not in order", numbers.len());
    drop(connection);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}
