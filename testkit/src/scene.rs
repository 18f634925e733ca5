//! A lifecycle with one resource in it, and what there is when its drain has returned: for tests of one adapter.

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    runtime::{Builder, Runtime},
    task::spawn_blocking,
};
use winddown_core::{Checkout, Checkouts, Lifecycle, Outcome, Report, ResourceReport, Retry, ShutdownGuard};

use crate::{Directed, Director};

/// Never used up.
pub const BUDGET: Duration = Duration::from_secs(30);

/// Well above what takes no waiting on a machine that is busy with other things, well below [`BUDGET`].
pub const QUICK: Duration = Duration::from_secs(20);

/// What is not so by then never will be.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Used up by a server that does not answer: settles for about 2 s, then has 2 s, the last quarter of them after the cut.
pub const SHORT: Duration = Duration::from_secs(4);

/// Used up by half, with a server that answers late: settles for about 6 s, then has 6 s. See [`Scene::patient`].
pub const LONG: Duration = Duration::from_secs(12);

/// What a machine that does other work may add to a deadline.
pub const SLACK: Duration = Duration::from_secs(10);

/// Longer than any test runs.
pub const ENDLESS: Duration = Duration::from_secs(300);

/// A lifecycle without signals that tries an initialisation twice.
///
/// # Panics
/// When the budget cannot be one.
#[must_use]
pub fn lifecycle(budget: Duration) -> Lifecycle {
    let retry = Retry::new(2, Duration::from_millis(20), Duration::from_millis(100));
    Lifecycle::builder().signals(false).budget(budget).retry(retry).build().expect("the settings are valid")
}

/// One of each kind.
///
/// # Panics
/// When they cannot be had.
#[must_use]
pub fn runtimes() -> [Runtime; 2] {
    [Builder::new_current_thread(), Builder::new_multi_thread()]
        .map(|mut builder| builder.enable_all().build().expect("a runtime can be built"))
}

/// Does this on a runtime that ends with it.
///
/// # Panics
/// When the work does.
pub async fn on<F>(runtime: Runtime, work: F) -> F::Output
where
    F: Future<Output: Send> + Send + 'static,
{
    spawn_blocking(move || runtime.block_on(work)).await.expect("it ends")
}

/// A lifecycle with one resource in it, called `db`.
#[derive(Debug)]
pub struct Scene<R: Checkouts> {
    /// The lifecycle.
    pub lifecycle: Lifecycle,
    /// The resource's guard.
    pub db: ShutdownGuard<Directed<R>>,
}

impl<R: Checkouts> Scene<R> {
    /// With time enough for everything.
    pub fn new(resource: R) -> Self {
        Self::with(BUDGET, &Director::new(), resource)
    }

    /// For a drain with stragglers: with a reserve of half of its budget.
    pub fn patient(resource: R) -> Self {
        let director = Director::new();
        director.reserve(LONG / 2);
        Self::with(LONG, &director, resource)
    }

    fn with(budget: Duration, director: &Director, resource: R) -> Self {
        let lifecycle = lifecycle(budget);
        let db = lifecycle.guard_as("db", director.direct(resource));
        Self { lifecycle, db }
    }

    /// A checkout, or the end of the test.
    #[track_caller]
    pub fn get(&self) -> impl Future<Output = Checkout<Directed<R>>> + use<'_, R> {
        let checkout = self.db.get();
        async { checkout.await.unwrap_or_else(|error| panic!("no checkout: {error}")) }
    }

    /// Drains.
    pub async fn drain(&self) -> Drained {
        Drained::of(&self.lifecycle).await
    }
}

/// What there is when a drain has returned.
#[derive(Debug)]
pub struct Drained {
    /// Its report.
    pub report: Arc<Report>,
    /// How long it took.
    pub took: Duration,
}

impl Drained {
    /// Drains this lifecycle.
    pub async fn of(lifecycle: &Lifecycle) -> Self {
        let began = Instant::now();
        let report = lifecycle.drain().await;
        Self { report, took: began.elapsed() }
    }

    /// The row of the resource called `db`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn row(&self) -> &ResourceReport {
        self.report.resource("db").expect("it was registered before the drain")
    }

    /// So many were closed, so many cut.
    #[must_use]
    pub fn ended(&self) -> (u64, u64) {
        (self.row().sessions.closed, self.row().sessions.cut)
    }

    /// All said goodbye, and nothing was waited for.
    ///
    /// # Panics
    /// When that is not so.
    #[track_caller]
    pub fn assert_clean(&self, sessions: u64) {
        let Self { report, took } = self;
        assert_eq!(self.row().outcome, Outcome::Drained, "{report}");
        assert_eq!(self.ended(), (sessions, 0), "{report}");
        assert!(*took < QUICK, "it waited for something: {took:?}: {report}");
    }

    /// Over by the deadline of a [patient](Scene::patient) scene.
    ///
    /// # Panics
    /// When that is not so.
    #[track_caller]
    pub fn assert_in_time(&self) {
        let Self { report, took } = self;
        assert!(*took < report.budget + SLACK, "not over by the deadline: {took:?}: {report}");
        assert!(!matches!(self.row().outcome, Outcome::Hung | Outcome::Panicked), "{report}");
    }
}

/// Asks until it is so: a server has no event for what it lists. Never for what must be so on return.
///
/// # Panics
/// When it is not so in time.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Until a resource knows of so many open sessions, as its `Debug` shows its book: a server's list changes before the client has heard of
/// it, and until then a drain counts what was ended as its own.
///
/// # Panics
/// When it is not so in time.
pub async fn until_open(resource: &(impl fmt::Debug + Sync), sessions: usize) {
    let text = format!("open: {sessions} ");
    until("the book has so many", || async { format!("{resource:?}").contains(&text) }).await;
}

/// Until whoever waits for a socket on this runtime is told of what has come in it until now: the kernel may have known of that for a
/// while, and who asks whether a connection is open is told what the runtime knows.
///
/// # Panics
/// Where the system gives no two sockets that are connected.
pub async fn until_events_are_seen() {
    // The kernel tells in the order in which things happen, and this is the last one.
    let (mut ours, mut theirs) = UnixStream::pair().expect("there are descriptors left");
    theirs.write_all(b"!").await.expect("the other end is here");
    ours.read_exact(&mut [0]).await.expect("the other end is here");
}

/// The error with all that is behind it.
#[must_use]
pub fn in_full(error: &(dyn StdError + 'static)) -> String {
    let texts: Vec<_> = chain(error).map(ToString::to_string).collect();
    texts.join(": ")
}

/// The error, and what is behind it.
pub fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}
