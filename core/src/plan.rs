//! In which order resources are drained, and how the budget is shared among them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Budget, ResourceId,
    drain::Deadlines,
    node::Node,
    reserve::{Reserve, grace},
};

/// The order and the deadlines of one drain.
///
/// Each resource has until the common deadline, less what the resources below it (those that it depends on, and so
/// are drained after it) need at the least. Time that a step does not use is therefore there for the next (L4), and
/// one that hangs leaves the others their goodbye (L2).
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) deadlines: Vec<Deadlines>,
    /// For each node, how long what nobody waits for may go on.
    pub(crate) graces: Vec<Duration>,
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
        let half = deadline.saturating_duration_since(now) / 2;
        let reserves: Vec<Reserve> = nodes.iter().map(|node| node.reserve()).collect();
        let Shares { reserves, answer } = share(&dependents, &reserves, answer, half);
        let below = below(&dependents, &reserves, answer);

        let deadlines = below
            .iter()
            .zip(&reserves)
            .map(|(below, reserve)| {
                let end = deadline - *below;
                Deadlines { settle: end - *reserve, cut: end - *reserve / CUT_SHARE, end }
            })
            .collect();
        let graces = nodes.iter().map(|node| grace(node.facts().latency.as_deref(), half)).collect();
        Self { deadlines, graces, answer, dependents }
    }
}

/// What each resource is given, and how long its thread may take to answer.
struct Shares {
    reserves: Vec<Duration>,
    answer: Duration,
}

/// All reserves along a chain together take at most half of the time: a long chain of dependencies must not leave those at its
/// top with nothing. What is needed comes first, and what is wished for as far as there is room.
fn share(dependents: &[Vec<usize>], reserves: &[Reserve], answer: Duration, half: Duration) -> Shares {
    let longest = |reserves: &[Duration]| {
        let below = below(dependents, reserves, answer);
        below.iter().zip(reserves).map(|(below, own)| *below + *own).max().unwrap_or_default()
    };
    let needs: Vec<_> = reserves.iter().map(|reserve| reserve.need).collect();
    let needed = longest(&needs);
    if needed > half {
        let scaled = |time: Duration| part(time, half, needed);
        return Shares { reserves: needs.into_iter().map(scaled).collect(), answer: scaled(answer) };
    }
    let wishes: Vec<_> = reserves.iter().map(|reserve| reserve.wish).collect();
    let wished = longest(&wishes);
    if wished <= half {
        return Shares { reserves: wishes, answer };
    }
    // The length of a chain grows in proportion, so this much of the difference has room in every one.
    let more = |reserve: &Reserve| part(reserve.wish - reserve.need, half - needed, wished - needed);
    Shares { reserves: reserves.iter().map(|reserve| reserve.need + more(reserve)).collect(), answer }
}

/// This time, in the proportion of two others.
fn part(time: Duration, of: Duration, whole: Duration) -> Duration {
    let nanos = time.as_nanos() * of.as_nanos() / whole.as_nanos().max(1);
    // At most half of a budget.
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
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
