//! What happened, for machines (serde) and for people (`Display`).

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that happened in one environment, from start to the end of shutdown.
///
/// Serialises to the JSON record of the command. `Display` is the timeline for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// How the function's process ended.
    pub function: FunctionRecord,
    /// How shutdown went.
    pub shutdown: ShutdownRecord,
    /// How the environment's earlier lives ended, with [`Config::reinit`](crate::Config::reinit).
    #[serde(default)]
    pub resets: Vec<Reset>,
    /// The invocations, in the order they were over.
    pub invocations: Vec<Invocation>,
    /// The extensions that registered, in that order.
    pub extensions: Vec<ExtensionRecord>,
    /// Everything that happened, in order.
    pub timeline: Vec<TimelineEntry>,
    /// What the processes printed. Empty unless output is captured.
    pub output: Vec<OutputLine>,
}

impl Record {
    /// Whether the function ended by itself inside the budget: it got SIGTERM, exited in time, and its exit code is no
    /// failure.
    ///
    /// The codes for that are 0 and 143 (128 + SIGTERM): a JVM and .NET exit with the latter after their shutdown hooks. A function
    /// that SIGTERM *killed*, for want of a handler, has a signal and no exit code.
    pub fn ended_by_itself(&self) -> bool {
        self.shutdown.sigterm_sent && !self.shutdown.overran && matches!(self.function.exit_code, Some(0 | 143))
    }

    /// How the function ended, as one line for people.
    fn verdict(&self) -> String {
        let FunctionRecord { exit_code, signal, killed, .. } = self.function;
        let ShutdownRecord { sigterm_sent, budget_ms, took_ms, overran, .. } = self.shutdown;
        let how = match (exit_code, signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(15)) if sigterm_sent => "ended by SIGTERM itself, it has no handler for it".to_owned(),
            (None, Some(9)) if killed => "killed with SIGKILL".to_owned(),
            (None, Some(number)) => format!("ended by signal {number}"),
            (None, None) => "not known to have ended".to_owned(),
        };
        match (sigterm_sent, overran) {
            (true, true) => format!("{how}: still running {budget_ms} ms after SIGTERM"),
            (true, false) => format!("{how}, {took_ms:.1} ms after SIGTERM (budget {budget_ms} ms)"),
            (false, _) if killed && self.extensions.is_empty() => {
                format!("{how} without SIGTERM: no extension is registered")
            }
            (false, _) => format!("{how}, no SIGTERM was sent"),
        }
    }
}

/// The timeline, one entry a line, and how the function ended. A long run of invocations is shortened.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.timeline.as_slice();
        while !rest.is_empty() {
            let run = rest.iter().take_while(|entry| entry.is_invocation()).count();
            let (now, later) = rest.split_at(run.max(1));
            if run > SHOWN_AT_EACH_END * 2 + 1 {
                let (head, tail) = now.split_at(SHOWN_AT_EACH_END);
                let (hidden, tail) = tail.split_at(tail.len() - SHOWN_AT_EACH_END);
                write_entries(f, head)?;
                let invocations = hidden.iter().filter(|entry| entry.event.starts_with(INVOKE)).count();
                writeln!(f, "{:>12}  {invocations} more invocations", "...")?;
                write_entries(f, tail)?;
            } else {
                write_entries(f, now)?;
            }
            rest = later;
        }
        let failed = self.invocations.iter().filter(|invocation| !invocation.ok).count();
        if failed > 0 {
            writeln!(f, "invocations: {failed} of {} failed", self.invocations.len())?;
        }
        write!(f, "function: {}", self.verdict())
    }
}

fn write_entries(f: &mut fmt::Formatter<'_>, entries: &[TimelineEntry]) -> fmt::Result {
    entries.iter().try_for_each(|TimelineEntry { at_ms, event }| writeln!(f, "{at_ms:>9.1} ms  {event}"))
}

/// How the function's process ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FunctionRecord {
    /// The process id it had, which was also the id of its process group. `null` if it was never started.
    pub pid: Option<u32>,
    /// Its exit code, if it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Whether that was the simulator's SIGKILL.
    pub killed: bool,
}

/// How shutdown went.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ShutdownRecord {
    /// Whether the function got SIGTERM: only with an extension registered, and if it was still running.
    pub sigterm_sent: bool,
    /// Why the environment was shut down.
    pub reason: Reason,
    /// Milliseconds the function had after SIGTERM; 0 where Lambda sends none.
    pub budget_ms: u64,
    /// Milliseconds from the signal that began the function's shutdown to its end; 0 if it had ended before.
    pub took_ms: f64,
    /// Whether the function had to be killed because the budget was over.
    pub overran: bool,
    /// How many processes that had left the groups of the function and the extensions (daemons) were still running after
    /// these had ended, and were killed. Known on Linux only.
    #[serde(default)]
    pub strays: usize,
}

/// How one life of an environment ended that was started again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reset {
    /// How the function's process ended.
    pub function: FunctionRecord,
    /// How it was shut down.
    pub shutdown: ShutdownRecord,
}

/// Why an environment is shut down, as external extensions are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Reason {
    /// The environment is not needed any more.
    Spindown,
    /// An invocation took longer than the function's timeout.
    Timeout,
    /// The function or an external extension crashed.
    Failure,
}

impl Reason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Spindown => "spindown",
            Self::Timeout => "timeout",
            Self::Failure => "failure",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One invocation, answered or not.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Invocation {
    /// The request id the function saw.
    pub request_id: String,
    /// Whether the function answered with a response; otherwise `error` says what happened.
    pub ok: bool,
    /// Milliseconds from handing over the event to the answer.
    pub ms: f64,
    /// Milliseconds from handing over the event to the first byte of a streamed response; `null` if it was not streamed.
    #[serde(default)]
    pub first_byte_ms: Option<f64>,
    /// What the function answered: its response, or its error document. What is not JSON is a string; `null` without an
    /// answer.
    pub payload: Value,
    /// What went wrong, if something did.
    pub error: Option<InvocationError>,
}

/// A piece of what a function answers, as it sends it. See [`Sim::invoke_streamed`](crate::Sim::invoke_streamed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part<'a> {
    /// The response begins.
    Head {
        /// It is a streamed one.
        streamed: bool,
        /// What the function calls it.
        content_type: Option<&'a str>,
    },
    /// Some of its bytes, or of the document that says how the handler failed.
    Data(&'a [u8]),
}

/// Why an invocation failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InvocationError {
    /// The function's own error type, or Lambda's: `Sandbox.Timedout`, `Runtime.ExitError`, `Extension.Crash`,
    /// `Extension.ExitError`, `Function.ResponseSizeTooLarge`, `Runtime.TruncatedResponse`, `Runtime.InvalidResponseModeHeader`.
    pub error_type: String,
    /// The message that goes with it.
    pub message: String,
}

/// One registered extension.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExtensionRecord {
    /// The name it registered under.
    pub name: String,
    /// Whether it runs inside the function's process or beside it.
    pub kind: ExtensionKind,
    /// The events it asked for.
    pub events: Vec<EventType>,
    /// How many events it was handed.
    pub delivered: u64,
    /// The exit code of an external extension that exited.
    pub exit_code: Option<i32>,
    /// The signal that ended an external extension, if one did.
    pub signal: Option<i32>,
}

/// Where an extension runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ExtensionKind {
    /// In the function's own process: it goes with it, and gets no SHUTDOWN event.
    Internal,
    /// In a process of its own, started before the function.
    External,
}

impl fmt::Display for ExtensionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Internal => "internal",
            Self::External => "external",
        })
    }
}

/// The events an extension can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
pub enum EventType {
    /// Sent with every invocation.
    Invoke,
    /// Sent once, after the function has ended. For external extensions only.
    Shutdown,
}

/// One thing that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TimelineEntry {
    /// Milliseconds since the environment was started.
    pub at_ms: f64,
    /// What happened, such as `init done`, `SIGTERM` or `exit 0`.
    pub event: String,
}

impl TimelineEntry {
    fn is_invocation(&self) -> bool {
        self.event.starts_with(INVOKE) || self.event.starts_with(RESPONSE)
    }
}

/// One line that a process printed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OutputLine {
    /// Milliseconds since the environment was started.
    pub at_ms: f64,
    /// `function`, or the name of the external extension.
    pub from: String,
    /// Where it was printed to.
    pub stream: Stream,
    /// The line without its end. Bytes that are not UTF-8 are replaced.
    pub line: String,
}

/// Where a line was printed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How invocations begin in the timeline; the display shortens runs of them.
pub(crate) const INVOKE: &str = "invoke ";
/// How answers begin in the timeline.
pub(crate) const RESPONSE: &str = "response ";

/// Two invocations with their answers: enough to see what a first and a last one look like.
const SHOWN_AT_EACH_END: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(events: impl IntoIterator<Item = String>) -> Record {
        Record {
            function: FunctionRecord { exit_code: Some(0), ..FunctionRecord::default() },
            shutdown: ShutdownRecord {
                sigterm_sent: true,
                reason: Reason::Spindown,
                budget_ms: 500,
                took_ms: 4.1,
                overran: false,
                strays: 0,
            },
            resets: Vec::new(),
            invocations: Vec::new(),
            extensions: Vec::new(),
            timeline: events.into_iter().map(|event| TimelineEntry { at_ms: 1.0, event }).collect(),
            output: Vec::new(),
        }
    }

    fn invocations(count: usize) -> impl Iterator<Item = String> {
        (1..=count).flat_map(|n| [format!("invoke {n} id"), format!("response {n} ok")])
    }

    #[test]
    fn a_long_run_of_invocations_is_shortened_to_its_ends() {
        let events = [String::from("init done")].into_iter().chain(invocations(200)).chain([String::from("SIGTERM")]);
        let text = record(events).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 4 + 1 + 4 + 1 + 1, "{text}");
        assert!(lines[5].ends_with("196 more invocations"), "{text}");
        assert!(lines[9].ends_with("response 200 ok"), "{text}");
        assert_eq!(lines[11], "function: exit code 0, 4.1 ms after SIGTERM (budget 500 ms)");
    }

    #[test]
    fn a_short_run_of_invocations_is_shown_whole() {
        let text = record(invocations(4)).to_string();
        assert_eq!(text.lines().count(), 8 + 1, "{text}");
    }

    #[test]
    fn only_an_exit_that_reports_no_failure_counts_as_ending_by_itself() {
        let mut it = record([]);
        for (code, expected) in [(0, true), (143, true), (1, false), (137, false)] {
            it.function.exit_code = Some(code);
            assert_eq!(it.ended_by_itself(), expected, "exit code {code}");
        }
        it.function = FunctionRecord { signal: Some(15), ..FunctionRecord::default() };
        assert!(!it.ended_by_itself(), "SIGTERM without a handler");
    }
}
