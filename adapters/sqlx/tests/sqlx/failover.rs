//! A server that lets nobody write any more, while its address leads to another one by now.

use std::time::Duration;

use winddown_buffer::{BatchWriter, Push as _};
use winddown_core::{Lifecycle, Outcome};
use winddown_sqlx::{
    Insert, Sqlx,
    sqlx::{Postgres, postgres::PgPoolOptions},
};
use winddown_testkit::{Harness as _, ServerUse, proxy::Proxy, scene::until};

use crate::{
    postgres::connect_options,
    server::{Eighteen, PostgreSql, Seventeen, Version},
};

/// A server with its successor, and the address of both.
struct Two {
    first: PostgreSql<Seventeen>,
    second: PostgreSql<Eighteen>,
    proxy: Proxy,
}

impl Two {
    async fn start() -> Self {
        let first = PostgreSql::start(ServerUse::Own).await.unwrap();
        let second = PostgreSql::start_with(&first.tenant).await.unwrap();
        let proxy = Proxy::start(first.server.address).await.unwrap();
        let two = Self { first, second, proxy };
        execute(&two.first, "CREATE TABLE audit(id int8 UNIQUE, what text)").await;
        execute(&two.second, "CREATE TABLE audit(id int8 UNIQUE, what text)").await;
        two
    }

    async fn end(self) {
        self.first.end().await.unwrap();
        self.second.end().await.unwrap();
    }
}

async fn execute<V: Version>(server: &PostgreSql<V>, sql: &str) {
    let tenant = &server.tenant;
    let owner = crate::server::connect(server.server.address, &tenant.name, &tenant.password, &tenant.name);
    owner.await.unwrap().batch_execute(sql).await.unwrap();
}

async fn audited<V: Version>(server: &PostgreSql<V>) -> i64 {
    let client = server.server.superuser(&server.tenant.name).await.unwrap();
    client.query_one("SELECT count(*) FROM audit", &[]).await.unwrap().get(0)
}

/// Under load, with what is buffered: a write that is refused closes its session, and the next one is with the successor.
pub(crate) async fn a_buffer_writes_to_the_successor_all_that_it_accepted() {
    let two = Two::start().await;
    let lifecycle: Lifecycle = winddown_testkit::scene::lifecycle(Duration::from_secs(60));
    let pool = PgPoolOptions::new().max_connections(4);
    let db = lifecycle.guard_as("db", Sqlx::new(pool, connect_options(&two.first.tenant, two.proxy.address())));
    let sink = Insert::<Postgres>::into("audit", ["id", "what"]);
    let buffer = lifecycle.guard(BatchWriter::new(&db, sink).batch_size(10).max_age(Duration::from_millis(20)));
    for id in 0..100_i64 {
        buffer.push((id, "before".to_owned())).await.unwrap();
    }
    until("the first has them", || async { audited(&two.first).await == 100 }).await;
    let loading = async {
        for id in 100..400_i64 {
            buffer.push((id, "behind".to_owned())).await.unwrap();
        }
    };
    let failing = async {
        two.first.server.read_only(true).await.unwrap();
        two.proxy.set_upstream(two.second.server.address);
    };
    tokio::join!(loading, failing);
    let both = || async { audited(&two.first).await + audited(&two.second).await == 400 };
    until("one or the other has each", both).await;
    let report = lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    let records = report.resources.iter().find_map(|row| row.records).unwrap();
    assert_eq!((records.accepted, records.written), (400, 400), "{report}");
    assert_eq!((two.first.sessions().await.unwrap(), two.second.sessions().await.unwrap()), (0, 0));
    assert!(audited(&two.second).await > 0);
    two.first.server.read_only(false).await.unwrap();
    two.end().await;
}

/// The drain of a pool whose server takes no writes says goodbye all the same, and what could not be written is accounted for.
pub(crate) async fn what_a_server_that_takes_no_writes_has_not_taken_is_in_the_report() {
    let two = Two::start().await;
    let lifecycle: Lifecycle = winddown_testkit::scene::lifecycle(Duration::from_secs(6));
    let pool = PgPoolOptions::new().max_connections(4);
    let db = lifecycle.guard_as("db", Sqlx::new(pool, connect_options(&two.first.tenant, two.first.address())));
    let sink = Insert::<Postgres>::into("audit", ["id", "what"]);
    let buffer = lifecycle.guard(BatchWriter::new(&db, sink).batch_size(10).max_age(Duration::from_millis(20)));
    buffer.push((0_i64, "before".to_owned())).await.unwrap();
    until("it has it", || async { audited(&two.first).await == 1 }).await;
    two.first.server.read_only(true).await.unwrap();
    for id in 1..50_i64 {
        buffer.push((id, "behind".to_owned())).await.unwrap();
    }
    let report = lifecycle.drain().await;
    let records = report.resources.iter().find_map(|row| row.records).unwrap();
    let in_the_table = u64::try_from(audited(&two.first).await).unwrap();
    assert_eq!((records.accepted, records.written), (50, in_the_table), "{report}");
    // What was being written at the cut may be in doubt.
    assert_eq!(records.written + records.lost + records.in_doubt, 50, "{report}");
    let row = report.resource("db").unwrap();
    assert_eq!((row.outcome, row.sessions.cut), (Outcome::Drained, 0), "{report}");
    assert_eq!(two.first.sessions().await.unwrap(), 0);
    two.first.server.read_only(false).await.unwrap();
    two.end().await;
}
