//! Checkouts that do not come back, and commands that wait at the server.

use std::{pin::pin, time::Duration};

use redis::{AsyncCommands as _, RedisError, cmd, pipe};
use winddown_core::Checkout;
use winddown_redis::{Redis, redis};
use winddown_testkit::{
    Directed, Director, Harness as _,
    scene::{BUDGET, lifecycle},
};

use crate::scene::{
    Scene, Server, Speaks as _, abandon_command, assert_nothing_left, config, number, own, redis_8, until,
    until_waiting,
};

pub(crate) async fn a_checkout_that_does_nothing_is_ended_with_a_goodbye() {
    let server = redis_8().await;
    let scene = Scene::patient(Redis::new(config(&server)));
    let mut held = scene.out(2).await.remove(0);
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.ended(), (2, 0), "{}", drained.report);
    assert_eq!(drained.row().sessions.cancelled, 0, "{}", drained.report);
    assert_eq!(drained.row().stragglers.len(), 1, "{}", drained.report);
    assert_nothing_left(&server).await;
    let error = cmd("PING").exec_async(&mut *held).await.unwrap_err();
    assert!(error.is_connection_dropped(), "{error}");
    server.end().await.unwrap();
}

pub(crate) async fn whatever_waits_is_ended_and_counted() {
    let server = redis_8().await;
    let scene = Scene::patient(Redis::new(config(&server).pooled(5)));
    let key = |name: &str| server.tenant.key(name);
    let mut waits = vec![
        cmd("BLPOP").arg(key("a")).arg(0).take(),
        cmd("BLMOVE").arg(key("a")).arg(key("b")).arg("LEFT").arg("LEFT").arg(0).take(),
        cmd("XREAD").arg("BLOCK").arg(0).arg("STREAMS").arg(key("c")).arg("$").take(),
        // For a copy on replicas, of which there are none.
        cmd("WAIT").arg(1).arg(0).take(),
        cmd("BZPOPMIN").arg(key("d")).arg(0).take(),
    ];
    let mut waiting = Vec::new();
    for wait in waits.drain(..) {
        let mut connection = scene.get().await;
        waiting.push(tokio::spawn(async move { wait.exec_async(&mut *connection).await }));
    }
    until_waiting(&server, 5).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((5, 0), 5), "{}", drained.report);
    assert_nothing_left(&server).await;
    for one in waiting {
        let error = one.await.unwrap().unwrap_err();
        assert_eq!(error.code(), Some("UNBLOCKED"), "{error}");
    }
    server.end().await.unwrap();
}

pub(crate) async fn what_is_queued_behind_a_command_that_waits_is_executed() {
    let server = redis_8().await;
    let scene = Scene::patient(Redis::new(config(&server)));
    let (never, counter) = (server.tenant.key("never"), server.tenant.key("counter"));
    let mut connection = scene.get().await;
    let straggler = async {
        let mut pipeline = pipe();
        pipeline.incr(&counter, 1).cmd("BLPOP").arg(&never).arg(0).incr(&counter, 1);
        let result: Result<(), RedisError> = pipeline.query_async(&mut *connection).await;
        let mut increment = cmd("INCR");
        increment.arg(&counter).set_no_response(true);
        let late = increment.exec_async(&mut *connection).await;
        drop(connection);
        (result, late)
    };
    let ((result, late), drained) = tokio::join!(straggler, async {
        until_waiting(&server, 1).await;
        scene.drain().await
    });
    let error = result.unwrap_err().to_string();
    assert!(error.contains("UNBLOCKED"), "{error}");
    late.unwrap();
    drained.assert_in_time();
    assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((1, 0), 1), "{}", drained.report);
    assert_eq!(number(&mut server.superuser().await, &counter).await, 3);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_command_that_begins_after_the_cancelling_is_ended_too() {
    let server = redis_8().await;
    let scene = Scene::patient(Redis::new(config(&server)));
    let mut connection = scene.get().await;
    let never = server.tenant.key("never");
    let handler = async move {
        let first: Result<(), RedisError> = connection.blpop(&never, 0.0).await;
        let second: Result<(), RedisError> = connection.blpop(&never, 0.0).await;
        // Only then does it come back.
        drop(connection);
        (first.is_err(), second.is_err())
    };
    let (failed, drained) = tokio::join!(handler, async {
        until_waiting(&server, 1).await;
        scene.drain().await
    });
    assert_eq!(failed, (true, true));
    drained.assert_in_time();
    assert_eq!(drained.ended(), (1, 0), "{}", drained.report);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_transaction_that_is_open_at_the_goodbye_is_not_executed() {
    let server = redis_8().await;
    let scene = Scene::patient(Redis::new(config(&server)));
    let mut connection = scene.get().await;
    let counter = server.tenant.key("counter");
    cmd("MULTI").exec_async(&mut *connection).await.unwrap();
    cmd("INCR").arg(&counter).exec_async(&mut *connection).await.unwrap();
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.ended(), (1, 0), "{}", drained.report);
    assert!(cmd("EXEC").exec_async(&mut *connection).await.is_err());
    assert_nothing_left(&server).await;
    assert_eq!(number(&mut server.superuser().await, &counter).await, 0);
    server.end().await.unwrap();
}

pub(crate) async fn a_command_that_cannot_be_unblocked_is_killed() {
    let server = own().await;
    let scene = Scene::patient(Redis::new(config(&server)));
    let mut connection = scene.get().await;
    abandon_command(&server, &scene.db).await;
    let counter = server.tenant.key("counter");
    pause_writes(&server).await;
    let writing = tokio::spawn({
        let counter = counter.clone();
        async move { cmd("INCR").arg(counter).exec_async(&mut *connection).await }
    });
    until_waiting(&server, 2).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.row().sessions.cancelled, 2, "{}", drained.report);
    assert_eq!(drained.row().sessions.closed + drained.row().sessions.cut, 2, "{}", drained.report);
    assert_nothing_left(&server).await;
    assert!(writing.await.unwrap().is_err());
    resume_writes(&server).await;
    assert_eq!(number(&mut server.superuser().await, &counter).await, 0);
    server.end().await.unwrap();
}

/// Who writes waits until the pause is over, and cannot be told to stop.
async fn pause_writes(server: &Server) {
    let mut pause = cmd("CLIENT");
    pause.arg("PAUSE").arg(Duration::from_secs(600).as_millis() as u64).arg("WRITE");
    pause.exec_async(&mut server.superuser().await).await.unwrap();
}

async fn resume_writes(server: &Server) {
    cmd("CLIENT").arg("UNPAUSE").exec_async(&mut server.superuser().await).await.unwrap();
}

/// A scene with one session, which leaves its pool when it comes back; and who directs its drain.
async fn leaving(server: &Server) -> (Scene, Director, Checkout<Directed<Redis>>) {
    let (director, lifecycle) = (Director::new(), lifecycle(BUDGET));
    let mut config = config(server);
    config.unblock_on_drain = true;
    let db = lifecycle.guard_as("db", director.direct(Redis::new(config)));
    let scene = Scene { lifecycle, db };
    let mut connection = scene.get().await;
    cmd("CLIENT").arg("NO-TOUCH").arg("ON").exec_async(&mut *connection).await.unwrap();
    (scene, director, connection)
}

pub(crate) async fn a_session_that_ends_before_the_goodbye_begins_is_counted() {
    let server = redis_8().await;
    let (scene, director, mut connection) = leaving(&server).await;
    director.goodbye().hold();
    let key = server.tenant.key("never");
    let waits = tokio::spawn(async move { connection.blpop::<_, ()>(key, 0.0).await });
    until_waiting(&server, 1).await;
    assert!(scene.lifecycle.begin_drain());
    // It is ended at once, and its session with it.
    assert_eq!(waits.await.unwrap().unwrap_err().code(), Some("UNBLOCKED"));
    until("its session has ended", || async { server.sessions().await.unwrap() == 0 }).await;
    director.goodbye().release();
    let drained = scene.drain().await;
    assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((1, 0), 1), "{}", drained.report);
    server.end().await.unwrap();
}

pub(crate) async fn a_session_that_is_given_up_before_the_goodbye_begins_is_counted() {
    let server = own().await;
    let (scene, director, mut connection) = leaving(&server).await;
    director.goodbye().hold();
    pause_writes(&server).await;
    {
        let mut writes = pin!(connection.incr::<_, _, ()>(server.tenant.key("counter"), 1));
        tokio::select! {
            result = &mut writes => panic!("it ended at once: {:?}", result.err()),
            () = until_waiting(&server, 1) => {}
        }
    }
    assert!(scene.lifecycle.begin_drain());
    drop(connection);
    until("it is cut", || async { server.sessions().await.unwrap() == 0 }).await;
    director.goodbye().release();
    let drained = scene.drain().await;
    assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((0, 1), 0), "{}", drained.report);
    resume_writes(&server).await;
    server.end().await.unwrap();
}
