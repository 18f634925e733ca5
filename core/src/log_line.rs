//! A report as a line of a log, and as metrics that CloudWatch takes out of it.

use std::{
    borrow::Cow,
    env,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{
    Budget, Reason, Report, ReportFormat,
    report::{as_milliseconds, in_words},
};

/// AWS Lambda Developer Guide, "Log-level filtering": a line without a level counts as INFO, whatever it says, and one
/// whose time is not in RFC 3339 does too.
#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    level: &'static str,
    message: Cow<'static, str>,
    r#type: &'static str,
    clean: bool,
    #[serde(flatten)]
    report: &'a Report,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    metrics: Option<Metrics>,
}

/// One line of JSON that was written at this time.
pub(crate) fn line(report: &Report, at: SystemTime, metrics: Option<Metrics>) -> String {
    let clean = report.is_clean();
    let (level, message) = match (&report.reason, clean) {
        (Reason::InitFailed, _) => {
            let error = report.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            ("ERROR", format!("{}{error}", report.reason).into())
        }
        (_, true) => ("INFO", "drained".into()),
        (_, false) => ("WARN", "not everything was drained".into()),
    };
    let timestamp = humantime::format_rfc3339_millis(at).to_string();
    let line = Line { timestamp, level, message, r#type: "winddown.report", clean, report, metrics };
    serde_json::to_string(&line).expect("a report has only strings, numbers and lists")
}

/// What is said when a drain begins: for people, or one line of JSON.
pub(crate) fn begin_line(format: ReportFormat, reason: &Reason, error: Option<&str>, budget: Budget) -> String {
    begin_line_at(format, reason, error, budget, SystemTime::now())
}

fn begin_line_at(format: ReportFormat, reason: &Reason, error: Option<&str>, budget: Budget, at: SystemTime) -> String {
    #[derive(Serialize)]
    struct Beginning<'a> {
        timestamp: String,
        level: &'static str,
        message: String,
        r#type: &'static str,
        reason: &'a Reason,
        budget_ms: u128,
    }
    let budget = budget.total();
    let error = error.map(|error| format!(": {error}")).unwrap_or_default();
    let message = format!("{reason}{error}, draining, {}", in_words(budget));
    if format == ReportFormat::Table {
        return format!("winddown: {message}");
    }
    let line = Beginning {
        timestamp: humantime::format_rfc3339_millis(at).to_string(),
        level: if *reason == Reason::InitFailed { "ERROR" } else { "INFO" },
        message,
        r#type: "winddown.draining",
        reason,
        budget_ms: budget.as_millis(),
    };
    serde_json::to_string(&line).expect("it has only strings and a number")
}

/// CloudWatch's embedded metric format (Amazon CloudWatch User Guide, "Specification: Embedded metric format"): the values
/// are at the root, `_aws` says which they are.
#[derive(Debug, Serialize)]
pub(crate) struct Metrics {
    #[serde(rename = "_aws")]
    directive: Directive,
    #[serde(rename = "FunctionName", skip_serializing_if = "Option::is_none")]
    function_name: Option<String>,
    #[serde(flatten)]
    values: Values,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Directive {
    timestamp: u64,
    cloud_watch_metrics: [Directives; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Directives {
    namespace: &'static str,
    dimensions: [Vec<&'static str>; 1],
    metrics: [Metric; 12],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metric {
    name: &'static str,
    unit: &'static str,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Values {
    drain_time: f64,
    budget_share: f64,
    unclean_drains: u64,
    sessions_closed: u64,
    sessions_unconfirmed: u64,
    sessions_cut: u64,
    statements_cancelled: u64,
    records_accepted: u64,
    records_written: u64,
    records_spilled: u64,
    records_lost: u64,
    records_in_doubt: u64,
}

/// In the order of [`Values`].
const METRICS: [(&str, &str); 12] = [
    ("DrainTime", "Milliseconds"),
    ("BudgetShare", "Percent"),
    ("UncleanDrains", "Count"),
    ("SessionsClosed", "Count"),
    ("SessionsUnconfirmed", "Count"),
    ("SessionsCut", "Count"),
    ("StatementsCancelled", "Count"),
    ("RecordsAccepted", "Count"),
    ("RecordsWritten", "Count"),
    ("RecordsSpilled", "Count"),
    ("RecordsLost", "Count"),
    ("RecordsInDoubt", "Count"),
];

impl Metrics {
    /// Those of a report that is written at this time, by the function that runs here.
    pub(crate) fn of(report: &Report, at: SystemTime) -> Self {
        Self::of_function(report, at, env::var("AWS_LAMBDA_FUNCTION_NAME").ok())
    }

    fn of_function(report: &Report, at: SystemTime, function_name: Option<String>) -> Self {
        let mut values = Values {
            drain_time: to_a_thousandth(as_milliseconds(report.took)),
            budget_share: to_a_thousandth(100.0 * report.took.as_secs_f64() / report.budget.as_secs_f64()),
            unclean_drains: u64::from(!report.is_clean()),
            ..Values::default()
        };
        for resource in &report.resources {
            values.sessions_closed += resource.sessions.closed;
            values.sessions_unconfirmed += resource.sessions.unconfirmed;
            values.sessions_cut += resource.sessions.cut;
            values.statements_cancelled += resource.sessions.cancelled;
            let records = resource.records.unwrap_or_default();
            values.records_accepted += records.accepted;
            values.records_written += records.written;
            values.records_spilled += records.spilled;
            values.records_lost += records.lost;
            values.records_in_doubt += records.in_doubt;
        }
        // A clock before 1970 is not set at all.
        let since_1970 = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let directives = Directives {
            namespace: "winddown",
            dimensions: [function_name.iter().map(|_| "FunctionName").collect()],
            metrics: METRICS.map(|(name, unit)| Metric { name, unit }),
        };
        let timestamp = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Self { directive: Directive { timestamp, cloud_watch_metrics: [directives] }, function_name, values }
    }
}

fn to_a_thousandth(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// Whether Lambda's log format asks for JSON, whatever standard error is.
pub(crate) fn is_json_asked_for() -> bool {
    env::var_os("AWS_LAMBDA_LOG_FORMAT").is_some_and(|format| format == "JSON")
}

/// A line that is no report, for the log of a function: what is said, and why. JSON where Lambda's log format asks for it,
/// so that its level is seen; else plain text.
pub fn warning_line(message: &str, error: &str) -> String {
    said_line(is_json_asked_for(), SystemTime::now(), "WARN", message, error)
}

/// The same for what is lost: of level `ERROR`, which no filter drops.
pub fn error_line(message: &str, error: &str) -> String {
    said_line(is_json_asked_for(), SystemTime::now(), "ERROR", message, error)
}

fn said_line(json: bool, at: SystemTime, level: &'static str, message: &str, error: &str) -> String {
    #[derive(Serialize)]
    struct Warning<'a> {
        timestamp: String,
        level: &'static str,
        message: Cow<'a, str>,
        error: &'a str,
    }
    if !json {
        return format!("winddown: {message}: {error}");
    }
    let message = format!("winddown: {message}").into();
    let warning = Warning { timestamp: humantime::format_rfc3339_millis(at).to_string(), level, message, error };
    serde_json::to_string(&warning).expect("a warning has only strings")
}

#[cfg(all(test, not(winddown_loom)))]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Outcome, Records, ResourceReport, SessionCounts, Step};

    fn at() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123)
    }

    fn resource(outcome: Outcome, sessions: SessionCounts, records: Option<Records>) -> ResourceReport {
        ResourceReport {
            name: "db".into(),
            outcome,
            step: Step::Done,
            took: Duration::from_millis(5),
            sessions,
            stragglers: Vec::new(),
            left_out: 0,
            refused: 0,
            refused_tracked: 0,
            records,
            error: None,
            reasons: Vec::new(),
            cannot: Vec::new(),
        }
    }

    fn report(resources: Vec<ResourceReport>) -> Report {
        Report {
            reason: Reason::Signal("SIGTERM".into()),
            error: None,
            platform: "lambda".into(),
            budget: Duration::from_millis(500),
            took: Duration::from_millis(125),
            forced: false,
            resources,
        }
    }

    #[test]
    fn a_line_has_what_lambda_filters_by_and_is_read_back() {
        let clean = report(Vec::new());
        let text = line(&clean, at(), None);
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&read["level"], &read["timestamp"]), (&json!("INFO"), &json!("2026-09-21T14:13:20.123Z")));
        assert_eq!((&read["type"], &read["clean"]), (&json!("winddown.report"), &json!(true)));
        assert!(read.get("_aws").is_none() && !text.contains('\n'));
        let back: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(back.to_json_line(), clean.to_json_line());

        let unclean = report(vec![resource(Outcome::Hung, SessionCounts::default(), None)]);
        let read: Value = serde_json::from_str(&line(&unclean, at(), None)).unwrap();
        assert_eq!((&read["level"], &read["clean"]), (&json!("WARN"), &json!(false)));
    }

    #[test]
    fn the_metrics_are_the_sums_over_all_resources() {
        let records = Records { accepted: 10, written: 4, spilled: 3, lost: 2, in_doubt: 1, pending: 0 };
        let report = report(vec![
            resource(Outcome::Drained, SessionCounts { closed: 3, ..SessionCounts::default() }, None),
            resource(
                Outcome::Incomplete,
                SessionCounts { closed: 1, cut: 2, cancelled: 1, ..SessionCounts::default() },
                Some(records),
            ),
        ]);
        let metrics = Metrics::of_function(&report, at(), Some("audit".into()));
        let read: Value = serde_json::from_str(&line(&report, at(), Some(metrics))).unwrap();
        let directive = &read["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(read["_aws"]["Timestamp"], json!(1_790_000_000_123_u64));
        assert_eq!(
            (&directive["Namespace"], &directive["Dimensions"]),
            (&json!("winddown"), &json!([["FunctionName"]]))
        );
        assert_eq!(read["FunctionName"], json!("audit"));
        // Each that is named is there, as a number.
        for metric in directive["Metrics"].as_array().unwrap() {
            assert!(read[metric["Name"].as_str().unwrap()].is_number(), "{metric}");
        }
        let values =
            ["DrainTime", "BudgetShare", "UncleanDrains", "SessionsClosed", "SessionsCut", "StatementsCancelled"];
        assert_eq!(values.map(|name| read[name].as_f64().unwrap()), [125.0, 25.0, 1.0, 4.0, 2.0, 1.0]);
        let records = ["Accepted", "Written", "Spilled", "Lost", "InDoubt"];
        assert_eq!(records.map(|name| read[format!("Records{name}")].as_u64().unwrap()), [10, 4, 3, 2, 1]);
    }

    #[test]
    fn without_a_function_there_is_no_dimension() {
        let report = report(Vec::new());
        let read = serde_json::to_value(Metrics::of_function(&report, at(), None)).unwrap();
        assert_eq!(read["_aws"]["CloudWatchMetrics"][0]["Dimensions"], json!([[]]));
        assert!(read.get("FunctionName").is_none());
    }

    #[test]
    fn a_failed_init_is_an_error_that_says_why_however_clean_its_drain_was() {
        let failed = Report { reason: Reason::InitFailed, error: Some("db: no route".into()), ..report(Vec::new()) };
        let read: Value = serde_json::from_str(&line(&failed, at(), None)).unwrap();
        assert_eq!((&read["level"], &read["message"]), (&json!("ERROR"), &json!("init failed: db: no route")));
        assert_eq!(failed.to_string().lines().next(), Some("winddown: init failed: db: no route"));
    }

    #[test]
    fn the_beginning_is_one_line_for_people_or_machines() {
        let budget = |ms| Budget::new(Duration::from_millis(ms)).unwrap();
        let sigterm = Reason::Signal("SIGTERM".into());
        let text = begin_line_at(ReportFormat::Table, &sigterm, None, budget(10_000), at());
        assert_eq!(text, "winddown: SIGTERM, draining, 10 s");
        let read: Value =
            serde_json::from_str(&begin_line_at(ReportFormat::CloudWatch, &sigterm, None, budget(500), at())).unwrap();
        let expected = json!({
            "timestamp": "2026-09-21T14:13:20.123Z",
            "level": "INFO",
            "message": "SIGTERM, draining, 500 ms",
            "type": "winddown.draining",
            "reason": "SIGTERM",
            "budget_ms": 500,
        });
        assert_eq!(read, expected);
        let text = begin_line_at(ReportFormat::Json, &Reason::InitFailed, Some("db: no route"), budget(1500), at());
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["level"], json!("ERROR"));
        assert_eq!(read["message"], json!("init failed: db: no route, draining, 1.5 s"));
    }

    #[test]
    fn a_warning_is_text_or_json() {
        assert_eq!(said_line(false, at(), "WARN", "no extension", "refused"), "winddown: no extension: refused");
        let read: Value = serde_json::from_str(&said_line(true, at(), "WARN", "no extension", "refused")).unwrap();
        let expected = json!({
            "timestamp": "2026-09-21T14:13:20.123Z",
            "level": "WARN",
            "message": "winddown: no extension",
            "error": "refused",
        });
        assert_eq!(read, expected);
    }
}
