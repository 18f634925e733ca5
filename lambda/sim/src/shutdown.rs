//! Shutdown, from top to bottom.
//!
//! The order is that of AWS: "Lambda execution environment lifecycle", shutdown phase, and of
//! `internal/lambda/rapid/shutdown.go` in aws/aws-lambda-runtime-interface-emulator: first the function, then the
//! external extensions. Where the two differ about the function's share (300 ms against 0.3 of 2,000 ms), the documented and
//! smaller one is used.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::time::{timeout, timeout_at};

use crate::api;
use crate::environment::{Children, Environment, epoch_ms};
use crate::process::{Exit, Process};
use crate::record::{
    EventType, ExtensionKind, ExtensionRecord, FunctionRecord, InvocationError, Reason, Record, ShutdownRecord,
};
use crate::state::{Answer, SimState, millis};

impl Environment {
    /// Begins shutdown in the background, after which the environment may be started again.
    pub(crate) fn reset(self: &Arc<Self>, reason: Reason) {
        self.shared.world.update(|state| state.reset |= self.shared.config.reinit && state.ending.is_none());
        self.begin_shutdown(reason);
    }

    /// Begins shutdown in the background, unless it has begun. Its record ends up in the state.
    pub(crate) fn begin_shutdown(self: &Arc<Self>, reason: Reason) {
        let config = &self.shared.config;
        let reason = match reason {
            // of Managed Instances, external extensions are told no third reason
            Reason::Timeout if config.is_managed() => Reason::Failure,
            reason => reason,
        };
        let first = self.shared.world.update(|state| {
            let first = state.ending.is_none();
            if first {
                state.ending = Some(reason);
                state.note(format!("shutdown {reason}"));
                if config.abort_in_flight {
                    abort_in_flight(state);
                }
            }
            first
        });
        if first {
            // a task of its own, so that a caller who gives up does not stop it half-way
            tokio::spawn(Arc::clone(self).shut_down(reason));
        }
    }

    async fn shut_down(self: Arc<Self>, reason: Reason) {
        let begun = Instant::now();
        let Children { function, externals, .. } = self.close();
        // a stopped process would not see SIGTERM; Lambda thaws before it shuts down, too
        self.thaw();
        // no more are sent from here on; zero where it is no Web Function
        let answered = self.shared.world.wait(|state| (state.runtime.requests == 0).then_some(()));
        let _ = timeout(REQUESTS_WAIT, answered).await;
        let budget = self.budget();
        let pid = function.as_ref().map(|process| process.id());
        let shutdown = self.end_function(function, reason, budget).await;
        self.flush_telemetry(budget).await;
        self.end_externals(&externals, reason, begun, budget).await;

        // what has left the groups ends with the environment
        self.end_strays().await;

        // the last lines are still in the pipes; one that a stray process holds open is not waited for
        let drained = self.shared.world.wait(|state| (state.open_pipes == 0).then_some(()));
        let _ = timeout(LAST_LINES, drained).await;
        self.shared.world.update(|state| state.record = Some(record(state, pid, shutdown)));
    }

    /// How long the function has after SIGTERM; zero where it gets none.
    fn budget(&self) -> Duration {
        if !self.sends_sigterm() {
            return Duration::ZERO;
        }
        let is_external = |state: &SimState| state.extensions.iter().any(|it| it.kind == ExtensionKind::External);
        self.shared.config.budget_of(self.shared.world.read(is_external))
    }

    /// Whether Lambda sends SIGTERM: to a Web Function, and to others with an extension.
    fn sends_sigterm(&self) -> bool {
        self.shared.config.is_web() || self.shared.world.read(|state| !state.extensions.is_empty())
    }

    async fn end_function(&self, function: Option<Arc<Process>>, reason: Reason, budget: Duration) -> ShutdownRecord {
        let mut shutdown = ShutdownRecord {
            sigterm_sent: false,
            reason,
            budget_ms: u64::try_from(budget.as_millis()).unwrap_or(u64::MAX),
            took_ms: 0.0,
            overran: false,
            strays: 0,
        };
        let Some(function) = function else { return shutdown };
        let sends_sigterm = self.sends_sigterm();
        let mut over = false;
        let signalled = Instant::now();
        // a function that was killed by hand, or has ended, gets no signal
        if !function.kill_sent() && self.exit().is_none() {
            if sends_sigterm {
                shutdown.sigterm_sent = self.signal_function(&function, Signal::TERM, "SIGTERM");
                over = timeout_at((signalled + budget).into(), self.exited()).await.is_err();
            }
            if over || !sends_sigterm {
                self.signal_function(&function, Signal::KILL, "SIGKILL");
            }
        }
        if let Ok(exit) = timeout(EXIT_WAIT, self.exited()).await {
            shutdown.took_ms = millis(exit.at.saturating_duration_since(signalled));
            shutdown.overran = over && exit.killed;
        }
        shutdown
    }

    /// Tells the external extensions that asked for it, kills the others, and those that are not gone by the deadline.
    async fn end_externals(
        &self,
        externals: &[(String, Arc<Process>)],
        reason: Reason,
        begun: Instant,
        budget: Duration,
    ) {
        if externals.is_empty() {
            return;
        }
        // a longer budget for the function is not taken from the extensions
        let deadline = begun + SHUTDOWN_LIMIT + budget.saturating_sub(self.shared.config.own_budget(true));
        let event = api::shutdown_event(reason, epoch_ms(deadline));
        for (name, process) in externals {
            let told = self.shared.world.update(|state| {
                let subscribed = state.extensions.iter_mut().find(|it| it.name == *name);
                let Some(extension) = subscribed.filter(|it| it.events.contains(&EventType::Shutdown)) else {
                    return false;
                };
                extension.queue.push_back(event.clone());
                state.note(format!("SHUTDOWN event {name}"));
                true
            });
            if !told {
                self.kill_external(name, process);
            }
        }
        let all_exited = |state: &SimState| state.externals.iter().all(|it| it.exit.is_some()).then_some(());
        let in_time = timeout_at(deadline.into(), self.shared.world.wait(all_exited)).await.is_ok();
        if !in_time {
            externals.iter().for_each(|(name, process)| self.kill_external(name, process));
            let _ = timeout(EXIT_WAIT, self.shared.world.wait(all_exited)).await;
        }
    }

    /// Lets the extensions have what they have subscribed to, before they are told to end. Bounded: the time is theirs, of
    /// which they have more where the function has a longer budget.
    async fn flush_telemetry(&self, budget: Duration) {
        let world = &self.shared.world;
        if world.read(|state| state.telemetry.is_empty()) {
            return;
        }
        // the function's last lines are still in its pipes
        let read = world.wait(|state| (state.function_pipes == 0).then_some(()));
        let more = budget.saturating_sub(self.shared.config.own_budget(true));
        let _ = timeout(OUTPUT_WAIT + more / 2, read).await;
        let flushed = world.read(|state| state.telemetry.flush());
        let _ = timeout(FLUSH_WAIT + more / 2, async {
            for caught_up in flushed {
                let _ = caught_up.await;
            }
        })
        .await;
    }

    fn signal_function(&self, function: &Process, signal: Signal, name: &str) -> bool {
        // noted first: the exit that follows is noted by another thread
        self.shared.world.update(|state| state.note(name));
        function.signal(signal)
    }

    fn kill_external(&self, name: &str, process: &Process) {
        let running = self.shared.world.update(|state| {
            let running = state.externals.iter().any(|it| it.name == name && it.exit.is_none());
            if running {
                state.note(format!("SIGKILL {name}"));
            }
            running
        });
        if running {
            process.signal(Signal::KILL);
        }
    }

    fn exit(&self) -> Option<Exit> {
        self.shared.world.read(|state| state.runtime.exit)
    }

    async fn exited(&self) -> Exit {
        self.shared.world.wait(|state| state.runtime.exit).await
    }
}

/// Fails every invocation that is not answered. What the function answers from now on is of an unknown invocation.
fn abort_in_flight(state: &mut SimState) {
    for (request_id, waiting) in state.runtime.in_flight.drain() {
        let error = InvocationError {
            error_type: "Client.ExecutionEnvironmentShutDown".to_owned(),
            message: format!("RequestId: {request_id} Error: the environment is being shut down"),
        };
        // a caller that has gone away needs no answer
        let _ = waiting.answer.send(Answer::failed(error));
    }
}

fn record(state: &SimState, pid: Option<u32>, shutdown: ShutdownRecord) -> Record {
    let exit = state.runtime.exit;
    let shutdown = ShutdownRecord { strays: state.strays, ..shutdown };
    Record {
        function: FunctionRecord {
            pid,
            exit_code: exit.and_then(|exit| exit.code),
            signal: exit.and_then(|exit| exit.signal),
            killed: exit.is_some_and(|exit| exit.killed),
        },
        shutdown,
        resets: state.resets.clone(),
        invocations: state.invocations.clone(),
        extensions: state
            .extensions
            .iter()
            .map(|it| {
                let process = state.externals.iter().find(|external| external.name == it.name);
                let exit = process.and_then(|external| external.exit);
                ExtensionRecord {
                    name: it.name.clone(),
                    kind: it.kind,
                    events: it.events.clone(),
                    delivered: it.delivered,
                    exit_code: exit.and_then(|exit| exit.code),
                    signal: exit.and_then(|exit| exit.signal),
                }
            })
            .collect(),
        timeline: state.timeline.clone(),
        output: state.output.clone(),
    }
}

/// AWS: "Lambda execution environment lifecycle", the whole of shutdown.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);
/// How long a killed process may take to be gone, `maxProcessExitWait` in AWS's own emulator. Longer means that it hangs in
/// the kernel, and then the record says that no end is known.
pub(crate) const EXIT_WAIT: Duration = Duration::from_secs(2);
/// How long requests in flight may take to be answered before SIGTERM. AWS says "best effort", and no time: "Execution environment
/// lifecycle" of Web Functions.
const REQUESTS_WAIT: Duration = Duration::from_secs(1);
/// `EventsAPI.Flush` in AWS's own emulator (`lambda-managed-instances`).
const FLUSH_WAIT: Duration = Duration::from_secs(1);
/// Reading what is in a pipe takes less than a millisecond; this is for a busy machine.
const OUTPUT_WAIT: Duration = Duration::from_millis(250);
/// The same where nobody's time is used: at the very end.
const LAST_LINES: Duration = Duration::from_secs(5);
