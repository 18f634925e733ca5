//! What the tests share.

use std::{
    error::Error as StdError,
    fs,
    future::Future,
    net::SocketAddr,
    path::Path,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use deadpool_postgres::Client;
use winddown_core::{Checkout, Error, Lifecycle, Outcome, Report, Resource, ResourceReport, Retry, ShutdownGuard};
use winddown_postgres::{Config, Postgres, tokio_postgres};
use winddown_testkit::{Directed, Director, Harness, ServerUse, Setup};

use crate::server::{PostgreSql, Seventeen, Version, run};

/// Never used up.
const BUDGET: Duration = Duration::from_secs(30);

/// Well above what takes no waiting, well below [`BUDGET`].
pub(crate) const QUICK: Duration = Duration::from_secs(8);

/// Used up: settles for about 2 s, then has 2 s, the last quarter of them after the cut. See [`Scene::patient`].
const SHORT: Duration = Duration::from_secs(4);

/// What a machine that does other work may add to a deadline.
const SLACK: Duration = Duration::from_secs(2);

/// Longer than any test runs.
pub(crate) const ENDLESS: Duration = Duration::from_secs(300);

/// A role and a database of its own on the server that is shared.
pub(crate) async fn start<V: Version>() -> PostgreSql<V> {
    PostgreSql::start(ServerUse::Shared).await.unwrap()
}

/// The same on PostgreSQL 17.
pub(crate) async fn seventeen() -> PostgreSql<Seventeen> {
    start().await
}

/// The tenant's configuration for the server itself, unencrypted.
pub(crate) fn config<V: Version>(server: &PostgreSql<V>) -> Config {
    config_at(server, server.server.address)
}

/// The same for the server at another address.
pub(crate) fn config_at<V: Version>(server: &PostgreSql<V>, address: SocketAddr) -> Config {
    server.tenant.config(address, &Setup::default())
}

/// The tenant's URL, with this for the host and with these options.
pub(crate) fn url<V: Version>(server: &PostgreSql<V>, host: &str, options: &str) -> String {
    let tenant = &server.tenant;
    format!("postgres://{name}:{password}@{host}/{name}?{options}", name = tenant.name, password = tenant.password)
}

pub(crate) fn lifecycle(budget: Duration) -> Lifecycle {
    let retry = Retry::new(2, Duration::from_millis(20), Duration::from_millis(100));
    Lifecycle::builder().signals(false).budget(budget).retry(retry).build().unwrap()
}

/// A lifecycle with one database in it.
pub(crate) struct Scene {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) db: ShutdownGuard<Directed<Postgres>>,
}

impl Scene {
    /// With time enough for everything.
    pub(crate) fn new(postgres: Postgres) -> Self {
        Self::with(BUDGET, &Director::new(), postgres)
    }

    /// For a drain that uses its budget up: with a reserve of half of it.
    pub(crate) fn patient(postgres: Postgres) -> Self {
        let director = Director::new();
        director.round_trip(Duration::from_millis(250));
        Self::with(SHORT, &director, postgres)
    }

    fn with(budget: Duration, director: &Director, postgres: Postgres) -> Self {
        let lifecycle = lifecycle(budget);
        let db = lifecycle.guard_as("db", director.direct(postgres));
        Self { lifecycle, db }
    }

    #[track_caller]
    pub(crate) fn get(&self) -> impl Future<Output = Checkout<Directed<Postgres>>> + use<'_> {
        let checkout = self.db.get();
        async { checkout.await.unwrap_or_else(|error| panic!("no checkout: {error}")) }
    }

    /// So many checkouts at once, each of which has spoken to the server.
    pub(crate) async fn out(&self, count: usize) -> Vec<Checkout<Directed<Postgres>>> {
        let mut out = Vec::new();
        for _ in 0..count {
            let client = self.get().await;
            ping(&client).await;
            out.push(client);
        }
        out
    }

    /// One round trip on a checkout of its own.
    pub(crate) async fn ping(&self) {
        let client = self.get().await;
        ping(&client).await;
    }

    /// What the server answers on a checkout of its own.
    pub(crate) async fn text(&self, sql: &str) -> String {
        let client = self.get().await;
        text(&client, sql).await
    }

    pub(crate) async fn drain(&self) -> Drained {
        Drained::of(&self.lifecycle).await
    }
}

/// What there is when a drain has returned.
pub(crate) struct Drained {
    pub(crate) report: Arc<Report>,
    pub(crate) took: Duration,
}

impl Drained {
    pub(crate) async fn of(lifecycle: &Lifecycle) -> Self {
        let began = Instant::now();
        let report = lifecycle.drain().await;
        Self { report, took: began.elapsed() }
    }

    pub(crate) fn row(&self) -> &ResourceReport {
        self.report.resource("db").unwrap()
    }

    /// So many were closed, so many cut.
    pub(crate) fn ended(&self) -> (u64, u64) {
        (self.row().sessions.closed, self.row().sessions.cut)
    }

    #[track_caller]
    pub(crate) fn assert_clean(&self, sessions: u64) {
        let Self { report, took } = self;
        assert_eq!(self.row().outcome, Outcome::Drained, "{report}");
        assert_eq!(self.ended(), (sessions, 0), "{report}");
        assert!(*took < QUICK, "it waited for something: {took:?}: {report}");
    }

    #[track_caller]
    pub(crate) fn assert_in_time(&self) {
        let Self { report, took } = self;
        assert!(*took < SHORT + SLACK, "not over by the deadline: {took:?}: {report}");
        assert!(!matches!(self.row().outcome, Outcome::Hung | Outcome::Panicked), "{report}");
    }
}

/// One round trip.
pub(crate) async fn ping(client: &Client) {
    client.query_one("SELECT 1", &[]).await.unwrap();
}

/// What the server answers to a question for one text.
pub(crate) async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Whether the server says that this session is encrypted.
pub(crate) async fn is_encrypted(client: &Client) -> bool {
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Nothing is listed, nothing runs, and nothing is in the log: right now.
#[track_caller]
pub(crate) fn assert_nothing_left<V: Version>(server: &PostgreSql<V>) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let listed = (server.sessions().await.unwrap(), server.running().await.unwrap());
        assert_eq!(listed, (0, 0), "sessions and statements that the server lists at {caller}");
        let complaints = server.complaints().await.unwrap();
        assert!(complaints.is_empty(), "the server complains at {caller}: {complaints:#?}");
    }
}

/// Asks until it is so: the server has no event for what it lists. Never for what must be so on return.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < QUICK, "not so after {QUICK:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn until_running<V: Version>(server: &PostgreSql<V>, statements: usize) {
    until("the server lists the statement", || async { server.running().await.unwrap() == statements }).await;
}

/// Begins a statement that does not end, and drains once the server lists it; what became of both.
pub(crate) async fn drain_under_a_statement<V: Version>(
    server: &PostgreSql<V>,
    scene: &Scene,
) -> (Result<(), String>, Drained) {
    let client = scene.get().await;
    let straggler = async move {
        let result = run(&client, ENDLESS).await.map_err(|error| in_full(error.as_ref()));
        drop(client);
        result
    };
    tokio::join!(straggler, async {
        until_running(server, 1).await;
        scene.drain().await
    })
}

/// Begins a statement that does not end, and gives up on it once the server lists it: it runs on.
pub(crate) async fn abandon_statement<V: Version, R: Resource<Checkout = Client>>(
    server: &PostgreSql<V>,
    db: &ShutdownGuard<R>,
) {
    let client = db.get().await.unwrap();
    let mut run = pin!(run(&client, ENDLESS));
    tokio::select! {
        result = &mut run => panic!("it ended at once: {:?}", result.err()),
        () = until_running(server, 1) => {}
    }
}

/// The error with all that is behind it.
pub(crate) fn in_full(error: &(dyn StdError + 'static)) -> String {
    let texts: Vec<_> = chain(error).map(ToString::to_string).collect();
    texts.join(": ")
}

pub(crate) fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// The driver's error behind one of ours.
pub(crate) fn driver_error(error: &Error) -> Option<&tokio_postgres::Error> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// A file of this name in the directory, and its path as a text.
pub(crate) fn written(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}
