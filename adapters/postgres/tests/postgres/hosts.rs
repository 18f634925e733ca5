//! More than one host.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;
use winddown_core::ErrorKind;
use winddown_postgres::{Config, Postgres};
use winddown_testkit::Harness as _;

use crate::{
    scene::{Scene, Speaks, assert_nothing_left, drain_under_a_statement, driver_error, seventeen, text, url},
    server::{Eighteen, PostgreSql, Seventeen},
};

const ADDRESS: &str = "SELECT host(inet_server_addr())";

/// Two servers, with the tenant of the first on the second too.
struct Two {
    first: PostgreSql<Seventeen>,
    second: PostgreSql<Eighteen>,
}

impl Two {
    async fn start() -> Self {
        let first = seventeen().await;
        let second = PostgreSql::start_with(&first.tenant).await.unwrap();
        Self { first, second }
    }

    fn config(&self, servers: [SocketAddr; 2], options: &str) -> Config {
        let [a, b] = servers;
        url(&self.first, &format!("{a},{b}"), &format!("sslmode=disable&{options}")).parse().unwrap()
    }

    fn addresses(&self) -> [SocketAddr; 2] {
        [self.first.server.address, self.second.server.address]
    }

    async fn end(self) {
        self.first.end().await.unwrap();
        self.second.end().await.unwrap();
    }
}

pub(crate) async fn a_host_that_refuses_is_passed_over() {
    let server = seventeen().await;
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hosts = format!("{dead},{}", server.server.address);
    let scene = Scene::new(Postgres::open(&url(&server, &hosts, "")).unwrap());
    drop(scene.out(2).await);
    scene.drain().await.assert_clean(2);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

/// A port whose kernel drops what wants to connect: its queue is full.
struct Full {
    listener: Socket,
    _waiting: Vec<TcpStream>,
}

impl Full {
    async fn start() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        // Until one is not let in.
        while let Ok(connected) = tokio::time::timeout(Duration::from_secs(2), TcpStream::connect(address)).await {
            waiting.push(connected.unwrap());
            assert!(waiting.len() < 100, "the queue has no end");
        }
        Self { listener, _waiting: waiting }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap().as_socket().unwrap()
    }
}

pub(crate) async fn a_host_that_does_not_answer_is_passed_over_after_the_connect_timeout() {
    let server = seventeen().await;
    let full = Full::start().await;
    let hosts = format!("{},{}", full.address(), server.server.address);
    let scene = Scene::new(Postgres::open(&url(&server, &hosts, "connect_timeout=1")).unwrap());
    let began = Instant::now();
    drop(scene.out(1).await);
    let took = began.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(11)).contains(&took), "{took:?}");
    scene.drain().await.assert_clean(1);

    let alone = Scene::new(Postgres::open(&url(&server, &full.address().to_string(), "connect_timeout=1")).unwrap());
    let error = alone.db.get().await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Init, true), "{error}");
    assert!(error.to_string().contains("connecting was not over within the connect_timeout of 1s"), "{error}");
    server.end().await.unwrap();
}

pub(crate) async fn a_server_that_does_not_allow_writes_is_passed_over_with_a_goodbye() {
    let two = Two::start().await;
    let name = &two.first.tenant.name;
    let read_only = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    two.first.execute(&read_only).await.unwrap();
    let [first, second] = two.addresses();

    let config = two.config([first, second], "target_session_attrs=read-write");
    let scene = Scene::new(Postgres::new(config.clone()));
    let clients = scene.out(2).await;
    for client in &clients {
        assert_eq!(text(client, ADDRESS).await, second.ip().to_string());
    }
    drop(clients);
    // Those that were looked at and left have said goodbye, before the next host was tried.
    assert_nothing_left(&two.first).await;
    scene.drain().await.assert_clean(2);

    let scene = Scene::new(Postgres::new(two.config([second, first], "target_session_attrs=read-only")));
    assert_eq!(scene.text(ADDRESS).await, first.ip().to_string());
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&two.second).await;

    two.second.execute(&read_only).await.unwrap();
    let scene = Scene::new(Postgres::new(config));
    let error = scene.db.get().await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Init, true), "{error}");
    assert!(error.to_string().contains("the database does not allow writes"), "{error}");
    assert!(driver_error(&error).is_none(), "it is ours alone");
    two.end().await;
}

pub(crate) async fn random_balancing_reaches_every_host_and_none_the_first() {
    const ENOUGH: usize = 64;
    let two = Two::start().await;
    let [first, _] = two.addresses();
    let mut seen = HashSet::new();
    let mut config = two.config(two.addresses(), "load_balance_hosts=random");
    config.pool.max_size = ENOUGH;
    let scene = Scene::new(Postgres::new(config));
    let mut clients = Vec::new();
    while seen.len() < 2 && clients.len() < ENOUGH {
        let client = scene.get().await;
        seen.insert(text(&client, ADDRESS).await);
        clients.push(client);
    }
    let count = clients.len();
    assert_eq!(seen.len(), 2, "{count} sessions are all with {seen:?}");
    drop(clients);
    scene.drain().await.assert_clean(count as u64);

    let mut config = two.config(two.addresses(), "load_balance_hosts=disable");
    config.pool.max_size = 8;
    let scene = Scene::new(Postgres::new(config));
    for client in scene.out(8).await {
        assert_eq!(text(&client, ADDRESS).await, first.ip().to_string());
    }
    scene.drain().await.assert_clean(8);
    assert_nothing_left(&two.first).await;
    assert_nothing_left(&two.second).await;
    two.end().await;
}

pub(crate) async fn a_statement_is_cancelled_on_the_server_that_runs_it() {
    let two = Two::start().await;
    let name = &two.first.tenant.name;
    two.first.execute(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await.unwrap();
    let scene = Scene::patient(Postgres::new(two.config(two.addresses(), "target_session_attrs=read-write")));
    let (result, drained) = drain_under_a_statement(&two.second, &scene).await;
    let error = result.unwrap_err();
    assert!(error.contains("due to user request"), "{error}");
    drained.assert_in_time();
    assert_eq!(drained.ended(), (1, 0), "{}", drained.report);
    assert_eq!(drained.row().sessions.cancelled, 1, "{}", drained.report);
    assert_nothing_left(&two.second).await;
    assert_eq!(two.second.rows().await.unwrap(), 0);
    two.end().await;
}
