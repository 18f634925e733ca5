//! Statements that nobody waits for any more, and results that nobody reads: nothing of them is left when a drain is over.

use std::{future::Future, pin::pin, time::Duration};

use tokio::sync::Mutex;
use winddown_core::{Checkouts, Outcome};
use winddown_mysql::{
    Mysql,
    mysql_async::{
        self, BinaryProtocol, Conn, QueryResult, TextProtocol,
        prelude::{Protocol, Queryable as _},
    },
};
use winddown_testkit::{Harness as _, proxy::Proxy, scene};

use crate::{
    scene::{AsConn, QUICK, Scene, Speaks, assert_nothing_left, config, config_at, mysql, start, until},
    server::{Line, MariaDb, MySql, Tenancy, Version, listed},
};

/// A pool of one whose connection is checked at each checkout.
fn replacing<V: Version>(server: &Tenancy<V>) -> Mysql {
    let mut config = config(server);
    config.pool.max_size = 1;
    (config.check_after, config.check_timeout) = (Duration::ZERO, Duration::from_millis(200));
    Mysql::new(config)
}

/// Somebody in whose transaction nothing else can be written to the table: what waits for that does not notice that its client
/// has gone.
async fn lock<V: Version>(server: &Tenancy<V>) -> Conn {
    let mut lock = server.server.superuser().await.unwrap();
    lock.query_drop(format!("USE {}; BEGIN; SELECT * FROM rows_left FOR UPDATE", server.tenant.name)).await.unwrap();
    lock
}

/// How many statements of the tenant wait for that.
async fn waiting<V: Version>(server: &Tenancy<V>, lock: &mut Conn) -> usize {
    let waits = |line: &Line| line.user == server.tenant.name && line.state.eq_ignore_ascii_case("update");
    listed(lock, waits).await.unwrap().len()
}

async fn until_waiting<V: Version>(server: &Tenancy<V>, lock: &mut Conn) {
    let lock = Mutex::new(lock);
    until("it waits to write", || async { waiting(server, *lock.lock().await).await == 1 }).await;
}

const WRITES: &str = "INSERT INTO rows_left VALUES (1)";

/// A caller begins to write, and gives up on it.
async fn abandon<V: Version>(server: &Tenancy<V>, scene: &Scene, lock: &mut Conn) {
    let mut connection = scene.get().await;
    let mut writes = pin!(connection.query_drop(WRITES));
    tokio::select! {
        written = &mut writes => panic!("it ended at once: {written:?}"),
        () = until_waiting(server, lock) => {}
    }
}

/// A caller has the first result, and gives the connection back while the second statement is yet to write.
async fn give_back_in_the_middle<V: Version>(server: &Tenancy<V>, scene: &Scene, lock: &mut Conn) {
    let mut connection = scene.get().await;
    drop(connection.query_iter(format!("SELECT 1; {WRITES}")).await.unwrap());
    drop(connection);
    until_waiting(server, lock).await;
}

/// Drains: the statement has ended when that is over, and writes nothing afterwards.
async fn assert_stopped<V: Version>(server: &Tenancy<V>, scene: &Scene, mut lock: Conn, sessions: u64) {
    let drained = scene.drain().await;
    assert_eq!(waiting(server, &mut lock).await, 0, "it is yet to write: {}", drained.report);
    lock.query_drop("ROLLBACK").await.unwrap();
    assert_eq!(server.sessions().await.unwrap(), 0, "{}", drained.report);
    assert_eq!(server.rows().await.unwrap(), 0, "{}", drained.report);
    let row = drained.row();
    let ended = (row.outcome, row.sessions.cancelled, drained.ended());
    assert_eq!(ended, (Outcome::Drained, 1, (sessions, 0)), "{}", drained.report);
    assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
}

pub(crate) async fn a_statement_whose_session_was_replaced_is_stopped_by_the_drain() {
    replaced::<MySql>().await;
    replaced::<MariaDb>().await;
}

async fn replaced<V: Version>() {
    let server = start::<V>().await;
    // Its future was dropped, and another caller has the place of its connection.
    let scene = Scene::new(replacing(&server));
    let mut held = lock(&server).await;
    abandon(&server, &scene, &mut held).await;
    scene.ping().await;
    assert_stopped(&server, &scene, held, 2).await;

    // It does not become what it was when it was opened: once the drain begins while the driver still waits for that, and once
    // when it has given up.
    for rest in [Duration::ZERO, Duration::from_secs(5)] {
        let scene = Scene::new(replacing(&server));
        let mut held = lock(&server).await;
        give_back_in_the_middle(&server, &scene, &mut held).await;
        scene.ping().await;
        tokio::time::sleep(rest).await;
        assert_eq!(waiting(&server, &mut held).await, 1);
        assert_stopped(&server, &scene, held, 2).await;
    }
    server.end().await.unwrap();
}

/// Too much for any buffer on the way, and for the time that there is.
pub(crate) const ROWS: &str = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1000) \
                    SELECT REPEAT('x', 1000) FROM n AS a, n AS b, n AS c";

/// How a result comes.
trait Way: Protocol + Sized {
    fn rows(conn: &mut Conn)
    -> impl Future<Output = Result<QueryResult<'_, 'static, Self>, mysql_async::Error>> + Send;
}

impl Way for TextProtocol {
    async fn rows(conn: &mut Conn) -> Result<QueryResult<'_, 'static, Self>, mysql_async::Error> {
        conn.query_iter(ROWS).await
    }
}

impl Way for BinaryProtocol {
    async fn rows(conn: &mut Conn) -> Result<QueryResult<'_, 'static, Self>, mysql_async::Error> {
        conn.exec_iter(ROWS, ()).await
    }
}

pub(crate) async fn a_result_that_nobody_reads_ends_with_the_drain() {
    unread::<MySql, TextProtocol>().await;
    unread::<MySql, BinaryProtocol>().await;
    unread::<MariaDb, TextProtocol>().await;
    unread::<MariaDb, BinaryProtocol>().await;
}

async fn unread<V: Version, W: Way>() {
    let server = start::<V>().await;
    let scene = Scene::patient(Mysql::new(config(&server)));
    let mut connection = scene.get().await;
    let mut rows = W::rows(&mut connection).await.unwrap();
    rows.next().await.unwrap().expect("there are many");
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(server.sessions().await.unwrap(), 0, "{}", drained.report);
    // It is its holder's to read, so that its session cannot say goodbye.
    assert_eq!(drained.ended(), (0, 1), "{}", drained.report);
    assert_eq!(drained.row().stragglers.len(), 1, "{}", drained.report);
    loop {
        match rows.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it looks as if that were all"),
            Err(_) => break,
        }
    }
    drop(rows);
    drop(connection);
    server.end().await.unwrap();
}

pub(crate) async fn a_result_that_was_given_back_half_read_is_stopped() {
    half_read::<MySql, TextProtocol>().await;
    half_read::<MySql, BinaryProtocol>().await;
    half_read::<MariaDb, TextProtocol>().await;
    half_read::<MariaDb, BinaryProtocol>().await;
}

/// Its last row is an error: more rows before that than the server keeps for itself.
const REFUSED_IN_THE_END: &str = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1000) \
                                  SELECT REPEAT('x', 1000), IF(n < 1000, n, (SELECT n UNION SELECT n + 1)) FROM n";

pub(crate) async fn a_result_that_is_refused_in_the_end_does_not_cost_the_connection() {
    let server = start::<MySql>().await;
    let mut config = config(&server);
    config.pool.max_size = 1;
    let scene = Scene::patient(Mysql::new(config));
    let mut connection = scene.get().await;
    let first = connection.id();
    let mut rows = connection.query_iter(REFUSED_IN_THE_END).await.unwrap();
    rows.next().await.unwrap().expect("there are many");
    drop(rows);
    drop(connection);
    assert_eq!(scene.get().await.id(), first);
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_result_that_a_slow_server_stops_late_ends_with_a_goodbye() {
    let server = mysql().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    stopped_late(&server, &proxy, Mysql::new(config_at(&server, proxy.address()))).await;
    server.end().await.unwrap();
}

/// By a drain that has it stopped later than its reset would have been given up.
pub(crate) async fn stopped_late<R: Checkouts>(server: &Tenancy<MySql>, proxy: &Proxy, resource: R)
where
    R::Checkout: AsConn,
{
    let scene = scene::Scene::new(resource);
    let mut connection = scene.get().await;
    let mut rows = connection.conn().query_iter(ROWS).await.unwrap();
    rows.next().await.unwrap().expect("there are many");
    drop(rows);
    proxy.set_delay(Duration::from_millis(600));
    drop(connection);
    let drained = scene.drain().await;
    let row = drained.row();
    let ended = (row.outcome, row.sessions.cancelled, drained.ended());
    assert_eq!(ended, (Outcome::Drained, 1, (1, 0)), "{}", drained.report);
    assert_nothing_left(server).await;
}

/// When a result is given back half read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    /// When the drain has begun.
    Draining,
    /// At the same moment as the drain begins.
    AtOnce,
    /// So long before it that its connection is being reset.
    Before(Duration),
}

async fn half_read<V: Version, W: Way>() {
    let server = start::<V>().await;
    let being_reset = Duration::from_millis(100);
    // Its reset was given up, and the driver still waits for it.
    let late = Duration::from_millis(1500);
    for moment in [Moment::Draining, Moment::AtOnce, Moment::Before(being_reset), Moment::Before(late)] {
        let scene = Scene::patient(Mysql::new(config(&server)));
        let mut connection = scene.get().await;
        let mut rows = W::rows(&mut connection).await.unwrap();
        rows.next().await.unwrap().expect("there are many");
        drop(rows);
        let drained = if let Moment::Before(before) = moment {
            drop(connection);
            tokio::time::sleep(before).await;
            scene.drain().await
        } else {
            let (drained, ()) = tokio::join!(scene.drain(), async {
                if moment == Moment::Draining {
                    scene.lifecycle.draining().await;
                }
                drop(connection);
            });
            drained
        };
        drained.assert_in_time();
        let row = drained.row();
        let ended = (row.outcome, row.sessions.cancelled, drained.ended());
        assert_eq!(ended, (Outcome::Drained, 1, (1, 0)), "{moment:?}: {}", drained.report);
        assert_nothing_left(&server).await;
    }
    server.end().await.unwrap();
}
