//! Drains everything in order, by the deadline whatever a resource does, and says what happened.
//!
//! `thread.rs` is who calls this: the thread that owns the deadline.

mod row;
mod span;
mod stops;
#[cfg(all(test, not(winddown_loom)))]
mod tests;
mod thread;
mod writing;

use std::{
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

use self::row::{Failure, Finished, Row};
pub(crate) use self::thread::{publish_failure, start, start_drain};
pub use self::{thread::EXIT_AT_DEADLINE, writing::ReportFormat};
use crate::{
    Error, ErrorKind, Report, ResourceReport,
    dependent::with_dependent_access,
    drain::Drain,
    gate::Admits,
    life::{Begun, LifecycleState},
    node::{Ended, Node, Order},
    panics,
    plan::Plan,
};

/// Drains everything in order and says what happened, by the deadline whatever a resource does (L1).
pub(crate) async fn conduct(
    shared: &LifecycleState,
    begun: &Begun,
    place: Place,
    forced: impl Future<Output = ()>,
) -> Report {
    let nodes = &begun.nodes;
    let plan = Plan::new(nodes, begun.at, begun.budget(shared));
    let (_release, released) = watch::channel(());

    let mut rows: Vec<Row> = nodes.iter().map(|node| Row::new(Arc::clone(node))).collect();
    let mut running: JoinSet<(usize, Finished)> = JoinSet::new();
    let mut forced = std::pin::pin!(forced);
    let mut was_forced = false;
    let share = begun.budget(shared).usable().mul_f64(shared.work_share);
    let mut works_alone = std::pin::pin!(sleep_until(begun.at + share));
    let mut is_shared = false;
    loop {
        for i in 0..rows.len() {
            // Telemetry tells of the work, too.
            let beside = is_shared && nodes[i].facts().order == Order::Normal;
            let ready = rows[i].is_waiting()
                && plan.dependents[i]
                    .iter()
                    .all(|&d| rows[d].is_over() || (beside && nodes[d].facts().order == Order::First));
            if ready {
                rows[i].begin();
                let deadlines = plan.deadlines[i];
                let answer_by = deadlines.end + plan.answer;
                let (gate, tally) = (Arc::clone(nodes[i].gate()), Arc::clone(&rows[i].tally));
                let drain = Drain { deadlines, grace: plan.graces[i], gate, tally, began: Instant::now() };
                let answer = place.drain(Arc::clone(&nodes[i]), drain, released.clone());
                running.spawn(async move {
                    let finished = timeout_at(answer_by, answer).await;
                    (i, finished.unwrap_or(Ok(Ended::Hung)))
                });
            }
        }
        tokio::select! {
            biased;
            over = running.join_next() => match over {
                Some(Ok((i, finished))) => rows[i].end(finished),
                // Only our own few lines run in these tasks, and nobody aborts them.
                Some(Err(_)) => {}
                None => break,
            },
            () = &mut works_alone, if !is_shared => {
                is_shared = true;
                rows.iter().for_each(|row| row.has_had(share));
            }
            () = &mut forced => {
                was_forced = true;
                break;
            }
        }
    }
    if was_forced {
        // What was not reached admits dependents still; nothing may be handed out behind the report's back.
        for node in nodes.iter() {
            // The process ends now: nobody needs to wake for it, and to drop a waker is foreign code.
            std::mem::forget(node.gate().refuse(Admits::Nobody));
        }
    }
    let resources = rows.iter().filter_map(Row::report).collect();
    Report { took: begun.at.elapsed(), forced: was_forced, resources, ..blank_report(shared, begun) }
}

fn blank_report(shared: &LifecycleState, begun: &Begun) -> Report {
    Report {
        reason: begun.reason.clone(),
        error: begun.error.clone(),
        platform: shared.platform.to_string(),
        budget: begun.budget(shared).total(),
        took: Duration::ZERO,
        forced: false,
        resources: Vec::new(),
    }
}

/// The report where no drain could begin.
pub(crate) fn not_reached(shared: &LifecycleState, begun: &Begun, error: &Error) -> Report {
    let rows = begun.nodes.iter().map(|node| Row::new(Arc::clone(node)));
    let resources =
        rows.filter_map(|row| row.report()).map(|row| ResourceReport { error: Some(error.to_string()), ..row });
    Report { resources: resources.collect(), ..blank_report(shared, begun) }
}

/// Where a resource is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On a thread and a runtime of its own.
    Thread,
    /// In a task of the current runtime, whose clock a test controls.
    #[cfg(all(any(test, feature = "test-util"), not(winddown_loom)))]
    Task,
}

impl Place {
    /// Begins the drain of one node; the future is its end, however that came about.
    fn drain(
        self,
        node: Arc<dyn Node>,
        drain: Drain,
        released: watch::Receiver<()>,
    ) -> impl Future<Output = Finished> + Send + use<> {
        let (sender, answer) = oneshot::channel();
        let started = match self {
            Self::Thread => on_own_thread(node, drain, released, sender),
            #[cfg(all(any(test, feature = "test-util"), not(winddown_loom)))]
            Self::Task => {
                tokio::spawn(async move { sender.send(with_dependent_access(span::drain(node, drain)).await) });
                Ok(())
            }
        };
        async {
            started.map_err(no_thread)?;
            match answer.await {
                Ok(finished) => finished,
                Err(_) => Err(Error::new(ErrorKind::Panicked, "its thread ended without an answer").into()),
            }
        }
    }
}

fn on_own_thread(
    node: Arc<dyn Node>,
    drain: Drain,
    mut released: watch::Receiver<()>,
    sender: oneshot::Sender<Finished>,
) -> io::Result<()> {
    node.drainer()?.run(move |runtime| {
        let drained =
            catch_unwind(AssertUnwindSafe(|| runtime.block_on(with_dependent_access(span::drain(node, drain)))));
        // Sending fails where the conductor has given up on it.
        let _ = sender.send(drained.unwrap_or_else(|panic| Err(panics::error(&*panic).into())));
        // Tasks that the resource spawned here (a connection that a hook opened) live until all are drained.
        runtime.block_on(async { while released.changed().await.is_ok() {} });
    });
    Ok(())
}

fn no_thread(error: io::Error) -> Failure {
    Error::new(ErrorKind::Config, "cannot start a thread to drain on").with_source(error).into()
}
