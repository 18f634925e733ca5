//! The command `winddown-sim`: takes a function through a Lambda lifecycle and says how it ended.

mod cli;
mod serve;

use std::io::{self, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use winddown_sim::{Error, Invocation, Record, Sim};

use crate::cli::{Cli, Command, Request, Run};

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(run) => execute(&run).await,
        Command::Serve(options) => serve::serve(&options).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, message }) => {
            progress(&message);
            ExitCode::from(status)
        }
    }
}

async fn execute(run: &Run) -> Result<(), Failure> {
    let events = run.events().map_err(Failure::usage)?;
    let requests = run.requests().map_err(Failure::usage)?;
    let config = run.config().map_err(Failure::usage)?;
    let record_file = run.record_file().map_err(Failure::usage)?;
    // before the first process, so that no signal can leave one behind
    let mut interrupts = Interrupts::listen()?;

    let sim = Arc::new(Sim::launch(config).await.map_err(|error| Failure::usage(error.to_string()))?);
    progress("started, waiting for init");
    let mut outcome = tokio::select! {
        outcome = live(&sim, run, &events, requests.as_deref()) => outcome,
        () = interrupts.next() => Err(Failure::interrupted()),
    };
    progress(match &outcome {
        Err(failure) if failure.status == INTERRUPTED => "interrupted, shutting down (once more to kill)",
        _ => "shutting down",
    });
    let mut shutdown = pin!(sim.shutdown(run.shutdown));
    let record = tokio::select! {
        record = &mut shutdown => record,
        () = interrupts.next() => {
            outcome = Err(Failure::interrupted());
            sim.kill();
            shutdown.await
        }
    };
    report(&record, run, record_file)?;
    outcome.and_then(|()| judge(&record))
}

/// Everything between start and shutdown.
async fn live(sim: &Arc<Sim>, run: &Run, events: &[String], requests: Option<&[Request]>) -> Result<(), Failure> {
    sim.ready().await.map_err(|error| Failure::function(error.to_string()))?;
    progress("init done");
    if run.snap_start {
        sim.snapshot().await.map_err(|error| Failure::function(error.to_string()))?;
        progress("snapshot taken, restoring it");
        sim.restore().await.map_err(|error| Failure::function(error.to_string()))?;
    }
    if let Some(n) = run.at_once() {
        return match requests {
            Some(requests) => {
                let calls = repeated(requests, run.times).map(|Request { method, target, body }| {
                    let sim = Arc::clone(sim);
                    async move { sim.request(&method, &target, body).await }
                });
                live_at_once(sim, n, calls).await
            }
            None => {
                let calls = repeated(events, run.times).map(|event| {
                    let sim = Arc::clone(sim);
                    async move { sim.invoke_raw(event).await }
                });
                live_at_once(sim, n, calls).await
            }
        };
    }
    // gone through lazily: it may be a long run
    let total = events.len().saturating_mul(run.times);
    let freeze_after = total.div_ceil(2);
    // a line for each invocation, or for each tenth of them when they are many
    let step = if total <= SHOWN_SINGLY { 1 } else { total.div_ceil(10) };
    for (count, event) in (1..=total).zip(events.iter().cycle()) {
        if let Some(interval) = run.interval.filter(|_| count > 1) {
            tokio::time::sleep(interval).await;
        }
        let invocation = sim.invoke_raw(event.as_str()).await.map_err(|error| Failure::function(error.to_string()))?;
        if count % step == 0 || count == total || !invocation.ok {
            let outcome = match &invocation.error {
                None => "ok",
                Some(error) => error.error_type.as_str(),
            };
            progress(&format!("invocation {count} of {}: {outcome}, {:.1} ms", total, invocation.ms));
        }
        if sim.has_ended() && !run.reinit {
            let why = invocation.error.map_or_else(
                || {
                    "the function or an extension ended, or took longer than --timeout, after it had answered"
                        .to_owned()
                },
                |error| format!("{}: {}", error.error_type, error.message),
            );
            return Err(Failure::function(format!("environment reset in invocation {count}: {why}")));
        }
        if let Some(time) = run.freeze.filter(|_| count == freeze_after) {
            sim.freeze().await.map_err(|error| Failure::function(error.to_string()))?;
            progress(&format!("frozen for {}", humantime::format_duration(time)));
            tokio::time::sleep(time).await;
            sim.thaw();
            progress("thawed");
        }
    }
    Ok(())
}

/// The whole list, so many times.
fn repeated<T: Clone>(list: &[T], times: usize) -> impl Iterator<Item = T> {
    list.iter().cycle().take(list.len().saturating_mul(times)).cloned()
}

/// Invocations of Managed Instances, or requests: `n` at a time, and the next when one is over.
async fn live_at_once<F>(sim: &Sim, n: usize, mut calls: impl Iterator<Item = F>) -> Result<(), Failure>
where
    F: Future<Output = Result<Invocation, Error>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let (mut done, mut failed) = (0_usize, 0_usize);
    loop {
        while running.len() < n
            && let Some(call) = calls.next()
        {
            running.spawn(call);
        }
        let Some(over) = running.join_next().await else { break };
        let invocation = over
            .map_err(|error| Failure::function(error.to_string()))?
            .map_err(|error| Failure::function(error.to_string()))?;
        done += 1;
        failed += usize::from(!invocation.ok);
        if sim.has_ended() {
            let why = invocation.error.map_or_else(String::new, |it| format!(": {}: {}", it.error_type, it.message));
            return Err(Failure::function(format!("environment ended in invocation {done}{why}")));
        }
    }
    progress(&format!("{done} invocations, {failed} failed"));
    Ok(())
}

/// The timeline for people, and the record for machines.
fn report(record: &Record, run: &Run, file: Option<Box<dyn Write + Send>>) -> Result<(), Failure> {
    if !run.record_on_stdout() {
        // a reader that has gone away (`| head`) is no reason to fail
        let _ = writeln!(io::stdout(), "{record}");
    }
    if let Some(mut file) = file {
        let json = serde_json::to_string_pretty(record).map_err(|error| Failure::usage(error.to_string()))?;
        writeln!(file, "{json}").and_then(|()| file.flush()).map_err(|error| {
            Failure::usage(format!("--json: cannot write the record: {error}: check the disk, or write elsewhere"))
        })?;
    }
    Ok(())
}

/// The rule of the exit status.
fn judge(record: &Record) -> Result<(), Failure> {
    if record.ended_by_itself() {
        return Ok(());
    }
    let message = if record.shutdown.overran {
        "the function was still running at the end of its budget and was killed: make its shutdown shorter"
    } else if record.shutdown.sigterm_sent && record.function.exit_code.is_some() {
        "the function reported a failure with its exit code: its output says why"
    } else if record.shutdown.sigterm_sent {
        "the function did not handle SIGTERM: install a handler before the first /next, or before it listens"
    } else if record.function.killed && record.extensions.is_empty() {
        "the function was killed without SIGTERM: register an extension, only then does Lambda send one"
    } else {
        "the function had ended before shutdown: its output says why"
    };
    Err(Failure::function(message.to_owned()))
}

/// Ctrl-C, and the other ways of asking a command to end.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// Where it does not mean something else.
    hangup: Option<Signal>,
}

impl Interrupts {
    fn listen() -> Result<Self, Failure> {
        Ok(Self { hangup: Some(listen_for(SignalKind::hangup())?), ..Self::without_hangup()? })
    }

    fn without_hangup() -> Result<Self, Failure> {
        let (interrupt, terminate) = (listen_for(SignalKind::interrupt())?, listen_for(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hangup: None })
    }

    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

fn listen_for(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::usage(format!("cannot listen for signals: {error}")))
}

/// Why the exit status is not 0.
struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    fn usage(message: String) -> Self {
        Self { status: 2, message }
    }

    fn function(message: String) -> Self {
        Self { status: 1, message }
    }

    fn interrupted() -> Self {
        Self { status: INTERRUPTED, message: "interrupted".to_owned() }
    }
}

fn progress(line: &str) {
    // a closed standard error leaves nobody to tell
    let _ = writeln!(io::stderr(), "winddown-sim: {line}");
}

/// 128 + SIGINT, as shells report it.
const INTERRUPTED: u8 = 130;
/// More would scroll the phases away.
const SHOWN_SINGLY: usize = 10;
