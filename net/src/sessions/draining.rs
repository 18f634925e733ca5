//! A drain of the book: it takes over every session, drives it to its end, and cuts what is left.

use std::{fmt, future::Future, mem, sync::Arc};

use tokio::{task::JoinSet, time::sleep_until};
use winddown_core::{
    Error,
    adapter::{Drain, Ends, News, Source},
};

use super::{Phase, Session, Sessions};

impl<P: Send + Sync + 'static> Sessions<P> {
    /// Begins to drain; the drain is over when what this returns is dropped.
    pub fn begin_drain(&self) -> Draining<'_, P> {
        let mut state = self.state();
        state.drains(Phase::Draining);
        let open: Vec<_> = state.open.values().cloned().collect();
        state.fresh.clone_from(&open);
        drop(state);
        // At once, and not when the drain first polls it: who lets go of one meanwhile would end it in no count.
        open.iter().for_each(|session| session.driver.take_over());
        Draining(self)
    }

    /// Nothing is opened any more; what has ended since the drain last asked, and what has not.
    fn close_book(&self) -> (Ends, Vec<Arc<Session<P>>>) {
        let mut state = self.state();
        state.phase = Phase::Over;
        let (ended, left) = (mem::take(&mut state.ended), mem::take(&mut state.open));
        (ended, left.into_values().collect())
    }
}

/// A drain of all sessions. Dropped, also where its deadline drops it, it is over: what is open then is cut.
#[must_use = "dropped at once it cuts every session"]
pub struct Draining<'a, P: Send + Sync + 'static>(pub(super) &'a Sessions<P>);

impl<P: Send + Sync + 'static> Draining<'_, P> {
    /// Takes over every session and drives it to its end, until all checkouts are back and none is left, or what is left must
    /// be cut. Counts as it goes. `all_returned` is called when all checkouts are back; `end` ends a session that is still open
    /// at the cut, although somebody holds it.
    ///
    /// # Cancel safety
    /// Cancel safe; what was counted stands.
    ///
    /// # Errors
    /// That of [`Drain::sessions`].
    pub async fn goodbye<F>(
        &self,
        drain: &Drain,
        all_returned: impl Fn() + Sync,
        end: impl Fn(Arc<Session<P>>) -> F,
    ) -> Result<(), Error>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let sessions = self.0;
        let _rest = Rest { sessions, drain };
        if drain.sessions(&Book { sessions, all_returned }).await? {
            return Ok(());
        }

        // What is still held by somebody.
        let mut ending = JoinSet::new();
        for session in sessions.open() {
            ending.spawn(end(session));
        }
        let limit = drain.halfway();
        tokio::select! {
            () = async { while ending.join_next().await.is_some() {} } => {}
            () = sleep_until(limit) => {}
        }
        Ok(())
    }
}

/// The sessions as a drain takes them: all that are open, whoever has them, since their sockets must be driven.
struct Book<'a, P, F> {
    sessions: &'a Sessions<P>,
    all_returned: F,
}

impl<P: Send + Sync + 'static, F: Fn() + Sync> Source for Book<'_, P, F> {
    type Session = Arc<Session<P>>;

    fn news(&self, _: &Drain) -> News<Arc<Session<P>>> {
        let mut state = self.sessions.state();
        let (returned, ends) = (mem::take(&mut state.fresh), mem::take(&mut state.ended));
        News { returned, ends, open: state.open.len() }
    }

    async fn changed(&self) {
        self.sessions.changed.notified().await;
    }

    fn close(&self, session: Arc<Session<P>>) -> impl Future<Output = ()> + Send + 'static {
        session.driver.take_over();
        session.go_on()
    }

    fn all_returned(&self) {
        (self.all_returned)();
    }
}

/// Counts what is left as cut, and cuts it, when it is dropped: at the end of a goodbye, also where the deadline drops that.
struct Rest<'a, P: Send + Sync + 'static> {
    sessions: &'a Sessions<P>,
    drain: &'a Drain,
}

impl<P: Send + Sync + 'static> Drop for Rest<'_, P> {
    fn drop(&mut self) {
        let (mut ended, left) = self.sessions.close_book();
        ended.cut += left.len();
        self.drain.count(ended, 0);
        for session in left {
            session.cut();
        }
    }
}

impl<P: Send + Sync + 'static> Drop for Draining<'_, P> {
    fn drop(&mut self) {
        let (_, left) = self.0.close_book();
        for session in left {
            session.cut();
        }
    }
}

impl<P: Send + Sync + 'static> fmt::Debug for Draining<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Draining").field(self.0).finish()
    }
}
