//! Runs the cases: one test for each case and harness, and a closing line for each harness.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};
use winddown_core::BoxError;

use crate::{
    Harness, Need, ServerUse,
    cases::{self, FrozenClient, STRANGERS},
    limit::{self, Clock},
    scene::in_full,
    servers, size,
};

/// No case takes that long; one that does hangs. None of these limits counts the wait for a server.
const CASE_LIMIT: Duration = Duration::from_secs(120);

/// For a harness that has its server.
const START_LIMIT: Duration = Duration::from_secs(180);

/// For what a case leaves behind.
const END_LIMIT: Duration = Duration::from_secs(60);

/// For a case that blocks its thread, so that no timer sees it.
const BLOCKED_LIMIT: Duration = Duration::from_secs(400);

/// How many tests run at the same time if nobody says how many: they wait more than they compute.
const AT_ONCE: usize = 16;

/// One case of the suite, for one harness.
#[derive(Debug)]
#[non_exhaustive]
pub struct Case<H> {
    /// A sentence about behaviour.
    pub name: &'static str,
    /// The server it wants.
    pub server: ServerUse,
    /// What it needs that not every backend can do.
    pub needs: &'static [Need],
    run: Run<H>,
}

type Run<H> = for<'a> fn(&'a H) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl<H> Clone for Case<H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H> Copy for Case<H> {}

impl<H: Harness> Case<H> {
    /// A case that panics if something is not as it should be. [`case!`](crate::case) is shorter.
    pub fn new(name: &'static str, server: ServerUse, needs: &'static [Need], run: Run<H>) -> Self {
        Self { name, server, needs, run }
    }

    /// Why it does not apply to this harness, if so.
    pub fn does_not_apply(&self) -> Option<(Need, &'static str)> {
        H::LACKS.iter().copied().find(|(need, _)| self.needs.contains(need))
    }

    /// Runs it on a thread and a runtime of its own: starts the harness, runs the case, ends the harness. In time, or it
    /// is an error.
    ///
    /// # Errors
    /// What the case panicked with, or what went wrong around it.
    pub fn run(self) -> Result<(), String> {
        self.run_on(ServerIs::AsItWas)
    }

    fn run_on(self, server: ServerIs) -> Result<(), String> {
        let name = format!("{}::{}", H::NAME, self.name);
        let (send, outcome) = mpsc::channel();
        let clock: Arc<Clock> = Arc::default();
        let waits = Arc::clone(&clock);
        let thread = thread::Builder::new().name(name.clone()).spawn(move || {
            let outcome = runtime(&name).map_err(|error| error.to_string()).and_then(|runtime| {
                let outcome = runtime.block_on(waits.run(self.on_its_runtime(server)));
                // What a case that failed has left running must not hold up the others.
                runtime.shutdown_timeout(Duration::from_secs(1));
                outcome
            });
            // Nobody waits for one that took too long.
            let _ = send.send(outcome);
        });
        if let Err(error) = thread {
            return Err(format!("cannot start a thread: {error}"));
        }
        let began = Instant::now();
        loop {
            let left = (BLOCKED_LIMIT + clock.waited()).saturating_sub(began.elapsed());
            match outcome.recv_timeout(left) {
                Ok(outcome) => return outcome,
                // It waits for its server, or has waited meanwhile.
                Err(_) if began.elapsed() < BLOCKED_LIMIT + clock.waited() => {}
                Err(_) => return Err(format!("{} blocked its thread for {BLOCKED_LIMIT:?}", self.name)),
            }
        }
    }

    async fn on_its_runtime(self, server: ServerIs) -> Result<(), String> {
        let wanted = if server == ServerIs::Restarted { ServerUse::Own } else { self.server };
        let harness = limited("starting the server", START_LIMIT, H::start(wanted))
            .await?
            .map_err(|error| in_full(error.as_ref()))?;
        let frozen = match server {
            ServerIs::Restarted => {
                Some(limited("restarting the server", START_LIMIT, FrozenClient::new(&harness)).await?)
            }
            ServerIs::AsItWas => None,
        };
        // S7: whatever the case is about, nobody else on the server notices.
        let count = match server {
            _ if H::lacks(Need::Strangers) || self.needs.iter().any(|need| H::ENDS_ALL.contains(need)) => 0,
            ServerIs::Restarted => STRANGERS,
            ServerIs::AsItWas => 1,
        };
        let mut strangers = Vec::new();
        for _ in 0..count {
            let stranger = limited("making a stranger", END_LIMIT, harness.stranger()).await?;
            strangers.push(stranger.map_err(|error| in_full(error.as_ref()))?);
        }
        let case = limited(self.name, CASE_LIMIT, (self.run)(&harness)).await;
        let drained = match frozen {
            Some(frozen) => limited("draining what was frozen", CASE_LIMIT, frozen.drain()).await,
            None => Ok(()),
        };
        let asked = async {
            for stranger in strangers {
                stranger.untouched().await?;
            }
            Ok::<_, BoxError>(())
        };
        let untouched = limited("asking the strangers", END_LIMIT, asked).await;
        let end = limited("ending the harness", END_LIMIT, harness.end()).await;
        // The case first: what is left behind is often its consequence.
        case?;
        drained?;
        untouched?.map_err(|error| in_full(error.as_ref()))?;
        end?.map_err(|error| format!("at its end: {}", in_full(error.as_ref())))
    }
}

/// What the server of a case went through before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerIs {
    /// Nothing.
    AsItWas,
    /// It was restarted under sessions of this process, whose numbers others have by now.
    Restarted,
}

/// S7, in every case: all of them one after the other, each on a server that was restarted. Not at full size, one of them.
/// `None` where there is no server to restart.
fn on_restarted_servers<H: Harness>(cases: Vec<Case<H>>) -> Option<Trial> {
    if H::lacks(Need::Kill) || H::lacks(Need::Strangers) {
        return None;
    }
    let foremost = if H::lacks(Need::Statements) {
        "s6_l3_idle_sessions_are_gone_when_drain_returns"
    } else {
        "a_statement_whose_future_was_dropped_is_stopped_on_the_server"
    };
    let name = format!("soak_{}_s7_in_every_case_nobody_else_is_touched_on_a_server_that_was_restarted", H::NAME);
    Some(Trial::test(name.clone(), move || {
        let is_chosen = |case: &Case<H>| size::is_full_size() || case.name == foremost;
        let (mut count, mut failures) = (0, Vec::new());
        for case in cases.into_iter().filter(is_chosen) {
            count += 1;
            if let Err(error) = case.run_on(ServerIs::Restarted) {
                failures.push(format!("{}: {error}", case.name));
            }
        }
        if count == 0 {
            return Err(format!("there is no case {foremost}").into());
        }
        if !failures.is_empty() {
            return Err(format!("{} of {count} cases failed:\n{}", failures.len(), failures.join("\n")).into());
        }
        println!("{name}: {count} of {count} cases");
        Ok(())
    }))
}

fn runtime(name: &str) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build()
}

/// What it returns, or in words that it panicked or took too long.
fn limited<F: Future>(what: &str, limit: Duration, future: F) -> impl Future<Output = Result<F::Output, String>> {
    // What a harness does is large: inline, several of them would not fit on a stack without optimisation.
    let mut future = Box::pin(future);
    async move {
        let caught = poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(panicked(panic.as_ref()))),
        });
        let outcome = limit::within(limit, caught).await;
        outcome.unwrap_or_else(|| Err(format!("{what} hung: it was not over after {limit:?}")))
    }
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}

/// A test binary in the making: the cases of any number of harnesses, and other tests.
/// [`conformance!`](crate::conformance) is the short way for those that have no tests of their own.
#[derive(Default)]
#[must_use = "nothing runs before `run`"]
pub struct Suite {
    /// Tests of one kind are together.
    groups: Vec<Vec<Trial>>,
    counts: Vec<Arc<CaseCounts>>,
}

/// What became of the cases of one harness.
struct CaseCounts {
    name: &'static str,
    passed: AtomicUsize,
    failed: AtomicUsize,
    skipped: AtomicUsize,
    does_not_apply: Vec<(&'static str, Need, &'static str)>,
}

impl Suite {
    /// Without cases.
    pub fn new() -> Self {
        Self::default()
    }

    /// All cases of the suite for this harness.
    pub fn harness<H: Harness>(self) -> Self {
        self.harness_and::<H>([])
    }

    /// All cases of the suite for this harness, and more that are its own.
    pub fn harness_and<H: Harness>(mut self, more: impl IntoIterator<Item = Case<H>>) -> Self {
        let (does_not_apply, cases): (Vec<_>, Vec<_>) =
            cases::all::<H>().into_iter().chain(more).partition(|case| case.does_not_apply().is_some());
        let does_not_apply = does_not_apply.iter().filter_map(|case| {
            let (need, why) = case.does_not_apply()?;
            Some((case.name, need, why))
        });
        let skipped = H::skipped();
        let counts = Arc::new(CaseCounts {
            name: H::NAME,
            passed: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            skipped: AtomicUsize::new(if skipped.is_some() { cases.len() } else { 0 }),
            does_not_apply: does_not_apply.collect(),
        });
        let restarted = on_restarted_servers(cases.clone());
        self.groups.push(restarted.into_iter().map(|trial| trial.with_ignored_flag(skipped.is_some())).collect());
        let (own, shared): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.server == ServerUse::Own);
        for cases in [own, shared] {
            let trials = cases.into_iter().map(|case| counted_trial(case, Arc::clone(&counts), skipped.is_some()));
            self.groups.push(trials.collect());
        }
        if let Some(why) = skipped {
            eprintln!("{}: all {} cases are skipped: {why}", H::NAME, counts.skipped.load(Ordering::SeqCst));
        }
        self.counts.push(counts);
        self
    }

    /// Other tests, see [`trials`](mod@crate::trials). If there is a reason to leave them out
    /// they are listed as ignored, and it is printed.
    pub fn tests(mut self, left_out: Option<&str>, tests: Vec<Trial>) -> Self {
        if let Some(why) = left_out {
            eprintln!("{} tests are skipped: {why}", tests.len());
        }
        let is_left_out = |trial: &Trial| left_out.is_some() || trial.has_ignored_flag();
        let tests = tests.into_iter().map(|trial| {
            let is_left_out = is_left_out(&trial);
            trial.with_ignored_flag(is_left_out)
        });
        self.groups.push(tests.collect());
        self
    }

    /// Runs what the command line asks for, as libtest would, then ends the servers and prints a line for each harness.
    ///
    /// Many tests run at once, since they wait most of the time. Soaks at full size run one after the other: their figures are
    /// those of a machine that does nothing else.
    pub fn run(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        arguments.test_threads.get_or_insert_with(|| size::rounds(1, AT_ONCE));
        let conclusion = libtest_mimic::run(&arguments, mixed(self.groups));
        if arguments.list {
            return conclusion.exit_code();
        }
        let stopped = servers::stop_all();
        for counts in &self.counts {
            counts.print();
        }
        if stopped { conclusion.exit_code() } else { ExitCode::FAILURE }
    }
}

fn counted_trial<H: Harness>(case: Case<H>, counts: Arc<CaseCounts>, is_skipped: bool) -> Trial {
    let trial = Trial::test(format!("{}::{}", H::NAME, case.name), move || {
        if is_skipped {
            // Run all the same, by `--include-ignored`.
            counts.skipped.fetch_sub(1, Ordering::SeqCst);
        }
        let outcome = case.run();
        if outcome.is_ok() { &counts.passed } else { &counts.failed }.fetch_add(1, Ordering::SeqCst);
        outcome.map_err(Failed::from)
    });
    trial.with_ignored_flag(is_skipped)
}

/// All of these, each group spread evenly: those that want the same few servers do not all wait for them at once, and keep
/// others from running.
fn mixed<T>(groups: Vec<Vec<T>>) -> Vec<T> {
    let mut placed: Vec<(f64, T)> = Vec::new();
    for group in groups {
        let count = group.len() as f64;
        placed.extend(group.into_iter().enumerate().map(|(index, item)| ((index as f64 + 0.5) / count, item)));
    }
    // Stable: the order of a group stays.
    placed.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    placed.into_iter().map(|(_, item)| item).collect()
}

impl CaseCounts {
    /// `conformance: NAME: 31 passed, 0 failed, 0 skipped; 2 do not apply: slow (why)`, which `cargo xtask test` reads.
    fn print(&self) {
        let count = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        let (passed, failed, skipped) = (count(&self.passed), count(&self.failed), count(&self.skipped));
        let Self { name, does_not_apply, .. } = self;
        for (case, need, why) in does_not_apply {
            println!("does not apply: {name}::{case} needs {need}: {why}");
        }
        let mut needs: Vec<_> = does_not_apply.iter().map(|(_, need, why)| format!("{need} ({why})")).collect();
        needs.sort();
        needs.dedup();
        let colon = if needs.is_empty() { "" } else { ": " };
        println!(
            "conformance: {name}: {passed} passed, {failed} failed, {skipped} skipped; {} do not apply{colon}{}",
            does_not_apply.len(),
            needs.join(", "),
        );
    }
}

impl std::fmt::Debug for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suite").field("tests", &self.groups.iter().map(Vec::len).sum::<usize>()).finish_non_exhaustive()
    }
}

/// `fn main` of a test binary that runs the suite against these harnesses. In `Cargo.toml` the test has
/// `harness = false`.
///
/// ```text
/// winddown_testkit::conformance!(Postgres17, Postgres18, PgBouncer);
/// ```
#[macro_export]
macro_rules! conformance {
    ($($harness:ty),+ $(,)?) => {
        fn main() -> ::std::process::ExitCode {
            $crate::Suite::new()$(.harness::<$harness>())+.run()
        }
    };
}

/// A [`Case`](crate::Case) of an `async fn(&impl Harness)`, named as that is: the server it wants, what it needs.
///
/// ```text
/// Suite::new().harness_and::<Postgres17>([case!(a_cancel_hits_only_its_own_session, Shared, [Slow])])
/// ```
#[macro_export]
macro_rules! case {
    ($case:ident, $server:ident, [$($need:ident),* $(,)?]) => {
        $crate::Case::new(
            stringify!($case),
            $crate::ServerUse::$server,
            &[$($crate::Need::$need),*],
            |harness| ::std::boxed::Box::pin($case(harness)),
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_mixed_evenly_and_keep_their_order() {
        assert_eq!(mixed(vec![vec!["a", "b"], vec!["1", "2", "3", "4"], vec![]]), ["1", "a", "2", "3", "b", "4"]);
    }
}
