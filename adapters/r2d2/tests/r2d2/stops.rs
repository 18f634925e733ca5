//! What is asked of the server to stop a statement: the adapter's own files, on sessions that it has not opened.

#[path = "../../src/diesel/asker.rs"]
mod asker;
#[path = "../../src/diesel/identity.rs"]
mod identity;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use diesel::{Connection as _, PgConnection};
use tokio::task::spawn_blocking;
use winddown_r2d2::{DieselPostgres, Peer};
use winddown_testkit::{
    Harness as _, ServerUse, Setup,
    scene::{ENDLESS, until},
};

use self::{
    asker::{Asker, stop},
    identity::{Backend, Identity},
};
use crate::{
    built::url,
    diesel::run,
    server::{PostgreSql, Seventeen},
};

/// A statement that runs, on the session that is returned.
async fn running(
    server: &PostgreSql<Seventeen>,
) -> (Backend, tokio::task::JoinHandle<Result<usize, diesel::result::Error>>) {
    let url = url(server, &Setup::default());
    let (backend, mut connection) = spawn_blocking(move || {
        let mut connection = PgConnection::establish(&url).unwrap();
        (Identity::of(&mut connection).unwrap().backend().unwrap(), connection)
    })
    .await
    .unwrap();
    let statement = spawn_blocking(move || run(&mut connection, ENDLESS));
    until("it runs", async || server.running().await.unwrap() == 1).await;
    (backend, statement)
}

pub(crate) async fn s7_a_number_that_is_another_s_by_now_is_left_alone() {
    let server = PostgreSql::<Seventeen>::start(ServerUse::Shared).await.unwrap();
    let (backend, statement) = running(&server).await;
    let asked = spawn_blocking({
        let url = url(&server, &Setup::default());
        move || {
            let mut asks = PgConnection::establish(&url).unwrap();
            let another = Backend { started: backend.started + 1, ..backend };
            assert_eq!(stop(&mut asks, &[another]), Ok(0));
            assert_eq!(stop(&mut asks, &[Backend { started: backend.started - 1, ..backend }]), Ok(0));
            asks
        }
    });
    let mut asks = asked.await.unwrap();
    // What was to be stopped would be by now.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.running().await.unwrap(), 1);
    let asked = spawn_blocking(move || stop(&mut asks, &[backend]));
    assert_eq!(asked.await.unwrap(), Ok(1));
    let error = statement.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("user request"), "{error}");
    server.end().await.unwrap();
}

pub(crate) async fn nothing_is_stopped_that_is_not_proven_to_be_ours() {
    let server = PostgreSql::<Seventeen>::start(ServerUse::Shared).await.unwrap();
    let (backend, statement) = running(&server).await;
    let url = url(&server, &Setup::default());
    let asker = Asker::new(move || PgConnection::establish(&url).map_err(Into::into));
    // As a pooler would say it, whose client nobody is here.
    let elsewhere = Backend { peer: Peer::new("192.0.2.1:5432".parse().unwrap(), None), ..backend };
    let stop = async |backend, nothing_runs: bool| {
        Arc::clone(&asker)
            .stop(backend, Arc::new(AtomicBool::new(nothing_runs)))
            .await
            .map_err(|error| error.to_string())
    };
    assert!(stop(elsewhere, false).await.unwrap_err().contains("behind a pooler"));
    stop(backend, true).await.unwrap();
    assert_eq!((server.running().await.unwrap(), server.sessions().await.unwrap()), (1, 1), "none was opened for that");
    stop(backend, false).await.unwrap();
    Arc::clone(&asker).over().await;
    assert!(server.sessions().await.unwrap() <= 1, "that which has asked is gone");
    stop(backend, false).await.unwrap_err();
    statement.await.unwrap().unwrap_err();
    server.end().await.unwrap();
}

pub(crate) async fn an_identity_is_read_as_the_server_writes_it() {
    let peer = Peer::new("127.0.0.1:5000".parse().unwrap(), Some("127.0.0.2:5432".parse().unwrap()));
    let identity = Identity::parse("17 1700000000000001 127.0.0.1 5000 127.0.0.2 5432");
    assert_eq!(identity.backend(), Some(Backend { pid: 17, started: 1_700_000_000_000_001, peer }));
    assert_eq!(identity.peer(), Some(peer));
    // Over a Unix socket nothing proves which session it is.
    let identity = Identity::parse("17 1700000000000001 -1");
    assert_eq!((identity.backend(), identity.peer()), (None, None));
    assert_ne!(identity, Identity::parse("17 1700000000000002 -1"));
    assert_eq!(Identity::parse(""), Identity::default());
}
