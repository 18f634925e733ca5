//! A pool that the application built: what can be done for it from outside.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use deadpool_postgres::{Client, ClientWrapper, Pool};
use tokio::{sync::Notify, task::JoinSet};
use tokio_postgres::CancelToken;
use winddown_core::{Error, ErrorKind, adapter::Drain};

use crate::{error::error, pooled::send, tls};

type Id = deadpool_postgres::ObjectId;

pub(crate) struct Wrapped {
    pool: Pool,
    state: Arc<Mutex<State>>,
    came_back: Notify,
}

#[derive(Default)]
struct State {
    draining: bool,
    /// How to cancel what runs on those that are out, or idle and not known to be at rest.
    tokens: HashMap<Key, CancelToken>,
    /// Those that came back and carry nothing, by how often they had been handed out by then, whoever asked for them.
    clean: HashMap<Id, usize>,
    returned: Vec<ClientWrapper>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Out(Id),
    /// Taken out of the pool by the drain.
    Idle(usize),
}

impl Wrapped {
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool, state: Arc::default(), came_back: Notify::new() }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn hands_out(&self, client: &Client) {
        let (id, times) = (Client::id(client), Client::metrics(client).recycle_count);
        let clean = {
            let mut state = self.state();
            state.tokens.insert(Key::Out(id), client.cancel_token());
            state.clean.remove(&id)
        };
        // It is new, or nobody has had it since it came back here.
        if times > 0 && clean != Some(times - 1) {
            roll_back(client);
        }
    }

    pub(crate) fn give_back(&self, client: Client) {
        let (id, times) = (Client::id(&client), Client::metrics(&client).recycle_count);
        if !self.pool.is_closed() {
            roll_back(&client);
        }
        let mut state = self.state();
        if state.clean.len() >= MOST_CLEAN {
            // Those that are gone tell nobody. The others are rolled back once more than they need be.
            state.clean.clear();
        }
        state.clean.insert(id, times);
        state.tokens.remove(&Key::Out(id));
        if state.draining {
            state.returned.push(Client::take(client));
            drop(state);
            self.came_back.notify_one();
        }
    }

    /// Closes the connection as it is.
    #[cfg(feature = "buffer")]
    pub(crate) fn abandon(&self, client: Client) {
        self.state().tokens.remove(&Key::Out(Client::id(&client)));
        drop(Client::take(client));
        self.came_back.notify_one();
    }

    /// Closes every connection when its statement is over. The driver says no goodbye and sees no end, so what ended in time is
    /// unconfirmed.
    pub(crate) async fn goodbye(&self, drain: &Drain) -> Result<(), Error> {
        self.state().draining = true;
        let idle = self.pool.retain(|_, _| false).removed;
        self.pool.close();
        self.state().returned.extend(idle);

        let mut closing = JoinSet::new();
        let mut last = 0;
        let mut settled = false;
        loop {
            let returned = std::mem::take(&mut self.state().returned);
            for client in returned {
                last += 1;
                let key = Key::Idle(last);
                self.state().tokens.insert(key, client.cancel_token());
                let state = Arc::clone(&self.state);
                closing.spawn(async move {
                    // Answered when all that runs on it is over. An error says that it is closed already.
                    let _ = client.simple_query("").await;
                    lock(&state).tokens.remove(&key);
                });
            }
            // Those that were taken from the pool directly tell nobody when they come back.
            if settled && closing.is_empty() && self.pool.status().size == 0 {
                return Ok(());
            }
            tokio::select! {
                Some(_) = closing.join_next() => drain.count_unconfirmed(1),
                () = self.came_back.notified() => {}
                () = drain.until_returned(), if !settled => settled = true,
                () = drain.until_cut() => {
                    drain.count_cut(closing.len() + self.pool.status().size);
                    return Ok(());
                }
            }
        }
    }

    /// Asks the server to stop whatever runs. The request goes as the driver sends it: what is between us and the server
    /// may lose it (PgBouncer does), since nobody waits for an answer.
    pub(crate) async fn cancel(&self, drain: &Drain) -> Result<(), Error> {
        // Only a number that is worth nothing once the session has ended goes this way, so nobody checks whom it reaches;
        // whether it is encrypted is for the pool's own configuration to say.
        let connector = tls::unchecked()?;
        let mut asking = JoinSet::new();
        let tokens: Vec<CancelToken> = self.state().tokens.values().cloned().collect();
        for token in tokens {
            let connector = connector.clone();
            asking.spawn(async move {
                let failed = |failure: tokio_postgres::Error| {
                    error(ErrorKind::Incomplete, "cannot cancel a statement", failure.into())
                };
                token.cancel_query(connector).await.map_err(failed)
            });
        }
        drain.await_cancels(asking).await
    }
}

/// How many connections are known to carry nothing.
const MOST_CLEAN: usize = 1024;

/// Ends a transaction, if there is one, without waiting for the answers. The driver of such a pool does not say whether there is,
/// and a server writes to its log that it was told to end none; so one is begun first, which is an error or a warning only where
/// there is one.
fn roll_back(client: &Client) {
    send(client.batch_execute("BEGIN"));
    send(client.batch_execute("ROLLBACK"));
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrapped").field("pool", &self.pool.status()).finish()
    }
}
