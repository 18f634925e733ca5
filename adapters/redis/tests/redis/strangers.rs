//! A server that is not the one with which a session was opened, though it answers at its address.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, Value,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cmd,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use winddown_redis::{Config, Redis, redis};
use winddown_testkit::Harness as _;

use crate::scene::{
    Scene, Server, Speaks as _, abandon_command, assert_nothing_left, config_at, own, until, until_waiting,
};

/// A way to the server on which one never hears that the other end is gone, as long as it is so.
async fn deaf_way(server: SocketAddr, deaf: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let deaf = Arc::clone(&deaf);
            tokio::spawn(async move {
                let Ok(mut upstream) = TcpStream::connect(server).await else { return };
                if !deaf.load(Ordering::SeqCst) {
                    let _ = copy_bidirectional(&mut client, &mut upstream).await;
                    return;
                }
                let ((mut from, mut to), (mut back, mut there)) = (client.split(), upstream.split());
                let up = async {
                    let mut bytes = [0; 4096];
                    while let Ok(read @ 1..) = from.read(&mut bytes).await {
                        let _ = there.write_all(&bytes[..read]).await;
                    }
                };
                let down = async {
                    let mut bytes = [0; 4096];
                    while let Ok(read @ 1..) = back.read(&mut bytes).await {
                        let _ = to.write_all(&bytes[..read]).await;
                    }
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = up => {}
                    () = down => {}
                }
            });
        }
    });
    address
}

fn information(address: SocketAddr) -> ConnectionInfo {
    ConnectionAddr::Tcp(address.ip().to_string(), address.port()).into_connection_info().unwrap()
}

/// A session of the superuser, which the server knows by its number.
async fn stranger(server: &Server) -> (redis::aio::MultiplexedConnection, u64) {
    let client = Client::open(information(server.server.address)).unwrap();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
    let id = cmd("CLIENT").arg("ID").query_async(&mut connection).await.unwrap();
    (connection, id)
}

pub(crate) async fn s7_a_stranger_who_has_our_number_after_a_restart_is_left_alone() {
    left_alone(|config| Box::pin(async { Redis::new(config.pooled(1)) }), true).await;
}

pub(crate) async fn s7_a_stranger_who_has_the_number_of_what_was_wrapped_is_left_alone() {
    left_alone(
        |config| {
            Box::pin(async move {
                let client = Client::open(config.driver.clone()).unwrap();
                let settings = ConnectionManagerConfig::new().set_response_timeout(None);
                let manager = ConnectionManager::new_with_config(client.clone(), settings).await.unwrap();
                Redis::wrap_with(manager, client)
            })
        },
        false,
    )
    .await;
}

type Opening = Pin<Box<dyn Future<Output = Redis> + Send>>;

/// `tells` is whether who waits is told, though the connection never is: where the driver alone has the socket, nobody can.
async fn left_alone(open: impl Fn(Config) -> Opening, tells: bool) {
    let server = own().await;
    for given_up in [true, false] {
        // So that there are fewer after the restart.
        for _ in 0..30 {
            drop(stranger(&server).await);
        }
        let deaf = Arc::new(AtomicBool::new(true));
        let address = deaf_way(server.server.address, Arc::clone(&deaf)).await;
        let scene = Scene::patient(open(config_at(&server, address)).await);
        let ours: u64 = cmd("CLIENT").arg("ID").query_async(&mut *scene.get().await).await.unwrap();
        let ours_waits = if given_up {
            abandon_command(&server, &scene.db).await;
            None
        } else {
            let mut connection = scene.get().await;
            let key = server.tenant.key("never");
            let waits =
                tokio::spawn(async move { cmd("BLPOP").arg(key).arg(0).query_async::<Value>(&mut *connection).await });
            until_waiting(&server, 1).await;
            Some(waits)
        };
        deaf.store(false, Ordering::SeqCst);
        {
            let mut container = server.server.container.lock().await;
            container.kill().await.unwrap();
            container.start_again().await.unwrap();
        }
        server.ask_anew().await.unwrap();
        let mut strangers = vec![stranger(&server).await];
        while strangers.last().unwrap().1 < ours {
            strangers.push(stranger(&server).await);
        }
        let (mut connection, id) = strangers.pop().unwrap();
        assert_eq!(id, ours);
        let waits =
            tokio::spawn(async move { cmd("BLPOP").arg("theirs").arg(0).query_async::<Value>(&mut connection).await });
        let mut superuser = server.superuser().await;
        let mut listed = cmd("CLIENT");
        listed.arg("LIST").arg("ID").arg(id);
        until("it waits", || async {
            let line: String = listed.query_async(&mut superuser.clone()).await.unwrap();
            line.contains("flags=b")
        })
        .await;
        let drained = scene.drain().await;
        println!("{}", drained.report);
        // It gets what it waits for.
        let heard: usize = cmd("RPUSH").arg("theirs").arg("hello").query_async(&mut superuser).await.unwrap();
        assert_eq!(heard, 1);
        let answer = waits.await.unwrap().unwrap();
        assert!(format!("{answer:?}").contains("hello"), "{answer:?}");
        drained.assert_in_time();
        assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((0, 1), 0), "{}", drained.report);
        assert!(drained.report.to_string().contains("not proven"), "{}", drained.report);
        assert_nothing_left(&server).await;
        if let Some(waits) = ours_waits {
            if tells {
                assert!(waits.await.unwrap().is_err());
            } else {
                waits.abort();
            }
        }
    }
    server.end().await.unwrap();
}

pub(crate) async fn s7_what_the_server_does_not_prove_to_be_ours_is_not_ended_there() {
    let server = own().await;
    for rule in ["-info", "-client|list", "-client|info"] {
        let mut superuser = server.superuser().await;
        let mut set = cmd("ACL");
        set.arg("SETUSER").arg(&server.tenant.name).arg("+@all").arg(rule);
        set.exec_async(&mut superuser).await.unwrap();
        let scene = Scene::patient(Redis::new(config_at(&server, server.server.address).pooled(2)));
        scene.ping().await;
        abandon_command(&server, &scene.db).await;
        let drained = scene.drain().await;
        println!("{}", drained.report);
        drained.assert_in_time();
        assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((0, 1), 0), "{rule}: {}", drained.report);
        assert!(drained.report.to_string().contains("not proven"), "{rule}: {}", drained.report);
        until("it has gone by itself", || async { server.sessions().await.unwrap() == 0 }).await;
    }
    server.end().await.unwrap();
}
