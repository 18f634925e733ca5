//! A pool that the application has built, as a resource: who has what, and how each session ends.

mod draining;
mod state;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Notify};
use winddown_core::{
    Capabilities, Checkouts, Error, ErrorKind, Resource,
    adapter::{Drain, End, Getting, Lender, Size},
};

use crate::{
    Driver,
    lends::Lends,
    sight::Sight,
    speaks::{Lent, Speaks},
    wrapped::state::{Phase, State},
};

/// How long a session may take to open for a caller who has gone, or for the pool itself, until it is given up: its server may be gone.
const OPENING: Duration = Duration::from_secs(5);

/// What is kept for cancelling and the last goodbyes, of a budget that has as much twice.
const RESERVE: Duration = Duration::from_secs(3);

/// A pool that the application has built, as a resource. The adapters of pools have names for it: `Bb8`, `Deadpool`, `R2d2`.
///
/// Its drain has every session say goodbye as soon as nobody has it, and stops what is not waited for, as far as its
/// [`Speaks`] can. What others have taken from the pool is waited for, and counted; it is not stopped.
pub struct Wrapped<L: Lends, S = Driver> {
    shared: Arc<Shared<L, S>>,
}

pub(crate) struct Shared<L: Lends, S> {
    pool: L::Pool,
    speaks: S,
    state: Mutex<State<L::Object>>,
    openings: Mutex<L::Openings>,
    /// One came back, or has ended, or cancelling has begun.
    changed: Notify,
    /// Those who wait for a connection wait in vain.
    in_vain: Notify,
    sight: Sight,
    /// That of the application, which goes on after the drain.
    runtime: OnceLock<Handle>,
}

impl<L: Lends> Wrapped<L> {
    /// This pool, whose connections are of a driver that is [known](Driver). It is drained even if it was never used through the
    /// guard.
    pub fn wrap(pool: L::Pool) -> Self {
        Self { shared: Arc::new(Shared::new(pool, Driver)) }
    }
}

impl<L: Lends, S> Wrapped<L, S> {
    /// The same with another way to speak with the server: [`Closures`](crate::Closures), or one of your own.
    #[must_use]
    pub fn session_with<T: Speaks<L::Connection>>(self, speaks: T) -> Wrapped<L, T> {
        Wrapped { shared: Arc::new(Shared::new(self.shared.pool.clone(), speaks)) }
    }
}

impl<L: Lends, S> Shared<L, S> {
    fn new(pool: L::Pool, speaks: S) -> Self {
        let state = Mutex::new(State::new());
        let openings = Mutex::new(L::Openings::default());
        let (changed, in_vain) = (Notify::new(), Notify::new());
        Self { pool, speaks, state, openings, changed, in_vain, sight: Sight::default(), runtime: OnceLock::new() }
    }

    fn state(&self) -> MutexGuard<'_, State<L::Object>> {
        // Each change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L: Lends, S: Speaks<L::Connection>> Shared<L, S> {
    async fn get(self: &Arc<Self>) -> Result<Lent<L::Object>, Error> {
        if self.runtime.get().is_none()
            && let Ok(runtime) = Handle::try_current()
        {
            // Another caller's is as good.
            let _ = self.runtime.set(runtime);
        }
        let shared = Arc::clone(self);
        let from_pool = async move {
            tokio::select! {
                biased;
                got = L::get(&shared.pool) => got,
                () = shared.in_vain.notified() => Err(Error::new(ErrorKind::Checkout, "no connection is opened any more")),
            }
        };
        let mut object = Getting::new(self, from_pool, OPENING).await?;
        let canceller = self.speaks.canceller(&mut object);
        let number = self.state().enter(canceller);
        Ok(Lent { object, number })
    }

    fn give_back(self: &Arc<Self>, lent: Lent<L::Object>) {
        let Lent { object, number } = lent;
        let condition = if self.speaks.resets() { Condition::NeedsReset } else { Condition::Ready };
        let back = Back { shared: Arc::clone(self), number, object: Some(object), condition };
        let phase = self.state().is_back(number);
        if condition == Condition::Ready || !matches!(phase, Phase::Open) {
            return;
        }
        // On a thread without a runtime it is done by that of whoever got one first. Where there is none it ends instead.
        if let Some(runtime) = Handle::try_current().ok().as_ref().or_else(|| self.runtime.get()) {
            runtime.spawn(back.reset());
        }
    }
}

/// One that came back from who had it.
struct Back<L: Lends, S: Speaks<L::Connection>> {
    shared: Arc<Shared<L, S>>,
    number: u64,
    /// There until this is dropped.
    object: Option<L::Object>,
    condition: Condition,
}

/// What the next caller would find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// Something of the last one, perhaps.
    NeedsReset,
    /// Nothing of the last one.
    Ready,
    /// It was found broken while it was reset: somebody else has ended it.
    Ended,
}

impl<L: Lends, S: Speaks<L::Connection>> Back<L, S> {
    /// For as long as a statement takes that nobody waits for: until then the connection is of no use to anybody.
    async fn reset(mut self) {
        let shared = Arc::clone(&self.shared);
        if let Some(object) = &mut self.object {
            let was_abandoned = shared.speaks.is_abandoned(object);
            shared.speaks.reset(object).await;
            let has_ended = !was_abandoned && shared.speaks.is_abandoned(object);
            self.condition = if has_ended { Condition::Ended } else { Condition::Ready };
        }
    }
}

impl<L: Lends, S: Speaks<L::Connection>> Drop for Back<L, S> {
    fn drop(&mut self) {
        let Some(mut object) = self.object.take() else { return };
        let Self { shared, number, condition, .. } = self;
        {
            let mut state = shared.state();
            match state.phase {
                Phase::Draining(_) if *condition == Condition::Ended => state.ends.record(End::Unconfirmed),
                Phase::Draining(_) => {
                    state.returned.push((*number, object));
                    drop(state);
                    return shared.changed.notify_one();
                }
                Phase::Open if *condition == Condition::Ready => {
                    // A drain that begins now leaves the pool open until it is there.
                    state.sessions.remove(number);
                    drop(state);
                    drop(object);
                    return shared.changed.notify_one();
                }
                Phase::Open | Phase::Over => {}
            }
        }
        shared.speaks.cut(&mut object);
        L::take(object).over();
        let mut state = shared.state();
        state.sessions.remove(number);
        if L::KEEPS {
            state.ended += 1;
        }
        drop(state);
        shared.changed.notify_one();
    }
}

impl<L: Lends, S: Speaks<L::Connection>> Lender<L::Object> for Shared<L, S> {
    fn begin_getting(&self) {
        self.state().getting += 1;
    }

    fn end_getting(&self) {
        self.state().getting -= 1;
        self.changed.notify_one();
    }

    fn give_back(self: &Arc<Self>, object: L::Object) {
        let number = self.state().enter(None);
        self.state().is_back(number);
        // Nobody has had it.
        drop(Back { shared: Arc::clone(self), number, object: Some(object), condition: Condition::Ready });
    }
}

impl<L: Lends, S: Speaks<L::Connection>> Resource for Wrapped<L, S> {
    type Pool = L::Pool;

    fn name(&self) -> &str {
        L::NAME
    }

    async fn init(&self) -> Result<L::Pool, Error> {
        Ok(self.shared.pool.clone())
    }

    fn opened(&self) -> Option<L::Pool> {
        Some(self.shared.pool.clone())
    }

    async fn goodbye(&self, _: &L::Pool, drain: &Drain) -> Result<(), Error> {
        self.shared.goodbye(drain).await
    }

    async fn cancel(&self, _: &L::Pool, _: &Drain) -> Result<(), Error> {
        // By whoever says the goodbyes.
        self.shared.state().is_cancelling = true;
        self.shared.changed.notify_one();
        Ok(())
    }

    fn size(&self, pool: &L::Pool) -> Option<Size> {
        Some(L::size(pool))
    }

    fn capabilities(&self) -> Capabilities {
        let can = self.shared.speaks.capabilities();
        match L::KEEPS && !self.shared.speaks.is_in_place() {
            true => can.without_goodbye().without_confirmed_end(),
            false => can,
        }
    }

    fn reserve(&self, _: &L::Pool) -> Duration {
        RESERVE
    }
}

impl<L: Lends, S: Speaks<L::Connection>> Checkouts for Wrapped<L, S> {
    type Checkout = Lent<L::Object>;

    async fn checkout(&self, _: &L::Pool) -> Result<Lent<L::Object>, Error> {
        self.shared.get().await
    }

    fn give_back(&self, _: &L::Pool, checkout: Lent<L::Object>) {
        self.shared.give_back(checkout);
    }
}

impl<L: Lends, S> fmt::Debug for Wrapped<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size { open, idle } = L::size(&self.shared.pool);
        f.debug_struct("Wrapped").field("kind", &L::NAME).field("open", &open).field("idle", &idle).finish()
    }
}
