//! Commands that wait for something to take, while nobody waits for them.

use std::future::Future;

use redis::{AsyncCommands as _, Cmd, RedisError, Value, cmd};
use winddown_core::Outcome;
use winddown_redis::{Redis, redis};
use winddown_testkit::Harness as _;

use crate::scene::{Scene, Server, assert_nothing_left, config, config_at, redis_8, until, until_waiting};

/// Sends it on a connection of its own, and gives up on it when this is ready.
async fn until_given_up(scene: &Scene, command: Cmd, given_up: impl Future<Output = ()>) {
    let mut connection = scene.get().await;
    let waiting = command.query_async::<Value>(&mut *connection);
    tokio::select! {
        answer = waiting => panic!("it was answered: {answer:?}"),
        () = given_up => {}
    }
}

fn waits(server: &Server) -> Vec<Cmd> {
    let key = |name: &str| server.tenant.key(name);
    vec![
        cmd("BLPOP").arg(key("jobs")).arg(0).take(),
        cmd("blmove").arg(key("jobs")).arg(key("mine")).arg("LEFT").arg("RIGHT").arg(0).take(),
        cmd("BLMPOP").arg(0).arg(1).arg(key("jobs")).arg("LEFT").take(),
    ]
}

pub(crate) async fn l6_a_pop_that_nobody_waits_for_takes_nothing_while_others_are_waited_for() {
    let server = redis_8().await;
    let jobs = server.tenant.key("jobs");
    for own in [true, false] {
        for command in waits(&server) {
            let config = if own { config(&server) } else { config_at(&server, server.server.address) };
            let scene = Scene::new(Redis::new(config));
            // The sessions' own turn comes when this is over.
            let work = scene.lifecycle.track().unwrap();
            let draining = scene.lifecycle.draining();
            tokio::join!(until_given_up(&scene, command, draining), async {
                until_waiting(&server, 1).await;
                assert!(scene.lifecycle.begin_drain());
            });
            until("it does not wait any more", || async { server.running().await.unwrap() == 0 }).await;
            let mut superuser = server.superuser().await;
            let there: usize = superuser.rpush(&jobs, &["42", "43"]).await.unwrap();
            assert_eq!(there, 2);
            drop(work);
            scene.drain().await.assert_clean(1);
            let left: Vec<String> = superuser.lrange(&jobs, 0, -1).await.unwrap();
            assert_eq!(left, ["42", "43"]);
            let () = superuser.del(&jobs).await.unwrap();
            assert_nothing_left(&server).await;
        }
    }
    server.end().await.unwrap();
}

pub(crate) async fn l6_a_pop_that_was_given_up_before_is_ended_when_draining_begins() {
    let server = redis_8().await;
    let scene = Scene::new(Redis::new(config(&server)));
    let work = scene.lifecycle.track().unwrap();
    until_given_up(&scene, waits(&server).remove(0), until_waiting(&server, 1)).await;
    assert_eq!(server.running().await.unwrap(), 1);
    assert!(scene.lifecycle.begin_drain());
    until("it does not wait any more", || async { server.running().await.unwrap() == 0 }).await;
    drop(work);
    let drained = scene.drain().await;
    drained.assert_clean(1);
    assert_eq!(drained.row().sessions.cancelled, 1, "{}", drained.report);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn s6_what_a_pop_takes_for_nobody_is_in_the_report() {
    let server = redis_8().await;
    let jobs = server.tenant.key("jobs");
    // It cannot be ended in time.
    let mut rule = cmd("ACL");
    rule.arg("SETUSER").arg(&server.tenant.name).arg("-client|unblock");
    rule.exec_async(&mut server.superuser().await).await.unwrap();
    for command in waits(&server) {
        let name = String::from_utf8_lossy(&command.get_packed_command()).lines().nth(2).unwrap().to_uppercase();
        let scene = Scene::new(Redis::new(config(&server)));
        let work = scene.lifecycle.track().unwrap();
        let draining = scene.lifecycle.draining();
        tokio::join!(until_given_up(&scene, command, draining), async {
            until_waiting(&server, 1).await;
            scene.lifecycle.begin_drain();
        });
        let () = server.superuser().await.rpush(&jobs, &["s3cret-job"]).await.unwrap();
        until("it was taken", || async { !server.superuser().await.exists(&jobs).await.unwrap_or(true) }).await;
        drop(work);
        let drained = scene.drain().await;
        println!("{}", drained.report);
        let row = drained.row();
        assert_eq!((row.outcome, drained.ended()), (Outcome::Incomplete, (1, 0)), "{}", drained.report);
        let reason = row.reasons.iter().find(|reason| reason.contains(&name)).unwrap();
        assert!(reason.contains(&jobs), "{reason}");
        assert!(!drained.report.to_json_line().contains("s3cret-job"));
        assert_nothing_left(&server).await;
        let () = server.superuser().await.del(server.tenant.key("mine")).await.unwrap();
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_pop_that_somebody_waits_for_is_ended_at_once_where_that_is_asked_for() {
    let server = redis_8().await;
    for own in [true, false] {
        let mut config = if own { config(&server) } else { config_at(&server, server.server.address) };
        config.response_timeout = None;
        config.unblock_on_drain = true;
        let scene = Scene::new(Redis::new(config));
        let worker = {
            let (db, jobs, lifecycle) = (scene.db.clone(), server.tenant.key("jobs"), scene.lifecycle.clone());
            let work = lifecycle.track().unwrap();
            async move {
                let mut connection = db.get().await.unwrap();
                let mut ended = 0;
                // It begins another one after draining has begun.
                while ended < 2 {
                    let popped: Result<Value, RedisError> = connection.blpop(&jobs, 0.0).await;
                    assert_eq!(popped.unwrap_err().code(), Some("UNBLOCKED"));
                    ended += 1;
                }
                drop((connection, work));
            }
        };
        let ((), drained) = tokio::join!(worker, async {
            until_waiting(&server, 1).await;
            scene.drain().await
        });
        drained.assert_clean(1);
        assert_eq!(drained.row().sessions.cancelled, 2, "{}", drained.report);
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}
