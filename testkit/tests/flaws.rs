//! The suite can fail: resources that are wrong in one way each, and the cases that find it.

mod memory;

use std::{
    fmt, mem,
    process::ExitCode,
    sync::{Mutex, OnceLock},
    thread,
    time::Duration,
};

use libtest_mimic::{Failed, Trial};
use memory::InMemory;
use tokio::{runtime::Handle, time::timeout};
use winddown_core::{
    BoxError, Capabilities, Checkouts, Error, ErrorKind, Resource,
    adapter::Drain,
    memory::{Memory, MemoryPool, MemorySession},
};
use winddown_testkit::{Case, Harness, Need, ServerUse, Setup, Suite, cases, scene::QUICK};

/// What is wrong with an [`Account`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Flaw {
    Nothing,
    /// Opens a session before anybody asks.
    OpensEarly,
    /// Makes a session for an initialisation that failed, and forgets it.
    LeavesFailedInits,
    /// Says that a wrong password may be right the next time.
    TriesTheWrongPasswordAgain,
    /// Says that a full server stays full.
    GivesUpOnAFullServer,
    /// Answers a wrong password with the password.
    ErrorsShowThePassword,
    DebugShowsThePassword,
    /// By `tracing`.
    TracesShowThePassword,
    /// By `log`.
    LogsShowThePassword,
    /// A caller that gives up keeps its slot.
    LeaksCancelledCheckouts,
    /// Hands out sessions that the server has closed.
    HandsOutTheDead,
    /// Says closed, and does nothing.
    ClaimsClosed,
    /// Says closed, and does it a moment later.
    ClosesLater,
    /// Drops sessions, and calls that a goodbye.
    SaysNoGoodbye,
    /// Counts one too many.
    Overcounts,
    /// Ends what is idle when the drain begins, and nothing that comes later.
    ForgetsWhatComesBack,
    /// Waits for checkouts before the first goodbye.
    LetsTheIdleWait,
    /// Takes a while over each goodbye, one after the other.
    OneAfterTheOther,
    /// Says that it cancels, and does not.
    IgnoresCancel,
    /// Cancels as soon as the drain begins.
    CancelsAtOnce,
    /// Waits for what nobody else waits for, as long as settling goes on.
    LetsTheAbandonedRun,
    /// Waits for the server's answer, however long.
    NeverCuts,
    /// Counts what it has cut as closed.
    CallsCutClosed,
    /// Does not see that nobody is there.
    WaitsForTheDead,
    /// Needs the application's runtime for its goodbye.
    NeedsTheApplication,
    /// Ends whatever the server has.
    EndsStrangers,
}

impl Flaw {
    const ALL: [Self; 26] = [
        Self::Nothing,
        Self::OpensEarly,
        Self::LeavesFailedInits,
        Self::TriesTheWrongPasswordAgain,
        Self::GivesUpOnAFullServer,
        Self::ErrorsShowThePassword,
        Self::DebugShowsThePassword,
        Self::TracesShowThePassword,
        Self::LogsShowThePassword,
        Self::LeaksCancelledCheckouts,
        Self::HandsOutTheDead,
        Self::ClaimsClosed,
        Self::ClosesLater,
        Self::SaysNoGoodbye,
        Self::Overcounts,
        Self::ForgetsWhatComesBack,
        Self::LetsTheIdleWait,
        Self::OneAfterTheOther,
        Self::IgnoresCancel,
        Self::CancelsAtOnce,
        Self::LetsTheAbandonedRun,
        Self::NeverCuts,
        Self::CallsCutClosed,
        Self::WaitsForTheDead,
        Self::NeedsTheApplication,
        Self::EndsStrangers,
    ];
}

const PASSWORD: &str = "hunter2";

/// A pool in memory behind a password, with a flaw.
struct Account {
    memory: Memory,
    password: String,
    flaw: Flaw,
    /// For [`Flaw::HandsOutTheDead`].
    kept: Mutex<Vec<MemorySession>>,
    /// For those whose initialisation keeps something.
    early: OnceLock<MemoryPool>,
    application: OnceLock<Handle>,
}

impl Account {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Account");
        if self.is(Flaw::DebugShowsThePassword) {
            out.field("password", &self.password);
        }
        out.finish_non_exhaustive()
    }
}

impl Resource for Account {
    type Pool = MemoryPool;

    fn name(&self) -> &str {
        "account"
    }

    async fn init(&self) -> Result<MemoryPool, Error> {
        let _ = self.application.set(Handle::current());
        if self.is(Flaw::TracesShowThePassword) {
            tracing::trace!(password = self.password, "log in");
        }
        if self.is(Flaw::LogsShowThePassword) {
            log::trace!("log in with {}", self.password);
        }
        tracing::debug!("log in");
        if self.password != PASSWORD {
            if self.is(Flaw::LeavesFailedInits) {
                mem::forget(self.memory.init().await?.get().await?);
            }
            let said = if self.is(Flaw::ErrorsShowThePassword) { PASSWORD } else { "that" };
            let error = Error::new(ErrorKind::Init, format!("the password is not {said}"));
            let error = error.with_source(std::io::Error::other("access denied"));
            return Err(if self.is(Flaw::TriesTheWrongPasswordAgain) { error.retryable() } else { error });
        }
        let pool = self.memory.init().await;
        if self.is(Flaw::GivesUpOnAFullServer) {
            return pool.map_err(|error| Error::new(ErrorKind::Init, "no room").with_source(error));
        }
        pool
    }

    async fn goodbye(&self, pool: &MemoryPool, drain: &Drain) -> Result<(), Error> {
        let idle = async || {
            let mut idle = Vec::new();
            while pool.idle() > 0 {
                idle.push(pool.get().await?);
            }
            Ok::<_, Error>(idle)
        };
        match self.flaw {
            Flaw::ClaimsClosed => {
                drain.until_returned().await;
                drain.count_closed(pool.open());
                return Ok(());
            }
            Flaw::ClosesLater => {
                drain.until_returned().await;
                let idle = idle().await?;
                drain.count_closed(idle.len());
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(200));
                    drop(idle);
                });
                return Ok(());
            }
            Flaw::SaysNoGoodbye => {
                drain.until_returned().await;
                let idle = idle().await?;
                drain.count_closed(idle.len());
                return Ok(());
            }
            Flaw::ForgetsWhatComesBack => {
                let idle = idle().await?;
                drain.count_closed(idle.len());
                return Ok(());
            }
            Flaw::LetsTheIdleWait => drain.until_returned().await,
            Flaw::OneAfterTheOther => {
                for _ in 0..pool.open() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            Flaw::CancelsAtOnce => self.memory.cancel(pool, drain).await?,
            Flaw::IgnoresCancel | Flaw::LetsTheAbandonedRun => self.memory.server().ignore_cancels(true),
            Flaw::Overcounts => drain.count_closed(1),
            Flaw::WaitsForTheDead => {
                let (server, open) = (self.memory.server(), pool.open());
                let before = server.goodbyes();
                self.memory.goodbye(pool, drain).await?;
                if server.goodbyes() - before < open {
                    // For whom it waits in vain, and longer than what is called quick.
                    let _ = timeout(QUICK + Duration::from_secs(2), drain.until_cut()).await;
                }
                return Ok(());
            }
            Flaw::NeedsTheApplication => {
                let application = self.application.get().cloned();
                let task = application.map(|application| application.spawn(async {}));
                if let Some(task) = task {
                    let _ = task.await;
                }
            }
            _ => {}
        }
        for session in mem::take(&mut *self.kept.lock().unwrap()) {
            pool.put(session);
        }
        if self.is(Flaw::EndsStrangers) {
            self.memory.goodbye(pool, drain).await?;
            self.memory.server().kill();
            self.memory.server().start();
            return Ok(());
        }
        if matches!(self.flaw, Flaw::NeverCuts | Flaw::CallsCutClosed) {
            let open = pool.open();
            tokio::select! {
                biased;
                () = drain.until_cut() => {
                    if self.is(Flaw::NeverCuts) {
                        std::future::pending::<()>().await;
                    }
                    drain.count_closed(open);
                    return Ok(());
                }
                result = self.memory.goodbye(pool, drain) => return result,
            }
        }
        self.memory.goodbye(pool, drain).await
    }

    async fn cancel(&self, pool: &MemoryPool, drain: &Drain) -> Result<(), Error> {
        if self.is(Flaw::LetsTheAbandonedRun) {
            self.memory.server().ignore_cancels(false);
        }
        self.memory.cancel(pool, drain).await
    }

    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
}

impl Checkouts for Account {
    type Checkout = MemorySession;

    async fn checkout(&self, pool: &MemoryPool) -> Result<MemorySession, Error> {
        /// Forgets what it holds when it is cancelled.
        struct Leaks(Option<MemorySession>);
        impl Drop for Leaks {
            fn drop(&mut self) {
                mem::forget(self.0.take());
            }
        }
        if self.is(Flaw::LeaksCancelledCheckouts) {
            let mut leaks = Leaks(Some(pool.get().await?));
            tokio::task::yield_now().await;
            return leaks.0.take().ok_or_else(|| Error::new(ErrorKind::Checkout, "it was there"));
        }
        let kept = self.kept.lock().unwrap().pop();
        match kept {
            Some(session) => Ok(session),
            None => pool.get().await,
        }
    }

    fn give_back(&self, pool: &MemoryPool, session: MemorySession) {
        if self.is(Flaw::HandsOutTheDead) {
            self.kept.lock().unwrap().push(session);
        } else {
            pool.put(session);
        }
    }
}

/// The in-memory harness with such a resource.
struct With<const FLAW: u8>(InMemory);

impl<const FLAW: u8> Harness for With<FLAW> {
    type Resource = Account;

    const NAME: &'static str = "flawed";
    const LACKS: &'static [(Need, &'static str)] = &[(Need::Proxy, "there is no network")];

    async fn start(server: ServerUse) -> Result<Self, BoxError> {
        InMemory::start(server).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Account {
        let account = Account {
            memory: self.0.resource(setup),
            password: if setup.wrong_password { "letmein" } else { PASSWORD }.to_owned(),
            flaw: Flaw::ALL[usize::from(FLAW)],
            kept: Mutex::default(),
            early: OnceLock::new(),
            application: OnceLock::new(),
        };
        if account.is(Flaw::OpensEarly) {
            let mut init = std::pin::pin!(account.memory.init());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            if let std::task::Poll::Ready(Ok(pool)) = init.as_mut().poll(&mut context) {
                let _ = account.early.set(pool);
            }
        }
        account
    }

    fn secret(&self) -> Option<&str> {
        Some(PASSWORD)
    }

    winddown_testkit::harness_of!(0);
}

fn case<const FLAW: u8>(name: &str) -> Case<With<FLAW>> {
    cases::all().into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("there is no case {name}"))
}

/// They mostly wait.
fn all_at_once<const FLAW: u8>(
    cases: impl IntoIterator<Item = Case<With<FLAW>>>,
) -> impl Iterator<Item = (&'static str, Result<(), String>)> {
    let running = cases.into_iter().map(|case| (case.name, thread::spawn(move || case.run())));
    let running: Vec<_> = running.collect();
    running.into_iter().map(|(name, thread)| (name, thread.join().unwrap()))
}

/// One test for each flaw: all of these cases find it, each by itself.
macro_rules! found {
    ($($test:ident: $flaw:ident by [$($case:ident),+ $(,)?];)+) => {
        fn flaws() -> Vec<Trial> {
            vec![$(Trial::test(stringify!($test), || {
                let cases = [$(case::<{ Flaw::$flaw as u8 }>(stringify!($case))),+];
                for (name, outcome) in all_at_once(cases) {
                    match outcome {
                        Ok(()) => return Err(format!("{name} does not find it").into()),
                        Err(error) => println!("{name}: {error}"),
                    }
                }
                Ok(())
            })),+]
        }
    };
}

fn main() -> ExitCode {
    let mut tests = flaws();
    tests.push(Trial::test("one_without_a_flaw_passes_everything", one_without_a_flaw_passes_everything));
    Suite::new().tests(None, tests).run()
}

found! {
    one_that_opens_early: OpensEarly by [s3_one_that_was_never_used_opens_nothing_and_is_not_drained];
    one_that_leaves_failed_inits: LeavesFailedInits by [a_wrong_password_is_an_error_at_once];
    one_that_tries_a_wrong_password_again: TriesTheWrongPasswordAgain by [a_wrong_password_is_an_error_at_once];
    one_that_gives_up_on_a_full_server: GivesUpOnAFullServer by [a_full_server_is_asked_again_until_it_has_room];
    one_whose_errors_show_the_password: ErrorsShowThePassword by [no_password_in_debug_report_error_or_log];
    one_whose_debug_shows_the_password: DebugShowsThePassword by [no_password_in_debug_report_error_or_log];
    one_that_traces_the_password: TracesShowThePassword by [no_password_in_debug_report_error_or_log];
    one_that_logs_the_password: LogsShowThePassword by [no_password_in_debug_report_error_or_log];
    one_that_leaks_cancelled_checkouts: LeaksCancelledCheckouts by [a_cancelled_checkout_leaks_nothing];
    one_that_hands_out_the_dead: HandsOutTheDead by [
        sessions_the_server_closed_are_replaced_on_the_next_use,
        after_a_thaw_the_first_use_gets_a_session_that_works,
        sessions_that_were_ended_while_the_process_stood_still_are_replaced,
        a_server_that_was_started_again_is_used_and_drained,
    ];
    one_that_claims_closed: ClaimsClosed by [
        s1_a_hundred_concurrent_first_uses_initialise_once,
        s1_a_failed_init_reaches_all_who_waited_and_can_be_tried_again,
        s1_a_cancelled_caller_neither_cancels_nor_repeats_an_init,
        an_init_that_fails_for_now_is_tried_again,
        s3_an_init_under_way_when_draining_begins_is_drained_too,
        s2_after_the_drain_began_nothing_is_handed_out,
        s2_a_waiter_is_woken_by_the_refusal,
        s2_a_checkout_that_was_connecting_is_not_handed_out_and_its_session_is_gone,
        s2_a_checkout_that_the_driver_was_connecting_leaves_no_session,
        s2_a_checkout_that_was_connecting_to_a_slow_server_leaves_no_session,
        s2_callers_that_race_the_drain_are_served_or_refused,
        s6_l3_idle_sessions_are_gone_when_drain_returns,
        s6_sessions_that_are_out_are_gone_when_drain_returns,
        s3_it_is_drained_once_however_often_that_is_asked_for,
        s3_dropped_without_a_drain_it_is_not_drained,
        s6_l2_a_frozen_application_does_not_make_the_report_untrue,
    ];
    one_that_closes_later: ClosesLater by [
        s6_l3_idle_sessions_are_gone_when_drain_returns,
        s6_sessions_that_are_out_are_gone_when_drain_returns,
        s2_a_checkout_that_was_connecting_is_not_handed_out_and_its_session_is_gone,
    ];
    one_that_says_no_goodbye: SaysNoGoodbye by [
        s6_l3_idle_sessions_are_gone_when_drain_returns,
        s2_callers_that_race_the_drain_are_served_or_refused,
    ];
    one_that_overcounts: Overcounts by [
        s6_l3_idle_sessions_are_gone_when_drain_returns,
        s6_the_numbers_of_the_report_are_the_server_s,
        a_checkout_held_past_settling_is_ended_and_its_site_named,
    ];
    one_that_forgets_what_comes_back: ForgetsWhatComesBack by [
        s6_sessions_that_are_out_are_gone_when_drain_returns,
        idle_sessions_do_not_wait_for_those_that_are_out,
        s6_a_bare_checkout_that_was_connecting_is_seen,
        a_statement_that_ends_in_time_is_let_end,
    ];
    one_that_lets_the_idle_wait: LetsTheIdleWait by [idle_sessions_do_not_wait_for_those_that_are_out];
    one_that_goes_one_after_the_other: OneAfterTheOther by [c3_goodbyes_run_concurrently];
    one_that_ignores_cancel: IgnoresCancel by [
        a_straggler_s_statement_is_stopped_on_the_server,
        a_statement_whose_future_was_dropped_is_stopped_on_the_server,
        s6_the_numbers_of_the_report_are_the_server_s,
    ];
    one_that_cancels_at_once: CancelsAtOnce by [a_statement_that_ends_in_time_is_let_end];
    one_that_lets_the_abandoned_run: LetsTheAbandonedRun by [
        l6_a_statement_whose_future_was_dropped_is_stopped_when_draining_begins,
        l6_it_is_stopped_while_others_are_waited_for,
    ];
    one_that_never_cuts: NeverCuts by [
        a_checkout_held_past_settling_is_ended_and_its_site_named,
        l1_a_server_paused_before_the_drain_is_left_by_the_deadline,
        l1_a_server_paused_while_settling_is_left_by_the_deadline,
        l1_a_server_paused_at_the_goodbye_is_left_by_the_deadline,
        l1_a_statement_on_a_paused_server_is_left_by_the_deadline,
        l1_a_server_behind_a_cut_network_is_left_by_the_deadline,
        l1_a_statement_behind_a_cut_network_is_left_by_the_deadline,
    ];
    one_that_calls_cut_closed: CallsCutClosed by [
        l1_a_server_paused_before_the_drain_is_left_by_the_deadline,
        l1_a_server_paused_at_the_goodbye_is_left_by_the_deadline,
        l1_a_server_behind_a_cut_network_is_left_by_the_deadline,
    ];
    one_that_waits_for_the_dead: WaitsForTheDead by [
        a_server_that_was_killed_is_not_waited_for,
        a_server_killed_under_a_statement_is_not_waited_for,
        sessions_the_server_closed_are_no_failure_of_the_drain,
    ];
    one_that_needs_the_application: NeedsTheApplication by [
        idle_sessions_say_goodbye_when_the_runtime_is_not_polled_any_more,
        idle_sessions_say_goodbye_when_the_runtime_is_blocked,
        s6_l2_a_frozen_application_does_not_make_the_report_untrue,
    ];
    one_that_ends_strangers: EndsStrangers by [
        s6_l3_idle_sessions_are_gone_when_drain_returns,
        a_straggler_s_statement_is_stopped_on_the_server,
        s7_strangers_with_our_numbers_after_a_restart_are_left_alone,
        s7_strangers_are_left_alone_though_our_statement_was_on_a_server_that_restarted,
    ];
}

/// So that what is found above is the flaw.
fn one_without_a_flaw_passes_everything() -> Result<(), Failed> {
    let cases = cases::all::<With<{ Flaw::Nothing as u8 }>>();
    for (name, outcome) in all_at_once(cases.into_iter().filter(|case| case.does_not_apply().is_none())) {
        outcome.map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}
