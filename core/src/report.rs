//! What a drain did: a table for people, JSON for machines.

use std::{borrow::Cow, fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// What happened between the signal and the end: the whole truth that is known, whoever asks (S6).
///
/// `Display` is a table for people; serialised it is one JSON object for machines, durations in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// Why draining began.
    pub reason: Reason,
    /// What went wrong, where that is why: the error of init, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The platform whose budget was used.
    pub platform: String,
    /// The time between the signal and SIGKILL.
    #[serde(rename = "budget_ms", with = "milliseconds")]
    pub budget: Duration,
    /// From when draining began to the last resource's end.
    #[serde(rename = "took_ms", with = "milliseconds")]
    pub took: Duration,
    /// A further signal, 100 ms or more after the one that said stop, ended the wait (L5).
    pub forced: bool,
    /// One row per resource, in the order in which they were registered.
    pub resources: Vec<ResourceReport>,
}

/// Why draining began.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The process got this signal.
    Signal(Cow<'static, str>),
    /// [`Lifecycle::drain`](crate::Lifecycle::drain) or [`begin_drain`](crate::Lifecycle::begin_drain) was called.
    Requested,
    /// [`Lifecycle::init`](crate::Lifecycle::init) failed and took back what it had done.
    InitFailed,
    /// The work given to [`Lifecycle::run`](crate::Lifecycle::run) ended.
    WorkEnded,
}

/// What happened to one resource.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResourceReport {
    /// The name it was registered under.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The last step of the drain protocol that was reached.
    pub step: Step,
    /// From the start of its own drain to its end.
    #[serde(rename = "took_ms", with = "milliseconds")]
    pub took: Duration,
    /// Sessions that were ended, by how.
    #[serde(flatten)]
    pub sessions: SessionCounts,
    /// Checkouts that were still out when settling ended, by the place that made them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stragglers: Vec<Straggler>,
    /// Checkouts that never came back.
    pub left_out: usize,
    /// Checkouts that were refused because draining had begun, to whom nobody waits for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refused: u64,
    /// The same to tracked work, hooks and buffers: they came when the resource itself was being drained.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refused_tracked: u64,
    /// What became of buffered records, for a resource that has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<Records>,
    /// The error or the panic's message, in one line; or what [`Drain::note`](crate::adapter::Drain::note) quoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why something was cut, or not cancelled, where time was the reason: who did not answer, and for how long; and what went
    /// wrong besides, as [`Drain::incomplete`](crate::adapter::Drain::incomplete) said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// What this resource cannot do, said by its adapter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cannot: Vec<Cow<'static, str>>,
}

/// How a resource ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// Everything said goodbye and everything buffered was written.
    Drained,
    /// It was never initialised, so there was nothing to drain (S3).
    NotInitialised,
    /// It ended in time, but something was cut, never came back, or was lost: the row says what.
    Incomplete,
    /// Its goodbye failed; `error` says how.
    Failed,
    /// Its goodbye panicked; `error` has the message.
    Panicked,
    /// It had not ended by its deadline and was left; `step` says where it hung.
    Hung,
    /// Its turn never came: a further signal ended the wait, or the drain could not begin.
    NotReached,
}

/// A step of the drain protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Step {
    /// Waits for its dependents to be drained.
    Waiting,
    /// Refuses checkouts and waits for an initialisation that is under way.
    Refuse,
    /// Says goodbye to the idle and to what comes back.
    Settle,
    /// Asks the server to stop what stragglers run.
    Cancel,
    /// Says goodbye to the rest.
    Goodbye,
    /// Cuts what cannot say goodbye.
    Cut,
    /// Is over.
    Done,
}

/// Sessions of one resource, by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SessionCounts {
    /// Said goodbye, and the server has closed its side.
    pub closed: u64,
    /// Ended from our side in order, and whether the server has closed its own nobody could see: that is all that its driver
    /// lets anybody do. No failure.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unconfirmed: u64,
    /// Could not say goodbye: the connection was cut, or left to the end of the process.
    pub cut: u64,
    /// Statements that the server was asked to stop.
    pub cancelled: u64,
    /// Sessions that the drain opened itself, to ask a server or to cancel, and did not see end. None of them is in another
    /// column: nobody had one of these.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_behind: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What became of a buffer's records. Always `accepted = written + spilled + lost + in_doubt + pending`, and `pending` is
/// zero in a report (S5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Records {
    /// Taken in: the push returned `Ok`.
    pub accepted: u64,
    /// Known to be in the sink.
    pub written: u64,
    /// Put elsewhere, to be written later: the sink could not have them in time.
    #[serde(default)]
    pub spilled: u64,
    /// Known not to be in the sink.
    pub lost: u64,
    /// Handed to the sink, and the answer did not come.
    pub in_doubt: u64,
    /// Neither yet: buffered, or being written.
    pub pending: u64,
}

/// Checkouts that were out when settling ended, made at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Straggler {
    /// `file:line:column` of the call that made them.
    pub site: String,
    /// How many.
    pub count: usize,
    /// How long the oldest had been out, to a few milliseconds.
    #[serde(rename = "oldest_ms", with = "milliseconds")]
    pub oldest: Duration,
    /// What they are, where [`Lifecycle::track_as`](crate::Lifecycle::track_as) was told: of the oldest eight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

impl Report {
    /// Whether everything was closed and written: each resource is drained, or was never initialised. That of a drain after
    /// a failed init says this of what init had opened until then; the failure is in [`reason`](Self::reason).
    pub fn is_clean(&self) -> bool {
        !self.forced && self.resources.iter().all(|r| matches!(r.outcome, Outcome::Drained | Outcome::NotInitialised))
    }

    /// The row of the resource with this name.
    pub fn resource(&self, name: &str) -> Option<&ResourceReport> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    /// The report as one line of JSON: `{"type":"winddown.report","clean":...,...}`. [`Deserialize`] reads it back.
    pub fn to_json_line(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            r#type: &'static str,
            clean: bool,
            #[serde(flatten)]
            report: &'a Report,
        }
        let line = Line { r#type: "winddown.report", clean: self.is_clean(), report: self };
        serde_json::to_string(&line).expect("a report has only strings, numbers and lists")
    }
}

impl Straggler {
    pub(crate) fn new(site: String, count: usize, oldest: Duration, names: Vec<String>) -> Self {
        Self { site, count, oldest, names }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signal(name) => name,
            Self::Requested => REQUESTED,
            Self::InitFailed => INIT_FAILED,
            Self::WorkEnded => WORK_ENDED,
        })
    }
}

const REQUESTED: &str = "requested";
const INIT_FAILED: &str = "init failed";
const WORK_ENDED: &str = "work ended";

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match text.as_str() {
            REQUESTED => Self::Requested,
            INIT_FAILED => Self::InitFailed,
            WORK_ENDED => Self::WorkEnded,
            _ => Self::Signal(text.into()),
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Drained => "drained",
            Self::NotInitialised => "not initialised",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Panicked => "panicked",
            Self::Hung => "hung",
            Self::NotReached => "not reached",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting",
            Self::Refuse => "refuse",
            Self::Settle => "settle",
            Self::Cancel => "cancel",
            Self::Goodbye => "goodbye",
            Self::Cut => "cut",
            Self::Done => "done",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("winddown: ")?;
        if self.reason == Reason::InitFailed {
            let error = self.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            writeln!(f, "{INIT_FAILED}{error}")?;
            f.write_str("winddown: ")?;
        }
        writeln!(
            f,
            "{} in {:.1} ms of {} ms ({}, {}){}",
            match (self.is_clean(), &self.reason) {
                (true, Reason::InitFailed) => "taken back",
                (true, _) => "drained",
                (false, _) => "NOT everything was drained",
            },
            as_milliseconds(self.took),
            self.budget.as_millis(),
            self.platform,
            self.reason,
            if self.forced { ", forced by a second signal" } else { "" },
        )?;
        let width = self.resources.iter().map(|r| r.name.chars().count()).max().unwrap_or(0).max("resource".len());
        writeln!(f, "  {:<width$}  {:<15}  {:>9}  what happened", "resource", "outcome", "ms")?;
        for r in &self.resources {
            write!(f, "  {:<width$}  {:<15}  {:>9.1}  ", r.name, r.outcome, as_milliseconds(r.took))?;
            writeln!(f, "{}", r.what_happened())?;
        }
        Ok(())
    }
}

impl ResourceReport {
    fn what_happened(&self) -> String {
        let mut parts = Vec::new();
        if matches!(self.outcome, Outcome::Hung | Outcome::Panicked | Outcome::Failed) {
            parts.push(format!("at {}", self.step));
        }
        let SessionCounts { closed, unconfirmed, cut, cancelled, left_behind } = self.sessions;
        let mut count = |number: u64, what: &str| {
            if number > 0 {
                parts.push(format!("{number} {what}"));
            }
        };
        count(closed, "closed");
        count(unconfirmed, "ended, unconfirmed");
        count(cancelled, "cancelled");
        count(cut, "cut");
        count(left_behind, "of the drain's own left behind");
        if let Some(Records { accepted, written, spilled, lost, in_doubt, pending }) = self.records {
            parts.push(format!("{accepted} records accepted, {written} written, {lost} lost"));
            let mut count = |number: u64, what: &str| {
                if number > 0 {
                    parts.push(format!("{number} {what}"));
                }
            };
            count(spilled, "spilled");
            count(in_doubt, "in doubt");
            count(pending, "pending");
        }
        for Straggler { site, count, oldest, names } in &self.stragglers {
            let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
            parts.push(format!("{count} out since {:.0} ms at {site}{names}", as_milliseconds(*oldest)));
        }
        if self.left_out > 0 {
            parts.push(format!("{} never came back", self.left_out));
        }
        let mut count = |number: u64, what: &str| {
            if number > 0 {
                parts.push(format!("{number} {what}"));
            }
        };
        count(self.refused, "checkouts refused");
        count(self.refused_tracked, "checkouts of tracked work refused");
        parts.extend(self.reasons.iter().cloned());
        parts.extend(self.error.clone());
        parts.extend(self.cannot.iter().map(|cannot| format!("cannot {cannot}")));
        parts.join(", ")
    }
}

pub(crate) fn as_milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A duration for people: `850 ms`, `10 s`.
pub(crate) fn in_words(duration: Duration) -> String {
    let milliseconds = as_milliseconds(duration).round();
    if milliseconds >= 1000.0 { format!("{} s", milliseconds / 1000.0) } else { format!("{milliseconds} ms") }
}

/// Durations as milliseconds, to the microsecond: as fine as any of this is known.
mod milliseconds {
    use super::*;

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((as_milliseconds(*duration) * 1000.0).round() / 1000.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)? / 1000.0).map_err(D::Error::custom)
    }
}
