//! What became of the records of a resource that buffers them.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::report::Records;

/// The accounting of a resource that buffers records: every record it accepted is in exactly one column, at every moment (S5).
///
/// Whoever holds the records keeps the accounting, and the report asks, also when the resource hangs. [`Ledger`] is the simple
/// implementation, for what counts records one by one.
pub trait Accounting: fmt::Debug + Send + Sync {
    /// The columns now. Must be quick, and run no foreign code.
    fn records(&self) -> Records;

    /// Ends the accounting, since the report is made: what is known not to be in the sink is lost, what may be there is in doubt,
    /// nothing is pending. Returns the columns, which never change again; nothing more may be accepted or written.
    ///
    /// Called by the thread that owns the deadline: must be quick, and run no foreign code. May be called more than once.
    fn close(&self) -> Records;
}

/// [`Accounting`] for what counts its records one by one.
///
/// The buffer moves records between the columns; the report reads them, also when the buffer hangs. Nobody can move more
/// than there is: a wrong count is limited to what the column has.
#[derive(Debug, Default)]
pub struct Ledger {
    columns: Mutex<Columns>,
}

#[derive(Debug, Default)]
struct Columns {
    records: Records,
    writing: u64,
    closed: bool,
}

impl Ledger {
    /// Records are taken in. Returns whether the accounting is still open: once the report has been made they are not, and
    /// the buffer must refuse.
    #[must_use = "refuse the records when the accounting is closed"]
    pub fn accepted(&self, count: u64) -> bool {
        let mut open = false;
        self.change(|accounting| {
            accounting.records.accepted += count;
            accounting.records.pending += count;
            open = true;
        });
        open
    }

    /// Pending records are handed to the sink. Returns whether the accounting is open: where they are not, these records were
    /// reported lost, and must not be written any more.
    pub fn writing(&self, count: u64) -> bool {
        let mut open = false;
        self.change(|accounting| {
            accounting.writing += count.min(accounting.records.pending - accounting.writing);
            open = true;
        });
        open
    }

    /// The sink has them.
    pub fn written(&self, count: u64) {
        self.change(|accounting| {
            let count = count.min(accounting.writing);
            accounting.writing -= count;
            accounting.records.pending -= count;
            accounting.records.written += count;
        });
    }

    /// They were handed to the sink, and are elsewhere now: a file, a log.
    pub fn spilled(&self, count: u64) {
        self.change(|accounting| {
            let count = count.min(accounting.writing);
            accounting.writing -= count;
            accounting.records.pending -= count;
            accounting.records.spilled += count;
        });
    }

    /// The sink does not have them, and they stay pending.
    pub fn returned(&self, count: u64) {
        self.change(|accounting| accounting.writing -= count.min(accounting.writing));
    }

    /// Pending records that were not being written are given up.
    pub fn lost(&self, count: u64) {
        self.change(|accounting| {
            let count = count.min(accounting.records.pending - accounting.writing);
            accounting.records.pending -= count;
            accounting.records.lost += count;
        });
    }

    /// The columns now.
    pub fn records(&self) -> Records {
        self.columns.lock().unwrap_or_else(PoisonError::into_inner).records
    }

    fn change(&self, change: impl FnOnce(&mut Columns)) {
        let mut accounting = self.columns.lock().unwrap_or_else(PoisonError::into_inner);
        if !accounting.closed {
            change(&mut accounting);
        }
    }
}

impl Accounting for Ledger {
    fn records(&self) -> Records {
        Self::records(self)
    }

    /// What is pending is lost, what is being written is in doubt. Later changes are ignored.
    fn close(&self) -> Records {
        let mut accounting = self.columns.lock().unwrap_or_else(PoisonError::into_inner);
        if !accounting.closed {
            accounting.closed = true;
            let Columns { records, writing, .. } = &mut *accounting;
            records.in_doubt += *writing;
            records.lost += records.pending - *writing;
            records.pending = 0;
        }
        accounting.records
    }
}

/// The [`Ledger`] of a resource that may live more than once: each life has its own, so that nothing of one that is over can
/// change those of the next.
#[derive(Debug, Default)]
pub struct LedgerSlot {
    now: Mutex<Arc<Ledger>>,
}

impl LedgerSlot {
    /// Those of the life that is lived now.
    pub fn now(&self) -> Arc<Ledger> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// New ones, for a life that begins: what [`Resource::ledger`](crate::Resource::ledger) returns.
    pub fn restart(&self) -> Arc<Ledger> {
        let new = Arc::default();
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&new);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s5_the_accounting_of_a_life_that_is_over_is_not_that_of_the_next() {
        let ledgers = LedgerSlot::default();
        let first = ledgers.restart();
        assert!(first.accepted(2));
        first.writing(1);
        first.close();
        let second = ledgers.restart();
        assert!(second.accepted(1));
        // What comes late.
        first.written(1);
        assert_eq!(ledgers.now().records(), Records { accepted: 1, pending: 1, ..Records::default() });
        assert_eq!(first.records(), Records { accepted: 2, lost: 1, in_doubt: 1, ..Records::default() });
    }

    #[test]
    fn s5_the_columns_add_up_at_every_moment_and_after_closing() {
        let ledger = Ledger::default();
        assert!(ledger.accepted(10));
        ledger.writing(4);
        assert_eq!(ledger.records().pending, 10);
        ledger.written(4);
        ledger.writing(3);
        ledger.returned(3);
        ledger.lost(1);
        ledger.writing(3);
        ledger.spilled(1);
        let records = ledger.close();
        assert_eq!(records, Records { accepted: 10, written: 4, spilled: 1, lost: 1 + 2, in_doubt: 2, pending: 0 });
        ledger.written(2);
        assert!(!ledger.accepted(1));
        assert_eq!(ledger.records(), records, "the report has been made");
    }
}
