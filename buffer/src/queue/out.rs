//! Batches that are out: who has them, and how they come back.

use std::mem;

use winddown_core::{Error, ErrorKind};

use super::{Packed, Queue, QueueState, Writer, accounting::End, turns::Waited};
use crate::{Batch, Delivery};

/// A batch that is out, and who has it. It may be more than one: the goodbye writes again what a starved flusher has.
pub(super) struct Out<T> {
    pub(super) packed: Packed<T>,
    pub(super) flusher: bool,
    pub(super) goodbye: bool,
    /// It was given up, and is put elsewhere.
    pub(super) spill: bool,
    /// The goodbye waits for nothing else because of it any more.
    pub(super) overdue: bool,
}

impl<T> Out<T> {
    pub(super) fn spilling(packed: Packed<T>) -> Self {
        Self { packed, flusher: false, goodbye: false, spill: true, overdue: false }
    }

    fn of(writer: Writer, packed: Packed<T>) -> Self {
        let goodbye = writer == Writer::Goodbye;
        Self { packed, flusher: !goodbye, goodbye, spill: false, overdue: false }
    }

    fn is_only_the_flushers(&self) -> bool {
        self.flusher && !self.goodbye && !self.spill
    }

    fn leaves(&mut self, writer: Writer) {
        let holder = if writer == Writer::Goodbye { &mut self.goodbye } else { &mut self.flusher };
        *holder = false;
    }
}

impl<T> QueueState<T> {
    /// Whether there is a batch that the goodbye could take over.
    pub(super) fn is_any_only_the_flushers(&self) -> bool {
        self.out.iter().any(Out::is_only_the_flushers)
    }

    /// The batch is out, whoever has it. By its key: halves of it begin with the same record.
    fn find(&self, batch: &Batch<T>) -> Option<usize> {
        self.out.iter().position(|out| out.packed.batch.key() == batch.key())
    }

    /// The batch that was out, for it has left. `None` if it has left already.
    pub(super) fn take_out(&mut self, batch: &Batch<T>) -> Option<Packed<T>> {
        self.find(batch).map(|index| self.out.swap_remove(index).packed)
    }

    /// This writer has it no longer; the batch, if nobody else has it either.
    fn release(&mut self, writer: Writer, batch: &Batch<T>) -> Option<Packed<T>> {
        let index = self.find(batch)?;
        let out = self.out.get_mut(index)?;
        out.leaves(writer);
        let is_held = out.flusher || out.goodbye || out.spill;
        (!is_held).then(|| self.out.swap_remove(index).packed)
    }
}

/// What is to be done with a batch that is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Smaller {
    /// Its halves are tried apart.
    Divide,
    /// It is tried again as it is: it is of one record, or the target may have it, and would then have its halves beside it.
    AsItIs,
    /// It was tried so often enough.
    GiveUp,
}

/// A batch that cannot be divided is given up when it was too large so many times.
const TOO_LARGE: u8 = 5;

impl<T> Queue<T> {
    /// The batch that was out comes again, where there is somebody left to try. `unknown`: the target may have it.
    fn put_back(&self, writer: Writer, batch: Batch<T>, error: Error, unknown: bool, hung: bool) {
        let mut state = self.state();
        if state.writer == Writer::Closed {
            let given_up = state.given_up;
            drop(state);
            if !given_up {
                self.leave(batch, if unknown { End::InDoubt(error) } else { End::Lost(error) });
            }
            return;
        }
        if let Some(mut packed) = state.release(writer, &batch) {
            packed.unknown |= unknown;
            packed.hung |= hung;
            state.insert(packed);
        }
        self.ring(&state);
    }

    /// What became of the batch that was out is not known.
    fn unknown(&self, writer: Writer, batch: Batch<T>, error: Error, hung: bool) {
        match self.delivery {
            Delivery::ExactlyOnce | Delivery::AtLeastOnce => self.put_back(writer, batch, error, true, hung),
            Delivery::AtMostOnce => self.leave(batch, End::InDoubt(error)),
        }
    }

    /// The batch that was out comes again in two halves.
    fn divide(&self, writer: Writer, batch: Batch<T>, error: Error) {
        let [front, behind] = batch.halves();
        // The callback is the application's, so not under the lock.
        let bytes = front.iter().map(|record| self.weight(record)).sum();
        let mut state = self.state();
        if state.writer == Writer::Closed {
            drop(state);
            return self.put_back(writer, batch, error, false, false);
        }
        let Some(whole) = state.take_out(&batch) else { return };
        for half in whole.divided([front, behind], bytes) {
            state.insert(half);
        }
        self.ring(&state);
    }

    fn smaller(&self, batch: &Batch<T>) -> Smaller {
        let mut state = self.state();
        state.fits.too_large(batch.len());
        let Some(index) = state.find(batch) else { return Smaller::AsItIs };
        let Some(out) = state.out.get_mut(index) else { return Smaller::AsItIs };
        if batch.len() == 1 {
            return Smaller::AsItIs;
        }
        let may_be_there = out.packed.unknown && self.delivery == Delivery::ExactlyOnce;
        if !may_be_there {
            return Smaller::Divide;
        }
        out.packed.too_large += 1;
        if out.packed.too_large >= TOO_LARGE { Smaller::GiveUp } else { Smaller::AsItIs }
    }
}

impl<T> Packed<T> {
    fn divided(self, [front, behind]: [Batch<T>; 2], bytes_of_front: usize) -> [Self; 2] {
        let Self { first, bytes, unknown, hung, .. } = self;
        let middle = first + front.len() as u64;
        let part = |first, bytes, batch| Self { unknown, hung, ..Self::new(first, bytes, batch) };
        [part(first, bytes_of_front, front), part(middle, bytes.saturating_sub(bytes_of_front), behind)]
    }
}

/// The right to take one batch out. Given back when it is dropped unused.
pub(crate) struct Started<'a, T> {
    queue: &'a Queue<T>,
    writer: Writer,
}

impl<'a, T> Started<'a, T> {
    pub(super) fn new(queue: &'a Queue<T>, writer: Writer) -> Self {
        Self { queue, writer }
    }

    /// Takes the next batch out, if this writer still may and there is one: no larger than what went through lately.
    pub(crate) fn take(self) -> Option<Taken<'a, T>> {
        let Self { queue, writer } = self;
        loop {
            let (batch, largest) = {
                let mut state = queue.state();
                if state.writer != writer {
                    return None;
                }
                // In a drain what hung comes last.
                let comes_first = |packed: &Packed<T>| writer == Writer::Flusher || !packed.hung;
                if !state.ready.iter().any(comes_first) {
                    state.pack();
                }
                let largest = state.fits.now();
                let index = state.ready.iter().position(comes_first).unwrap_or(0);
                match state.ready.get(index) {
                    Some(next) if next.batch.len() > largest && !next.unknown => (next.batch.clone(), largest),
                    Some(_) => {
                        let packed = state.ready.remove(index)?;
                        let batch = packed.batch.clone();
                        state.out.push(Out::of(writer, packed));
                        return Some(Taken { queue, writer, batch: Some(batch) });
                    }
                    None if Waited::is_over(*queue.waited.borrow()) && queue.delivery != Delivery::AtMostOnce => {
                        let out = state.out.iter_mut().find(|out| out.is_only_the_flushers())?;
                        out.goodbye = true;
                        out.packed.unknown = true;
                        let batch = out.packed.batch.clone();
                        return Some(Taken { queue, writer, batch: Some(batch) });
                    }
                    None => return None,
                }
            };
            debug_assert!(batch.len() > largest);
            let [front, behind] = batch.halves();
            // The callback is the application's, so not under the lock.
            let bytes = front.iter().map(|record| queue.weight(record)).sum();
            let mut state = queue.state();
            let index = state.ready.iter().position(|packed| packed.batch.key() == batch.key());
            if let Some(whole) = index.and_then(|index| state.ready.remove(index)) {
                for half in whole.divided([front, behind], bytes) {
                    state.insert(half);
                }
            }
        }
    }
}

impl<T> Drop for Started<'_, T> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        // Each writer begins with none.
        if state.writer == self.writer {
            state.started -= 1;
            self.queue.ring(&state);
        }
    }
}

/// A batch that is out. Dropped without an outcome, nobody knows what became of it.
pub(crate) struct Taken<'a, T> {
    queue: &'a Queue<T>,
    writer: Writer,
    /// Gone when it has ended.
    batch: Option<Batch<T>>,
}

impl<T> Taken<'_, T> {
    pub(crate) fn batch(&self) -> &Batch<T> {
        self.batch.as_ref().expect("it is there until it has ended, and that takes it all")
    }

    /// The sink has it.
    pub(crate) fn written(self) {
        self.queue.state().fits.written(self.batch().len());
        self.leave(End::Written);
    }

    /// It has been put elsewhere, but for these of its records, which are lost.
    pub(crate) fn spilled(self, but_for: Vec<(usize, Error)>) {
        self.leave(End::Spilled { but_for });
    }

    /// The sink does not have it, for this reason; it comes again.
    pub(crate) fn returned(mut self, error: Error) {
        if let Some(batch) = self.batch.take() {
            self.queue.put_back(self.writer, batch, error, false, false);
        }
    }

    /// Whether the sink has it is not known: it comes again, if it may.
    pub(crate) fn unknown(mut self, error: Error) {
        if let Some(batch) = self.batch.take() {
            self.queue.unknown(self.writer, batch, error, false);
        }
    }

    /// The same, for its write hung.
    pub(crate) fn hung(mut self, error: Error) {
        if let Some(batch) = self.batch.take() {
            self.queue.unknown(self.writer, batch, error, true);
        }
    }

    /// It may still end, but others need not wait for that.
    pub(crate) fn overdue(&self) {
        let mut state = self.queue.state();
        if let Some(index) = state.find(self.batch()) {
            state.out[index].overdue = true;
            self.queue.ring(&state);
        }
    }

    /// The target may have it.
    pub(crate) fn may_be_there(&self) {
        let mut state = self.queue.state();
        if let Some(index) = state.find(self.batch()) {
            state.out[index].packed.unknown = true;
        }
    }

    /// The sink does not want a record of it: if there are more, they are tried apart.
    pub(crate) fn rejected(mut self, error: Error) {
        let Some(batch) = self.batch.take() else { return };
        if batch.len() > 1 {
            self.queue.divide(self.writer, batch, error);
        } else {
            self.queue.leave(batch, End::Rejected(error));
        }
    }

    /// It is too large for the sink, which does not have it. It is not back yet: that is for the caller to do.
    pub(crate) fn smaller(&self) -> Smaller {
        self.queue.smaller(self.batch())
    }

    /// The sink does not have it, and never will.
    pub(crate) fn lost(self, error: Error) {
        self.leave(End::Lost(error));
    }

    /// Nobody knows.
    pub(crate) fn in_doubt(self, error: Error) {
        self.leave(End::InDoubt(error));
    }

    fn leave(mut self, end: End) {
        if let Some(batch) = self.batch.take() {
            self.queue.leave(batch, end);
        }
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        let Some(batch) = mem::take(&mut self.batch) else { return };
        let error = Error::new(ErrorKind::Write, "the write was cut off before the target answered");
        self.queue.unknown(self.writer, batch, error, false);
    }
}
