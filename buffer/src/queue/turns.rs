//! Whose turn it is: when a batch is due, and how many may be out.
//!
//! When draining begins the flusher may hold batches. One whose runtime runs brings them back, and is waited for, for a
//! share of the time: order is kept, and no more are out than may be in flight. Then it is taken for starved, or its
//! write for hung, and the goodbye goes on beyond that. What is left last of all are the batches that the flusher still
//! has: where a batch may be written again, the goodbye does that, half as long later; the first outcome counts.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{
    Queue, QueueState, Writer,
    out::{Out, Started},
};
use crate::Delivery;

enum Due {
    Now,
    At(Instant),
    /// Not before something happens.
    Idle,
    /// There is nothing at all.
    Nothing,
}

/// What a writer has to do next.
pub(crate) enum Next<'a, T> {
    /// Write a batch.
    Write(Started<'a, T>),
    /// Nothing is left, nor being written.
    Nothing,
}

/// From when draining begins: how long the flusher is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waited {
    /// Then the goodbye writes beyond what the flusher has.
    pub(super) until: Instant,
    /// Then it writes what the flusher has, where that may be written again.
    pub(super) take_over: Instant,
}

impl Waited {
    /// Whether the batches that only the flusher has may be written again.
    pub(super) fn is_over(this: Option<Self>) -> bool {
        this.is_some_and(|waited| waited.take_over <= Instant::now())
    }
}

impl<T> Queue<T> {
    /// From here on only the goodbye takes batches. So long it waits for what the flusher has begun.
    pub(crate) fn begin_drain(&self, patience: Duration) {
        {
            let mut state = self.state();
            if state.writer == Writer::Closed {
                return;
            }
            state.writer = Writer::Goodbye;
            // What the flusher has begun can take no batch any more.
            state.started = 0;
        }
        let now = Instant::now();
        let after = |time: Duration| now.checked_add(time).unwrap_or(now);
        // What hangs is cleared up by a flusher that runs before it is written again.
        let waited = Waited { until: after(patience), take_over: after(patience + patience / 2) };
        self.waited.send_replace(Some(waited));
    }

    /// How many of those that are out count against those that may be, at this moment.
    fn counted(&self, state: &QueueState<T>, is_beyond: bool) -> usize {
        let hangs = |out: &&Out<T>| out.overdue || (is_beyond && !out.goodbye);
        let hanging = state.out.iter().filter(hangs).count();
        let credit = match self.delivery {
            // Each that hangs will be in doubt; a server that answers nobody must not get them all.
            Delivery::AtMostOnce => self.limits.in_flight,
            Delivery::ExactlyOnce | Delivery::AtLeastOnce => usize::MAX,
        };
        state.out.len() - hanging.min(credit) + state.started
    }

    /// What this writer has to do now.
    fn due(&self, state: &QueueState<T>, writer: Writer) -> Due {
        if state.writer != writer {
            return Due::Idle;
        }
        let everything = writer == Writer::Goodbye;
        let is_open = !state.open.is_empty();
        if everything && !is_open && state.ready.is_empty() && state.out.is_empty() && state.started == 0 {
            return Due::Nothing;
        }
        let now = Instant::now();
        let waited = *self.waited.borrow();
        let waited = waited.filter(|_| everything);
        if self.counted(state, waited.is_some_and(|waited| waited.until <= now)) >= self.limits.in_flight {
            return match waited {
                Some(Waited { until, .. }) if until > now => Due::At(until),
                _ => Due::Idle,
            };
        }
        let age = state.since.and_then(|since| since.checked_add(self.limits.max_age));
        let asked_for = everything
            || state.flush_to > state.columns.accepted - state.open.len() as u64
            || self.room.available_permits() == 0
            || age.is_some_and(|at| at <= now);
        let due = state.ready.len() + usize::from(is_open && asked_for);
        if due > state.started {
            return Due::Now;
        }
        if let Some(Waited { take_over, .. }) = waited {
            let may = due == 0 && self.delivery != Delivery::AtMostOnce && state.is_any_only_the_flushers();
            return match may && state.started == 0 {
                true if take_over <= now => Due::Now,
                true => Due::At(take_over),
                false => Due::Idle,
            };
        }
        match age {
            Some(at) if !asked_for => Due::At(at),
            // Nothing is open, or its age is so far away that the clock cannot say it.
            _ => Due::Idle,
        }
    }
}

/// What waits.
impl<T: Send + Sync> Queue<T> {
    /// Ready when this writer should write a batch: for its size, its age, because a flush was asked for, or because the
    /// goodbye writes everything. While nothing is buffered it waits without a timer (C2).
    ///
    /// # Cancel safety
    /// Cancel safe. There is one place to wait for each writer.
    pub(crate) async fn next(&self, writer: Writer) -> Next<'_, T> {
        let bell = if writer == Writer::Goodbye { &self.changed } else { &self.wake };
        loop {
            let due = {
                let mut state = self.state();
                let due = self.due(&state, writer);
                if matches!(due, Due::Now) {
                    state.started += 1;
                }
                due
            };
            match due {
                Due::Now => return Next::Write(Started::new(self, writer)),
                Due::Nothing => return Next::Nothing,
                Due::Idle => bell.notified().await,
                Due::At(instant) => tokio::select! {
                    () = sleep_until(instant) => {}
                    () = bell.notified() => {}
                },
            }
        }
    }

    /// Ready when the flusher must begin nothing more, with the moment until which it is waited for.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn stopped(&self) -> Instant {
        let mut waited = self.waited.subscribe();
        // The sender is ours, so it is there.
        let waited = waited.wait_for(Option::is_some).await.ok().and_then(|waited| *waited);
        waited.map_or_else(Instant::now, |waited| waited.until)
    }

    /// Ready when something has changed since the goodbye last looked.
    ///
    /// # Cancel safety
    /// Cancel safe. For the goodbye alone.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
