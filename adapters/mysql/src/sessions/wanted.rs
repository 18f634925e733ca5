//! What a drain wants of those who watch the servers.

use std::{future::Future, pin::pin, time::Duration};

use tokio::{select, sync::watch, time::timeout};

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

/// It did not come in time.
pub(crate) struct NoAnswer;

impl Sessions {
    /// What a server answers within this time, or while a drain goes on: that has it stopped what it still does, and after that the
    /// connection has a goodbye to say.
    ///
    /// # Errors
    /// [`NoAnswer`] after that time, or when the drain cuts what is left.
    pub(crate) async fn answer_within<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = T>,
    ) -> Result<T, NoAnswer> {
        let mut answer = pin!(answer);
        if let Ok(answer) = timeout(limit, &mut answer).await {
            return Ok(answer);
        }
        if self.is_open() {
            return Err(NoAnswer);
        }
        let mut wanted = self.wanted();
        select! {
            answer = answer => Ok(answer),
            _ = wanted.wait_for(|wanted| wanted.cut) => Err(NoAnswer),
        }
    }

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
