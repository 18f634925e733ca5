//! Socket files.
//!
//! The server is in a container, so what listens here passes everything on to it: the adapter's side is a real socket
//! file, and what is spoken over it is real.

use std::{net::SocketAddr, path::Path};

use redis::ConnectionAddr;
use tempfile::TempDir;
use tokio::{
    io::{AsyncWriteExt as _, copy},
    net::{TcpStream, UnixListener},
    task::JoinSet,
};
use winddown_redis::{Redis, redis};
use winddown_testkit::Harness as _;

use crate::scene::{Scene, Server, Speaks as _, assert_nothing_left, config, drain_under_a_command, redis_8};

/// What a server of its own would have made there. Ends when dropped.
fn listen(path: &Path, server: SocketAddr) -> JoinSet<()> {
    let listener = UnixListener::bind(path).unwrap();
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

fn at(server: &Server, path: &Path) -> Redis {
    let mut config = config(server).pooled(20);
    config.driver = config.driver.clone().set_addr(ConnectionAddr::Unix(path.to_owned()));
    Redis::new(config)
}

pub(crate) async fn sessions_over_a_socket_file_say_goodbye() {
    let server = redis_8().await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("redis.sock");
    let listening = listen(&path, server.server.address);
    let scene = Scene::new(at(&server, &path));
    drop(scene.out(20).await);
    scene.drain().await.assert_clean(20);
    assert_nothing_left(&server).await;
    drop(listening);
    server.end().await.unwrap();
}

pub(crate) async fn a_command_that_waits_is_ended_over_a_socket_file() {
    let server = redis_8().await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("redis.sock");
    let listening = listen(&path, server.server.address);
    let scene = Scene::patient(at(&server, &path));
    let (result, drained) = drain_under_a_command(&server, &scene).await;
    assert!(result.unwrap_err().contains("UNBLOCKED"));
    drained.assert_in_time();
    assert_eq!(drained.ended(), (1, 0), "{}", drained.report);
    assert_nothing_left(&server).await;
    drop(listening);
    server.end().await.unwrap();
}
