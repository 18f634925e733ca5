//! Statements that are stopped, and what is said of those that could not be.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::TryStreamExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use winddown_core::Outcome;
use winddown_postgres::Postgres;
use winddown_testkit::{Harness as _, ServerUse, proxy::Proxy, scene::in_full};

use crate::{
    pgbouncer::PgBouncer,
    scene::{
        ENDLESS, QUICK, Scene, Speaks, abandon_statement, assert_nothing_left, config, config_at,
        drain_under_a_statement, seventeen, until, until_open, until_running,
    },
    server::{PostgreSql, Seventeen, run},
};

/// Passes connections on to a server.
struct Relay {
    address: SocketAddr,
    /// Connections that were made before stand still: nothing passes any more, no end either.
    frozen: watch::Sender<()>,
    ways: Arc<Ways>,
    _tasks: JoinSet<()>,
}

/// How a relay is unlike the server behind it.
#[derive(Default)]
struct Ways {
    loses_cancels: AtomicBool,
    keeps_keys: AtomicBool,
    /// How many requests to cancel have come.
    cancels: AtomicUsize,
}

impl Relay {
    async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (frozen, ways) = (watch::Sender::default(), Arc::<Ways>::default());
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let (frozen, ways) = (frozen.clone(), Arc::clone(&ways));
            async move {
                let mut connections = JoinSet::new();
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    connections.spawn(pass(client, server, frozen.subscribe(), Arc::clone(&ways)));
                }
            }
        });
        Self { address, frozen, ways, _tasks: tasks }
    }

    /// From now on requests to cancel are taken, and get no further.
    fn lose_cancels(&self) {
        self.ways.loses_cancels.store(true, Ordering::Relaxed);
    }

    /// From now on no session is told by what key it can be cancelled.
    fn keep_keys(&self) {
        self.ways.keeps_keys.store(true, Ordering::Relaxed);
    }

    fn freeze(&self) {
        self.frozen.send_replace(());
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, mut frozen: watch::Receiver<()>, ways: Arc<Ways>) {
    // A length, and the code of CancelRequest.
    const CANCEL: [u8; 8] = [0, 0, 0, 16, 4, 210, 22, 46];
    let mut first = [0; 8];
    while let Ok(seen @ 1..8) = client.peek(&mut first).await {
        assert!(seen < 8);
        client.readable().await.unwrap();
    }
    let is_cancel = first == CANCEL;
    ways.cancels.fetch_add(usize::from(is_cancel), Ordering::Relaxed);
    if is_cancel && ways.loses_cancels.load(Ordering::Relaxed) {
        return;
    }
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let passed = async {
        if !is_cancel && ways.keeps_keys.load(Ordering::Relaxed) {
            log_on_without_key(&mut client, &mut server).await?;
        }
        copy_bidirectional(&mut client, &mut server).await
    };
    tokio::select! {
        // Both ends see how it ended.
        _ = passed => {}
        _ = frozen.changed() => std::future::pending().await,
    }
}

/// Passes everything on but BackendKeyData, until the server is ready.
async fn log_on_without_key(client: &mut TcpStream, server: &mut TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers = async {
        loop {
            let mut header = [0; 5];
            from_server.read_exact(&mut header).await?;
            let [kind, length @ ..] = header;
            let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
            from_server.read_exact(&mut body).await?;
            if kind != b'K' {
                to_client.write_all(&[&header[..], &body].concat()).await?;
            }
            if kind == b'Z' {
                return Ok(());
            }
        }
    };
    tokio::select! {
        answered = answers => answered,
        sent = copy(&mut from_client, &mut to_server) => sent.map(drop),
    }
}

/// One whose check fails as long as its last user's statement runs.
fn replacing(server: &PostgreSql<Seventeen>, address: SocketAddr) -> Postgres {
    let mut config = config_at(server, address);
    config.pool.max_size = 1;
    (config.check_after, config.check_timeout) = (Duration::ZERO, Duration::from_millis(200));
    Postgres::new(config)
}

pub(crate) async fn a_statement_whose_session_was_replaced_is_stopped_before_it_is_forgotten() {
    let server = seventeen().await;
    let scene = Scene::new(replacing(&server, server.server.address));
    abandon_statement(&server, &scene.db).await;
    scene.ping().await;
    until_open(scene.db.resource(), 1).await;
    assert_eq!(server.running().await.unwrap(), 0, "no drain would know of it");
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;

    // The drain begins before that.
    let scene = Scene::new(replacing(&server, server.server.address));
    abandon_statement(&server, &scene.db).await;
    scene.ping().await;
    let drained = scene.drain().await;
    assert_eq!(drained.row().outcome, Outcome::Drained, "{}", drained.report);
    assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
    assert_nothing_left(&server).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_that_could_not_be_stopped_before_the_drain_is_in_its_report() {
    let server = seventeen().await;
    let relay = Relay::start(server.server.address).await;
    relay.lose_cancels();
    let scene = Scene::new(replacing(&server, relay.address));
    abandon_statement(&server, &scene.db).await;
    scene.ping().await;
    until_open(scene.db.resource(), 1).await;
    let drained = scene.drain().await;
    assert_eq!(server.running().await.unwrap(), 1, "what the report says");
    drained.assert_clean(1);
    let error = drained.row().error.clone().unwrap_or_default();
    assert!(error.contains("may run on") && error.contains(&relay.address.to_string()), "{}", drained.report);
    server.end_all().await.unwrap();
    server.end().await.unwrap();
}

/// The server hears of it only when it has an answer to send.
pub(crate) async fn a_statement_whose_connection_broke_is_stopped() {
    let server = seventeen().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let scene = Scene::new(Postgres::new(config_at(&server, proxy.address())));
    run_until_reset(&server, &scene, &proxy).await;
    until("the server has stopped it", || async { server.running().await.unwrap() == 0 }).await;
    until("the server has ended it", || async { server.sessions().await.unwrap() == 0 }).await;
    until_open(scene.db.resource(), 0).await;
    scene.drain().await.assert_clean(0);

    // The same in the middle of a drain, which waits for that.
    let scene = Scene::new(Postgres::new(config_at(&server, proxy.address())));
    run_until_reset(&server, &scene, &proxy).await;
    let drained = scene.drain().await;
    assert!(drained.took < QUICK, "{}", drained.report);
    until("the server has stopped it", || async { server.running().await.unwrap() == 0 }).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_whose_connection_broke_and_that_could_not_be_stopped_is_in_the_report() {
    let server = seventeen().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let scene = Scene::new(Postgres::new(config_at(&server, proxy.address())));
    let client = scene.get().await;
    let (result, ()) = tokio::join!(run(&client, ENDLESS), async {
        until_running(&server, 1).await;
        // Who connects from now on is heard by nobody.
        proxy.set_blackhole(true);
        proxy.reset();
    });
    result.unwrap_err();
    drop(client);
    let drained = scene.drain().await;
    let error = drained.row().error.clone().unwrap_or_default();
    assert!(error.contains("may run on") && error.contains(&proxy.address().to_string()), "{}", drained.report);
    assert_eq!(server.running().await.unwrap(), 1, "what the report says");
    server.end_all().await.unwrap();
    server.end().await.unwrap();
}

/// Begins a statement that does not end, and resets its connection once the server lists it.
async fn run_until_reset(server: &PostgreSql<Seventeen>, scene: &Scene, proxy: &Proxy) {
    let client = scene.get().await;
    let (result, ()) = tokio::join!(run(&client, ENDLESS), async {
        until_running(server, 1).await;
        proxy.reset();
    });
    result.unwrap_err();
}

pub(crate) async fn a_statement_counts_as_cancelled_only_if_it_was_seen_to_end() {
    let server = seventeen().await;
    let relay = Relay::start(server.server.address).await;
    relay.lose_cancels();
    let unseen = format!("{at} was asked to stop a statement, and nobody has seen it end", at = relay.address);

    let scene = Scene::patient(Postgres::new(config_at(&server, relay.address)));
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    result.unwrap_err();
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (0, (0, 1)), "{}", drained.report);
    assert!(drained.report.to_string().contains(&unseen), "{}", drained.report);
    assert_eq!(server.running().await.unwrap(), 1, "what the report says");
    server.end_all().await.unwrap();

    // The same where nobody waits for it.
    let scene = Scene::patient(Postgres::new(config_at(&server, relay.address)));
    abandon_statement(&server, &scene.db).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (0, (0, 1)), "{}", drained.report);
    assert!(drained.report.to_string().contains(&unseen), "{}", drained.report);
    assert_eq!(server.running().await.unwrap(), 1, "what the report says");
    server.end_all().await.unwrap();
    server.end().await.unwrap();
}

pub(crate) async fn where_the_server_gave_no_key_a_statement_is_let_end_and_nobody_is_asked() {
    let server = seventeen().await;
    let relay = Relay::start(server.server.address).await;
    relay.keep_keys();
    let scene = Scene::patient(Postgres::new(config_at(&server, relay.address)));
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    result.unwrap_err();
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (0, (0, 1)), "{}", drained.report);
    let error = drained.row().error.clone().unwrap_or_default();
    assert!(error.contains(&format!("{} gave no key", relay.address)), "{}", drained.report);
    assert_eq!(server.running().await.unwrap(), 1, "what the report says");
    server.end_all().await.unwrap();

    // One that ends by itself has ended, and nothing is said.
    let scene = Scene::patient(Postgres::new(config_at(&server, relay.address)));
    scene.ping().await;
    scene.drain().await.assert_clean(1);
    // Outside of a drain too it is known at once.
    let scene = Scene::new(replacing(&server, relay.address));
    abandon_statement(&server, &scene.db).await;
    scene.ping().await;
    until_open(scene.db.resource(), 1).await;
    let drained = scene.drain().await;
    let error = drained.row().error.clone().unwrap_or_default();
    assert!(error.contains("gave no key"), "{}", drained.report);
    assert_eq!(relay.ways.cancels.load(Ordering::Relaxed), 0, "a connection for each would be in vain");
    server.end_all().await.unwrap();
    server.end().await.unwrap();
}

/// Numbers of sessions begin again when a server starts again, and a session that was not told of its end may have a stranger's.
pub(crate) async fn a_stranger_with_the_number_of_a_session_is_not_touched() {
    const SESSIONS: usize = 8;
    const NUMBER: &str = "SELECT pg_backend_pid()";
    let server = PostgreSql::<Seventeen>::start(ServerUse::Own).await.unwrap();
    let relay = Relay::start(server.server.address).await;
    let mut config = config_at(&server, relay.address);
    config.pool.max_size = SESSIONS;
    let scene = Scene::patient(Postgres::new(config));
    let mut numbers = Vec::new();
    {
        let clients = scene.out(SESSIONS).await;
        for client in &clients {
            numbers.push(client.query_one(NUMBER, &[]).await.unwrap().get::<_, i32>(0));
        }
        for client in &clients {
            let mut statement = pin!(run(client, ENDLESS));
            let before = server.running().await.unwrap();
            tokio::select! {
                ended = &mut statement => panic!("it ended at once: {:?}", ended.err()),
                () = until("it runs", || async { server.running().await.unwrap() > before }) => {}
            }
        }
    }

    let mut strangers = Vec::new();
    let stranger = 'found: loop {
        relay.freeze();
        strangers.clear();
        {
            let mut container = server.server.container.lock().await;
            container.kill().await.unwrap();
            container.start_again().await.unwrap();
        }
        loop {
            let stranger = server.server.superuser("postgres").await.unwrap();
            let number: i32 = stranger.query_one(NUMBER, &[]).await.unwrap().get(0);
            if numbers.contains(&number) {
                break 'found stranger;
            }
            if numbers.iter().all(|known| number > *known) {
                // The server's own processes have had all of them.
                break;
            }
            strangers.push(stranger);
        }
    };
    server.ask_anew().await.unwrap();
    let sleeps = tokio::spawn(async move { stranger.batch_execute("SELECT pg_sleep(300)").await });
    let running = async || {
        let superuser = server.server.superuser("postgres").await.unwrap();
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        superuser.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    until("the stranger's statement runs", || async { running().await == 1 }).await;

    let drained = scene.drain().await;
    drained.assert_in_time();
    let sessions = SESSIONS as u64;
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (0, (0, sessions)), "{}", drained.report);
    assert!(drained.report.to_string().contains("nobody has seen it end"), "{}", drained.report);
    assert_eq!(running().await, 1, "the stranger's");
    assert!(!sleeps.is_finished());
    sleeps.abort();
    server.end().await.unwrap();
}

pub(crate) async fn a_result_that_nobody_reads_is_stopped_and_its_session_says_goodbye() {
    // Too much for any buffer on the way. Not from the series as a table, which the server would write to its disk first.
    const ROWS: &str = "SELECT repeat('x', 1000), generate_series(1, $1::int4)";
    let server = seventeen().await;
    for keeps_checkout in [true, false] {
        let scene = Scene::patient(Postgres::new(config(&server)));
        let mut client = Some(scene.get().await);
        let rows = client.as_ref().unwrap().query_raw(ROWS, [100_000_000]).await.unwrap();
        let mut rows = pin!(rows);
        rows.try_next().await.unwrap().expect("there are many");
        if !keeps_checkout {
            client = None;
        }
        let superuser = server.server.superuser("postgres").await.unwrap();
        let blocked = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event = 'ClientWrite'";
        let is_blocked =
            async || superuser.query_one(blocked, &[&server.tenant.name]).await.unwrap().get::<_, i64>(0) == 1;
        until("the server cannot send", is_blocked).await;

        let drained = scene.drain().await;
        drained.assert_in_time();
        assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (1, 0)), "{}", drained.report);
        assert_nothing_left(&server).await;
        let error = loop {
            match rows.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it looks as if that were all"),
                Err(error) => break in_full(&error),
            }
        };
        assert!(error.contains("closed"), "{error}");
        drop(client);
    }
    server.end().await.unwrap();
}

pub(crate) async fn where_a_pooler_ends_too_a_statement_is_not_waited_for_and_is_named() {
    let bouncer = PgBouncer::start(ServerUse::Own).await.unwrap();
    let (address, resource) = bouncer.direct();
    let scene = Scene::new(resource);
    drop(scene.out(2).await);
    {
        let client = scene.get().await;
        let mut statement = pin!(run(&client, ENDLESS));
        tokio::select! {
            ended = &mut statement => panic!("it ended at once: {:?}", ended.err()),
            () = until("it runs", || async { bouncer.running().await.unwrap() == 1 }) => {}
        }
    }
    // It waits for its clients, and lets nobody in.
    let container = bouncer.container().unwrap();
    container.lock().await.exec(["sh", "-c", "kill -TERM 1"]).await.unwrap();
    until("nobody is let in", || async { TcpStream::connect(address).await.is_err() }).await;

    let drained = scene.drain().await;
    assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (0, (1, 1)), "{}", drained.report);
    let error = drained.row().error.clone().unwrap_or_default();
    assert!(error.contains(&address.to_string()) && error.contains("may run on"), "{}", drained.report);
    assert_eq!(bouncer.running().await.unwrap(), 1, "what the report says");
    bouncer.end().await.unwrap();
}
