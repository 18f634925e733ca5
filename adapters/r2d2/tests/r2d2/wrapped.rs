//! What the suite does not ask: pools that are used without the guard too, what a checkout leaves, and closures.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use diesel::{
    Connection as _, PgConnection, RunQueryDsl as _, connection::SimpleConnection as _, dsl::sql, sql_query,
    sql_types::Integer,
};
use r2d2::HandleError;
use tokio::{runtime::Builder, task::spawn_blocking};
use winddown_core::{ErrorKind, Outcome, Resource as _};
use winddown_r2d2::{Closures, ConnectError, Manager, Pool, R2d2, Session, r2d2};
use winddown_testkit::{
    Harness as _, ServerUse, Setup,
    scene::{ENDLESS, QUICK, Scene, in_full, until},
};

use crate::{
    built::url,
    diesel::{Opens, ping, pool, run, settings},
    server::{PostgreSql, Seventeen},
};

async fn server() -> PostgreSql<Seventeen> {
    PostgreSql::start(ServerUse::Shared).await.unwrap()
}

/// A pool of one connection, which the next caller gets.
fn of_one() -> Setup {
    let mut setup = Setup::default();
    setup.size = 1;
    setup
}

type Taken = r2d2::PooledConnection<Manager<Opens>>;

/// Some that are taken from the pool directly.
async fn taken(pool: &Pool<Opens>, count: usize) -> Vec<Taken> {
    let pool = pool.clone();
    spawn_blocking(move || {
        let get = |_| {
            let mut connection = pool.get().unwrap();
            ping(&mut connection).unwrap();
            connection
        };
        (0..count).map(get).collect()
    })
    .await
    .unwrap()
}

/// Keeps what it is told.
#[derive(Debug, Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl HandleError<diesel::r2d2::Error> for Heard {
    fn handle_error(&self, error: diesel::r2d2::Error) {
        self.0.lock().unwrap().push(error.to_string());
    }
}

pub(crate) async fn a_pool_is_drained_though_it_was_never_used_through_the_guard() {
    let server = server().await;
    let pool = pool(&server, &Setup::default());
    let scene = Scene::new(R2d2::wrap(pool.clone()));
    drop(taken(&pool, 3).await);
    scene.drain().await.assert_clean(3);
    assert_eq!(server.sessions().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn a_pool_that_opens_all_at_once_leaves_none_and_opens_none_after_it() {
    let server = server().await;
    for is_open in [true, false] {
        let settings = r2d2::Pool::builder().max_size(4);
        let heard = Heard::default();
        let pool = Pool::diesel_postgres(settings, Opens::new(url(&server, &Setup::default())));
        let pool = pool.error_handler(Box::new(heard.clone()));
        let scene = Scene::new(R2d2::wrap(pool.clone()));
        if is_open {
            until("all are open", async || pool.state().idle_connections == 4).await;
        }
        let drained = scene.drain().await;
        let (report, row) = (&drained.report, drained.row());
        assert_eq!((row.outcome, row.sessions.cut), (Outcome::Drained, 0), "{report}");
        assert!(!is_open || row.sessions.closed == 4, "{report}");
        assert_eq!(server.sessions().await.unwrap(), 0, "{report}");
        // Longer than it pauses before it tries again, for the first time.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(server.sessions().await.unwrap(), 0);
        assert!(heard.0.lock().unwrap().is_empty(), "{heard:?}");
    }
    assert!(server.complaints().await.unwrap().is_empty());
    server.end().await.unwrap();
}

pub(crate) async fn what_comes_back_to_the_pool_directly_says_goodbye() {
    let server = server().await;
    // All that the pool may have are out, or there is room for more.
    for out in [4, 2] {
        let pool = pool(&server, &Setup::default());
        let scene = Scene::new(R2d2::wrap(pool.clone()));
        let mut by_guard = scene.get().await;
        let mut connections = taken(&pool, out - 1).await;
        // In a transaction, for one.
        connections[0].batch_execute("BEGIN").unwrap();
        let (drained, ()) = tokio::join!(scene.drain(), async {
            scene.lifecycle.draining().await;
            by_guard.run(ping).await.unwrap().unwrap();
            drop(by_guard);
            for connection in connections {
                drop(connection);
                tokio::task::yield_now().await;
            }
        });
        drained.assert_clean(out as u64);
        assert_eq!(server.sessions().await.unwrap(), 0);
    }
    assert!(server.complaints().await.unwrap().is_empty());
    server.end().await.unwrap();
}

pub(crate) async fn what_breaks_while_draining_is_not_replaced_and_nothing_is_logged() {
    let server = server().await;
    let heard = Heard::default();
    let settings = r2d2::Pool::builder().max_size(4).min_idle(Some(1));
    let pool = Pool::diesel_postgres(settings, Opens::new(url(&server, &Setup::default())));
    let pool = pool.error_handler(Box::new(heard.clone()));
    let scene = Scene::new(R2d2::wrap(pool.clone()));
    let mut connections = taken(&pool, 2).await;
    until("one is in reserve", async || pool.state().idle_connections >= 1).await;
    let (drained, ()) = tokio::join!(scene.drain(), async {
        scene.lifecycle.draining().await;
        let mut broken = connections.remove(0);
        // Which a pool finds to be broken.
        broken.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").unwrap_err();
        drop(broken);
        drop(connections);
    });
    let (report, row) = (&drained.report, drained.row());
    assert_eq!((row.outcome, row.sessions.cut), (Outcome::Drained, 0), "{report}");
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(server.sessions().await.unwrap(), 0, "{report}");
    assert!(heard.0.lock().unwrap().is_empty(), "{heard:?}");
    // Whoever asks for more gets none.
    let nothing = spawn_blocking(move || pool.get_timeout(Duration::from_millis(10)).map(drop));
    nothing.await.unwrap().unwrap_err();
    server.end().await.unwrap();
}

pub(crate) async fn who_waits_is_refused_and_holds_up_no_runtime() {
    let server = server().await;
    let endless = settings(&of_one()).connection_timeout(ENDLESS);
    let pool = Pool::diesel_postgres(endless, Opens::new(url(&server, &Setup::default())));
    let scene = Scene::new(R2d2::wrap(pool));
    let held = scene.get().await;
    let db = scene.db.clone();
    let ended = spawn_blocking(move || {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async move {
            let waiting = tokio::spawn(async move { db.get().await.map(drop) });
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(!waiting.is_finished());
        });
        let began = Instant::now();
        // With what it waits for.
        drop(runtime);
        began.elapsed()
    });
    assert!(ended.await.unwrap() < QUICK);
    let (drained, refused) = tokio::join!(scene.drain(), async {
        let refused = scene.db.get().await.map(drop);
        drop(held);
        refused
    });
    assert!(refused.unwrap_err().is_shutting_down());
    drained.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn who_waits_gets_what_comes_back_and_what_is_opened() {
    let server = server().await;
    let mut setup = Setup::default();
    setup.size = 2;
    let pool = pool(&server, &setup);
    let scene = Scene::new(R2d2::wrap(pool.clone()));
    // More than there are, each for a moment, some directly.
    let callers = (0..20).map(|caller| {
        let (db, pool) = (scene.db.clone(), pool.clone());
        tokio::spawn(async move {
            if caller % 2 == 0 {
                db.get().await.unwrap().run(ping).await.unwrap().unwrap();
            } else {
                spawn_blocking(move || ping(&mut pool.get().unwrap()).unwrap()).await.unwrap();
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert!(pool.state().connections <= 2);
    let drained = scene.drain().await;
    drained.assert_clean(u64::from(pool.state().connections));
    server.end().await.unwrap();
}

pub(crate) async fn why_nothing_was_opened_is_said() {
    let server = server().await;
    let heard = Heard::default();
    let mut setup = of_one();
    setup.wrong_password = true;
    let short = settings(&setup).connection_timeout(Duration::from_secs(1));
    let pool = Pool::diesel_postgres(short, Opens::new(url(&server, &setup))).error_handler(Box::new(heard.clone()));
    let scene = Scene::new(R2d2::wrap(pool));
    let error = scene.db.get().await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checkout);
    assert!(in_full(&error).contains("password authentication failed"), "{error}");
    assert!(!heard.0.lock().unwrap().is_empty());
    let drained = scene.drain().await;
    assert_eq!((drained.row().outcome, drained.ended()), (Outcome::Drained, (0, 0)), "{}", drained.report);
    server.end().await.unwrap();
}

pub(crate) async fn s8_a_transaction_does_not_reach_the_next_caller() {
    let server = server().await;
    let scene = Scene::new(R2d2::wrap(pool(&server, &of_one())));
    for begin in ["BEGIN; INSERT INTO rows VALUES (now())", "BEGIN; SELECT 1/0"] {
        let mut first = scene.get().await;
        let _ = first.run(move |connection| connection.batch_execute(begin)).await.unwrap();
        drop(first);
        // It would be refused inside of one.
        let mut second = scene.get().await;
        second.run(|connection| connection.batch_execute("VACUUM rows")).await.unwrap().unwrap();
        // Diesel knows of none either.
        let counted = second.run(|connection| connection.transaction(ping));
        assert_eq!(counted.await.unwrap(), Ok(1));
    }
    assert_eq!(server.rows().await.unwrap(), 0);
    scene.drain().await.assert_clean(1);
    assert!(server.complaints().await.unwrap().is_empty());
    server.end().await.unwrap();
}

pub(crate) async fn s8_nor_does_one_that_comes_back_on_a_thread_without_a_runtime() {
    let server = server().await;
    let scene = Scene::new(R2d2::wrap(pool(&server, &of_one())));
    let mut first = scene.get().await;
    let there = thread::spawn(move || {
        let connection: &mut PgConnection = &mut first;
        connection.batch_execute("BEGIN; INSERT INTO rows VALUES (now())").unwrap();
        drop(first);
    });
    spawn_blocking(move || there.join().unwrap()).await.unwrap();
    scene.get().await.run(|connection| connection.batch_execute("VACUUM rows")).await.unwrap().unwrap();
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

/// What a pool of tests does with each of its connections.
#[derive(Debug)]
struct Tests;

impl r2d2::CustomizeConnection<Session<PgConnection>, ConnectError<diesel::r2d2::Error>> for Tests {
    fn on_acquire(&self, session: &mut Session<PgConnection>) -> Result<(), ConnectError<diesel::r2d2::Error>> {
        session.begin_test_transaction().map_err(|error| ConnectError::Manager(error.into()))
    }
}

pub(crate) async fn a_transaction_of_a_test_is_let_be() {
    let server = server().await;
    let settings = settings(&of_one()).connection_customizer(Box::new(Tests));
    let pool = Pool::diesel_postgres(settings, Opens::new(url(&server, &Setup::default())));
    let scene = Scene::new(R2d2::wrap(pool));
    for _ in 0..2 {
        let mut connection = scene.get().await;
        let insert = |connection: &mut PgConnection| sql_query("INSERT INTO rows VALUES (now())").execute(connection);
        connection.run(insert).await.unwrap().unwrap();
    }
    let counts =
        |connection: &mut PgConnection| sql::<Integer>("SELECT count(*)::int FROM rows").get_result(connection);
    let counted: i32 = scene.get().await.run(counts).await.unwrap().unwrap();
    assert_eq!((counted, server.rows().await.unwrap()), (2, 0));
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn work_that_panics_costs_its_connection_alone() {
    let server = server().await;
    let scene = Scene::new(R2d2::wrap(pool(&server, &of_one())));
    let mut connection = scene.get().await;
    let error = connection.run(|_| -> () { std::panic::resume_unwind(Box::new("on purpose")) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked);
    assert_eq!(connection.run(ping).await.unwrap_err().kind(), ErrorKind::Checkout);
    drop(connection);
    scene.get().await.run(ping).await.unwrap().unwrap();
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn by_closures_a_statement_is_stopped_and_sessions_say_goodbye() {
    let server = server().await;
    let (said, has_said) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (says, url) = (Arc::clone(&said), url(&server, &Setup::default()));
    let number =
        |connection: &mut PgConnection| sql::<Integer>("SELECT pg_backend_pid()").get_result::<i32>(connection);
    let pool = Pool::noting(settings(&Setup::default()), Opens::new(&url), number);
    let (resets, has_reset) = (Arc::clone(&has_said), Arc::clone(&has_said));
    let session = Closures::<PgConnection>::new()
        .goodbye(move |connection| {
            says.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        })
        .reset(move |connection| {
            resets.fetch_add(1, Ordering::SeqCst);
            let _ = connection.batch_execute("ROLLBACK");
        })
        .canceller(move |session| {
            let number = *session.note::<diesel::QueryResult<i32>>()?.as_ref().ok()?;
            let url = url.clone();
            Some(move || {
                let mut asks = PgConnection::establish(&url)?;
                asks.batch_execute(&format!("SELECT pg_cancel_backend({number})"))?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            })
        });
    let wrapped = R2d2::wrap(pool.clone()).session_with(session);
    let can = wrapped.capabilities();
    assert!(can.goodbye && can.cancel && !can.confirmed_end && !can.all_sessions);
    let scene = Scene::patient(wrapped);
    drop(scene.get().await);
    until("it was reset", async || has_reset.load(Ordering::SeqCst) == 1 && pool.state().idle_connections == 1).await;
    let mut connection = scene.get().await;
    let statement = spawn_blocking(move || run(&mut connection, ENDLESS));
    until("it runs", async || server.running().await.unwrap() == 1).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    let (report, row) = (&drained.report, drained.row());
    assert_eq!((row.outcome, row.sessions.unconfirmed, drained.ended()), (Outcome::Drained, 1, (0, 0)), "{report}");
    let error = statement.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("user request"), "{error}");
    assert_eq!(said.load(Ordering::SeqCst), 1);
    until("it has ended", async || server.sessions().await.unwrap() == 0).await;
    server.end().await.unwrap();
}
