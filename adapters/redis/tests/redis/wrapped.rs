//! Connections that the application has built.

use std::{sync::mpsc, thread, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, RedisError,
    aio::{ConnectionLike as _, ConnectionManagerConfig},
    cmd,
};
use tokio::{runtime::Builder, sync::oneshot};
use winddown_core::Outcome;
use winddown_redis::{Existing, Redis, redis};
use winddown_testkit::Harness as _;

use crate::scene::{
    Scene, Server, Speaks as _, assert_nothing_left, number, own, ping, redis_8, until, until_waiting, url,
};

/// How the application has connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Manager,
    Multiplexed,
}

use Form::{Manager, Multiplexed};

fn client(server: &Server, rest: &str) -> Client {
    Client::open(url(server, "redis", &format!("{}{rest}", server.server.address))).unwrap()
}

async fn connect(client: &Client, form: Form) -> Existing {
    match form {
        Manager => {
            let settings = ConnectionManagerConfig::new().set_response_timeout(None);
            client.get_connection_manager_with_config(settings).await.unwrap().into()
        }
        Multiplexed => {
            let settings = AsyncConnectionConfig::new().set_response_timeout(None);
            client.get_multiplexed_async_connection_with_config(&settings).await.unwrap().into()
        }
    }
}

/// What the application does over a clone of its own.
async fn on(existing: Existing, command: redis::Cmd) -> Result<redis::Value, RedisError> {
    match existing {
        Existing::Manager(mut manager) => manager.req_packed_command(&command).await,
        Existing::Multiplexed(mut connection) => connection.req_packed_command(&command).await,
        other => panic!("no form of these tests: {other:?}"),
    }
}

fn pop(server: &Server) -> redis::Cmd {
    cmd("BLPOP").arg(server.tenant.key("never")).arg(0).take()
}

/// With what it was opened with, and without.
fn both(existing: &Existing, client: &Client) -> [(Redis, bool); 2] {
    [(Redis::wrap(existing.clone()), false), (Redis::wrap_with(existing.clone(), client.clone()), true)]
}

pub(crate) async fn what_was_sent_is_executed_before_the_drain_ends_in_every_form() {
    let server = redis_8().await;
    for (form, asks, closed, cannot) in [
        (Manager, false, 0, &["say goodbye", "see the server's end", "cancel statements", "see every session"][..]),
        (Manager, true, 1, &["see every session"]),
        (Multiplexed, false, 1, &["cancel statements"]),
        (Multiplexed, true, 1, &[]),
    ] {
        let client = client(&server, "");
        let existing = connect(&client, form).await;
        let (redis, _) = both(&existing, &client).into_iter().find(|(_, does)| *does == asks).unwrap();
        let scene = Scene::new(redis);
        let key = server.tenant.key(&format!("{form:?}_{asks}"));
        let mut increment = cmd("INCR");
        increment.arg(&key).set_no_response(true);
        let mut connection = scene.get().await;
        for _ in 0..10_000 {
            increment.exec_async(&mut *connection).await.unwrap();
        }
        drop(connection);
        let drained = scene.drain().await;
        let listed = server.sessions().await.unwrap();
        assert_eq!(number(&mut server.superuser().await, &key).await, 10_000, "{form:?}");
        let row = drained.row();
        assert_eq!(
            (row.outcome, drained.ended(), row.sessions.unconfirmed, row.sessions.left_behind),
            (Outcome::Drained, (closed, 0), 1 - closed, 0),
            "{form:?}: {}",
            drained.report
        );
        // Also where nobody has seen it: the server was told.
        assert_eq!(listed, 0, "{form:?}: {}", drained.report);
        assert_eq!(row.cannot, cannot, "{form:?}");
        assert!(row.records.is_none() && row.error.is_none(), "{form:?}: {}", drained.report);
        drop(existing);
    }
    server.end().await.unwrap();
}

pub(crate) async fn one_whose_server_does_not_answer_does_not_hold_up_the_drain() {
    let server = own().await;
    for form in [Manager, Multiplexed] {
        let client = client(&server, "");
        for asks in [false, true] {
            let existing = connect(&client, form).await;
            let (redis, _) = both(&existing, &client).into_iter().find(|(_, does)| *does == asks).unwrap();
            let scene = Scene::patient(redis);
            scene.ping().await;
            server.pause().await.unwrap();
            let drained = scene.drain().await;
            drained.assert_in_time();
            assert_eq!(drained.ended(), (0, 1), "{form:?}, {asks}: {}", drained.report);
            let error = drained.row().error.as_deref().unwrap_or_default();
            let text = "whether everything that was sent was executed is not known";
            assert!(error.contains(text), "{form:?}, {asks}: {}", drained.report);
            server.resume().await.unwrap();
        }
    }
    server.end().await.unwrap();
}

/// Also where it has never been used through the guard.
pub(crate) async fn a_pop_behind_the_guard_s_back_is_ended_when_draining_begins() {
    let server = redis_8().await;
    for form in [Manager, Multiplexed] {
        for used in [false, true] {
            let client = client(&server, "");
            let existing = connect(&client, form).await;
            let scene = Scene::new(Redis::wrap_with(existing.clone(), client));
            if used {
                scene.ping().await;
            } else {
                on(existing.clone(), cmd("PING")).await.unwrap();
            }
            let popping = tokio::spawn(on(existing, pop(&server)));
            until_waiting(&server, 1).await;
            let drained = scene.drain().await;
            let left = (server.sessions().await.unwrap(), server.running().await.unwrap());
            assert_eq!(left, (0, 0), "{form:?}: {}", drained.report);
            drained.assert_clean(1);
            assert_eq!(drained.row().sessions.cancelled, 1, "{}", drained.report);
            let told = popping.await.unwrap().unwrap();
            assert!(format!("{told:?}").contains("UNBLOCKED"), "{told:?}");
        }
    }
    server.end().await.unwrap();
}

/// A guard begins to ask who a connection is when it wraps that. A manager would open another for a question behind the goodbye.
pub(crate) async fn a_question_that_comes_late_has_nothing_opened_behind_the_goodbye() {
    let server = redis_8().await;
    for step in 0..60 {
        let client = client(&server, "");
        let existing = connect(&client, Manager).await;
        let late = Builder::new_current_thread().enable_all().build().unwrap();
        let redis = {
            let _asks = late.enter();
            Redis::wrap_with(existing.clone(), client)
        };
        let scene = Scene::new(redis);
        let (end, ended) = oneshot::channel::<()>();
        let asking = thread::spawn(move || {
            thread::sleep(Duration::from_micros(50 * step));
            // It ends with its sender.
            let _ = late.block_on(ended);
        });
        let drained = scene.drain().await;
        // What is opened would be by then, on most machines.
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(server.sessions().await.unwrap(), 0, "{step}: {}", drained.report);
        assert_eq!(drained.ended(), (1, 0), "{step}: {}", drained.report);
        drop((existing, end));
        asking.join().unwrap();
    }
    server.end().await.unwrap();
}

/// The driver has another session since then, with another number.
pub(crate) async fn one_that_was_opened_anew_behind_the_guard_s_back_is_ended() {
    let server = redis_8().await;
    let client = client(&server, "");
    let existing = connect(&client, Manager).await;
    let scene = Scene::new(Redis::wrap_with(existing.clone(), client));
    scene.ping().await;
    server.end_sessions(|_| true).await.unwrap();
    until("it is opened anew", || async { on(existing.clone(), cmd("PING")).await.is_ok() }).await;
    assert_eq!(server.sessions().await.unwrap(), 1);
    let drained = scene.drain().await;
    assert_nothing_left(&server).await;
    drained.assert_clean(1);

    // One that waits by then is not known, and nothing is claimed of it.
    let client = self::client(&server, "");
    let existing = connect(&client, Manager).await;
    let scene = Scene::patient(Redis::wrap_with(existing.clone(), client));
    scene.ping().await;
    server.end_sessions(|_| true).await.unwrap();
    until("it is opened anew", || async { on(existing.clone(), cmd("PING")).await.is_ok() }).await;
    let popping = tokio::spawn(on(existing, pop(&server)));
    until_waiting(&server, 1).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((0, 1), 0), "{}", drained.report);
    popping.abort();
    let _ = popping.await;
    drop(scene);
    until("it ends with its last clone", || async { server.sessions().await.unwrap() == 0 }).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_manager_that_connects_anew_by_itself_is_told_no_goodbye() {
    let server = redis_8().await;
    let client = client(&server, "/?protocol=resp3");
    for asks in [false, true] {
        let existing = connect(&client, Manager).await;
        let (redis, _) = both(&existing, &client).into_iter().find(|(_, does)| *does == asks).unwrap();
        let scene = Scene::new(redis);
        scene.ping().await;
        // What waits is ended all the same, where anybody can be asked.
        let popping = asks.then(|| tokio::spawn(on(existing, pop(&server))));
        if asks {
            until_waiting(&server, 1).await;
        }
        let drained = scene.drain().await;
        let row = drained.row();
        assert_eq!((row.outcome, drained.ended()), (Outcome::Drained, (0, 0)), "{}", drained.report);
        assert_eq!((row.sessions.unconfirmed, row.sessions.cancelled), (1, u64::from(asks)), "{}", drained.report);
        assert!(drained.report.to_string().contains("connect anew"), "{}", drained.report);
        assert_eq!(server.running().await.unwrap(), 0);
        if let Some(popping) = popping {
            popping.await.unwrap().unwrap();
        }
        drop(scene);
        until("it ends with its last clone", || async { server.sessions().await.unwrap() == 0 }).await;
    }
    // What is opened once is told.
    let existing = connect(&client, Multiplexed).await;
    let scene = Scene::new(Redis::wrap_with(existing, client));
    scene.ping().await;
    let drained = scene.drain().await;
    assert_nothing_left(&server).await;
    drained.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn a_user_who_may_not_ask_about_clients_is_drained_and_nothing_is_claimed() {
    let server = redis_8().await;
    for rules in [&["-client"][..], &["-client", "-info"], &["-client|list"], &["-@all", "+ping", "+quit"]] {
        for (form, asks) in [(Manager, false), (Manager, true), (Multiplexed, false), (Multiplexed, true)] {
            let mut set = cmd("ACL");
            set.arg("SETUSER").arg(&server.tenant.name).arg("+@all").arg(rules);
            let client = client(&server, "");
            set.exec_async(&mut server.superuser().await).await.unwrap();
            let existing = connect(&client, form).await;
            let (redis, _) = both(&existing, &client).into_iter().find(|(_, does)| *does == asks).unwrap();
            let scene = Scene::new(redis);
            scene.ping().await;
            let drained = scene.drain().await;
            let row = drained.row();
            // Over the connection itself the end of one that is opened once is seen.
            let closed = u64::from(form == Multiplexed);
            assert_eq!(
                (row.outcome, drained.ended(), row.sessions.unconfirmed, row.sessions.left_behind),
                (Outcome::Drained, (closed, 0), 1 - closed, 0),
                "{rules:?}, {form:?}, {asks}: {}",
                drained.report
            );
            drop((existing, scene));
            until("it is gone", || async { server.sessions().await.unwrap() == 0 }).await;
        }
    }
    server.end().await.unwrap();
}

/// On a thread and a runtime of its own: connects, and does with the runtime what this says until the drain is over.
async fn drain_beside(
    form: Form,
    asks: bool,
    then: impl FnOnce(tokio::runtime::Runtime, mpsc::Receiver<()>) + Send + 'static,
    check: impl AsyncFnOnce(&Server, crate::scene::Drained),
) {
    let server = redis_8().await;
    let client = client(&server, "");
    let (opened, ready) = oneshot::channel();
    let (over, wait) = mpsc::channel();
    let application = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (scene, existing) = runtime.block_on(async {
            let existing = connect(&client, form).await;
            let (redis, _) = both(&existing, &client).into_iter().find(|(_, does)| *does == asks).unwrap();
            let scene = Scene::patient(redis);
            ping(&mut *scene.get().await).await;
            (scene, existing)
        });
        opened.send(scene).ok();
        then(runtime, wait);
        drop(existing);
    });
    let scene = ready.await.unwrap();
    let drained = scene.drain().await;
    drained.assert_in_time();
    check(&server, drained).await;
    // It may have ended already.
    let _ = over.send(());
    application.join().unwrap();
    drop(scene);
    until("it is gone", || async { server.sessions().await.unwrap() == 0 }).await;
    server.end().await.unwrap();
}

pub(crate) async fn one_whose_runtime_is_gone_is_drained() {
    for (form, asks) in [(Manager, false), (Manager, true), (Multiplexed, false), (Multiplexed, true)] {
        let gone = |runtime, wait: mpsc::Receiver<()>| {
            drop::<tokio::runtime::Runtime>(runtime);
            let _ = wait.recv_timeout(Duration::from_secs(60));
        };
        drain_beside(form, asks, gone, async |server, drained| {
            let row = drained.row();
            assert_eq!((row.outcome, drained.ended().1), (Outcome::Drained, 0), "{form:?}, {asks}: {}", drained.report);
            if asks {
                assert_eq!(drained.ended(), (1, 0), "{form:?}: {}", drained.report);
                assert_nothing_left(server).await;
            }
        })
        .await;
    }
}

pub(crate) async fn one_whose_runtime_is_not_polled_is_ended_on_the_server() {
    for form in [Manager, Multiplexed] {
        let frozen = |runtime, wait: mpsc::Receiver<()>| {
            let _ = wait.recv();
            drop::<tokio::runtime::Runtime>(runtime);
        };
        drain_beside(form, true, frozen, async |server, drained| {
            assert_eq!(drained.ended(), (0, 1), "{form:?}: {}", drained.report);
            let error = drained.row().error.as_deref().unwrap_or_default();
            assert!(error.contains("no answer in time"), "{form:?}: {}", drained.report);
            assert_nothing_left(server).await;
        })
        .await;
    }
}

pub(crate) async fn what_was_checked_out_sends_nothing_after_the_goodbye() {
    let server = redis_8().await;
    let client = client(&server, "");
    let existing = connect(&client, Manager).await;
    let scene = Scene::patient(Redis::wrap_with(existing, client));
    let mut connection = scene.get().await;
    ping(&mut connection).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.ended(), (1, 0), "{}", drained.report);
    assert!(cmd("PING").exec_async(&mut *connection).await.is_err());
    assert!(cmd("PING").exec_async(&mut *connection).await.is_err());
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}
