//! Pools that outlive the runtime that their sessions were opened in, as a static one does in tests that have one each.

use std::sync::Arc;

use tokio::{net::TcpListener, sync::oneshot, time::timeout};
use winddown_core::Outcome;
use winddown_mysql::{
    Mysql,
    mysql_async::{Opts, OptsBuilder, Pool},
};
use winddown_testkit::{
    Harness as _,
    scene::{self, on, runtimes},
};

use crate::{
    scene::{
        ENDLESS, QUICK, Scene, Speaks, assert_nothing_left, config, config_at, in_full, mysql, ping, start, until,
        until_running,
    },
    server::{MariaDb, MySql, Version, run},
};

/// What was given back is in the pool again.
async fn until_idle(scene: &Scene, sessions: usize) {
    let pool = scene.db.pool().await.unwrap();
    until("they are in the pool", || async { pool.status().available == sessions }).await;
}

pub(crate) async fn a_guard_outlives_the_runtimes_that_its_sessions_were_opened_in() {
    outlives::<MySql>().await;
    outlives::<MariaDb>().await;
}

async fn outlives<V: Version>() {
    let server = start::<V>().await;
    let mut config = config(&server);
    config.pool.max_size = 3;
    let scene = Arc::new(Scene::new(Mysql::new(config)));
    for sessions in [1, 2, 3] {
        for runtime in runtimes() {
            let scene = Arc::clone(&scene);
            on(runtime, async move {
                let out = timeout(QUICK, scene.out(sessions)).await.expect("they answer");
                drop(out);
                until_idle(&scene, sessions).await;
            })
            .await;
            until("they said goodbye with their runtime", || async { server.sessions().await.unwrap() == 0 }).await;
        }
    }
    scene.ping().await;
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn what_is_idle_when_its_runtime_ends_says_goodbye() {
    idle::<MySql>().await;
    idle::<MariaDb>().await;
}

async fn idle<V: Version>() {
    let server = start::<V>().await;
    // Those that are not yet tidied up make complaints.
    for is_tidy in [true, false] {
        for runtime in runtimes() {
            let scene = Arc::new(Scene::new(Mysql::new(config(&server))));
            {
                let scene = Arc::clone(&scene);
                on(runtime, async move {
                    drop(scene.out(3).await);
                    if is_tidy {
                        until_idle(&scene, 3).await;
                    }
                })
                .await;
            }
            let drained = scene.drain().await;
            // They have ended, or are about to.
            assert_eq!((drained.row().outcome, drained.ended().1), (Outcome::Drained, 0), "{}", drained.report);
            assert_eq!(drained.row().sessions.unconfirmed, 0, "{}", drained.report);
            assert_eq!(server.sessions().await.unwrap(), 0, "{}", drained.report);
            // One that is in the middle of an answer cannot say it.
            if is_tidy {
                assert_nothing_left(&server).await;
            }
        }
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_whose_runtime_ends_fails_at_once_and_is_stopped_by_the_drain() {
    fails::<MySql>().await;
    fails::<MariaDb>().await;
}

async fn fails<V: Version>() {
    let server = start::<V>().await;
    for runtime in runtimes() {
        let scene = Arc::new(Scene::new(Mysql::new(config(&server))));
        let (opened, is_open) = oneshot::channel();
        let (end, ends) = oneshot::channel::<()>();
        let opens = Arc::clone(&scene);
        let opener = tokio::spawn(on(runtime, async move {
            opened.send(opens.out(1).await.remove(0)).ok();
            let _ = ends.await;
        }));
        let mut connection = is_open.await.unwrap();
        let (failed, ()) = tokio::join!(
            async { timeout(QUICK, run(&mut connection, ENDLESS)).await.expect("it is noticed") },
            async {
                until_running(&server, 1).await;
                end.send(()).unwrap();
                opener.await.unwrap();
            }
        );
        failed.unwrap_err();
        drop(connection);
        scene.ping().await;
        let drained = scene.drain().await;
        assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
        assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (2, 0)), "{}", drained.report);
        assert_eq!((server.sessions().await.unwrap(), server.running().await.unwrap()), (0, 0), "{}", drained.report);
        assert_eq!(server.rows().await.unwrap(), 0);
    }
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_that_ends_with_its_callers_runtime_is_stopped_by_the_drain() {
    left::<MySql>().await;
    left::<MariaDb>().await;
}

async fn left<V: Version>() {
    let server = start::<V>().await;
    for runtime in runtimes() {
        let scene = Arc::new(Scene::new(Mysql::new(config(&server))));
        let (end, ends) = oneshot::channel::<()>();
        let runs = Arc::clone(&scene);
        let caller = tokio::spawn(on(runtime, async move {
            tokio::spawn(async move {
                let mut connection = runs.get().await;
                run(&mut connection, ENDLESS).await.unwrap_err();
            });
            let _ = ends.await;
        }));
        until_running(&server, 1).await;
        end.send(()).unwrap();
        caller.await.unwrap();
        let drained = scene.drain().await;
        assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
        assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (1, 0)), "{}", drained.report);
        assert_eq!((server.sessions().await.unwrap(), server.running().await.unwrap()), (0, 0), "{}", drained.report);
        assert_eq!(server.rows().await.unwrap(), 0);
    }
    server.end().await.unwrap();
}

pub(crate) async fn what_is_being_opened_when_its_runtime_ends_holds_up_no_drain() {
    let server = mysql().await;
    for runtime in runtimes() {
        let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scene = Arc::new(Scene::new(Mysql::new(config_at(&server, mute.local_addr().unwrap()))));
        let (accepted, is_accepted) = oneshot::channel();
        let opens = Arc::clone(&scene);
        let opener = tokio::spawn(on(runtime, async move {
            tokio::spawn(async move { opens.db.get().await.map(drop) });
            let _ = is_accepted.await;
        }));
        let kept = mute.accept().await.unwrap();
        accepted.send(()).unwrap();
        opener.await.unwrap();
        let drained = scene.drain().await;
        assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
        drop(kept);
    }
    server.end().await.unwrap();
}

/// The driver's pool ends with the runtime that it was first used in, and says no goodbyes then.
pub(crate) async fn a_pool_of_the_drivers_has_nobody_wait_when_its_runtime_has_ended() {
    let server = mysql().await;
    for first in runtimes() {
        let opts: Opts = OptsBuilder::from_opts(config(&server).driver).prefer_socket(false).into();
        let scene = Arc::new(scene::Scene::new(Mysql::wrap(Pool::new(opts.clone()), opts)));
        let out = Arc::clone(&scene);
        on(first, async move {
            let mut out = (out.get().await, out.get().await);
            tokio::join!(ping(&mut out.0), ping(&mut out.1));
        })
        .await;
        let refused = timeout(QUICK, scene.db.get()).await.expect("nobody can give one back");
        let refused = in_full(&refused.expect_err("it has ended"));
        assert!(refused.contains("runtime") && refused.contains("Mysql::new"), "{refused}");
        let drained = scene.drain().await;
        assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
        assert_eq!(server.sessions().await.unwrap(), 0, "{}", drained.report);
    }
    server.end().await.unwrap();
}
