//! What the tests share.

use std::{fs, future::Future, net::SocketAddr, path::Path, pin::pin};

use deadpool_postgres::Client;
use winddown_core::{Checkout, Checkouts, Error, ShutdownGuard};
use winddown_postgres::{Config, Postgres, tokio_postgres};
#[cfg(feature = "buffer")]
pub(crate) use winddown_testkit::scene::lifecycle;
pub(crate) use winddown_testkit::scene::{Drained, ENDLESS, QUICK, chain, in_full, until, until_open};
use winddown_testkit::{Directed, Harness, ServerUse, Setup, scene};

use crate::server::{PostgreSql, Seventeen, Version, run};

/// A role and a database of its own on the server that is shared.
pub(crate) async fn start<V: Version>() -> PostgreSql<V> {
    PostgreSql::start(ServerUse::Shared).await.unwrap()
}

/// The same on PostgreSQL 17.
pub(crate) async fn seventeen() -> PostgreSql<Seventeen> {
    start().await
}

/// The tenant's configuration for the server itself, unencrypted.
pub(crate) fn config<V: Version>(server: &PostgreSql<V>) -> Config {
    config_at(server, server.server.address)
}

/// The same for the server at another address.
pub(crate) fn config_at<V: Version>(server: &PostgreSql<V>, address: SocketAddr) -> Config {
    server.tenant.config(address, &Setup::default())
}

/// The tenant's URL, with this for the host and with these options.
pub(crate) fn url<V: Version>(server: &PostgreSql<V>, host: &str, options: &str) -> String {
    let tenant = &server.tenant;
    format!("postgres://{name}:{password}@{host}/{name}?{options}", name = tenant.name, password = tenant.password)
}

/// A lifecycle with one database in it.
pub(crate) type Scene = scene::Scene<Postgres>;

/// What a scene with a database can do besides.
pub(crate) trait Speaks {
    /// So many checkouts at once, each of which has spoken to the server.
    async fn out(&self, count: usize) -> Vec<Checkout<Directed<Postgres>>>;

    /// One round trip on a checkout of its own.
    async fn ping(&self);

    /// What the server answers on a checkout of its own.
    async fn text(&self, sql: &str) -> String;
}

impl Speaks for Scene {
    async fn out(&self, count: usize) -> Vec<Checkout<Directed<Postgres>>> {
        let mut out = Vec::new();
        for _ in 0..count {
            let client = self.get().await;
            ping(&client).await;
            out.push(client);
        }
        out
    }

    async fn ping(&self) {
        let client = self.get().await;
        ping(&client).await;
    }

    async fn text(&self, sql: &str) -> String {
        let client = self.get().await;
        text(&client, sql).await
    }
}

/// One round trip.
pub(crate) async fn ping(client: &Client) {
    client.query_one("SELECT 1", &[]).await.unwrap();
}

/// What the server answers to a question for one text.
pub(crate) async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Whether the server says that this session is encrypted.
pub(crate) async fn is_encrypted(client: &Client) -> bool {
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Nothing is listed, nothing runs, and nothing is in the log: right now.
#[track_caller]
pub(crate) fn assert_nothing_left<V: Version>(server: &PostgreSql<V>) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let listed = (server.sessions().await.unwrap(), server.running().await.unwrap());
        assert_eq!(listed, (0, 0), "sessions and statements that the server lists at {caller}");
        let complaints = server.complaints().await.unwrap();
        assert!(complaints.is_empty(), "the server complains at {caller}: {complaints:#?}");
    }
}

pub(crate) async fn until_running<V: Version>(server: &PostgreSql<V>, statements: usize) {
    until("the server lists the statement", || async { server.running().await.unwrap() == statements }).await;
}

/// Begins a statement that does not end, and drains once the server lists it; what became of both.
pub(crate) async fn drain_under_a_statement<V: Version>(
    server: &PostgreSql<V>,
    scene: &Scene,
) -> (Result<(), String>, Drained) {
    let client = scene.get().await;
    let straggler = async move {
        let result = run(&client, ENDLESS).await.map_err(|error| in_full(error.as_ref()));
        drop(client);
        result
    };
    tokio::join!(straggler, async {
        until_running(server, 1).await;
        scene.drain().await
    })
}

/// Begins a statement that does not end, and gives up on it once the server lists it: it runs on.
pub(crate) async fn abandon_statement<V: Version, R: Checkouts<Checkout = Client>>(
    server: &PostgreSql<V>,
    db: &ShutdownGuard<R>,
) {
    let client = db.get().await.unwrap();
    let mut run = pin!(run(&client, ENDLESS));
    tokio::select! {
        result = &mut run => panic!("it ended at once: {:?}", result.err()),
        () = until_running(server, 1) => {}
    }
}

/// The driver's error behind one of ours.
pub(crate) fn driver_error(error: &Error) -> Option<&tokio_postgres::Error> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// A file of this name in the directory, and its path as a text.
pub(crate) fn written(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}
