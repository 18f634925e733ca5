//! What the resources have, and what their drains did, as numbers for the recorder of the crate `metrics`.
//!
//! Nothing is written while nothing is asked: gauges are written when somebody calls for them, and what a drain has done is
//! counted when its report is there. A recorder is foreign code, so the thread that owns the deadline does not call it.

use std::sync::Arc;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::{Outcome, Records, Report, ResourceReport, SessionCounts, Status, node::Node};

/// Writes how each of them stands.
pub(crate) fn write_gauges(nodes: &[Arc<dyn Node>]) {
    let describe = |name: &'static str, text: &'static str| describe_gauge!(name, Unit::Count, text);
    describe(OPEN, "Sessions that are open, where the adapter knows");
    describe(IDLE, "Open sessions that nobody has, where the adapter knows");
    describe(OUT, "Checkouts that are out");
    describe(WAITING, "Callers that wait for a checkout");
    describe(PENDING, "Records that are buffered or being written");
    for node in nodes {
        let facts = node.facts();
        let write = |name: &'static str, count: u64| {
            // 2^53 of anything are not counted here.
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            gauge!(name, RESOURCE => facts.name.clone()).set(count as f64);
        };
        let Status { size, idle, out, waiting } = node.status();
        let counts = [(OPEN, size), (IDLE, idle), (OUT, Some(out)), (WAITING, Some(waiting))];
        for (name, count) in counts {
            if let Some(count) = count {
                write(name, count as u64);
            }
        }
        if let Some(ledger) = &facts.ledger {
            write(PENDING, ledger.records().pending);
        }
    }
}

const RESOURCE: &str = "resource";
const OPEN: &str = "winddown_sessions_open";
const IDLE: &str = "winddown_sessions_idle";
const OUT: &str = "winddown_checkouts_out";
const WAITING: &str = "winddown_callers_waiting";
const PENDING: &str = "winddown_records_pending";

/// Counts what a drain has done, from its report.
pub(crate) fn count(report: &Report) {
    describe_counter!(DRAINS, Unit::Count, "Drains of a resource that was initialised, by their outcome");
    describe_histogram!(SECONDS, Unit::Seconds, "From the start of a resource's own drain to its end");
    for (name, text, _) in columns(SessionCounts::default(), Some(Records::default())) {
        describe_counter!(name, Unit::Count, text);
    }
    // What never initialised is not drained (S3).
    for row in report.resources.iter().filter(|row| row.outcome != Outcome::NotInitialised) {
        let ResourceReport { name: resource, outcome, took, sessions, records, .. } = row;
        let outcome = outcome.to_string().replace(' ', "_");
        counter!(DRAINS, RESOURCE => resource.clone(), "outcome" => outcome).increment(1);
        if row.outcome != Outcome::NotReached {
            histogram!(SECONDS, RESOURCE => resource.clone()).record(took.as_secs_f64());
        }
        for (name, _, count) in columns(*sessions, *records) {
            counter!(name, RESOURCE => resource.clone()).increment(count);
        }
    }
}

const DRAINS: &str = "winddown_drains_total";
const SECONDS: &str = "winddown_drain_seconds";

type Column = (&'static str, &'static str, u64);

/// The columns of a row that are counted over all drains. Each is written, also with 0: a rate needs a beginning.
fn columns(sessions: SessionCounts, records: Option<Records>) -> impl Iterator<Item = Column> {
    let SessionCounts { closed, unconfirmed, cut, cancelled, left_behind } = sessions;
    let sessions = [
        ("winddown_sessions_closed_total", "Sessions that said goodbye, and the server has closed its side", closed),
        ("winddown_sessions_unconfirmed_total", "Sessions ended where nobody can see the server's end", unconfirmed),
        ("winddown_sessions_cut_total", "Sessions that could not say goodbye", cut),
        ("winddown_sessions_left_behind_total", "Sessions of the drains' own that were not seen to end", left_behind),
        ("winddown_statements_cancelled_total", "Statements that the server was asked to stop", cancelled),
    ];
    let records = records.map(|Records { accepted, written, spilled, lost, in_doubt, .. }| {
        [
            ("winddown_records_accepted_total", "Records that buffers took in", accepted),
            ("winddown_records_written_total", "Records that are known to be in the sink", written),
            ("winddown_records_spilled_total", "Records put elsewhere, to be written later", spilled),
            ("winddown_records_lost_total", "Records that are known not to be in the sink", lost),
            ("winddown_records_in_doubt_total", "Records handed to the sink, without an answer", in_doubt),
        ]
    });
    sessions.into_iter().chain(records.into_iter().flatten())
}
