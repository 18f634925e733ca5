//! In which order resources are drained, and how the budget is shared among them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{Budget, ResourceId, node::Node, resource::Deadlines};

/// The order and the deadlines of one drain.
///
/// Each resource has until the common deadline, less what the resources below it (those that it depends on, and so
/// are drained after it) need at the least. Time that a step does not use is therefore there for the next (L4), and
/// one that hangs leaves the others their goodbye (L2).
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) deadlines: Vec<Deadlines>,
    /// How long after its end a resource's thread may still answer. Kept free before those that are drained after it.
    pub(crate) answer: Duration,
    /// For each node, the nodes that must be over before it begins (S4).
    pub(crate) dependents: Vec<Vec<usize>>,
}

/// A thread that has noticed its deadline answers within a quarter of the margin, so that the report and the exit keep the
/// rest; one that has not by then blocks, and is left.
pub(crate) const ANSWER_SHARE: u32 = 4;

/// The cut comes when a quarter of the reserve is left.
const CUT_SHARE: u32 = 4;

impl Plan {
    pub(crate) fn new(nodes: &[Arc<dyn Node>], now: Instant, budget: Budget) -> Self {
        let deadline = now + budget.usable();
        let answer = budget.margin() / ANSWER_SHARE;
        let dependents = dependents(nodes);
        let reserves: Vec<Duration> = nodes.iter().map(|node| node.reserve()).collect();
        let below = below(&dependents, &reserves, answer);

        // All reserves together take at most half of the time: a long chain of dependencies must not leave those at
        // its top with nothing.
        let longest = below.iter().zip(&reserves).map(|(below, own)| *below + *own).max().unwrap_or_default();
        let half = deadline.saturating_duration_since(now) / 2;
        let scale = if longest > half { half.as_secs_f64() / longest.as_secs_f64() } else { 1.0 };

        let deadlines = below
            .iter()
            .zip(&reserves)
            .map(|(below, reserve)| {
                let reserve = reserve.mul_f64(scale);
                let end = deadline - below.mul_f64(scale);
                Deadlines { settle: end - reserve, cut: end - reserve / CUT_SHARE, end }
            })
            .collect();
        Self { deadlines, answer: answer.mul_f64(scale), dependents }
    }
}

/// Who depends on whom, turned round: for each node those that are drained before it.
fn dependents(nodes: &[Arc<dyn Node>]) -> Vec<Vec<usize>> {
    let index: HashMap<ResourceId, usize> = nodes.iter().enumerate().map(|(i, node)| (node.facts().id, i)).collect();
    let mut dependents = vec![Vec::new(); nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        for on in &node.facts().depends_on {
            // A guard of another lifecycle is not in this one's order: `Lifecycle::init` says so.
            if let Some(&on) = index.get(on) {
                dependents[on].push(i);
            }
        }
        for (j, other) in nodes.iter().enumerate() {
            if (node.facts().order as u8) < (other.facts().order as u8) {
                dependents[j].push(i);
            }
        }
    }
    dependents
}

/// For each node, what those along the longest chain of what it depends on need, each with the time for the answer of the
/// one before it.
fn below(dependents: &[Vec<usize>], reserves: &[Duration], answer: Duration) -> Vec<Duration> {
    let mut below = vec![Duration::ZERO; reserves.len()];
    // A resource is registered after those it depends on and the graph has no cycles, so as many rounds as there are
    // nodes carry every reserve to the top of its chain.
    for _ in 0..reserves.len() {
        for (on, dependents) in dependents.iter().enumerate() {
            for &dependent in dependents {
                below[dependent] = below[dependent].max(below[on] + reserves[on] + answer);
            }
        }
    }
    below
}
