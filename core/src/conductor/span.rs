//! The span of one drain: what is said while a resource is drained is said inside of it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tracing::{Instrument as _, Span, field::Empty};

use super::row::{Failure, Finished, Row};
use crate::{Records, ResourceReport, SessionCounts, drain::Drain, node::Node, panics, report::as_milliseconds};

/// Drains one node inside of its span, which ends with the drain and then has what is known of it.
///
/// A subscriber is foreign code, so this is called where the resource is drained, and never by the thread that owns the
/// deadline. A resource that blocks its thread keeps its span open: only the report tells of its end.
pub(super) async fn drain(node: Arc<dyn Node>, drain: Drain) -> Finished {
    let (tally, began) = (Arc::clone(&drain.tally), drain.began);
    // A subscriber that panics costs the span, and not the drain.
    let span = catch_unwind(AssertUnwindSafe(|| begin(&node.facts().name))).unwrap_or_else(|_| Span::none());
    let drained = panics::catch(Arc::clone(&node).drain(drain)).instrument(span.clone()).await.map_err(Failure::from);
    if span.is_disabled() {
        return drained;
    }
    let row = Row::over(node, tally, began, drained);
    // It is dropped in here: whoever exports spans is drained last, and must have it by then.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        if let Some(known) = row.so_far() {
            end(&span, &known);
        }
        drop(span);
    }));
    row.into_finished()
}

fn begin(resource: &str) -> Span {
    tracing::info_span!(
        parent: None,
        "drain",
        resource,
        outcome = Empty,
        took_ms = Empty,
        closed = Empty,
        unconfirmed = Empty,
        cut = Empty,
        cancelled = Empty,
        left_behind = Empty,
        left_out = Empty,
        refused = Empty,
        refused_tracked = Empty,
        accepted = Empty,
        written = Empty,
        spilled = Empty,
        lost = Empty,
        in_doubt = Empty,
        pending = Empty,
    )
}

fn end(span: &Span, row: &ResourceReport) {
    let SessionCounts { closed, unconfirmed, cut, cancelled, left_behind } = row.sessions;
    span.record("outcome", tracing::field::display(row.outcome));
    span.record("took_ms", as_milliseconds(row.took));
    let sessions = [
        ("closed", closed),
        ("unconfirmed", unconfirmed),
        ("cut", cut),
        ("cancelled", cancelled),
        ("left_behind", left_behind),
        ("left_out", row.left_out as u64),
        ("refused", row.refused),
        ("refused_tracked", row.refused_tracked),
    ];
    for (field, count) in sessions {
        span.record(field, count);
    }
    if let Some(Records { accepted, written, spilled, lost, in_doubt, pending }) = row.records {
        let records = [
            ("accepted", accepted),
            ("written", written),
            ("spilled", spilled),
            ("lost", lost),
            ("in_doubt", in_doubt),
            ("pending", pending),
        ];
        for (field, count) in records {
            span.record(field, count);
        }
    }
}
