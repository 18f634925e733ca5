//! How the report is written when the drain is over, and in which time.

use std::{
    io,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::{
    Budget, Report,
    log_line::{self, Metrics},
};

/// How a report is written when the drain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReportFormat {
    /// A table for people.
    Table,
    /// One line of JSON for machines: [`Report::to_json_line`], with `timestamp`, `level` (`INFO`, or `WARN` for a report
    /// that is not clean) and `message`, which logs are filtered by.
    Json,
    /// The same line in CloudWatch's embedded metric format: where CloudWatch Logs gets it, as on Lambda, it makes metrics
    /// of it without any further call. Metrics that are custom are billed.
    ///
    /// Namespace `winddown`, one dimension, `FunctionName` (`AWS_LAMBDA_FUNCTION_NAME`; none where that is not set). Each
    /// is of one drain, over all its resources:
    ///
    /// | metric | unit | |
    /// | --- | --- | --- |
    /// | `DrainTime` | Milliseconds | from the request to stop to the last resource's end |
    /// | `BudgetShare` | Percent | the same, of the platform's budget |
    /// | `UncleanDrains` | Count | 1 where not everything was drained, else 0 |
    /// | `SessionsClosed` | Count | sessions that said goodbye |
    /// | `SessionsUnconfirmed` | Count | sessions that were ended where nobody can see the server's end |
    /// | `SessionsCut` | Count | sessions that could not |
    /// | `StatementsCancelled` | Count | statements that the server was asked to stop |
    /// | `RecordsAccepted` | Count | records that buffers took in, in their whole life |
    /// | `RecordsWritten` | Count | those of them that are known to be written |
    /// | `RecordsSpilled` | Count | put elsewhere, to be written later |
    /// | `RecordsLost` | Count | known not to be written |
    /// | `RecordsInDoubt` | Count | handed to the sink, without an answer |
    CloudWatch,
}

impl ReportFormat {
    /// A table where standard error is a terminal, unless Lambda's log format asks for JSON (`AWS_LAMBDA_LOG_FORMAT`);
    /// else one line of JSON.
    pub fn detect() -> Self {
        let is_read_by_people = io::IsTerminal::is_terminal(&io::stderr()) && !log_line::is_json_asked_for();
        if is_read_by_people { Self::Table } else { Self::Json }
    }
}

/// How long the report may take to be written, on a machine whose cores are busy: half of the margin, or what a drain that
/// was quick has left of the budget, as far as that is any use.
pub(super) fn time_to_write(budget: Budget, begun: Instant) -> Duration {
    let half = budget.margin() / 2;
    let left = (begun + budget.total() - half).saturating_duration_since(Instant::now());
    left.min(REPORT_PATIENCE).max(half)
}

/// A pipe that somebody reads takes the report in less.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

pub(super) fn report_text(report: &Report, format: ReportFormat) -> String {
    let now = SystemTime::now();
    match format {
        ReportFormat::Table => report.to_string().trim_end().to_owned(),
        ReportFormat::Json => log_line::line(report, now, None),
        ReportFormat::CloudWatch => log_line::line(report, now, Some(Metrics::of(report, now))),
    }
}
