//! The accounting of commands that nobody waits for: each that was accepted is executed, lost, or in doubt.

use std::sync::Arc;

use winddown_core::adapter::Ledger;

use crate::{mailbox::Verdict, stream::Activity};

/// The line of one command. Dropped without a verdict it closes itself: a command that the kernel does not have to its last
/// byte is lost, any other is in doubt.
#[derive(Debug)]
pub(crate) struct Entry {
    ledger: Arc<Ledger>,
    /// Which request of which stream it is, once the driver has it.
    place: Option<(u64, Arc<Activity>)>,
    settled: bool,
}

impl Entry {
    /// The command is accepted; `None` where the accounting is closed, and it must not be.
    pub(crate) fn accept(ledger: &Arc<Ledger>) -> Option<Self> {
        ledger.accepted(1).then(|| Self { ledger: Arc::clone(ledger), place: None, settled: false })
    }

    /// The driver has it, and it is this request on the wire, counted from the first.
    pub(crate) fn handed(&mut self, request: u64, activity: &Arc<Activity>) {
        self.ledger.writing(1);
        self.place = Some((request, Arc::clone(activity)));
    }

    pub(crate) fn settle(mut self, verdict: Verdict) {
        match verdict {
            Verdict::Executed => self.ledger.written(1),
            Verdict::Refused => self.lost(),
            Verdict::Unknown => return,
        }
        self.settled = true;
    }

    fn lost(&self) {
        if self.place.is_some() {
            self.ledger.returned(1);
        }
        self.ledger.lost(1);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let sent = self.place.as_ref().is_some_and(|(request, activity)| activity.sent() >= *request);
        if !self.settled && !sent {
            self.lost();
        }
    }
}

#[cfg(test)]
mod tests {
    use winddown_core::Records;

    use super::*;

    /// Accepted, written, lost, pending.
    fn columns(ledger: &Ledger) -> (u64, u64, u64, u64) {
        let Records { accepted, written, lost, pending, .. } = ledger.records();
        (accepted, written, lost, pending)
    }

    #[test]
    fn a_command_is_executed_or_refused_as_the_server_says() {
        let (ledger, activity) = (Arc::default(), Arc::default());
        for verdict in [Verdict::Executed, Verdict::Refused] {
            let mut entry = Entry::accept(&ledger).unwrap();
            entry.handed(1, &activity);
            entry.settle(verdict);
        }
        assert_eq!(columns(&ledger), (2, 1, 1, 0));
    }

    #[test]
    fn a_command_that_was_never_sent_is_lost() {
        let (ledger, activity) = (Arc::default(), Arc::default());
        drop(Entry::accept(&ledger).unwrap());
        let mut entry = Entry::accept(&ledger).unwrap();
        entry.handed(1, &activity);
        entry.settle(Verdict::Unknown);
        assert_eq!(columns(&ledger), (2, 0, 2, 0));
    }

    #[test]
    fn a_command_that_was_sent_and_not_answered_stays_in_doubt() {
        let (ledger, activity) = (Arc::default(), Arc::default());
        let mut entry = Entry::accept(&ledger).unwrap();
        // Whatever was sent has a number of at least this.
        entry.handed(0, &activity);
        drop(entry);
        assert_eq!(columns(&ledger), (1, 0, 0, 1));
    }
}
