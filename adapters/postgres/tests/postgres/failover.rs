//! A server that lets nobody write any more, while its address leads to another one by now.

use std::time::Duration;

use winddown_core::{Checkout, Lifecycle, ShutdownGuard};
use winddown_postgres::{Config, Postgres, tokio_postgres::error::SqlState};
use winddown_testkit::{Directed, Harness as _, ServerUse, proxy::Proxy};

use crate::{
    scene::{ENDLESS, Scene, Speaks, assert_nothing_left, config, config_at, seventeen, text, until, url},
    server::{Eighteen, PostgreSql, Seventeen},
};

const ADDRESS: &str = "SELECT host(inet_server_addr())";
const WRITE: &str = "INSERT INTO rows VALUES (now())";

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
        Self { first, second, proxy }
    }

    fn config(&self) -> Config {
        let mut config = config_at(&self.first, self.proxy.address());
        // No check gets in between.
        config.check_after = ENDLESS;
        config
    }

    /// The first lets nobody write, and the address leads to the second.
    async fn fail_over(&self) {
        self.first.server.read_only(true).await.unwrap();
        self.proxy.set_upstream(self.second.server.address);
    }

    async fn end(self) {
        self.first.server.read_only(false).await.unwrap();
        self.first.end().await.unwrap();
        self.second.end().await.unwrap();
    }
}

async fn write(client: &Checkout<Directed<Postgres>>) -> Result<u64, SqlState> {
    client.execute(WRITE, &[]).await.map_err(|error| error.code().cloned().expect("the server said so"))
}

pub(crate) async fn one_refused_write_replaces_all_sessions_and_the_address_is_asked_anew() {
    let two = Two::start().await;
    let mut config = two.config();
    config.pool.max_size = 4;
    let scene = Scene::new(Postgres::new(config));
    let mut clients = scene.out(4).await;
    for client in &clients {
        write(client).await.unwrap();
    }
    let kept = clients.pop().unwrap();
    drop(clients);

    two.fail_over().await;
    assert_eq!(write(&scene.get().await).await.unwrap_err(), SqlState::READ_ONLY_SQL_TRANSACTION);
    // Whoever has one out keeps it, and the next one does not get it.
    assert_eq!(text(&kept, ADDRESS).await, two.first.server.address.ip().to_string());
    drop(kept);
    let clients = scene.out(4).await;
    for client in &clients {
        assert_eq!(text(client, ADDRESS).await, two.second.server.address.ip().to_string());
        write(client).await.unwrap();
    }
    drop(clients);
    until("the first lists none", || async { two.first.sessions().await.unwrap() == 0 }).await;
    assert_nothing_left(&two.first).await;
    // Those that were replaced have ended before.
    scene.drain().await.assert_clean(4);
    assert_eq!((two.first.rows().await.unwrap(), two.second.rows().await.unwrap()), (4, 4));
    two.end().await;
}

pub(crate) async fn a_transaction_that_is_read_only_by_itself_replaces_nothing() {
    let server = seventeen().await;
    let mut config = config(&server);
    config.pool.max_size = 1;
    let scene = Scene::new(Postgres::new(config));
    let pid = scene.text("SELECT pg_backend_pid()::text").await;
    let client = scene.get().await;
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    assert_eq!(write(&client).await.unwrap_err(), SqlState::READ_ONLY_SQL_TRANSACTION);
    client.batch_execute("ROLLBACK").await.unwrap();
    drop(client);
    assert_eq!(scene.text("SELECT pg_backend_pid()::text").await, pid);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

pub(crate) async fn who_wants_a_read_only_server_keeps_the_session() {
    let server = seventeen().await;
    let name = &server.tenant.name;
    server.execute(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await.unwrap();
    let options = "sslmode=disable&target_session_attrs=read-only";
    let mut config: Config = url(&server, &server.server.address.to_string(), options).parse().unwrap();
    config.pool.max_size = 1;
    let scene = Scene::new(Postgres::new(config));
    let pid = scene.text("SELECT pg_backend_pid()::text").await;
    assert_eq!(write(&scene.get().await).await.unwrap_err(), SqlState::READ_ONLY_SQL_TRANSACTION);
    assert_eq!(scene.text("SELECT pg_backend_pid()::text").await, pid);
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

#[cfg(feature = "buffer")]
pub(crate) async fn a_buffer_writes_to_the_successor_all_that_it_accepted() {
    use winddown_buffer::{BatchWriter, Push as _};

    use crate::sink::{audit, record};

    for sink in audit() {
        let two = Two::start().await;
        for address in [two.first.server.address, two.second.server.address] {
            let scene = Scene::new(Postgres::new(config_at(&two.first, address)));
            scene.get().await.batch_execute("CREATE TABLE audit(id int8 UNIQUE, what text)").await.unwrap();
            scene.drain().await.assert_clean(1);
        }
        let lifecycle: Lifecycle = winddown_testkit::scene::lifecycle(Duration::from_secs(60));
        let db: ShutdownGuard<Postgres> = lifecycle.guard_as("db", Postgres::new(two.config()));
        let buffer =
            lifecycle.guard(BatchWriter::new(&db, sink.clone()).batch_size(10).max_age(Duration::from_millis(20)));
        for id in 0..100 {
            buffer.push(record(id)).await.unwrap();
        }
        until("the first has them", || async { audited(&two.first).await == 100 }).await;
        two.fail_over().await;
        for id in 100..400 {
            buffer.push(record(id)).await.unwrap();
        }
        until("the second has them", || async { audited(&two.second).await == 300 }).await;
        let report = lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        let records = report.resources.iter().find_map(|row| row.records).unwrap();
        assert_eq!((records.accepted, records.written), (400, 400), "{report}");
        two.end().await;
    }
}

#[cfg(feature = "buffer")]
async fn audited<V: crate::server::Version>(server: &PostgreSql<V>) -> i64 {
    let client = server.server.superuser(&server.tenant.name).await.unwrap();
    client.query_one("SELECT count(*) FROM audit", &[]).await.unwrap().get(0)
}
