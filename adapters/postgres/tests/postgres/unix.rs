//! Socket files.
//!
//! The server is in a container, so what listens here passes everything on to it: the adapter's side is a real socket
//! file, and what is spoken over it is real.

use std::{net::SocketAddr, path::Path};

use tempfile::TempDir;
use tokio::{
    io::{AsyncWriteExt as _, copy},
    net::{TcpStream, UnixListener},
    task::JoinSet,
};
use winddown_postgres::{Postgres, SslMode, tokio_postgres};
use winddown_testkit::Harness as _;

use crate::{
    scene::{Scene, Speaks, assert_nothing_left, config, drain_under_a_statement, is_encrypted, seventeen},
    server::{PostgreSql, Seventeen},
};

/// What a server of its own would have made there. Ends when dropped.
fn listen(directory: &Path, server: SocketAddr) -> JoinSet<()> {
    let listener = UnixListener::bind(directory.join(".s.PGSQL.5432")).unwrap();
    let mut listening = JoinSet::new();
    listening.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let (mut from_client, mut to_client) = client.split();
                let (mut from_server, mut to_server) = server.split();
                // The end of one direction is passed on as such.
                tokio::join!(
                    async {
                        let _ = copy(&mut from_client, &mut to_server).await;
                        let _ = to_server.shutdown().await;
                    },
                    async {
                        let _ = copy(&mut from_server, &mut to_client).await;
                        let _ = to_client.shutdown().await;
                    },
                );
            });
        }
    });
    listening
}

fn postgres(server: &PostgreSql<Seventeen>, directory: &Path) -> Postgres {
    let tenant = &server.tenant;
    let mut config = config(server);
    config.driver = tokio_postgres::Config::new();
    config.driver.host_path(directory).user(&tenant.name).password(&tenant.password).dbname(&tenant.name);
    // Says nothing for socket files.
    config.ssl_mode = SslMode::Require;
    config.pool.max_size = 20;
    Postgres::new(config)
}

pub(crate) async fn sessions_over_a_socket_file_say_goodbye() {
    let server = seventeen().await;
    let directory = TempDir::new().unwrap();
    let listening = listen(directory.path(), server.server.address);
    let scene = Scene::new(postgres(&server, directory.path()));
    let clients = scene.out(20).await;
    assert!(!is_encrypted(&clients[0]).await);
    drop(clients);
    scene.drain().await.assert_clean(20);
    assert_nothing_left(&server).await;
    drop(listening);
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_is_cancelled_over_a_socket_file() {
    let server = seventeen().await;
    let directory = TempDir::new().unwrap();
    let listening = listen(directory.path(), server.server.address);
    let scene = Scene::patient(postgres(&server, directory.path()));
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    let error = result.unwrap_err();
    assert!(error.contains("due to user request"), "{error}");
    drained.assert_in_time();
    assert_eq!(drained.ended(), (1, 0), "{}", drained.report);
    assert_nothing_left(&server).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    drop(listening);
    server.end().await.unwrap();
}
