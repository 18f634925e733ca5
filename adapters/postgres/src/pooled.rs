//! Which session a pooled connection has, and what must not go from one caller to the next with it.
//!
//! The driver's pool makes a connection of what [`Connect`](deadpool_postgres::Connect) opens, and tells neither side about the
//! other. It does so in one go, on one thread, and then calls the hook for what is new.

use std::{
    cell::Cell,
    collections::HashMap,
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use deadpool_postgres::{ClientWrapper, HookError, StatementCache};
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::{sessions::Session, stream::Carries};

thread_local! {
    /// What was opened last on this thread, until it is known which connection has it.
    static OPENED: Cell<Option<Arc<Session>>> = const { Cell::new(None) };
}

/// The next connection that this thread makes has this session. Nothing may be awaited from here until the driver's pool has it.
pub(crate) fn is_next(session: Arc<Session>) {
    OPENED.set(Some(session));
}

type HookResult = Result<(), HookError>;

/// The connections of a pool, each told from others by the cache that it has one of.
#[derive(Default)]
pub(crate) struct Pooled(Mutex<Known>);

type Known = HashMap<usize, (Weak<StatementCache>, Arc<Session>)>;

impl Pooled {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hook for what is new.
    pub(crate) fn enter(&self, client: &ClientWrapper) -> HookResult {
        let Some(session) = OPENED.take() else {
            return Err(HookError::message("which session a new connection has is not known"));
        };
        let mut known = self.known();
        // As long as one is in here nothing else has its address.
        known.retain(|_, (cache, _)| cache.strong_count() > 0);
        let cache = &client.statement_cache;
        known.insert(Arc::as_ptr(cache).addr(), (Arc::downgrade(cache), session));
        Ok(())
    }

    /// The session of this connection.
    pub(crate) fn session(&self, client: &ClientWrapper) -> Option<Arc<Session>> {
        let known = self.known();
        known.get(&Arc::as_ptr(&client.statement_cache).addr()).map(|(_, session)| Arc::clone(session))
    }

    /// Rolls back what is known to be open when a connection comes back, so that it holds no lock while it rests.
    pub(crate) fn comes_back(&self, client: &ClientWrapper) {
        if let Some(session) = self.session(client) {
            roll_back(client, &session);
        }
    }

    /// The hook for what is about to be handed out again: nothing is open on it then. It waits only where that cannot be known,
    /// since the server still has to answer a statement that nobody waits for, and for no longer than `patience`.
    pub(crate) fn is_handed_on<'a>(
        &self,
        client: &'a mut ClientWrapper,
        patience: Duration,
    ) -> Pin<Box<dyn Future<Output = HookResult> + Send + 'a>> {
        let Some(session) = self.session(client) else { return Box::pin(AtRest) };
        if roll_back(client, &session) != Carries::Unknown {
            return Box::pin(AtRest);
        }
        Box::pin(async move {
            let known = async {
                loop {
                    let answers = session.part().answers();
                    if roll_back(client, &session) != Carries::Unknown {
                        return;
                    }
                    session.part().answered_since(answers).await;
                    if client.is_closed() {
                        return;
                    }
                }
            };
            let late = |_| HookError::message("the connection is not done with what its last user asked for");
            timeout(patience, known).await.map_err(late)
        })
    }
}

/// Sends a ROLLBACK if there is a transaction on the session, and says what there was. Nobody waits for the answer: what comes
/// next comes behind it.
fn roll_back(client: &Client, session: &Session) -> Carries {
    session.catch_up();
    let carries = session.part().carries();
    if carries == Carries::Transaction {
        send(client.batch_execute("ROLLBACK"));
        session.catch_up();
    }
    carries
}

/// Sends what is sent by being polled once, and leaves the answer to the driver.
pub(crate) fn send(asked: impl Future) {
    let _ = pin!(asked).poll(&mut Context::from_waker(Waker::noop()));
}

/// Ready at once. It has no size, so that boxing it does not allocate: most connections are at rest when they are handed out.
struct AtRest;

impl Future for AtRest {
    type Output = HookResult;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<HookResult> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_at_rest_costs_no_allocation() {
        assert_eq!(size_of::<AtRest>(), 0);
    }
}
