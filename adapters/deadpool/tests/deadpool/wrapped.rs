//! What the suite does not ask: pools that are used without the guard too, what a checkout leaves, and closures.

use mysql_async::{Conn, prelude::Queryable as _};
use tokio_postgres::NoTls;
use winddown_core::{Outcome, Resource as _};
use winddown_deadpool::{
    Canceller, Closures, Deadpool,
    deadpool::managed::{Manager, Metrics, Pool, RecycleResult},
};
use winddown_testkit::{
    Harness as _, ServerUse, Setup,
    proxy::Proxy,
    same_end,
    scene::{self, ENDLESS, Scene, until},
};

use crate::{
    mysql::{self, DeadpoolMysql},
    server::{PostgreSql, Seventeen},
};

/// A client as an application opens it, with a manager of its own.
pub(crate) struct Clients(pub(crate) tokio_postgres::Config);

impl Manager for Clients {
    type Type = tokio_postgres::Client;
    type Error = tokio_postgres::Error;

    async fn create(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = self.0.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn recycle(&self, _: &mut tokio_postgres::Client, _: &Metrics) -> RecycleResult<tokio_postgres::Error> {
        Ok(())
    }
}

fn pool(server: &PostgreSql<Seventeen>) -> Pool<Clients> {
    let config = server.tenant.config(server.address(), &Setup::default()).driver;
    Pool::builder(Clients(config)).max_size(4).build().unwrap()
}

async fn server() -> PostgreSql<Seventeen> {
    PostgreSql::start(ServerUse::Shared).await.unwrap()
}

pub(crate) async fn sessions_are_told_from_connections_to_others_that_have_the_same_end_here() {
    let server = DeadpoolMysql::start(ServerUse::Shared).await.unwrap();
    let pool = mysql::pool(&server.0, &Setup::default());
    let end: String = {
        let mut session = pool.get().await.unwrap();
        let own: u64 = session.query_first("SELECT CONNECTION_ID()").await.unwrap().unwrap();
        let listed: Vec<mysql_async::Row> = session.query("SHOW PROCESSLIST").await.unwrap();
        let line = listed.iter().find(|line| line.get::<u64, _>("Id") == Some(own)).unwrap();
        line.get("Host").unwrap()
    };
    let other = same_end::connect(end.parse().unwrap()).await.unwrap();
    let drained = Scene::new(Deadpool::wrap(pool)).drain().await;
    drained.assert_clean(1);
    assert_eq!((server.sessions().await.unwrap(), drained.row().sessions.unconfirmed), (0, 0), "{}", drained.report);
    drop(other);
    server.end().await.unwrap();
}

pub(crate) async fn what_comes_back_to_the_pool_directly_says_goodbye() {
    let server = server().await;
    // All that the pool may have are out, or there is room for more.
    for out in [4, 2] {
        let pool = pool(&server);
        let scene = Scene::new(Deadpool::wrap(pool.clone()));
        let by_guard = scene.get().await;
        let mut clients = Vec::new();
        for _ in 1..out {
            clients.push(pool.get().await.unwrap());
        }
        // In a transaction that has failed, for one.
        clients[0].batch_execute("BEGIN; SELECT 1/0").await.unwrap_err();
        let (drained, ()) = tokio::join!(scene.drain(), async {
            scene.lifecycle.draining().await;
            by_guard.batch_execute("SELECT 1").await.unwrap();
            drop(by_guard);
            for client in clients {
                drop(client);
                tokio::task::yield_now().await;
            }
        });
        drained.assert_clean(out);
        assert_eq!(server.sessions().await.unwrap(), 0);
        assert!(pool.is_closed());
    }
    assert!(server.complaints().await.unwrap().is_empty());
    server.end().await.unwrap();
}

pub(crate) async fn what_is_taken_from_the_pool_and_does_not_come_back_is_counted() {
    let server = server().await;
    let pool = pool(&server);
    let scene = Scene::patient(Deadpool::wrap(pool.clone()));
    drop(scene.get().await);
    until("it is back", async || pool.status().available == 1).await;
    let held = pool.get().await.unwrap();
    let other = pool.get().await.unwrap();
    drop(other);
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.row().outcome, drained.ended()), (Outcome::Incomplete, (1, 1)), "{}", drained.report);
    assert_eq!(server.sessions().await.unwrap(), 1);
    drop(held);
    server.end().await.unwrap();
}

pub(crate) async fn by_closures_a_statement_is_stopped_and_sessions_say_goodbye() {
    let server = server().await;
    let session = Closures::new()
        .goodbye(|client: &mut tokio_postgres::Client| {
            Box::pin(async move {
                // When all is answered.
                let _ = client.batch_execute("").await;
                client.__private_api_close();
            })
        })
        .reset(|client| {
            Box::pin(async move {
                let _ = client.batch_execute("ROLLBACK").await;
            })
        })
        .canceller(|client| {
            let token = client.cancel_token();
            Canceller::new(move || {
                let token = token.clone();
                async move { token.cancel_query(NoTls).await }
            })
        });
    let wrapped = Deadpool::wrap(pool(&server)).session_with(session);
    let can = wrapped.capabilities();
    assert!(can.goodbye && can.cancel && !can.confirmed_end && !can.all_sessions);
    let scene = Scene::patient(wrapped);
    let client = scene.get().await;
    let seconds = ENDLESS.as_secs_f64();
    let statement = tokio::spawn(async move { client.query("SELECT pg_sleep($1)", &[&seconds]).await.map(drop) });
    until("it runs", async || server.running().await.unwrap() == 1).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    let (report, row) = (&drained.report, drained.row());
    assert_eq!((row.outcome, row.sessions.unconfirmed, drained.ended()), (Outcome::Drained, 1, (0, 0)), "{report}");
    let error = statement.await.unwrap().unwrap_err();
    assert!(error.as_db_error().is_some_and(|error| error.message().contains("user request")), "{error}");
    until("it has ended", async || server.sessions().await.unwrap() == 0).await;
    server.end().await.unwrap();
}

pub(crate) async fn what_the_server_could_not_be_asked_to_stop_is_not_called_stopped() {
    let server = server().await;
    let session =
        Closures::new().canceller(|_: &mut tokio_postgres::Client| Canceller::new(async || Err::<(), _>("not let in")));
    let scene = Scene::patient(Deadpool::wrap(pool(&server)).session_with(session));
    let client = scene.get().await;
    // It is asked when settling ends, and this ends by itself after that.
    let seconds = (scene::LONG * 2 / 3).as_secs_f64();
    let statement = tokio::spawn(async move { client.query("SELECT pg_sleep($1)", &[&seconds]).await.map(drop) });
    until("it runs", async || server.running().await.unwrap() == 1).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    statement.await.unwrap().unwrap();
    assert_eq!(drained.row().sessions.cancelled, 0, "{}", drained.report);
    assert!(drained.report.to_string().contains("not let in"), "{}", drained.report);
    server.end().await.unwrap();
}

/// MySQL answers no question to `information_schema.processlist` as long as such a statement is to be shown.
pub(crate) async fn ends_are_seen_while_a_stranger_runs_what_is_no_text() {
    let server = DeadpoolMysql::start(ServerUse::Shared).await.unwrap();
    let opts = server.0.tenant.config(server.0.address(), &Setup::default()).driver;
    let mut stranger = Conn::new(opts).await.unwrap();
    let number = stranger.id();
    let bytes =
        tokio::spawn(async move { stranger.query_drop(&b"SELECT SLEEP(300), _binary'\xff\xfe\x80'"[..]).await });
    until("it runs", async || server.running().await.unwrap() == 1).await;
    let scene = Scene::new(Deadpool::wrap(mysql::pool(&server.0, &Setup::default())));
    drop((scene.get().await, scene.get().await));
    let drained = scene.drain().await;
    drained.assert_clean(2);
    assert_eq!(drained.row().sessions.unconfirmed, 0, "{}", drained.report);
    assert!(!bytes.is_finished(), "the stranger's");
    server.0.execute(&format!("KILL {number}")).await.unwrap();
    bytes.await.unwrap().unwrap_err();
    server.end().await.unwrap();
}

pub(crate) async fn one_that_is_ended_while_it_is_reset_is_not_called_cut() {
    let server = DeadpoolMysql::start(ServerUse::Shared).await.unwrap();
    let proxy = Proxy::start(server.0.address()).await.unwrap();
    let pool = mysql::pool_at(&server.0, proxy.address(), &Setup::default());
    let scene = Scene::new(Deadpool::wrap(pool.clone()));
    let mut conn = scene.get().await;
    conn.ping().await.unwrap();
    proxy.set_blackhole(true);
    drop(conn);
    let (drained, ()) = tokio::join!(scene.drain(), async {
        until("the drain has begun with it", async || pool.is_closed()).await;
        proxy.reset();
    });
    let row = drained.row();
    let ends = (row.outcome, row.sessions.unconfirmed, drained.ended());
    assert_eq!(ends, (Outcome::Drained, 1, (0, 0)), "{}", drained.report);
    server.end().await.unwrap();
}

/// Its last row is an error: more rows before that than the server keeps for itself.
const REFUSED_IN_THE_END: &str = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1000) \
                                  SELECT REPEAT('x', 1000), IF(n < 1000, n, (SELECT n UNION SELECT n + 1)) FROM n";

pub(crate) async fn s8_a_transaction_in_mysql_does_not_reach_the_next_caller() {
    let server = DeadpoolMysql::start(ServerUse::Shared).await.unwrap();
    let mut setup = Setup::default();
    setup.size = 1;
    for is_half_read in [false, true] {
        let scene = Scene::new(Deadpool::wrap(mysql::pool(&server.0, &setup)));
        let mut first = scene.get().await;
        first.query_drop("BEGIN").await.unwrap();
        first.query_drop("INSERT INTO rows_left VALUES (0)").await.unwrap();
        if is_half_read {
            let mut rows = first.query_iter(REFUSED_IN_THE_END).await.unwrap();
            rows.next().await.unwrap().expect("there are many");
        }
        drop(first);
        let mut second = scene.get().await;
        let conn: &mut Conn = &mut second;
        let rows: Option<usize> = conn.query_first("SELECT COUNT(*) FROM rows_left").await.unwrap();
        assert_eq!(rows, Some(0), "half read: {is_half_read}");
        drop(second);
        scene.drain().await.assert_clean(1);
    }
    server.end().await.unwrap();
}
