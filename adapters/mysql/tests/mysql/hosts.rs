//! Which server a session is with.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use winddown_core::Outcome;
use winddown_mysql::{Mysql, mysql_async::prelude::Queryable as _};
use winddown_testkit::{Harness as _, ServerUse};

use crate::{
    scene::{ENDLESS, Scene, Speaks, config, config_at, mariadb, mysql, until, until_running},
    server::{MySql, SLEEPS, Tenancy, listed, run},
};

/// What a balancer does: each connection goes to the next server, and from the fifth on to the first. Ends when dropped.
async fn balance(servers: [SocketAddr; 2]) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let turn = Arc::new(AtomicUsize::new(0));
    let mut balancing = JoinSet::new();
    balancing.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let turn = turn.fetch_add(1, Ordering::SeqCst);
            let server = servers[if turn < 4 { turn % servers.len() } else { 0 }];
            connections.spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, balancing)
}

pub(crate) async fn sessions_with_another_server_behind_the_same_address_are_neither_killed_nor_called_closed() {
    let first = mysql().await;
    let second = mariadb().await;
    first.tenant.create_on(&second.server).await.unwrap();
    let (address, balancing) = balance([first.server.address, second.server.address]).await;
    let scene = Scene::patient(Mysql::new(config_at(&first, address)));
    // Two here and two there, one of which runs something; whoever asks is here.
    let mut out = scene.out(4).await;
    let here = first.sessions().await.unwrap();
    assert_eq!(here, 2);
    let straggler = tokio::spawn(async move {
        let mut connection = out.pop().unwrap();
        drop(out);
        run(&mut connection, ENDLESS).await.map_err(|error| error.to_string())
    });
    let there = async || {
        let mut superuser = second.server.superuser().await.unwrap();
        listed(&mut superuser, |line| line.user == first.tenant.name && line.state == SLEEPS).await.unwrap()
    };
    until("it runs", || async { there().await.len() == 1 }).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    let (closed, cut) = drained.ended();
    let unconfirmed = drained.row().sessions.unconfirmed;
    assert_eq!((closed + unconfirmed + cut, drained.row().outcome), (4, Outcome::Incomplete), "{}", drained.report);
    assert!(closed <= 2, "nobody has asked there: {}", drained.report);
    assert!(cut >= 1, "what runs there: {}", drained.report);
    assert!(drained.report.to_string().contains("not proven"), "{}", drained.report);
    assert_eq!(drained.row().sessions.cancelled, 0, "{}", drained.report);
    // What runs there was not stopped by the number that somebody else may have here.
    let runs = there().await;
    assert_eq!(runs.len(), 1, "{}", drained.report);
    let id = runs[0];
    second.server.superuser().await.unwrap().query_drop(format!("KILL {id}")).await.unwrap();
    straggler.await.unwrap().unwrap_err();
    drop((scene, balancing));
    until("all are gone", || async { first.sessions().await.unwrap() == 0 }).await;
    first.tenant.clone().drop(&second.server).await.unwrap();
    first.end().await.unwrap();
    second.end().await.unwrap();
}

/// Its sessions from before are gone, and their numbers are given to others.
pub(crate) async fn a_statement_is_cancelled_on_a_server_that_was_started_again() {
    let server: Tenancy<MySql> = Tenancy::start(ServerUse::Own).await.unwrap();
    let mut config = config(&server);
    config.pool.max_size = 20;
    config.check_after = std::time::Duration::ZERO;
    let scene = Scene::patient(Mysql::new(config));
    drop(scene.out(20).await);
    server.kill().await.unwrap();
    server.start_again().await.unwrap();
    // The first number that a server gives is a low one.
    let mut connection = scene.out(1).await.remove(0);
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(server.server.superuser().await.unwrap());
    }
    let straggler =
        tokio::spawn(async move { run(&mut connection, std::time::Duration::from_secs(60)).await.is_err() });
    until_running(&server, 1).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (1, 0)), "{}", drained.report);
    assert!(straggler.await.unwrap());
    for mut stranger in strangers {
        crate::scene::ping(&mut stranger).await;
    }
    server.end().await.unwrap();
}
