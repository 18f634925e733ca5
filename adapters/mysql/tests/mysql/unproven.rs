//! Servers and proxies whose word for a session's number is none: they do not say which server they are, or the number in the
//! handshake is not the session's own.

use std::{collections::HashSet, net::SocketAddr, pin::pin, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, Notify, watch},
    task::JoinSet,
};
use winddown_core::{Checkout, Outcome};
use winddown_mysql::{
    Mysql,
    mysql_async::{Conn, OptsBuilder, PoolOpts, prelude::Queryable as _},
};
use winddown_testkit::{Directed, Harness as _};

use crate::{
    scene::{ENDLESS, Scene, Speaks, config, config_at, start, until, until_running},
    server::{MariaDb, MySql, Tenancy, Version, run},
};

/// What is made up.
#[derive(Debug, Clone, Copy)]
enum Lie {
    Nothing,
    /// The server has no such variable as `@@hostname`.
    Nameless,
    /// Each handshake has this number.
    Number(u32),
    /// It was started later than it was.
    LaterStart,
    /// It takes one statement in each message.
    OneAtATime,
}

/// What passes on what is spoken with the server, but for the lie.
struct Lying {
    lie: watch::Sender<Lie>,
    _tasks: JoinSet<()>,
}

impl Lying {
    /// On connections that are made from now on.
    fn lies_from_now_on(&self, lie: Lie) {
        self.lie.send_replace(lie);
    }
}

/// Passes on what is spoken with the server, but for the lie. Ends when dropped.
async fn lying(server: SocketAddr, lie: Lie) -> (SocketAddr, Lying) {
    breaking(server, lie, Arc::default()).await
}

/// The same; the connections that are there when this notifies those who wait for it are broken.
async fn breaking(server: SocketAddr, lie: Lie, breaks: Arc<Notify>) -> (SocketAddr, Lying) {
    let (lie, lies) = watch::channel(lie);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let (breaks, lie) = (Arc::clone(&breaks), *lies.borrow());
            connections.spawn(async move {
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = TcpStream::connect(server).await.unwrap().into_split();
                tokio::select! {
                    // Its end is the end of one of both, which is all that there is to see.
                    _ = connection(lie, from_client, to_client, from_server, to_server) => {}
                    () = breaks.notified() => {}
                }
            });
        }
    });
    (address, Lying { lie, _tasks: tasks })
}

async fn connection(
    lie: Lie,
    mut from_client: OwnedReadHalf,
    mut to_client: OwnedWriteHalf,
    mut from_server: OwnedReadHalf,
    mut to_server: OwnedWriteHalf,
) -> std::io::Result<()> {
    let mut handshake = packet(&mut from_server).await?;
    if let Lie::Number(number) = lie {
        // Behind the header, the protocol's version, and the server's own, which ends with a zero.
        let end = 5 + handshake[5..].iter().position(|byte| *byte == 0).unwrap();
        handshake[end + 1..end + 5].copy_from_slice(&number.to_le_bytes());
    }
    to_client.write_all(&handshake).await?;
    let to_client = Mutex::new(to_client);
    let up = async {
        while let Ok(asked) = packet(&mut from_client).await {
            let has = |text: &[u8]| asked[4..].windows(text.len()).any(|found| found == text);
            let refusal: &[u8] = match lie {
                Lie::Nameless if has(b"@@hostname") => b"\xff\xa9\x04#HY000Unknown system variable 'hostname'",
                Lie::OneAtATime if has(b"; ") => b"\xff\xc2\x1f#HY000client has multi-statement capability disabled",
                _ => b"",
            };
            if refusal.is_empty() {
                let asked = if matches!(lie, Lie::LaterStart) { later_start(asked) } else { asked };
                to_server.write_all(&asked).await?;
            } else {
                let mut answer = vec![u8::try_from(refusal.len()).unwrap(), 0, 0, asked[3] + 1];
                answer.extend(refusal);
                to_client.lock().await.write_all(&answer).await?;
            }
        }
        to_server.shutdown().await
    };
    let down = async {
        let mut buffer = [0; 16 * 1024];
        loop {
            match from_server.read(&mut buffer).await? {
                0 => break to_client.lock().await.shutdown().await,
                read => to_client.lock().await.write_all(&buffer[..read]).await?,
            }
        }
    };
    tokio::try_join!(up, down).map(drop)
}

/// The same, which asks for a start of the server that is a minute later.
fn later_start(asked: Vec<u8>) -> Vec<u8> {
    let (header, text) = asked.split_at(4);
    let Ok(text) = std::str::from_utf8(text) else { return asked };
    let text = text.replace("UUID_SHORT()", "(UUID_SHORT() + (60 << 24))");
    let length = u32::try_from(text.len()).unwrap().to_le_bytes();
    [&length[..3], &header[3..], text.as_bytes()].concat()
}

/// With its header.
async fn packet(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut packet = vec![0; 4];
    from.read_exact(&mut packet).await?;
    let length = u32::from_le_bytes([packet[0], packet[1], packet[2], 0]);
    packet.resize(4 + usize::try_from(length).unwrap(), 0);
    from.read_exact(&mut packet[4..]).await?;
    Ok(packet)
}

/// Begins a statement, and gives up on it once so many run.
async fn abandon<V: Version>(server: &Tenancy<V>, mut connection: Checkout<Directed<Mysql>>, running: usize) {
    let mut run = pin!(run(&mut connection, ENDLESS));
    tokio::select! {
        result = &mut run => panic!("it ended at once: {:?}", result.err()),
        () = until_running(server, running) => {}
    }
}

/// Somebody else of the same user, who runs a statement, and the lies about this server.
async fn lies<V: Version>(server: &Tenancy<V>) -> (JoinSet<Result<(), String>>, [Lie; 2]) {
    let mut stranger = Conn::new(config(server).driver).await.unwrap();
    let number = stranger.id();
    let mut runs = JoinSet::new();
    runs.spawn(async move { run(&mut stranger, ENDLESS).await.map_err(|error| error.to_string()) });
    until_running(server, 1).await;
    (runs, [Lie::Nameless, Lie::Number(number)])
}

pub(crate) async fn sessions_whose_end_nobody_can_see_say_goodbye() {
    say_goodbye::<MySql>().await;
    say_goodbye::<MariaDb>().await;
}

async fn say_goodbye<V: Version>() {
    let server = start::<V>().await;
    let (mut runs, lies) = lies(&server).await;
    for lie in lies {
        let (address, lying) = lying(server.server.address, lie).await;
        let scene = Scene::new(Mysql::new(config_at(&server, address)));
        drop(scene.out(3).await);
        let drained = scene.drain().await;
        let row = drained.row();
        assert_eq!(row.outcome, Outcome::Drained, "{lie:?}: {}", drained.report);
        assert_eq!((row.sessions.unconfirmed, drained.ended()), (3, (0, 0)), "{lie:?}: {}", drained.report);
        until("they are gone", || async { server.sessions().await.unwrap() == 1 }).await;
        assert!(runs.try_join_next().is_none(), "{lie:?}: {}", drained.report);
        drop((scene, lying));
    }
    runs.abort_all();
    server.end_all().await.unwrap();
    server.end().await.unwrap();
}

/// A server may keep its sessions though it is started again: those who are listed as ours, with an older start, are not over.
pub(crate) async fn a_session_that_outlived_a_start_of_its_server_is_not_taken_for_gone() {
    outlived::<MySql>().await;
    outlived::<MariaDb>().await;
}

async fn outlived<V: Version>() {
    let server = start::<V>().await;
    let (address, lying) = lying(server.server.address, Lie::Nothing).await;
    let scene = Scene::patient(Mysql::new(config_at(&server, address)));
    let left = scene.out(2).await.remove(0);
    abandon(&server, left, 1).await;
    lying.lies_from_now_on(Lie::LaterStart);
    let drained = scene.drain().await;
    drained.assert_in_time();
    let row = drained.row();
    assert_eq!(row.outcome, Outcome::Incomplete, "{}", drained.report);
    assert_eq!(row.sessions.cancelled, 0, "{}", drained.report);
    // The list may have shown the other one before the server had read its goodbye.
    let (closed, cut) = drained.ended();
    assert_eq!((row.sessions.unconfirmed + closed, cut), (1, 1), "{}", drained.report);
    assert!(drained.report.to_string().contains("not proven"), "{}", drained.report);
    server.end_all().await.unwrap();
    drop((scene, lying));
    server.end().await.unwrap();
}

pub(crate) async fn a_server_that_takes_one_statement_at_a_time_keeps_its_sessions() {
    one_at_a_time::<MySql>().await;
    one_at_a_time::<MariaDb>().await;
}

async fn one_at_a_time<V: Version>() {
    let server = start::<V>().await;
    let (address, lying) = lying(server.server.address, Lie::OneAtATime).await;
    for reset in [true, false] {
        let mut config = config_at(&server, address);
        let pool = PoolOpts::new().with_reset_connection(reset);
        config.driver = OptsBuilder::from_opts(config.driver).pool_opts(pool).into();
        config.pool.max_size = 1;
        let scene = Scene::new(Mysql::new(config));
        let mut numbers = HashSet::new();
        for _ in 0..3 {
            let mut connection = scene.get().await;
            let open: (u64, String) =
                connection.query_first("SELECT CONNECTION_ID(), DATABASE()").await.unwrap().unwrap();
            assert_eq!(open.1, server.tenant.name);
            numbers.insert(open.0);
            connection.query_drop("USE information_schema").await.unwrap();
            connection.query_drop("BEGIN").await.unwrap();
        }
        assert_eq!(numbers.len(), 1, "it was replaced");
        scene.drain().await.assert_clean(1);
    }
    drop(lying);
    server.end().await.unwrap();
}

/// What a caller has left behind goes on though its connection broke, and nobody can stop it.
pub(crate) async fn what_runs_on_behind_a_broken_connection_is_in_the_report() {
    runs_on::<MySql>().await;
    runs_on::<MariaDb>().await;
}

async fn runs_on<V: Version>() {
    let server = start::<V>().await;
    let breaks = Arc::new(Notify::new());
    let (address, lying) = breaking(server.server.address, Lie::Nameless, Arc::clone(&breaks)).await;
    let scene = Scene::patient(Mysql::new(config_at(&server, address)));
    let pool = scene.db.pool().await.unwrap();
    let mut connection = scene.get().await;
    let sql = "SELECT 1; INSERT INTO rows_left SELECT slept FROM (SELECT SLEEP(300) AS slept) AS sleep";
    drop(connection.query_iter(sql).await.unwrap());
    drop(connection);
    until_running(&server, 1).await;
    // It is not yet what it was.
    breaks.notify_waiters();
    until("it has left the pool", || async { pool.status().size == 0 }).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.row().outcome, drained.ended()), (Outcome::Incomplete, (0, 1)), "{}", drained.report);
    assert!(drained.report.to_string().contains("not proven"), "{}", drained.report);

    server.end_all().await.unwrap();
    drop(lying);
    server.end().await.unwrap();
}

pub(crate) async fn nothing_is_ended_where_nothing_is_proven() {
    not_ended::<MySql>().await;
    not_ended::<MariaDb>().await;
}

async fn not_ended<V: Version>() {
    let server = start::<V>().await;
    for turn in 0..2 {
        let (mut runs, lies) = lies(&server).await;
        let lie = lies[turn];
        let (address, lying) = lying(server.server.address, lie).await;
        let scene = Scene::patient(Mysql::new(config_at(&server, address)));
        // One is out, one has left its statement behind, and one is idle.
        let mut out = scene.out(3).await;
        let mut held = out.pop().unwrap();
        let left = out.pop().unwrap();
        drop(out);
        let held = tokio::spawn(async move { run(&mut held, ENDLESS).await.map_err(|error| error.to_string()) });
        until_running(&server, 2).await;
        abandon(&server, left, 3).await;
        let drained = scene.drain().await;
        drained.assert_in_time();
        let row = drained.row();
        assert_eq!(row.outcome, Outcome::Incomplete, "{lie:?}: {}", drained.report);
        assert_eq!(row.sessions.cancelled, 0, "{lie:?}: {}", drained.report);
        assert_eq!((row.sessions.unconfirmed, drained.ended()), (1, (0, 2)), "{lie:?}: {}", drained.report);
        assert!(drained.report.to_string().contains("not proven"), "{lie:?}: {}", drained.report);
        // What nobody waits for ends by itself, when the server sees that its client has gone.
        assert!(server.running().await.unwrap() >= 2, "{lie:?}: {}", drained.report);
        assert!(runs.try_join_next().is_none(), "{lie:?}: {}", drained.report);
        server.end_all().await.unwrap();
        let _ = (runs.join_next().await, held.await.unwrap());
        drop((scene, lying));
    }
    server.end().await.unwrap();
}
