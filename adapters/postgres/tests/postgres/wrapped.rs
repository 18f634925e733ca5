//! Pools that the application has built, and uses also without the guard.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, thread, time::Duration};

use deadpool_postgres::{Client, ConfigConnectImpl, Connect, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use futures_util::future::BoxFuture;
use tokio::{
    runtime::Builder,
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_postgres::NoTls;
use tokio_postgres_rustls::MakeRustlsConnect;
use winddown_core::Outcome;
use winddown_postgres::{
    Postgres,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer, pki_types::pem::PemObject as _},
};
use winddown_testkit::{
    Harness as _,
    certificates::Authority,
    child::{self, Child},
    proxy::Proxy,
    same_end,
};

use crate::{
    pgbouncer::PgBouncer,
    scene::{
        ENDLESS, QUICK, Scene, Speaks, abandon_statement, assert_nothing_left, config, config_at,
        drain_under_a_statement, in_full, is_encrypted, ping, seventeen, start, until, until_running,
    },
    server::{PostgreSql, Seventeen, Version, run},
    tls::Encrypted,
    wrapped_pool,
};

pub(crate) fn pool<V: Version>(server: &PostgreSql<V>) -> Pool {
    wrapped_pool::pool(config(server), RecyclingMethod::Fast)
}

/// So many idle ones, which nobody has had from the guard.
async fn idle(pool: &Pool, count: usize) {
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = pool.get().await.unwrap();
        ping(&client).await;
        clients.push(client);
    }
}

/// A statement that does not end, on a connection that the pool gave to somebody else than the guard; what became of it.
async fn run_behind(server: &PostgreSql<impl Version>, client: Client) -> JoinHandle<Result<(), String>> {
    let statement = tokio::spawn(async move { run(&client, ENDLESS).await.map_err(|error| in_full(error.as_ref())) });
    until_running(server, 1).await;
    statement
}

fn assert_cancelled(result: Result<(), String>) {
    let error = result.unwrap_err();
    assert!(error.contains("due to user request"), "{error}");
}

pub(crate) async fn a_pool_is_drained_though_it_was_never_used_through_the_guard() {
    let server = seventeen().await;
    let pool = pool(&server);
    for count in [1, 3] {
        let pool = if count == 1 { pool.clone() } else { self::pool(&server) };
        idle(&pool, count).await;
        assert_eq!(server.sessions().await.unwrap(), count);
        let drained = Scene::new(Postgres::wrap(pool.clone())).drain().await;
        drained.assert_clean(count as u64);
        assert_nothing_left(&server).await;
        assert_eq!(drained.row().sessions.unconfirmed, 0, "{}", drained.report);
        assert_eq!(drained.row().cannot, ["see every session"]);
        assert!(pool.is_closed());
    }
    server.end().await.unwrap();
}

pub(crate) async fn sessions_are_told_from_connections_to_others_that_have_the_same_end_here() {
    let server = seventeen().await;
    let pool = pool(&server);
    let mut others = Vec::new();
    let clients = [pool.get().await.unwrap(), pool.get().await.unwrap()];
    for client in &clients {
        let end = client.query_one("SELECT host(inet_client_addr()) || ':' || inet_client_port()", &[]).await.unwrap();
        others.push(same_end::connect(end.get::<_, String>(0).parse().unwrap()).await.unwrap());
    }
    drop(clients);
    let drained = Scene::new(Postgres::wrap(pool)).drain().await;
    drained.assert_clean(2);
    assert_nothing_left(&server).await;
    assert_eq!(drained.row().sessions.unconfirmed, 0, "{}", drained.report);
    drop(others);
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_of_a_checkout_is_cancelled() {
    let server = seventeen().await;
    let scene = Scene::patient(Postgres::wrap(pool(&server)));
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    assert_cancelled(result);
    drained.assert_in_time();
    assert_nothing_left(&server).await;
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (1, 0)), "{}", drained.report);
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn only_what_runs_is_cancelled() {
    let server = seventeen().await;
    let scene = Scene::patient(Postgres::wrap(pool(&server)));
    let held = scene.out(2).await;
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    assert_cancelled(result);
    let sessions = drained.row().sessions;
    // Two are held, and nothing runs on them.
    assert_eq!((sessions.cancelled, drained.ended(), sessions.left_behind), (1, (1, 2), 0), "{}", drained.report);
    drop(held);
    until("those that were held are gone", || async { server.sessions().await.unwrap() == 0 }).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_that_nobody_waits_for_is_cancelled() {
    let server = seventeen().await;
    let scene = Scene::new(Postgres::wrap(pool(&server)));
    abandon_statement(&server, &scene.db).await;
    let drained = scene.drain().await;
    drained.assert_clean(1);
    assert_nothing_left(&server).await;
    assert_eq!(drained.row().sessions.cancelled, 1, "{}", drained.report);
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

/// What ends a caller's transaction is answered before the next but one gets the connection: callers that ask for nothing would have
/// it queue up where the server is slower than they are.
pub(crate) async fn checkouts_that_are_given_back_unused_do_not_queue_up_before_a_slow_server() {
    let server = seventeen().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let scene =
        Scene::new(Postgres::wrap(wrapped_pool::pool(config_at(&server, proxy.address()), RecyclingMethod::Fast)));
    drop(scene.out(2).await);
    scene.ping().await;
    proxy.set_blackhole(true);
    let mut had = 0;
    let hot = async {
        loop {
            drop(scene.get().await);
            had += 1;
            tokio::task::yield_now().await;
        }
    };
    let is_over: Result<(), _> = timeout(Duration::from_millis(500), hot).await;
    is_over.unwrap_err();
    // Of two connections.
    assert!(had <= 4, "{had} checkouts have left something to answer");
    proxy.set_blackhole(false);
    scene.ping().await;
    let drained = scene.drain().await;
    assert!(drained.report.is_clean(), "{}", drained.report);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn what_was_taken_from_the_pool_directly_is_cancelled_and_says_goodbye() {
    let server = seventeen().await;
    // Whether the guard had handed the connection out before, and how many more are idle.
    for (is_known, others) in [(true, 1), (false, 0), (false, 2), (false, 3)] {
        let pool = pool(&server);
        let scene = Scene::patient(Postgres::wrap(pool.clone()));
        if is_known {
            drop(scene.out(1 + others).await);
        } else {
            idle(&pool, 1 + others).await;
        }
        let statement = run_behind(&server, pool.get().await.unwrap()).await;
        let drained = scene.drain().await;
        drained.assert_in_time();
        assert_nothing_left(&server).await;
        assert_cancelled(statement.await.unwrap());
        let sessions = drained.row().sessions;
        let ended = (drained.row().outcome, drained.ended(), sessions.cancelled, sessions.left_behind);
        assert_eq!(ended, (Outcome::Drained, (1 + others as u64, 0), 1, 0), "{is_known} {others} {}", drained.report);
        assert!(pool.is_closed());
    }
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn what_comes_back_to_the_pool_directly_says_goodbye() {
    let server = seventeen().await;
    // All that the pool may have are out, or there is room for more.
    for out in [4, 2] {
        let pool = pool(&server);
        let scene = Scene::new(Postgres::wrap(pool.clone()));
        idle(&pool, out).await;
        let by_guard = scene.get().await;
        let mut clients = Vec::new();
        for _ in 1..out {
            clients.push(pool.get().await.unwrap());
        }
        // In a transaction that has failed, for one.
        clients[0].batch_execute("BEGIN; SELECT 1/0").await.unwrap_err();
        let (drained, ()) = tokio::join!(scene.drain(), async {
            scene.lifecycle.draining().await;
            ping(&by_guard).await;
            drop(by_guard);
            for client in clients {
                drop(client);
                tokio::task::yield_now().await;
            }
        });
        drained.assert_clean(out as u64);
        assert_nothing_left(&server).await;
        assert_eq!(drained.row().sessions.unconfirmed, 0, "{}", drained.report);
    }
    server.end().await.unwrap();
}

/// The pool would end it without a goodbye.
pub(crate) async fn a_checkout_that_comes_back_when_the_pool_was_just_closed_says_goodbye() {
    let server = seventeen().await;
    let pool = pool(&server);
    let scene = Scene::new(Postgres::wrap(pool.clone()));
    let by_guard = scene.get().await;
    ping(&by_guard).await;
    let mut by_others = Vec::new();
    while pool.status().size < pool.status().max_size {
        by_others.push(pool.get().await.unwrap());
    }
    let (drained, ()) = tokio::join!(scene.drain(), async {
        scene.lifecycle.draining().await;
        // The second one comes back when the drain has seen that others have some.
        for (client, left) in by_others.into_iter().zip([3, 2, 1]) {
            drop(client);
            until("it has left", || async { server.sessions().await.unwrap() == left }).await;
        }
        pool.close();
        drop(by_guard);
    });
    drained.assert_clean(4);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

/// Whoever waits for a connection waits in vain then.
pub(crate) async fn a_drain_that_has_all_does_not_wait_for_callers_that_wait() {
    let server = seventeen().await;
    let mut took = Vec::new();
    // Once it is quick on any machine; waiting for them would take as long each time.
    for _ in 0..3 {
        let pool = pool(&server);
        let scene = Scene::new(Postgres::wrap(pool.clone()));
        let by_guard = scene.get().await;
        let mut by_others = Vec::new();
        while pool.status().size < pool.status().max_size {
            by_others.push(pool.get().await.unwrap());
        }
        // One more than others have, and give back.
        let mut waiting = JoinSet::new();
        for _ in 0..=by_others.len() {
            let db = scene.db.clone();
            waiting.spawn(async move { db.get().await });
        }
        let callers = waiting.len();
        until("they wait", || async { pool.status().waiting == callers }).await;
        let (drained, ()) = tokio::join!(scene.drain(), async {
            until("the drain waits too", || async { pool.status().waiting == callers + 1 }).await;
            drop(by_guard);
            drop(by_others);
        });
        for refused in waiting.join_all().await {
            assert!(refused.unwrap_err().is_shutting_down());
        }
        drained.assert_clean(4);
        assert_nothing_left(&server).await;
        took.push(drained.took);
    }
    assert!(took.iter().any(|took| *took < Duration::from_secs(3)), "{took:?}");
    server.end().await.unwrap();
}

pub(crate) async fn what_is_not_proven_to_be_the_pools_is_left_alone() {
    let server = seventeen().await;
    let pool = pool(&server);
    let scene = Scene::patient(Postgres::wrap(pool.clone()));
    // In this process, with the same user and the same database.
    let stranger = server.stranger().await.unwrap();
    let statement = run_behind(&server, pool.get().await.unwrap()).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    stranger.untouched().await.unwrap();
    let row = drained.row();
    assert_eq!((row.outcome, row.sessions.cancelled, drained.ended()), (Outcome::Incomplete, 0, (0, 1)));
    let reasons = row.reasons.join("; ");
    assert!(reasons.contains("left alone"), "{}", drained.report);
    assert_eq!(server.running().await.unwrap(), 1);
    server.end_all().await.unwrap();
    assert!(statement.await.unwrap().is_err());
    server.end().await.unwrap();
}

pub(crate) async fn a_stranger_is_left_alone_where_ours_are_known() {
    let server = seventeen().await;
    let scene = Scene::patient(Postgres::wrap(pool(&server)));
    let stranger = server.stranger().await.unwrap();
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    assert_cancelled(result);
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (1, 0)), "{}", drained.report);
    stranger.untouched().await.unwrap();
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

/// Two idle sessions and one with a statement that nobody waits for, on a runtime with which this is done then.
async fn drain_beside(
    server: &Arc<PostgreSql<Seventeen>>,
    then: impl FnOnce(tokio::runtime::Runtime, std::sync::mpsc::Receiver<()>) + Send + 'static,
) -> winddown_testkit::scene::Drained {
    let scene = Scene::patient(Postgres::wrap(pool(server)));
    let (opened, ready) = tokio::sync::oneshot::channel();
    let (over, wait) = std::sync::mpsc::channel();
    let begins = Arc::clone(server);
    let application = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let scene = runtime.block_on(async {
            drop(scene.out(3).await);
            abandon_statement(&begins, &scene.db).await;
            scene
        });
        opened.send(scene).ok();
        then(runtime, wait);
    });
    let scene = ready.await.unwrap();
    let drained = scene.drain().await;
    drained.assert_in_time();
    drop(over);
    application.join().unwrap();
    drop(scene);
    drained
}

pub(crate) async fn where_the_runtime_is_blocked_what_runs_is_cancelled_and_the_deadline_holds() {
    let server = Arc::new(seventeen().await);
    let asks = Arc::clone(&server);
    let drained = drain_beside(&server, move |runtime, over| {
        runtime.block_on(async move {
            let _ = over.recv();
        });
        drop((runtime, asks));
    })
    .await;
    let row = drained.row();
    // Their driver is not polled any more: none of them can say anything.
    assert_eq!((row.outcome, drained.ended()), (Outcome::Incomplete, (0, 3)), "{}", drained.report);
    assert_eq!((row.sessions.cancelled, row.sessions.left_behind), (1, 0), "{}", drained.report);
    assert_eq!((server.running().await.unwrap(), server.rows().await.unwrap()), (0, 0));
    until("what was cut is gone", || async { server.sessions().await.unwrap() == 0 }).await;
    Arc::into_inner(server).unwrap().end().await.unwrap();
}

pub(crate) async fn where_the_runtime_is_gone_nothing_is_claimed() {
    let server = Arc::new(seventeen().await);
    let drained = drain_beside(&server, |runtime, _| drop(runtime)).await;
    // Their driver has closed them with its runtime.
    assert_eq!(drained.ended(), (0, 0), "{}", drained.report);
    assert!(drained.took < QUICK, "{:?}", drained.took);
    server.end_all().await.unwrap();
    Arc::into_inner(server).unwrap().end().await.unwrap();
}

/// Wherever it is on its way: the application's driver would close the socket as it is.
pub(crate) async fn a_session_that_is_being_opened_when_the_drain_begins_says_goodbye() {
    const STEP: Duration = Duration::from_millis(100);
    let server = seventeen().await;
    for steps in 0..9 {
        let proxy = Proxy::start(server.server.address).await.unwrap();
        // Opening one takes three round trips and more.
        proxy.set_delay(STEP);
        let pool = wrapped_pool::pool(config_at(&server, proxy.address()), RecyclingMethod::Fast);
        let scene = Scene::new(Postgres::wrap(pool));
        let mut caller = Box::pin(scene.db.get());
        let in_time = timeout(STEP * steps, &mut caller).await.is_ok();
        let (drained, ()) = tokio::join!(scene.drain(), async {
            // Refused at once, it does not wait for the server.
            if !in_time {
                assert!(caller.await.unwrap_err().is_shutting_down());
            }
        });
        assert!(drained.report.is_clean(), "after {steps} steps: {}", drained.report);
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}

/// Connects once, and when nobody is held any more; how many have asked for it.
struct Held(Arc<Semaphore>, watch::Sender<usize>);

impl Connect for Held {
    fn connect(
        &self,
        config: &tokio_postgres::Config,
    ) -> BoxFuture<'_, Result<(tokio_postgres::Client, JoinHandle<()>), tokio_postgres::Error>> {
        let config = config.clone();
        Box::pin(async move {
            self.1.send_modify(|asked| *asked += 1);
            if let Ok(first) = self.0.acquire().await {
                first.forget();
            }
            ConfigConnectImpl { tls: NoTls }.connect(&config).await
        })
    }
}

pub(crate) async fn a_session_that_is_connected_when_others_have_left_is_seen_to_end_too() {
    let server = seventeen().await;
    let (connects, asked) = (Arc::new(Semaphore::new(1)), watch::Sender::new(0));
    let mut asks = asked.subscribe();
    let settings = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_connect(config(&server).driver, Held(Arc::clone(&connects), asked), settings);
    let pool = Pool::builder(manager).max_size(2).runtime(Runtime::Tokio1).build().unwrap();
    let scene = Scene::new(Postgres::wrap(pool.clone()));
    let first = pool.get().await.unwrap();
    ping(&first).await;
    let mut caller = Box::pin(scene.db.get());
    tokio::select! {
        _ = &mut caller => panic!("nobody has connected it"),
        asked = asks.wait_for(|asked| *asked == 2) => drop(asked.unwrap()),
    }
    let (drained, ()) = tokio::join!(scene.drain(), async {
        assert!(caller.await.unwrap_err().is_shutting_down());
        drop(first);
        until("the first one has left", || async { server.sessions().await.unwrap() == 0 }).await;
        // And whoever is opened to ask, as on a machine that is slow.
        connects.close();
    });
    drained.assert_clean(2);
    assert_nothing_left(&server).await;
    assert_eq!(drained.row().sessions.unconfirmed, 0, "{}", drained.report);
    server.end().await.unwrap();
}

pub(crate) async fn who_was_opened_to_stop_a_statement_leaves_when_that_is_over() {
    let server = seventeen().await;
    let scene = Scene::new(Postgres::wrap(pool(&server)));
    let held = scene.out(1).await;
    abandon_statement(&server, &scene.db).await;
    let (drained, ()) = tokio::join!(scene.drain(), async {
        until("only what is out is listed", || async { server.sessions().await.unwrap() == 1 }).await;
        drop(held);
    });
    drained.assert_clean(2);
    assert_nothing_left(&server).await;
    assert_eq!(drained.row().sessions.cancelled, 1, "{}", drained.report);
    server.end().await.unwrap();
}

pub(crate) async fn over_tls_sessions_say_goodbye_and_statements_are_cancelled_as_the_pool_is_encrypted() {
    let server = start::<Encrypted>().await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(Authority::ours().pem().as_bytes()).unwrap()).unwrap();
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut driver = tokio_postgres::Config::new();
    let (tenant, address) = (&server.tenant, server.server.address);
    driver.host(winddown_testkit::certificates::NAME).hostaddr(address.ip()).port(address.port());
    driver.user(&tenant.name).password(&tenant.password).dbname(&tenant.name);
    driver.ssl_mode(tokio_postgres::config::SslMode::Require);
    let manager = Manager::from_config(driver, MakeRustlsConnect::new(tls), ManagerConfig::default());
    let pool = Pool::builder(manager).max_size(10).runtime(Runtime::Tokio1).build().unwrap();
    let scene = Scene::patient(Postgres::wrap(pool));
    let mut pids: Vec<i32> = Vec::new();
    for client in scene.out(10).await {
        assert!(is_encrypted(&client).await);
        pids.push(client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0));
    }
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    assert_cancelled(result);
    assert_nothing_left(&server).await;
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (10, 0)), "{}", drained.report);
    // It came on a session that is encrypted as the others are.
    assert_eq!(requests(&server, &pids).await, 0);
    server.end().await.unwrap();
}

/// Requests to cancel what these run that the server has processed: each has come on a connection of its own.
async fn requests<V: Version>(server: &PostgreSql<V>, pids: &[i32]) -> usize {
    let log = server.server.container.lock().await.logs().await.unwrap();
    let is_theirs = |line: &str| {
        let (_, pid) = line.split_once("processing cancel request: sending SIGINT to process ").unwrap_or_default();
        pids.iter().any(|theirs| pid == theirs.to_string())
    };
    log.lines().filter(|line| is_theirs(line)).count()
}

pub(crate) async fn where_the_server_sees_another_client_the_others_are_asked_about_and_the_last_is_unconfirmed() {
    let server = seventeen().await;
    let mut relay = Child::start_with(RELAY, &[(RELAY_TO, server.server.address.to_string())]);
    let address: SocketAddr = relay.line().trim().parse().unwrap();
    let pool = || wrapped_pool::pool(config_at(&server, address), RecyclingMethod::Fast);
    let drained = {
        let pool = pool();
        idle(&pool, 4).await;
        Scene::new(Postgres::wrap(pool)).drain().await
    };
    until("the last is gone", || async { server.sessions().await.unwrap() == 0 }).await;
    assert_nothing_left(&server).await;
    drained.assert_clean(3);
    assert_eq!(drained.row().sessions.unconfirmed, 1, "{}", drained.report);

    let scene = Scene::patient(Postgres::wrap(pool()));
    drop(scene.out(1).await);
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    assert_cancelled(result);
    let sessions = drained.row().sessions;
    let ended = (sessions.cancelled, drained.ended(), sessions.unconfirmed, sessions.left_behind);
    assert_eq!(ended, (1, (0, 0), 1, 0), "{}", drained.report);
    until("the last is gone", || async { server.sessions().await.unwrap() == 0 }).await;
    assert_nothing_left(&server).await;
    drop(relay);
    server.end().await.unwrap();
}

const RELAY: &str = "relay";
const RELAY_TO: &str = "WINDDOWN_TEST_RELAY_TO";

/// A process of its own between a pool and its server, whose sockets the server sees.
pub(crate) fn program() -> Option<ExitCode> {
    child::role().filter(|role| role == RELAY)?;
    Some(child::run(&mut Builder::new_current_thread(), async {
        let proxy = Proxy::start(std::env::var(RELAY_TO)?.parse()?).await?;
        println!("{}", proxy.address());
        std::future::pending().await
    }))
}

pub(crate) async fn behind_a_pooler_sessions_say_goodbye_and_are_unconfirmed() {
    let server = PgBouncer::start(winddown_testkit::ServerUse::Shared).await.unwrap();
    let pool = wrapped_pool::pool(server.config(), RecyclingMethod::Fast);
    idle(&pool, 3).await;
    let scene = Scene::new(Postgres::wrap(pool));
    drop(scene.out(4).await);
    let drained = scene.drain().await;
    let row = drained.row();
    assert_eq!(
        (row.outcome, drained.ended(), row.sessions.unconfirmed),
        (Outcome::Drained, (0, 0), 4),
        "{}",
        drained.report
    );
    until("all are gone", || async { server.sessions().await.unwrap() == 0 }).await;
    let complaints = server.complaints().await.unwrap();
    assert!(complaints.is_empty(), "{complaints:#?}");
    server.end().await.unwrap();
}

pub(crate) async fn where_the_server_is_full_and_all_are_busy_what_runs_is_cancelled_unseen() {
    let server = seventeen().await;
    let scene = Scene::patient(Postgres::wrap(pool(&server)));
    drop(scene.out(1).await);
    server.full(true).await.unwrap();
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    assert_cancelled(result);
    drained.assert_in_time();
    assert_nothing_left(&server).await;
    // Nobody has seen it run.
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (0, (1, 0)), "{}", drained.report);
    assert!(
        drained.row().error.as_ref().is_some_and(|error| error.contains("could not be asked")),
        "{}",
        drained.report
    );
    server.full(false).await.unwrap();
    server.end().await.unwrap();
}
