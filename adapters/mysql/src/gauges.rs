//! What a pool of the driver's says of itself: how many connections it has, and where they are.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use mysql_async::{Metrics, Pool};

/// The numbers of one pool, each as it is when it is read.
#[derive(Clone)]
pub(crate) struct Gauges(Arc<Metrics>);

fn read(gauge: &AtomicUsize) -> usize {
    // Relaxed, as the driver writes them.
    gauge.load(Ordering::Relaxed)
}

impl Gauges {
    pub(crate) fn of(pool: &Pool) -> Self {
        Self(pool.metrics())
    }

    /// Those that are open, being opened, or ending.
    pub(crate) fn all(&self) -> usize {
        read(&self.0.connection_count)
    }

    /// Those that nobody has.
    pub(crate) fn idle(&self) -> usize {
        read(&self.0.connections_in_pool)
    }

    /// Those that somebody has. One whose user has changed leaves the pool, and stays in the driver's own count of these.
    pub(crate) fn out(&self) -> usize {
        read(&self.0.connections_in_use).min(self.all().saturating_sub(self.idle()))
    }

    /// Those that are on their way: being opened, reset, or ended.
    pub(crate) fn moving(&self) -> usize {
        self.all().saturating_sub(self.idle() + read(&self.0.connections_in_use))
    }

    /// Whether somebody waits for one, so that another one who asks is told to wait too.
    pub(crate) fn is_waited_for(&self) -> bool {
        read(&self.0.active_wait_requests) > 0
    }
}
