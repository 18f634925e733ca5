//! A pool that the application built: what it hands out is known from here on, and what can be done for it from outside.

mod goodbye;
mod leave;
mod server;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Instant,
};

use deadpool_postgres::{Client, ClientWrapper, Pool, PoolError, StatementCache};
use futures_util::{FutureExt as _, TryStreamExt as _};
use tokio::{runtime::Handle, sync::Notify};
use tokio_postgres::{CancelToken, SimpleQueryMessage, SimpleQueryStream};
use winddown_core::{
    Error,
    adapter::{Drain, Getting, Latency, Lender},
};

use crate::{
    config::CONNECT_TIMEOUT,
    pooled::send,
    token::CancelKey,
    wrapped::{
        goodbye::{Goodbye, Held},
        server::{Listed, SessionId},
    },
};

type Id = deadpool_postgres::ObjectId;

pub(crate) struct Wrapped {
    pool: Pool,
    state: Mutex<State>,
    /// A checkout came back, or cancelling has begun.
    changed: Notify,
    latency: Arc<Latency>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    /// What runs is to be stopped.
    is_cancelling: bool,
    /// Every connection that the guard has handed out once, by the address of its cache. As long as one is in here nothing else has
    /// that.
    known: HashMap<usize, Known>,
    /// Those that the guard has handed out, and that are not back.
    out: HashSet<Id>,
    /// How many the guard is giving back to the pool at this moment: neither out nor idle.
    returning: usize,
    /// How many callers wait for one, or have left one behind that is being opened.
    getting: usize,
    /// Those that came back and carry nothing.
    clean: HashMap<Id, Clean>,
    returned: Vec<Held>,
}

impl State {
    /// Whether the drain is to take one over yet. One that is being opened for a caller who has gone comes back too, and may have come
    /// since the drain last took over what had: all of that is asked at one moment.
    fn is_one_coming_back(&self) -> bool {
        self.getting > 0 || self.returning > 0 || !self.returned.is_empty()
    }
}

/// A connection whose caller's transaction was ended.
struct Clean {
    /// How often it had been handed out by then, whoever asked for it.
    times: usize,
    /// The answer to that.
    answer: Option<SimpleQueryStream>,
    /// The same of the caller before, as long as nobody has waited for it.
    before: Option<SimpleQueryStream>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Draining: what comes back is taken over.
    Draining,
    /// Draining: what comes back is taken over, and counts as out for the pool, from which is taken what others give back to it.
    Collecting,
    /// Drained: what comes back is closed as it is.
    Over,
}

/// What is known of a connection.
#[derive(Clone)]
struct Known {
    /// There while the connection is.
    cache: Weak<StatementCache>,
    token: CancelToken,
    /// What the server says which one it is, once it has.
    session: Arc<OnceLock<Session>>,
}

/// Which session it is.
#[derive(Debug, Clone, Copy)]
enum Session {
    /// The server gave it this name.
    Direct(Listed),
    /// A pooler has it, and tells nobody which session of the server's it uses.
    Pooled,
    /// The server does not say.
    Unknown,
}

impl Session {
    /// Of what a connection with this token has answered.
    fn of(token: &CancelToken, answer: &[SimpleQueryMessage]) -> Self {
        let Some(listed) = answer.iter().find_map(server::listed) else { return Self::Unknown };
        // A pooler makes up numbers of its own for its clients.
        let is_direct = CancelKey::of(token).is_some_and(|key| key.process_id() == listed.id.pid);
        if is_direct { Self::Direct(listed) } else { Self::Pooled }
    }

    fn id(&self) -> Option<SessionId> {
        match self {
            Self::Direct(listed) => Some(listed.id),
            Self::Pooled | Self::Unknown => None,
        }
    }
}

impl Known {
    fn of(client: &ClientWrapper) -> Self {
        let cache = Arc::downgrade(&client.statement_cache);
        Self { cache, token: client.cancel_token(), session: Arc::default() }
    }

    fn id(&self) -> Option<SessionId> {
        self.session.get().and_then(Session::id)
    }

    /// What the server has called it. Others may be called so later.
    fn pid(&self) -> Option<i32> {
        CancelKey::of(&self.token).map(CancelKey::process_id)
    }
}

fn key(client: &ClientWrapper) -> usize {
    Arc::as_ptr(&client.statement_cache).addr()
}

impl Wrapped {
    pub(crate) fn new(pool: Pool, latency: Arc<Latency>) -> Self {
        Self { pool, state: Mutex::default(), changed: Notify::new(), latency }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets one from the pool.
    ///
    /// # Cancel safety
    /// A session that is being opened for a caller who goes is opened to its end, and given back: its driver would close the socket
    /// as it is.
    pub(crate) async fn get(self: &Arc<Self>) -> Result<Client, PoolError> {
        let wrapped = Arc::clone(self);
        let getting = async move {
            let client = wrapped.pool.get().await?;
            let before = wrapped.state().clean.get_mut(&Client::id(&client)).and_then(|clean| clean.before.take());
            if let Some(before) = before {
                // It is there if the last caller has asked for anything and waited. Callers who do not, and are faster than the
                // server, would have it queue up there. Whatever it is: a connection that is over shows that to its user.
                let mut before = pin!(before);
                while let Ok(Some(_)) = before.try_next().await {}
            }
            Ok(client)
        };
        // As long as opening one may take in a pool of the adapter's own.
        Getting::new(self, getting, CONNECT_TIMEOUT).await
    }

    pub(crate) fn hands_out(&self, client: &Client) {
        let (id, times) = (Client::id(client), Client::metrics(client).recycle_count);
        let (times_clean, is_new) = {
            let mut state = self.state();
            state.out.insert(id);
            (state.clean.get(&id).map(|clean| clean.times), !state.known.contains_key(&key(client)))
        };
        // It is new, or nobody has had it since it came back here.
        if times > 0 && times_clean != Some(times - 1) {
            roll_back(client);
        }
        if is_new {
            self.gets_to_know(client);
        }
    }

    /// Asks the server which session this is, in front of what its user asks, and waits for nothing: a drain may find it busy, and
    /// has to tell it from others then.
    fn gets_to_know(&self, client: &ClientWrapper) {
        let known = Known::of(client);
        let (token, session) = (known.token.clone(), Arc::clone(&known.session));
        {
            let mut state = self.state();
            state.known.retain(|_, known| known.cache.strong_count() > 0);
            state.known.insert(key(client), known);
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if let Some(Ok(answer)) = client.simple_query_raw(&server::own()).now_or_never() {
            let (latency, asked) = (Arc::clone(&self.latency), Instant::now());
            runtime.spawn(async move {
                if let Ok(answer) = answer.try_collect::<Vec<_>>().await {
                    latency.saw(asked.elapsed());
                    // Set once, here, unless the drain was sooner.
                    let _ = session.set(Session::of(&token, &answer));
                }
            });
        }
    }

    pub(crate) fn give_back(&self, client: Client) {
        let (id, times) = (Client::id(&client), Client::metrics(&client).recycle_count);
        let answer = if self.pool.is_closed() { None } else { roll_back(&client) };
        let mut state = self.state();
        if state.clean.len() >= MOST_CLEAN {
            // Those that are gone tell nobody. The others are rolled back once more than they need be.
            state.clean.clear();
        }
        let before = state.clean.remove(&id).and_then(|clean| clean.answer);
        state.clean.insert(id, Clean { times, answer, before });
        state.out.remove(&id);
        let phase = state.phase;
        state.returning += 1;
        drop(state);
        match phase {
            Phase::Open | Phase::Over => drop(client),
            Phase::Draining => {
                let client = Client::take(client);
                self.state().returned.push(Held::Taken(client));
            }
            // Not to the pool, which may be about to be closed, and would end it as it is.
            Phase::Collecting => self.state().returned.push(Held::Pooled(client)),
        }
        self.state().returning -= 1;
        self.changed.notify_one();
    }

    /// Closes the connection as it is.
    #[cfg(feature = "buffer")]
    pub(crate) fn abandon(&self, client: Client) {
        self.state().out.remove(&Client::id(&client));
        drop(Client::take(client));
        self.changed.notify_one();
    }

    /// Has every connection say goodbye when its statement is over, and asks the server until it lists none of them.
    pub(crate) async fn goodbye(&self, drain: &Drain) -> Result<(), Error> {
        Goodbye::new(self, drain).say().await
    }

    /// Has what runs stopped, by whoever says the goodbyes.
    pub(crate) fn cancel(&self) {
        self.state().is_cancelling = true;
        self.changed.notify_one();
    }
}

impl Lender<Client> for Wrapped {
    fn begin_getting(&self) {
        self.state().getting += 1;
    }

    fn end_getting(&self) {
        self.state().getting -= 1;
        self.changed.notify_one();
    }

    fn give_back(self: &Arc<Self>, client: Client) {
        Self::give_back(self, client);
    }
}

/// How many connections are known to carry nothing.
const MOST_CLEAN: usize = 1024;

/// Ends a transaction, if there is one, without waiting for the answers, of which the last is returned. The driver of such a pool
/// does not say whether there is, and a server writes to its log that it was told to end none; so one is begun first, which is an error or a warning only where
/// there is one.
fn roll_back(client: &ClientWrapper) -> Option<SimpleQueryStream> {
    send(client.batch_execute("BEGIN"));
    // Sent by being polled once.
    client.simple_query_raw("ROLLBACK").now_or_never()?.ok()
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrapped").field("pool", &self.pool.status()).finish()
    }
}
