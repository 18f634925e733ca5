//! Socket files.
//!
//! The server is in a container, so what listens here passes everything on to it: the adapter's side is a real socket
//! file, and what is spoken over it is real. It is MariaDB, whose login is the same over both.

use std::{net::SocketAddr, path::Path};

use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpStream, UnixListener},
    task::JoinSet,
};
use winddown_mysql::{Mysql, mysql_async::OptsBuilder};
use winddown_testkit::Harness as _;

use crate::{
    scene::{Scene, Speaks, assert_nothing_left, config, drain_under_a_statement, mariadb},
    server::{MariaDb, Tenancy},
};

const FILE: &str = "mysqld.sock";

/// What a server of its own would have made there. Ends when dropped.
fn listen(directory: &Path, server: SocketAddr) -> JoinSet<()> {
    let listener = UnixListener::bind(directory.join(FILE)).unwrap();
    let mut listening = JoinSet::new();
    listening.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    listening
}

fn over_the_file(server: &Tenancy<MariaDb>, directory: &Path) -> Mysql {
    let mut config = config(server);
    let path = directory.join(FILE).to_str().unwrap().to_owned();
    // Where nobody listens.
    let builder = OptsBuilder::from_opts(config.driver).ip_or_hostname("127.0.0.1").tcp_port(1).socket(Some(path));
    config.driver = builder.into();
    config.pool.max_size = 20;
    Mysql::new(config)
}

pub(crate) async fn sessions_over_a_socket_file_say_goodbye() {
    let server = mariadb().await;
    let directory = TempDir::new().unwrap();
    let listening = listen(directory.path(), server.server.address);
    let scene = Scene::new(over_the_file(&server, directory.path()));
    drop(scene.out(20).await);
    scene.drain().await.assert_clean(20);
    assert_nothing_left(&server).await;
    drop(listening);
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_is_cancelled_over_a_socket_file() {
    let server = mariadb().await;
    let directory = TempDir::new().unwrap();
    let listening = listen(directory.path(), server.server.address);
    let scene = Scene::patient(over_the_file(&server, directory.path()));
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    let error = result.unwrap_err();
    assert!(error.contains("Query execution was interrupted"), "{error}");
    drained.assert_in_time();
    assert_eq!(drained.ended(), (1, 0), "{}", drained.report);
    assert_nothing_left(&server).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    drop(listening);
    server.end().await.unwrap();
}
