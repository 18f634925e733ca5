//! A write that hangs, on a connection that is silently dead or at the server: what is left of it after `abandon`.

use std::{net::SocketAddr, pin::pin, time::Duration};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use winddown_buffer::Sink;
use winddown_postgres::Postgres;
use winddown_testkit::{Harness as _, ServerUse, Setup, proxy::Proxy};

use crate::{
    pgbouncer::PgBouncer,
    scene::{config_at, lifecycle, until},
    sink::{Record, Scene, audit, batch, record},
};

/// Leads the first connection to the one address, and all others to the other.
async fn fork(first: SocketAddr, others: SocketAddr) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        let mut next = first;
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(next).await.unwrap();
            next = others;
            connections.spawn(async move { copy_bidirectional(&mut client, &mut server).await.ok() });
        }
    });
    (address, tasks)
}

/// What keeps a write from its end.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The network: its commit, or its rows, do not arrive.
    Cut,
    /// The network: no answer comes back, not even the first.
    Mute,
    /// The network: the answer to the commit does not come back.
    MuteAtCommit,
    /// Another session has locked the table.
    Locked,
}

pub(crate) async fn a_write_that_hangs_is_ended_on_the_server_and_its_batch_is_written_once() {
    for sink in audit() {
        for fault in [Fault::Cut, Fault::Mute, Fault::MuteAtCommit, Fault::Locked] {
            let scene = Scene::new().await;
            let proxy = Proxy::start(scene.server.server.address).await.unwrap();
            let (address, _tasks) = fork(proxy.address(), scene.server.server.address).await;
            let mut config = config_at(&scene.server, address);
            // The connection that is dead must not be in the way of the one that ends its session.
            config.pool.max_size = 1;
            let db = scene.lifecycle.guard_as("dead", Postgres::new(config));
            let mut checkout = db.get().await.unwrap();
            sink.write(&mut checkout, &batch([0])).await.unwrap();
            let other = scene.server.server.superuser(&scene.server.tenant.name).await.unwrap();
            match fault {
                Fault::Cut => proxy.cut_after(1),
                Fault::Mute => proxy.mute_after(0),
                Fault::MuteAtCommit => proxy.mute_after(1),
                Fault::Locked => other.batch_execute("BEGIN; LOCK TABLE audit IN EXCLUSIVE MODE").await.unwrap(),
            }
            let second = batch(1..=100);
            {
                let writing = pin!(sink.write(&mut checkout, &second));
                let written = timeout(Duration::from_secs(1), writing).await;
                assert!(written.is_err(), "{fault:?}: {written:?}");
            }
            assert_eq!(scene.server.sessions().await.unwrap(), 2, "its own, and that of the scene");
            timeout(Duration::from_secs(20), Sink::<Record>::abandon(&sink, checkout)).await.expect("it has a limit");
            let left = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                        WHERE a.datname = current_database() AND a.backend_type = 'client backend'
                        AND l.locktype = 'relation' AND l.mode = 'RowExclusiveLock'";
            assert_eq!(scene.number(left).await, 0, "{fault:?}: nothing is under way for it any more");
            assert_eq!(scene.server.sessions().await.unwrap(), 2, "the one that ended it, and that of the scene");
            if let Fault::Locked = fault {
                other.batch_execute("COMMIT").await.unwrap();
            }

            let mut checkout = db.get().await.unwrap();
            let written = timeout(Duration::from_secs(20), sink.write(&mut checkout, &second)).await;
            written.expect("nothing is in its way").unwrap();
            drop(checkout);
            assert_eq!(scene.audit().await, (0..=100).map(record).collect::<Vec<_>>(), "{sink:?} {fault:?}");
            assert_eq!(db.pool().await.unwrap().status().size, 1);
            let report = scene.lifecycle.drain().await;
            assert!(report.is_clean(), "{fault:?}: {report}");
            until("all are gone", || async { scene.server.sessions().await.unwrap() == 0 }).await;
            scene.server.end().await.unwrap();
        }
    }
}

pub(crate) async fn a_session_that_is_not_proven_ours_is_left_alone() {
    // Of a pooler, whose sessions are anybody's.
    let bouncer = PgBouncer::start(ServerUse::Shared).await.unwrap();
    let lifecycle = lifecycle(Duration::from_secs(30));
    let db = lifecycle.guard_as("db", bouncer.resource(&Setup::default()));
    db.get().await.unwrap().batch_execute("CREATE TABLE audit(at bigserial, id int8 UNIQUE, what text)").await.unwrap();
    let pid = async || {
        let row = db.get().await.unwrap().query_one("SELECT pg_backend_pid()", &[]).await.unwrap();
        row.get::<_, i32>(0)
    };
    for (n, sink) in audit().iter().enumerate() {
        let mut checkout = db.get().await.unwrap();
        sink.write(&mut checkout, &batch([n as i64])).await.unwrap();
        let before = checkout.query_one("SELECT pg_backend_pid()", &[]).await.unwrap();
        timeout(Duration::from_secs(20), Sink::<Record>::abandon(sink, checkout)).await.expect("it has a limit");
        assert_eq!(before.get::<_, i32>(0), pid().await, "{sink:?}");
    }
    assert!(lifecycle.drain().await.is_clean());
    bouncer.end().await.unwrap();
}
