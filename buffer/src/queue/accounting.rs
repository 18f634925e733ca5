//! How records leave, and the columns they leave into.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
};

use winddown_core::{Error, ErrorKind, Records, adapter::Accounting};

use super::{OnLost, Out, Packed, Queue, QueueState, Writer};
use crate::{Batch, Delivery};

/// What has left, and whether that is still counted. What has been accepted and is in no column is in the queue.
#[derive(Debug, Default)]
pub(super) struct Columns {
    /// How many records have ever been accepted.
    pub(super) accepted: u64,
    written: u64,
    spilled: u64,
    lost: u64,
    in_doubt: u64,
    /// The report is made: nothing changes any more.
    are_closed: bool,
}

impl Columns {
    fn records(&self) -> Records {
        let mut records = Records::default();
        let Self { accepted, written, spilled, lost, in_doubt, .. } = *self;
        (records.accepted, records.written, records.spilled) = (accepted, written, spilled);
        (records.lost, records.in_doubt) = (lost, in_doubt);
        records.pending = accepted - written - spilled - lost - in_doubt;
        records
    }

    /// The target has none of them, or may have them.
    fn given_up(&mut self, records: u64, unknown: bool) {
        *(if unknown { &mut self.in_doubt } else { &mut self.lost }) += records;
    }
}

/// How a batch left.
pub(super) enum End {
    Written,
    /// All but these of its records, which are lost.
    Spilled {
        but_for: Vec<(usize, Error)>,
    },
    Lost(Error),
    Rejected(Error),
    InDoubt(Error),
}

/// A batch that was given up, to be spilled.
pub(crate) struct Left<T> {
    pub(crate) batch: Batch<T>,
}

impl<T: Send + Sync> Accounting for Queue<T> {
    fn records(&self) -> Records {
        self.state().columns.records()
    }

    fn close(&self) -> Records {
        let error = Error::new(ErrorKind::Timeout, "the drain was over before they were written");
        let (records, flushes) = {
            let mut state = self.state();
            state.close_books();
            (state.columns.records(), mem::take(&mut state.flushes))
        };
        self.room.close();
        for flush in flushes {
            let error = flush.error.unwrap_or_else(|| self.not_flushed(&error));
            // Whoever asked may have gone.
            let _ = flush.done.send(Err(error));
        }
        records
    }
}

impl<T> QueueState<T> {
    /// Nothing is taken in or out any more, and nothing is pending.
    fn close_books(&mut self) {
        self.writer = Writer::Closed;
        if mem::replace(&mut self.columns.are_closed, true) {
            return;
        }
        self.pack();
        for packed in &self.ready {
            self.columns.given_up(packed.len(), packed.unknown);
        }
        // What is being written may be there, and what is being spilled elsewhere.
        self.columns.in_doubt += self.out.iter().map(|out| out.packed.len()).sum::<u64>();
    }
}

impl<T> Queue<T> {
    /// Takes nothing in or out any more, and hands over what is left, for it to be put elsewhere: also what is being
    /// written, unless the target is to have it at most once. It counts as pending until [`ended`](Self::ended).
    pub(crate) fn give_up(&self) -> Vec<Left<T>> {
        let mut state = self.state();
        state.writer = Writer::Closed;
        if state.columns.are_closed {
            // The report calls it lost, and so it must be.
            return Vec::new();
        }
        state.pack();
        let ready = mem::take(&mut state.ready);
        state.out.extend(ready.into_iter().map(Out::spilling));
        if self.delivery != Delivery::AtMostOnce {
            for out in &mut state.out {
                // Whether the sink has it, nobody will hear.
                out.packed.unknown |= out.flusher || out.goodbye;
                out.spill = true;
            }
            state.given_up = true;
        }
        state.out.sort_unstable_by_key(|out| out.packed.first);
        let left = state.out.iter().filter(|out| out.spill);
        left.map(|out| Left { batch: out.packed.batch.clone() }).collect()
    }

    /// What was given up has been put elsewhere but for these records, or is lost for this reason.
    pub(crate) fn ended(&self, left: Left<T>, spilled: Result<Vec<(usize, Error)>, Error>) {
        self.leave(left.batch, spilled.map_or_else(End::Lost, |but_for| End::Spilled { but_for }));
    }

    /// Nobody writes any more: takes nothing in or out. What is left is lost, for this reason, or in doubt.
    pub(crate) fn close(&self, reason: &Error) {
        let (rest, flushes) = {
            let mut state = self.state();
            state.close_books();
            (mem::take(&mut state.ready), mem::take(&mut state.flushes))
        };
        self.room.close();
        for Packed { batch, unknown, .. } in rest {
            if unknown {
                self.tell_doubt(&batch, reason);
            } else {
                self.tell(self.callbacks.on_lost.as_ref(), &batch, reason, "records lost");
            }
        }
        for flush in flushes {
            let error = flush.error.unwrap_or_else(|| self.not_flushed(reason));
            // Whoever asked may have gone.
            let _ = flush.done.send(Err(error));
        }
    }

    /// Whether the accounting is closed.
    pub(crate) fn is_over(&self) -> bool {
        self.state().columns.are_closed
    }

    /// The batch that was out has left. Nothing happens if it has left before, or the report is made.
    pub(super) fn leave(&self, batch: Batch<T>, mut end: End) {
        let count = batch.len() as u64;
        let (gone, over) = {
            let mut state = self.state();
            if state.columns.are_closed {
                return;
            }
            let Some(gone) = state.take_out(&batch) else { return };
            if gone.unknown
                && let End::Lost(error) | End::Rejected(error) = end
            {
                end = End::InDoubt(error);
            }
            let mut failed = None;
            let columns = &mut state.columns;
            match &end {
                End::Written => columns.written += count,
                End::Spilled { but_for } => {
                    let refused = but_for.len() as u64;
                    columns.spilled += count - refused;
                    columns.given_up(refused, gone.unknown);
                    failed = but_for.first().map(|(_, error)| self.not_flushed(error));
                }
                End::Lost(error) | End::Rejected(error) => {
                    columns.lost += count;
                    failed = Some(self.not_flushed(error));
                }
                End::InDoubt(error) => {
                    columns.in_doubt += count;
                    failed = Some(self.not_flushed(error));
                }
            }
            let room = gone.bytes.saturating_sub(state.debt);
            state.debt -= gone.bytes - room;
            self.room.add_permits(room);
            self.ring(&state);
            let over = state.flushed(gone.first, failed);
            (gone, over)
        };
        let unknown = gone.unknown;
        drop(gone);
        self.tell_of(&batch, &end, unknown);
        for flush in over {
            // Whoever asked may have gone.
            let _ = flush.done.send(flush.error.map_or(Ok(()), Err));
        }
        self.reuse(batch);
    }

    fn tell_of(&self, batch: &Batch<T>, end: &End, unknown: bool) {
        let callbacks = &self.callbacks;
        match end {
            End::Written => {}
            End::Spilled { but_for } => {
                for (index, error) in but_for {
                    let record = batch.get(*index..=*index).unwrap_or_default();
                    if unknown {
                        self.tell_doubt(record, error);
                    } else {
                        self.tell(callbacks.on_lost.as_ref(), record, error, "a record was not spilled, and is lost");
                    }
                }
            }
            End::Lost(error) => self.tell(callbacks.on_lost.as_ref(), batch, error, "records lost"),
            End::Rejected(error) => {
                let callback = callbacks.on_rejected.as_ref().or(callbacks.on_lost.as_ref());
                self.tell(callback, batch, error, "a record was rejected");
            }
            End::InDoubt(error) => self.tell_doubt(batch, error),
        }
    }

    /// The memory of a batch that has left is that of a later one.
    fn reuse(&self, batch: Batch<T>) {
        // The sink may have kept a handle.
        let Some(mut records) = batch.into_memory() else { return };
        records.clear();
        let mut state = self.state();
        if state.spare.len() <= self.limits.in_flight && records.capacity() == self.limits.batch_size {
            state.spare.push(records);
        }
    }

    fn tell_doubt(&self, records: &[T], error: &Error) {
        tracing::error!(buffer = self.name, records = records.len(), %error, "records in doubt");
    }

    fn tell(&self, callback: Option<&OnLost<T>>, records: &[T], error: &Error, what: &str) {
        tracing::error!(buffer = self.name, records = records.len(), %error, "{what}");
        let Some(callback) = callback else { return };
        // Records are only lent to it, so a panic leaves nothing of ours half done.
        if catch_unwind(AssertUnwindSafe(|| callback(records, error))).is_err() {
            tracing::error!(buffer = self.name, "the callback for lost records panicked");
        }
    }
}
