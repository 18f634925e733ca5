//! How much time one resource needs at its end, by what it asks for and by what its server's answers take.

use std::time::Duration;

use crate::latency::Latency;

/// How much time one resource has at its end, for cancelling and for the last goodbyes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reserve {
    /// What it needs.
    pub(crate) need: Duration,
    /// What it is given where there is time: a server answers late when it must not.
    pub(crate) wish: Duration,
}

/// Cancelling and the last goodbyes get at least this: a round trip to a server in the same region with room to spare.
pub(crate) const RESERVE_FLOOR: Duration = Duration::from_millis(50);

/// What a server is given for them where the budget has it: it may have to write to a disk that is busy, or wait for a core,
/// before it says that a statement is over. A statement that would have ended by itself in this time is rare in comparison. Whoever
/// asks for more than the floor is given it too: that is for a disk.
const RESERVE_WISH: Duration = Duration::from_millis(500);

/// No server is that slow; a resource that says so must not upset the arithmetic of the others.
const RESERVE_MOST: Duration = Duration::from_secs(60);

/// Connecting, cancelling, and a goodbye that is answered are about this many round trips.
const RESERVE_ANSWERS: u32 = 8;

/// What is about to end by itself has ended after so many answers.
const GRACE_ANSWERS: u32 = 4;

/// What is given at the least to what nobody waits for: the time slice of a busy machine.
const GRACE_FLOOR: Duration = Duration::from_millis(10);

/// And at the most, of half of the time.
const GRACE_SHARE: u32 = 4;

impl Reserve {
    /// Where there is nothing to do.
    pub(crate) const NONE: Self = Self { need: Duration::ZERO, wish: Duration::ZERO };

    /// What the resource asks for, and what its server's answers take, if it has one.
    pub(crate) fn new(least: Duration, latency: Option<Duration>) -> Self {
        let least = least.min(RESERVE_MOST);
        let answers = latency.unwrap_or_default().saturating_mul(RESERVE_ANSWERS).min(RESERVE_MOST);
        let need = answers.max(least);
        let is_slow_at_times = latency.is_some() || least > RESERVE_FLOOR;
        Self { need, wish: if is_slow_at_times { need.max(RESERVE_WISH) } else { need } }
    }
}

/// How long what nobody waits for may go on.
pub(crate) fn grace(latency: Option<&Latency>, half: Duration) -> Duration {
    let answers = latency.map(Latency::expected).unwrap_or_default().saturating_mul(GRACE_ANSWERS);
    answers.max(GRACE_FLOOR).min(half / GRACE_SHARE)
}
