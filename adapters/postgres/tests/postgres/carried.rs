//! What a session carries ends with its checkout: whoever gets it next finds none of it.

use std::{future::Future, pin::pin, task::Waker, time::Duration};

use deadpool_postgres::{Client, RecyclingMethod};
use winddown_postgres::Postgres;
use winddown_testkit::{Harness as _, proxy::Proxy};

use crate::{
    scene::{QUICK, Scene, Speaks, assert_nothing_left, config, config_at, seventeen, until},
    server::{PostgreSql, Seventeen},
    wrapped,
};

/// How a caller leaves a transaction open.
#[derive(Debug, Clone, Copy)]
enum Left {
    Open,
    Aborted,
    /// It did not wait for the answer to its last statement in it.
    InAStatement,
    /// It has not even waited for the beginning, in two ways: what it asked for was not on its way, or takes a while.
    Beginning,
    BeginningSlowly,
}

const LEFT: [Left; 5] = [Left::Open, Left::Aborted, Left::InAStatement, Left::Beginning, Left::BeginningSlowly];

/// Asks, and does not wait. The answer may be there nevertheless, where this thread had to wait for a core.
fn ask(asked: impl Future) {
    let _ = pin!(asked).poll(&mut std::task::Context::from_waker(Waker::noop()));
}

async fn leave(client: &Client, left: Left) {
    const ROW: &str = "INSERT INTO rows VALUES ('2001-01-01')";
    match left {
        Left::Open => client.batch_execute(&format!("BEGIN; {ROW}")).await.unwrap(),
        Left::Aborted => {
            client.batch_execute(&format!("BEGIN; {ROW}")).await.unwrap();
            client.batch_execute("SELECT 1/0").await.unwrap_err();
        }
        Left::InAStatement => {
            client.batch_execute("BEGIN").await.unwrap();
            ask(client.batch_execute(ROW));
        }
        Left::Beginning => ask(client.batch_execute(&format!("BEGIN; {ROW}"))),
        Left::BeginningSlowly => ask(client.batch_execute(&format!("BEGIN; {ROW}; SELECT pg_sleep(0.05)"))),
    }
}

/// Whether the guard, or the pool itself, hands out.
#[derive(Debug, Clone, Copy)]
enum By {
    Guard,
    Pool,
}

/// One caller leaves a transaction open, and the next one writes a row.
async fn pass_on(server: &PostgreSql<Seventeen>, scene: &Scene, left: Left, (first, second): (By, By)) {
    let before = server.rows().await.unwrap();
    let pool = scene.db.pool().await.unwrap();
    match first {
        By::Guard => leave(&*scene.get().await, left).await,
        By::Pool => leave(&pool.get().await.unwrap(), left).await,
    }
    let row = async |client: &Client| client.batch_execute("INSERT INTO rows VALUES (now())").await;
    let written = match second {
        By::Guard => row(&*scene.get().await).await,
        By::Pool => row(&pool.get().await.unwrap()).await,
    };
    let case = format!("{left:?}, {first:?}, {second:?}");
    written.unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(server.rows().await.unwrap(), before + 1, "{case}: the row of the second, and none of the first");
    assert_eq!(pool.status().size, 1, "{case}");
}

pub(crate) async fn a_transaction_that_is_open_is_not_handed_on() {
    let server = seventeen().await;
    let mut config = config(&server);
    config.pool.max_size = 1;
    // Neither is a machine that is slow a rest, nor a statement one that hangs.
    (config.check_after, config.check_timeout) = (Duration::from_secs(600), QUICK);
    for method in [RecyclingMethod::Fast, RecyclingMethod::Clean] {
        config.recycling_method = method;
        let scene = Scene::new(Postgres::new(config.clone()));
        for left in LEFT {
            for by in [(By::Guard, By::Guard), (By::Guard, By::Pool), (By::Pool, By::Guard), (By::Pool, By::Pool)] {
                pass_on(&server, &scene, left, by).await;
            }
        }
        scene.drain().await.assert_clean(1);
    }
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_transaction_ends_with_its_checkout_though_nobody_gets_the_session_next() {
    let server = seventeen().await;
    let scene = Scene::new(Postgres::new(config(&server)));
    let other = scene.out(2).await.remove(0);
    for left in [Left::Open, Left::Aborted, Left::InAStatement] {
        leave(&*scene.get().await, left).await;
        let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL \
                    AND pid <> pg_backend_pid() AND usename = current_user";
        until("it is rolled back", || async { other.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0 }).await;
    }
    drop(other);
    assert_eq!(server.rows().await.unwrap(), 0);
    scene.drain().await.assert_clean(2);
    server.end().await.unwrap();
}

/// What was sent for each checkout is what its caller has sent.
pub(crate) async fn a_session_without_a_transaction_is_handed_on_without_a_message() {
    /// A type, a length, the text and its end.
    const fn length(sql: &str) -> u64 {
        1 + 4 + sql.len() as u64 + 1
    }

    let server = seventeen().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let mut config = config_at(&server, proxy.address());
    config.pool.max_size = 1;
    config.check_after = Duration::from_secs(600);
    let scene = Scene::new(Postgres::new(config));
    drop(scene.out(1).await);
    // Behind what the driver sends when a statement is dropped.
    scene.get().await.simple_query("").await.unwrap();
    let before = (proxy.bytes_up(), proxy.round_trips());
    const TIMES: u64 = 20;
    for _ in 0..TIMES {
        scene.get().await.simple_query("SELECT 1").await.unwrap();
        let mut client = scene.get().await;
        client.transaction().await.unwrap().commit().await.unwrap();
        drop(client);
        // What the driver sends to end it is on its way when the next one gets the session.
        drop(scene.get().await.transaction().await.unwrap());
    }
    scene.get().await.simple_query("").await.unwrap();
    let each = length("SELECT 1") + 2 * length("START TRANSACTION") + length("COMMIT") + length("ROLLBACK");
    assert_eq!(proxy.bytes_up() - before.0, TIMES * each + length(""));
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn a_transaction_that_is_open_in_a_wrapped_pool_is_not_handed_on_by_the_guard() {
    let server = seventeen().await;
    for left in LEFT {
        for by in [(By::Guard, By::Guard), (By::Guard, By::Pool), (By::Pool, By::Guard)] {
            let pool = wrapped::pool(&server);
            let scene = Scene::new(Postgres::wrap(pool));
            scene.ping().await;
            pass_on(&server, &scene, left, by).await;
            // The server was not told to end what was not there.
            scene.ping().await;
            scene.drain().await;
        }
    }
    until("all are gone", || async { server.sessions().await.unwrap() == 0 }).await;
    let log = server.server.container.lock().await.logs().await.unwrap();
    let ours = format!(" {}@", server.tenant.name);
    let told = log.lines().filter(|line| line.contains(&ours) && line.contains("no transaction in progress")).count();
    assert_eq!(told, 0);
    server.end().await.unwrap();
}

#[cfg(feature = "buffer")]
pub(crate) async fn half_a_transfer_that_was_abandoned_is_not_committed_by_a_sink() {
    use winddown_buffer::{BatchWriter, Push as _};

    for (sink, left) in
        crate::sink::audit().into_iter().flat_map(|sink| [(sink.clone(), Left::Open), (sink, Left::Aborted)])
    {
        let server = seventeen().await;
        let mut config = config(&server);
        config.pool.max_size = 1;
        let lifecycle = winddown_testkit::scene::lifecycle(Duration::from_secs(30));
        let db = lifecycle.guard_as("db", Postgres::new(config));
        let setup = "CREATE TABLE audit(at bigserial, id int8 UNIQUE, what text);
                     CREATE TABLE accounts AS SELECT n AS id, 1000 AS balance FROM generate_series(1, 2) n";
        db.get().await.unwrap().batch_execute(setup).await.unwrap();
        let audit = lifecycle.guard(BatchWriter::new(&db, sink.clone()));
        {
            let client = db.get().await.unwrap();
            let first = "BEGIN; UPDATE accounts SET balance = balance - 100 WHERE id = 1";
            client.batch_execute(first).await.unwrap();
            if let Left::Aborted = left {
                client.batch_execute("SELECT 1/0").await.unwrap_err();
            }
        }
        audit.push((1_i64, "signed in".to_owned())).await.unwrap();
        let report = lifecycle.drain().await;
        assert!(report.is_clean(), "{sink:?} {left:?}: {report}");
        let owner = server.server.superuser(&server.tenant.name).await.unwrap();
        let row =
            owner.query_one("SELECT sum(balance), (SELECT count(*) FROM audit) FROM accounts", &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2000, 1), "{sink:?} {left:?}: {report}");
        drop(owner);
        server.end().await.unwrap();
    }
}
