//! What a caller has left on its connection: the next one finds none of it.

use std::time::Duration;

use redis::{AsyncCommands as _, RedisResult, Value, cmd, pipe};
use winddown_redis::{Redis, redis};
use winddown_testkit::{Harness as _, proxy::Proxy};

use crate::scene::{Scene, Server, Speaks as _, assert_nothing_left, config, config_at, number, redis_8, until};

/// One connection for all checkouts, one after the other, which no check replaces.
async fn one_after_the_other() -> (Server, Scene) {
    let server = redis_8().await;
    let mut config = config(&server).pooled(1);
    config.check_after = Duration::from_secs(600);
    let scene = Scene::new(Redis::new(config));
    (server, scene)
}

async fn run(scene: &Scene, command: &str) -> RedisResult<Value> {
    let mut words = command.split(' ');
    let mut asked = cmd(words.next().unwrap());
    asked.arg(words.collect::<Vec<_>>());
    asked.query_async(&mut *scene.get().await).await
}

async fn id(scene: &Scene) -> u64 {
    cmd("CLIENT").arg("ID").query_async(&mut *scene.get().await).await.unwrap()
}

async fn end(server: Server, scene: Scene) {
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn s8_a_watch_that_was_left_does_not_abort_the_next_transaction() {
    let (server, scene) = one_after_the_other().await;
    let session = id(&scene).await;
    for watch in ["WATCH", "watch"] {
        let (watched, key) = (server.tenant.key("watched"), server.tenant.key(watch));
        run(&scene, &format!("{watch} {watched}")).await.unwrap();
        let () = server.superuser().await.set(&watched, watch).await.unwrap();
        let mut transaction = pipe();
        transaction.atomic().set(&key, 1).ignore();
        let () = transaction.query_async(&mut *scene.get().await).await.unwrap();
        assert_eq!(number(&mut server.superuser().await, &key).await, 1, "it was answered Ok");
    }
    assert_eq!(id(&scene).await, session, "it need not be closed for that");
    end(server, scene).await;
}

pub(crate) async fn s8_a_transaction_that_was_left_open_swallows_no_command() {
    let (server, scene) = one_after_the_other().await;
    let counter = server.tenant.key("counter");
    for _ in 0..2 {
        run(&scene, "multi").await.unwrap();
        run(&scene, &format!("INCR {counter}")).await.ok();
    }
    // Opened in a pipeline, and by a command that nobody waits for.
    let mut pipeline = pipe();
    pipeline.cmd("PING").cmd("MULTI").cmd("INCR").arg(&counter);
    pipeline.exec_async(&mut *scene.get().await).await.unwrap();
    let mut connection = scene.get().await;
    cmd("MULTI").set_no_response(true).exec_async(&mut *connection).await.unwrap();
    cmd("PING").exec_async(&mut *connection).await.unwrap();
    let mut nested = pipe();
    nested.atomic().incr(&counter, 1);
    let error = nested.exec_async(&mut *connection).await.unwrap_err();
    assert!(error.to_string().contains("nested"), "{error}");
    drop(connection);
    let answer: i64 = scene.get().await.incr(&counter, 1).await.unwrap();
    // Nothing else was executed.
    assert_eq!(answer as u64, number(&mut server.superuser().await, &counter).await);
    end(server, scene).await;
}

pub(crate) async fn s8_a_database_that_was_chosen_is_left_with_its_checkout() {
    let (server, scene) = one_after_the_other().await;
    let key = server.tenant.key("key");
    run(&scene, "SELECT 7").await.unwrap();
    run(&scene, &format!("SET {key} 1")).await.unwrap();
    assert_eq!(number(&mut server.superuser().await, &key).await, 1, "it is in the database of the one before");
    end(server, scene).await;
}

pub(crate) async fn s8_a_session_that_was_changed_for_good_ends_with_its_checkout() {
    let (server, scene) = one_after_the_other().await;
    let other = server.tenant.key("other");
    let commands = [
        "CLIENT SETNAME mine".to_owned(),
        "client tracking on bcast prefix none".to_owned(),
        "CLIENT NO-EVICT ON".to_owned(),
        "READONLY".to_owned(),
        format!("SUBSCRIBE {other}"),
        "RESET".to_owned(),
        "HELLO 2 SETNAME mine".to_owned(),
        format!("AUTH {} {}", server.tenant.name, server.tenant.password),
    ];
    for command in commands {
        let before = id(&scene).await;
        let asked = run(&scene, &command).await;
        // Not only when somebody comes next.
        until("it has ended", || async { server.sessions().await.unwrap() == 0 }).await;
        assert!(id(&scene).await != before, "{command}: {asked:?}");
    }
    end(server, scene).await;
}

pub(crate) async fn s8_what_is_as_it_was_makes_no_round_trip() {
    let server = redis_8().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address()).pooled(1);
    config.check_after = Duration::from_secs(600);
    let scene = Scene::new(Redis::new(config));
    let key = server.tenant.key("key");
    let mut connection = scene.get().await;
    let mut transaction = pipe();
    transaction.atomic().incr(&key, 1).ignore();
    transaction.exec_async(&mut *connection).await.unwrap();
    for end in ["EXEC", "DISCARD", "UNWATCH"] {
        cmd("WATCH").arg(&key).exec_async(&mut *connection).await.unwrap();
        if end != "UNWATCH" {
            cmd("MULTI").exec_async(&mut *connection).await.unwrap();
        }
        cmd(end).exec_async(&mut *connection).await.unwrap();
    }
    cmd("WATCH").arg(&key).exec_async(&mut *connection).await.unwrap();
    transaction.exec_async(&mut *connection).await.unwrap();
    cmd("EVAL").arg("redis.call('SELECT', 1) return 1").arg(0).exec_async(&mut *connection).await.unwrap();
    drop(connection);
    let before = (proxy.bytes_up(), proxy.bytes_down());
    drop(scene.get().await);
    assert_eq!((proxy.bytes_up(), proxy.bytes_down()), before);
    end(server, scene).await;
}

pub(crate) async fn s8_what_would_leave_a_shared_connection_changed_is_refused() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::new(config_at(&server, server.server.address)));
    let key = server.tenant.key("key");
    for command in ["MULTI", "watch x", "SELECT 1", "AUTH a b", "RESET", "HELLO 3", "SUBSCRIBE x"] {
        let error = run(&scene, command).await.expect_err(command);
        assert!(error.to_string().contains("Config::pooled"), "{command}: {error}");
    }
    let mut pipeline = pipe();
    pipeline.cmd("MULTI").incr(&key, 1);
    assert!(pipeline.exec_async(&mut *scene.get().await).await.is_err());
    assert_eq!(number(&mut server.superuser().await, &key).await, 0);
    // Whole in one message, it is nobody else's.
    pipeline.cmd("EXEC");
    pipeline.exec_async(&mut *scene.get().await).await.unwrap();
    let mut transaction = pipe();
    transaction.atomic().incr(&key, 1).ignore();
    transaction.exec_async(&mut *scene.get().await).await.unwrap();
    assert_eq!(number(&mut server.superuser().await, &key).await, 2);
    end(server, scene).await;
}

pub(crate) async fn what_would_silence_a_session_is_refused_and_holds_up_nothing() {
    let server = redis_8().await;
    for own in [true, false] {
        let config = if own { config(&server) } else { config_at(&server, server.server.address) };
        let scene = Scene::new(Redis::new(config));
        for command in ["CLIENT REPLY OFF", "client reply skip", "MONITOR", "SYNC"] {
            let error = run(&scene, command).await.expect_err(command);
            assert!(error.to_string().contains("cannot be used"), "{command}: {error}");
        }
        let mut off = cmd("CLIENT");
        off.arg("REPLY").arg("OFF").set_no_response(true);
        assert!(off.exec_async(&mut *scene.get().await).await.is_err());
        scene.ping().await;
        scene.drain().await.assert_clean(1);
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_command_without_an_answer_that_was_only_queued_is_not_called_written() {
    let (server, scene) = one_after_the_other().await;
    let counter = server.tenant.key("counter");
    let mut connection = scene.get().await;
    cmd("MULTI").exec_async(&mut *connection).await.unwrap();
    for _ in 0..3 {
        cmd("INCR").arg(&counter).set_no_response(true).exec_async(&mut *connection).await.unwrap();
    }
    drop(connection);
    let drained = scene.drain().await;
    let records = drained.row().records.unwrap();
    assert_eq!((records.accepted, records.written), (3, 0), "{}", drained.report);
    assert!(!drained.report.is_clean(), "{}", drained.report);
    assert_eq!(number(&mut server.superuser().await, &counter).await, 0);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}
