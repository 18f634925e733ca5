//! What a drain wants of those who watch the servers.

use tokio::sync::watch;

use super::Sessions;

/// What a drain wants of those who watch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Be ready: time runs out.
    pub(crate) prepare: bool,
    /// Nobody has a connection any more: look until nothing is listed.
    pub(crate) watch: bool,
    /// Stop whatever runs.
    pub(crate) cancel: bool,
    /// Stop what nobody waits for: that has had its time.
    pub(crate) abandoned: bool,
    /// End whatever is listed.
    pub(crate) cut: bool,
    /// How many nobody has any more, and how many of those have said goodbye: each is a reason to look.
    pub(crate) left: usize,
}

impl Wanted {
    /// Whether the server is to be asked.
    pub(crate) fn asks(self) -> bool {
        self.watch || self.cancel || self.cut
    }
}

impl Sessions {
    /// What is wanted now, and whenever that changes.
    pub(crate) fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    /// Wants more of those who watch.
    pub(crate) fn want(&self, more: impl FnOnce(&mut Wanted)) {
        let changed = self.wanted.send_if_modified(|wanted| {
            let before = *wanted;
            more(wanted);
            *wanted != before
        });
        if changed {
            self.changed.notify_one();
        }
    }
}
