//! Claims about processes that are frozen while their server ends their sessions, for any harness: real processes, stopped by
//! SIGSTOP for longer than the server's own idle timeout. The very first query after the thaw has to succeed.
//!
//! A test binary gives its trials to [`Suite::tests`](crate::Suite::tests), and its `main` begins with [`program`].

use std::{
    future::Future,
    process::ExitCode,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use rustix::process::Signal;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};
use winddown_core::{BoxError, Error, Lifecycle};

use crate::{
    CheckoutOf, InProcess, ServerUse, Setup,
    cases::scene::Scene,
    child::{self, Child},
    servers::gone_within,
    soak::{rounds, trial},
};

/// A harness whose resource is used by processes that are frozen.
pub trait Frozen: InProcess {
    /// One query, in that process.
    fn query(checkout: &mut CheckoutOf<Self>) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Sets the server's own idle timeout, in whole seconds, for sessions that are opened from now on.
    fn idle_timeout(&self, timeout: Duration) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// As [`sessions`](crate::Harness::sessions), although the harness's own session may have been idle for that long.
    fn left(&self) -> impl Future<Output = Result<usize, BoxError>> + Send {
        self.sessions()
    }
}

const QUERIES: &str = "queries";

/// Longer than it takes until they are all started and frozen, on most machines.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// Servers look for idle sessions now and then.
const SEEN_WITHIN: Duration = Duration::from_secs(60);

/// How often they are started again, if a machine is so busy that a server ends their sessions before they are frozen.
const TRIES: usize = 20;

/// A session that was idle for less is not checked.
const WARM: Duration = Duration::from_secs(1);

/// How many checkouts follow each other.
const CHECKOUTS: u64 = 50;

/// Runs the program that this process is, if it is the one here.
#[must_use]
pub fn program<H: Frozen>() -> Option<ExitCode> {
    child::role().filter(|role| role == QUERIES)?;
    Some(child::run(Builder::new_multi_thread().worker_threads(2), queries::<H>()))
}

/// Queries once, and once more for each SIGUSR1, and says how that went.
async fn queries<H: Frozen>() -> Result<(), BoxError> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard_as("db", H::from_env()?);
    let mut asked = signal(SignalKind::user_defined1())?;
    H::query(&mut *db.get().await?).await?;
    child::ready();
    let draining = lifecycle.draining();
    let work = async {
        let serve = async {
            while asked.recv().await.is_some() {
                let outcome = async { H::query(&mut *db.get().await?).await }.await;
                println!("{}", outcome.map_or_else(|error| error.to_string(), |()| "answered".to_owned()));
            }
        };
        tokio::select! {
            () = draining => {}
            () = serve => {}
        }
        Ok::<_, Error>(())
    };
    lifecycle.run(work).await?;
    Ok(())
}

/// The first query after a freeze.
#[must_use]
pub fn thawing<H: Frozen>() -> Trial {
    trial::<H>("the_first_query_after_a_freeze_succeeds", ServerUse::Own, |h| Box::pin(thawed(h)))
}

/// Checkouts that follow each other: for drivers that ask the server nothing when a session is given back.
#[must_use]
pub fn warm<H: Frozen>() -> Trial {
    trial::<H>("checkouts_within_a_second_cost_no_round_trip", ServerUse::Own, |h| Box::pin(in_a_row(h)))
}

/// 200 freezes, or 5.
async fn thawed<H: Frozen>(harness: &H) -> Result<String, BoxError> {
    // So many processes at once, with one session each.
    let (rounds, at_once) = (rounds(200, 5), rounds(20, 5));
    harness.idle_timeout(IDLE_TIMEOUT).await?;
    let (mut answered, mut ended_while_frozen, mut too_late) = (0, 0, 0);
    while ended_while_frozen < rounds {
        let environment = harness.environment();
        let children: Vec<_> = (0..at_once).map(|_| Child::start_with(QUERIES, &environment)).collect();
        let frozen: Vec<_> = children.into_iter().map(|child| child.ready().signal(Signal::STOP)).collect();
        let listed = harness.left().await?;
        if gone_within(SEEN_WITHIN, || harness.left()).await? > 0 {
            return Err(format!("the server has not ended sessions that were idle for {SEEN_WITHIN:?}").into());
        }
        // The question is there when they go on, as an invocation is.
        for child in frozen {
            let mut child = child.signal(Signal::USR1).signal(Signal::CONT);
            let said = child.line();
            if said != "answered\n" {
                return Err(format!("the first query after the thaw: {said}").into());
            }
            let ended = child.terminate().end();
            if ended.code != Some(0) || !ended.report().is_clean() {
                return Err(format!("it did not end well: {}", ended.stderr).into());
            }
            answered += 1;
        }
        ended_while_frozen += listed;
        too_late += usize::from(listed == 0);
        if too_late > TRIES {
            return Err(format!("{too_late} times no session was there any more when its process was frozen").into());
        }
    }
    Ok(format!(
        "{answered} of {answered} first queries after a freeze were answered; the server's idle timeout of {IDLE_TIMEOUT:?} \
         ended {ended_while_frozen} sessions meanwhile"
    ))
}

/// What is warm is not checked.
async fn in_a_row<H: Frozen>(harness: &H) -> Result<String, BoxError> {
    let proxy = harness.proxy().ok_or("nothing counts between this resource and its server")?;
    let scene = Scene::with(harness, Duration::from_secs(10), &Setup { size: 1, ..Setup::default() });
    let mut checkout = scene.get().await;
    harness.ping(&mut checkout).await?;
    let before = proxy.round_trips();
    for _ in 0..CHECKOUTS {
        harness.ping(&mut checkout).await?;
    }
    drop(checkout);
    let queries = proxy.round_trips() - before;
    let before = proxy.round_trips();
    let mut rests = 0;
    let mut since = Instant::now();
    for _ in 0..CHECKOUTS {
        let mut checkout = scene.get().await;
        // On a machine that is busy one may have been idle for too long: then it is checked.
        rests += u64::from(since.elapsed() >= WARM);
        harness.ping(&mut checkout).await?;
        since = Instant::now();
    }
    let counted = proxy.round_trips() - before;
    scene.lifecycle.drain().await;
    // A driver that closes a statement does not wait for the answer, which may be counted by itself or not. A check at each
    // checkout would add as many as there are.
    if counted > queries + CHECKOUTS / 5 + rests || queries < CHECKOUTS {
        return Err(
            format!("{counted} round trips for {CHECKOUTS} checkouts, {queries} for their queries alone").into()
        );
    }
    Ok(format!(
        "{CHECKOUTS} checkouts with a query each, {rests} of them after a rest: {counted} round trips; {queries} for the \
         queries alone"
    ))
}
