//! A place inside a gate, as its holder has it.

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::Location,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use crate::{
    Error,
    dependent::caller,
    gate::{Gate, Key},
    overdue::Overdue,
};

/// What has a gate, and a name for errors.
pub(crate) trait Gated: Send + Sync {
    fn gate(&self) -> &Gate;
    fn name(&self) -> &str;
}

/// A place inside the gate, given back on drop.
pub(crate) struct Ticket<G: Gated> {
    holder: Arc<G>,
    key: Key,
}

impl<G: Gated> Ticket<G> {
    /// What it is a place of.
    #[inline]
    pub(crate) fn holder(&self) -> &G {
        &self.holder
    }

    pub(crate) fn enter(holder: &Arc<G>, site: &'static Location<'static>) -> Result<Self, Error> {
        match holder.gate().enter(caller(), site) {
            Ok(key) => Ok(Self { holder: Arc::clone(holder), key }),
            Err(_) => Err(Error::shutting_down(holder.name())),
        }
    }

    /// The same, and a refusal is counted.
    pub(crate) fn of_checkout(holder: &Arc<G>, site: &'static Location<'static>) -> Result<Self, Error> {
        Self::enter(holder, site).inspect_err(|_| holder.gate().count_refusal(caller()))
    }

    /// Counts the error if it is a refusal.
    pub(crate) fn count(&self, error: Error) -> Error {
        if error.is_shutting_down() {
            self.holder.gate().count_refusal(self.key.caller());
        }
        error
    }

    pub(crate) fn label(&self, name: Box<str>) {
        self.holder.gate().label(self.key, name);
    }

    /// A warning is due when it has been out for so long from now on. Not on the path of a checkout where none is asked for.
    #[cold]
    pub(crate) fn warn_after(&self, limit: Duration)
    where
        G: 'static,
    {
        let gate = self.holder.gate();
        if let Some(overdue) = Overdue::after(limit, &self.holder, gate.site(self.key)) {
            gate.keep(self.key, overdue);
        }
    }

    pub(crate) fn hand_out(&self) -> Result<(), Error> {
        self.holder.gate().hand_out(self.key).map_err(|_| Error::shutting_down(self.holder.name()))
    }

    /// What `poll` gets, or the refusal if draining begins while it is not ready.
    pub(crate) fn unless_refused<T>(
        &self,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<Result<T, Error>>,
    ) -> impl Future<Output = Result<T, Error>> {
        let refusal = || Error::shutting_down(self.holder.name());
        let mut waited = false;
        poll_fn(move |context| {
            if waited && self.holder.gate().resume(self.key).is_err() {
                return Poll::Ready(Err(refusal()));
            }
            match poll(context) {
                Poll::Pending => {
                    waited = true;
                    self.poll_refused(context).map(|()| Err(refusal()))
                }
                ready => ready,
            }
        })
    }

    pub(crate) fn poll_refused(&self, context: &Context<'_>) -> Poll<()> {
        self.holder.gate().poll_refused(self.key, context)
    }

    /// Counts as one who waits, so nobody settles for it; an error if it is refused by now.
    pub(crate) fn is_not_a_checkout(&self) -> Result<(), Error> {
        match self.poll_refused(&Context::from_waker(std::task::Waker::noop())) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(Error::shutting_down(self.holder.name())),
        }
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.holder.gate().hand_out(self.key).is_err()
    }
}

impl<G: Gated> Drop for Ticket<G> {
    fn drop(&mut self) {
        self.holder.gate().leave(self.key);
    }
}

impl<G: Gated> fmt::Debug for Ticket<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket").field(&self.key).finish()
    }
}
