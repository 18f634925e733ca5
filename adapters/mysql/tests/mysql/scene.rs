//! What the tests share.

use std::{fs, future::Future, net::SocketAddr, path::Path, pin::pin};

use winddown_core::{Checkout, Checkouts, Error, ShutdownGuard};
use winddown_mysql::{
    Config, Connection, Mysql,
    mysql_async::{self, Conn, ServerError, prelude::Queryable as _},
};
#[cfg(feature = "buffer")]
pub(crate) use winddown_testkit::scene::lifecycle;
pub(crate) use winddown_testkit::scene::{Drained, ENDLESS, QUICK, chain, in_full, until};
use winddown_testkit::{Directed, Harness, ServerUse, Setup, scene};

use crate::server::{MariaDb, MySql, Tenancy, Version, run};

/// A user and a database of its own on the server that is shared.
pub(crate) async fn start<V: Version>() -> Tenancy<V> {
    Tenancy::start(ServerUse::Shared).await.unwrap()
}

/// The same on a server that nobody else uses meanwhile.
pub(crate) async fn own<V: Version>() -> Tenancy<V> {
    Tenancy::start(ServerUse::Own).await.unwrap()
}

/// As [`start`], on MySQL.
pub(crate) async fn mysql() -> Tenancy<MySql> {
    start().await
}

/// The same on MariaDB.
pub(crate) async fn mariadb() -> Tenancy<MariaDb> {
    start().await
}

/// The tenant's configuration for the server itself, unencrypted.
pub(crate) fn config<V: Version>(server: &Tenancy<V>) -> Config {
    config_at(server, server.server.address)
}

/// The same for the server at another address.
pub(crate) fn config_at<V: Version>(server: &Tenancy<V>, address: SocketAddr) -> Config {
    server.tenant.config(address, &Setup::default())
}

/// The tenant's URL, with this for the host and with these parameters.
pub(crate) fn url<V: Version>(server: &Tenancy<V>, host: &str, parameters: &str) -> String {
    let tenant = &server.tenant;
    format!("mysql://{name}:{password}@{host}/{name}?{parameters}", name = tenant.name, password = tenant.password)
}

/// A lifecycle with one database in it.
pub(crate) type Scene = scene::Scene<Mysql>;

/// What a scene with a database can do besides.
pub(crate) trait Speaks {
    /// So many checkouts at once, each of which has spoken to the server.
    async fn out(&self, count: usize) -> Vec<Checkout<Directed<Mysql>>>;

    /// One round trip on a checkout of its own.
    async fn ping(&self);
}

impl Speaks for Scene {
    async fn out(&self, count: usize) -> Vec<Checkout<Directed<Mysql>>> {
        let mut out = Vec::new();
        for _ in 0..count {
            let mut connection = self.get().await;
            ping(&mut connection).await;
            out.push(connection);
        }
        out
    }

    async fn ping(&self) {
        let mut connection = self.get().await;
        ping(&mut connection).await;
    }
}

/// One round trip.
pub(crate) async fn ping(conn: &mut Conn) {
    conn.query_drop("SELECT 1").await.unwrap();
}

/// What the server answers to a question for one text.
pub(crate) async fn text(conn: &mut Conn, sql: &str) -> Option<String> {
    conn.query_first::<Option<String>, _>(sql).await.unwrap().flatten()
}

/// Whether the server says that this session is encrypted.
pub(crate) async fn is_encrypted(conn: &mut Conn) -> bool {
    let cipher: Option<(String, String)> = conn.query_first("SHOW SESSION STATUS LIKE 'Ssl_cipher'").await.unwrap();
    !cipher.unwrap().1.is_empty()
}

/// Nothing is listed, nothing runs, and nothing is in the log: right now.
#[track_caller]
pub(crate) fn assert_nothing_left<V: Version>(server: &Tenancy<V>) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let listed = (server.sessions().await.unwrap(), server.running().await.unwrap());
        assert_eq!(listed, (0, 0), "sessions and statements that the server lists at {caller}");
        let complaints = server.complaints().await.unwrap();
        assert!(complaints.is_empty(), "the server complains at {caller}: {complaints:#?}");
    }
}

pub(crate) async fn until_running<V: Version>(server: &Tenancy<V>, statements: usize) {
    until("the server lists the statement", || async { server.running().await.unwrap() == statements }).await;
}

/// Begins a statement that does not end, and drains once the server lists it; what became of both.
pub(crate) async fn drain_under_a_statement<V: Version, R: Checkouts>(
    server: &Tenancy<V>,
    scene: &scene::Scene<R>,
) -> (Result<(), String>, Drained)
where
    R::Checkout: AsConn,
{
    let mut connection = scene.get().await;
    let straggler = async move {
        let result = run(connection.conn(), ENDLESS).await.map_err(|error| in_full(error.as_ref()));
        drop(connection);
        result
    };
    tokio::join!(straggler, async {
        until_running(server, 1).await;
        scene.drain().await
    })
}

/// Begins a statement that does not end, and gives up on it once the server lists it: it runs on.
pub(crate) async fn abandon_statement<V: Version, R: Checkouts>(server: &Tenancy<V>, db: &ShutdownGuard<R>)
where
    R::Checkout: AsConn,
{
    let mut connection = db.get().await.unwrap();
    let mut run = pin!(run(connection.conn(), ENDLESS));
    tokio::select! {
        result = &mut run => panic!("it ended at once: {:?}", result.err()),
        () = until_running(server, 1) => {}
    }
}

/// A checkout of either resource.
pub(crate) trait AsConn {
    fn conn(&mut self) -> &mut Conn;
}

impl AsConn for Connection {
    fn conn(&mut self) -> &mut Conn {
        self
    }
}

impl AsConn for Conn {
    fn conn(&mut self) -> &mut Conn {
        self
    }
}

/// What the server has said, behind one of our errors.
pub(crate) fn server_error(error: &Error) -> Option<&ServerError> {
    let driver = chain(error).find_map(|error| error.downcast_ref::<mysql_async::Error>());
    match driver {
        Some(mysql_async::Error::Server(error)) => Some(error),
        _ => None,
    }
}

/// The number of the error that the server has answered with.
pub(crate) fn code(error: &Error) -> Option<u16> {
    server_error(error).map(|error| error.code)
}

/// A file of this name in the directory, and its path as a text.
pub(crate) fn written(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}
