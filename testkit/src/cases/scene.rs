//! What the cases share.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use winddown_core::{
    BoxError, Capabilities, Checkout, Lifecycle, Outcome, Report, Resource as _, ResourceReport, Retry, ShutdownGuard,
};

pub(crate) use crate::scene::{BUDGET, ENDLESS, LONG, QUICK, SHORT, SLACK, until};
use crate::{Directed, Director, Harness, Setup, gone, scene::in_full};

/// A lifecycle with the harness's resource in it.
pub(crate) struct Scene<H: Harness> {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) director: Director,
    pub(crate) db: ShutdownGuard<Directed<H::Resource>>,
}

impl<H: Harness> Scene<H> {
    /// With time enough for everything.
    pub(crate) fn new(harness: &H) -> Self {
        Self::with(harness, BUDGET, &Setup::default())
    }

    /// For a drain with stragglers on a server that answers, however late: with a reserve of half of [`LONG`].
    pub(crate) fn patient(harness: &H) -> Self {
        Self::with_half_in_reserve(harness, LONG)
    }

    /// For a drain that uses its budget up, [`SHORT`], since nobody answers: with a reserve of half of it.
    pub(crate) fn unanswered(harness: &H) -> Self {
        Self::with_half_in_reserve(harness, SHORT)
    }

    fn with_half_in_reserve(harness: &H, budget: Duration) -> Self {
        let scene = Self::with(harness, budget, &Setup::default());
        scene.director.reserve(budget / 2);
        scene
    }

    pub(crate) fn with(harness: &H, budget: Duration, setup: &Setup) -> Self {
        let retry = Retry::new(30, Duration::from_millis(20), Duration::from_millis(200));
        let lifecycle =
            Lifecycle::builder().signals(false).budget(budget).retry(retry).build().expect("the settings are valid");
        let director = Director::new();
        let db = lifecycle.guard_as("db", director.direct(harness.resource(setup)));
        Self { lifecycle, director, db }
    }

    #[track_caller]
    pub(crate) fn get(&self) -> impl Future<Output = Checkout<Directed<H::Resource>>> + Send + use<'_, H> {
        let checkout = self.db.get();
        async { checkout.await.unwrap_or_else(|error| panic!("no checkout: {error}")) }
    }

    /// So many checkouts at once, each of which has spoken to the server.
    pub(crate) async fn out(&self, harness: &H, count: usize) -> Vec<Checkout<Directed<H::Resource>>> {
        let mut out = Vec::new();
        for _ in 0..count {
            let mut checkout = self.get().await;
            ok(harness.ping(&mut checkout).await);
            out.push(checkout);
        }
        out
    }

    /// Drains, and looks at what the server lists at that moment.
    pub(crate) async fn drain(&self, harness: &H) -> Drained {
        let began = Instant::now();
        let report = self.lifecycle.drain().await;
        let elapsed = began.elapsed();
        let can = self.db.resource().capabilities();
        let (listed, running) = if can.confirmed_end {
            tokio::join!(harness.sessions(), harness.running())
        } else {
            // Nobody could see the server's end: it has a moment.
            (gone(|| harness.sessions()).await, gone(|| harness.running()).await)
        };
        Drained { report, elapsed, listed: ok(listed), running: ok(running), can }
    }

    /// The same where the server cannot be asked.
    pub(crate) async fn drain_blindly(&self) -> Drained {
        let began = Instant::now();
        let report = self.lifecycle.drain().await;
        let can = self.db.resource().capabilities();
        Drained { report, elapsed: began.elapsed(), listed: 0, running: 0, can }
    }
}

/// What there is when a drain has returned.
pub(crate) struct Drained {
    pub(crate) report: Arc<Report>,
    pub(crate) elapsed: Duration,
    /// What the server listed right then; a moment later, where the resource cannot see the server's end.
    pub(crate) listed: usize,
    pub(crate) running: usize,
    can: Capabilities,
}

impl Drained {
    pub(crate) fn row(&self) -> &ResourceReport {
        self.report.resource("db").expect("it was registered before the drain")
    }

    /// How many sessions were closed. A resource that cannot see the server's end calls them unconfirmed, and none closed.
    #[track_caller]
    pub(crate) fn closed(&self) -> u64 {
        let sessions = &self.row().sessions;
        let (closed, other) = match self.can.confirmed_end {
            true => (sessions.closed, sessions.unconfirmed),
            false => (sessions.unconfirmed, sessions.closed),
        };
        assert_eq!(other, 0, "{}", self.report);
        closed
    }

    /// S6, where nothing stood in the way: everything said goodbye, and nothing is listed.
    #[track_caller]
    pub(crate) fn assert_clean(&self, sessions: usize) {
        let Self { report, elapsed, listed, running, .. } = self;
        let row = self.row();
        assert_eq!(row.outcome, Outcome::Drained, "{report}");
        assert_eq!((*listed, *running), (0, 0), "the server still lists so many sessions and statements: {report}");
        assert_eq!((self.closed(), row.sessions.cut), (sessions as u64, 0), "the server listed {sessions}: {report}");
        assert!(*elapsed < QUICK, "it waited for something: {elapsed:?}: {report}");
    }

    /// L1 and S6, where the server is not there to answer: over by the deadline, and nothing is called closed.
    #[track_caller]
    pub(crate) fn assert_left(&self, sessions: usize) {
        self.assert_in_time();
        let report = &self.report;
        let row = self.row();
        if !self.can.confirmed_end {
            // What was never seen may have been heard.
            assert_eq!(self.closed() + row.sessions.cut, sessions as u64, "{report}");
            return;
        }
        assert_eq!(row.outcome, Outcome::Incomplete, "{report}");
        assert_eq!(
            (row.sessions.closed, row.sessions.cut),
            (0, sessions as u64),
            "the server had listed {sessions}, and answered none of them: {report}"
        );
    }

    /// L1.
    #[track_caller]
    pub(crate) fn assert_in_time(&self) {
        let Self { report, elapsed, .. } = self;
        assert!(*elapsed < report.budget + SLACK, "not over by the deadline: {elapsed:?}: {report}");
        assert!(!matches!(self.row().outcome, Outcome::Hung | Outcome::Panicked), "{report}");
    }
}

/// What a harness's method returned, or the end of the case.
#[track_caller]
pub(crate) fn ok<T>(result: Result<T, impl Into<BoxError>>) -> T {
    result.unwrap_or_else(|error| panic!("the harness failed: {}", in_full(&*error.into())))
}

/// How many sessions the server lists now.
pub(crate) async fn sessions<H: Harness>(harness: &H) -> usize {
    ok(harness.sessions().await)
}

/// Nothing in the server's log.
pub(crate) async fn assert_no_complaints<H: Harness>(harness: &H) {
    let complaints = ok(harness.complaints().await);
    assert!(complaints.is_empty(), "the server complains: {complaints:#?}");
}

/// Runs a statement that takes so long, and `then` once the server lists it; what became of both.
///
/// A statement that is not over when `then` is, is dropped: `None`.
pub(crate) async fn while_running<H: Harness, T>(
    harness: &H,
    checkout: Checkout<Directed<H::Resource>>,
    takes: Duration,
    then: impl Future<Output = T>,
) -> (Option<Result<(), String>>, T) {
    let (ended, result) = oneshot::channel();
    let straggler = async {
        let mut checkout = checkout;
        let result = harness.run(&mut checkout, takes).await.map_err(|error| error.to_string());
        // It comes back before anybody is told.
        drop(checkout);
        let _ = ended.send(result);
        std::future::pending().await
    };
    let rest = async {
        until("the server lists the statement", || async { ok(harness.running().await) >= 1 }).await;
        then.await
    };
    let output = tokio::select! {
        () = straggler => unreachable!("it is pending for ever"),
        output = rest => output,
    };
    let mut result = result;
    (result.try_recv().ok(), output)
}

/// Begins a statement that takes so long, and gives up on it once the server lists it: the checkout comes back, the
/// statement runs on.
pub(crate) async fn abandon_statement<H: Harness>(
    harness: &H,
    mut checkout: Checkout<Directed<H::Resource>>,
    takes: Duration,
) {
    let mut run = pin!(harness.run(&mut checkout, takes));
    tokio::select! {
        result = &mut run => panic!("it ended at once: {:?}", result.map_err(|error| error.to_string())),
        () = until("the server lists the statement", || async { ok(harness.running().await) >= 1 }) => {}
    }
}
