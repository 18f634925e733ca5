//! The traits that an adapter implements: [`Resource`], and [`Checkouts`] where there is something to check out.

use std::{future::Future, sync::Arc, time::Duration};

use crate::{Capabilities, Error, accounting::Accounting, drain::Drain, latency::Latency, reserve::RESERVE_FLOOR};

/// Something initialised once and drained once: a pool, a client, a buffer.
///
/// An adapter implements this for its backend; an application hands it to
/// [`Lifecycle::guard`](crate::Lifecycle::guard) and uses the guard. What is the same for all backends (states,
/// counting, retries, order, deadlines, the report) is in core, once; an adapter only speaks to its driver.
///
/// The methods are plain `async fn`s in the trait, not boxed ones, so that a checkout allocates nothing (C1). Core
/// keeps resources behind an object-safe trait of its own.
///
/// What has something to check out implements [`Checkouts`] too.
///
/// # Where the methods run
/// [`init`](Self::init) and [`checkout`](Checkouts::checkout) run on the application's runtime. [`goodbye`](Self::goodbye)
/// and [`cancel`](Self::cancel) run on a thread and a current-thread runtime of their own, which live until the whole
/// lifecycle is drained: a resource that blocks its thread then costs only itself (L2), and a starved application does
/// not keep the others from their goodbye. So these two must not use `block_in_place`, and they may wait for tasks of
/// the application's runtime but must not rely on them alone.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no resource: the lifecycle does not know how to open it and how it says goodbye",
    label = "a pool of a driver, or a client?",
    note = "a pool that you have built is wrapped by its adapter: `guard(Postgres::wrap(pool))`, `guard(Redis::wrap(manager))`",
    note = "a client without an adapter is described by closures: `guard(Client::new(\"orders\", connect).close(|client| ..))`"
)]
pub trait Resource: Send + Sync + 'static {
    /// The driver's own pool or client. Always reachable through [`ShutdownGuard::pool`](crate::ShutdownGuard::pool).
    type Pool: Send + Sync + 'static;

    /// The name it has in reports, unless the application gives another.
    fn name(&self) -> &str;

    /// Opens the pool, and proves that it works: a pool that connects lazily makes its first connection here.
    ///
    /// # Cancel safety
    /// Need not be cancel safe: it is cancelled only while draining, when its time is up, and not called again.
    ///
    /// # Errors
    /// [`retryable`](Error::retryable) for what may pass (the server starts up, is full); core tries those again.
    fn init(&self) -> impl Future<Output = Result<Self::Pool, Error>> + Send;

    /// A pool that is open already: one that the application built and wrapped. It counts as initialised from the
    /// start, so it is drained even if it was never used through the guard.
    fn opened(&self) -> Option<Self::Pool> {
        None
    }

    /// Draining has begun, and may come to this resource only later, when what depends on it is over: what must not wait until then is
    /// begun here. By default nothing is. Called at most once in each life of a resource that is initialised, and not always before
    /// [`goodbye`](Self::goodbye) is; must not block, and must not panic.
    fn draining(&self, pool: &Self::Pool) {
        let _ = pool;
    }

    /// Ends every session: steps 2, 3 and 5 of the drain protocol.
    ///
    /// Called once, after checkouts are refused. The adapter
    /// - says goodbye to every idle session at once, concurrently, without waiting for those that are out;
    /// - says goodbye to each one that comes back, when it comes back;
    /// - asks the server to stop what nobody waits for any more, once that has lasted for [`Drain::grace`]: a statement whose
    ///   future was dropped, and whose checkout is back, would hold up the drain for as long as it takes (L6);
    /// - from [`Drain::until_cut`] on cuts what is left;
    /// - counts with [`Drain::count`] how each session ended, and how many are still open, so that the sum is right at every
    ///   moment;
    /// - returns when every checkout is back ([`Drain::until_returned`]) and no session is left: a caller that was connecting
    ///   when draining began may still open one.
    ///
    /// # Cancel safety
    /// Is dropped at its deadline if it has not returned. What it counted until then stands in the report.
    ///
    /// # Errors
    /// Anything that kept it from ending its sessions; the report quotes it.
    fn goodbye(&self, pool: &Self::Pool, drain: &Drain) -> impl Future<Output = Result<(), Error>> + Send;

    /// Asks the *server* to stop what stragglers run: step 4. Runs beside [`goodbye`](Self::goodbye), once, when
    /// settling has ended and something still runs, also where no checkout is out (a dropped query future whose
    /// statement runs on). Counts with [`Drain::count_cancelled`].
    ///
    /// # Cancel safety
    /// Is dropped when the second settle ends.
    ///
    /// # Errors
    /// Anything that kept it from asking; the report quotes it, and the outcome stays that of the goodbye.
    fn cancel(&self, pool: &Self::Pool, drain: &Drain) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = (pool, drain);
        std::future::ready(Ok(()))
    }

    /// Sees to it that what it holds is where it belongs: a buffer's records in the database, an exporter's spans with the
    /// collector. Called by [`Lifecycle::flush`](crate::Lifecycle::flush) while the process lives on, on the application's
    /// runtime, which it must not block; a drain does not call it, its [`goodbye`](Self::goodbye) flushes. By default
    /// there is nothing to do.
    ///
    /// # Cancel safety
    /// Must be cancel safe: callers give up waiting. What is under way may go on.
    ///
    /// # Errors
    /// Anything that kept it from it, or says that something is lost.
    fn flush(&self, pool: &Self::Pool) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = pool;
        std::future::ready(Ok(()))
    }

    /// What this resource can do, as it is set up. What it cannot is shown in the report.
    ///
    /// By default nothing is claimed. A resource without sessions, as a buffer, has
    /// [none that it could not end](Capabilities::NO_SESSIONS). Asked for once for each life when that begins, and once more when
    /// it is initialised, which counts: what only a server can tell is known by then.
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    /// How long the server takes to answer, as the adapter sees it from the first session on; none where there is no server.
    /// Asked for once for each life, before it is initialised in that life.
    ///
    /// With it, time is kept for cancelling and for the last goodbyes: eight answers as the server gives them now, and half a
    /// second where the budget has that much, but of a short budget half at most.
    fn latency(&self) -> Option<Arc<Latency>> {
        None
    }

    /// The time to keep at the least for what comes when settling has ended: cancelling and the last goodbyes, or whatever this
    /// resource does with what it could not end in order. Half of the budget is for that at most, of all resources together.
    ///
    /// By default 50 ms. What a [server](Self::latency) needs is added by itself. Who asks for more than the default gets half a second
    /// where the budget has that much.
    fn reserve(&self, pool: &Self::Pool) -> Duration {
        let _ = pool;
        RESERVE_FLOOR
    }

    /// Where its server is, for errors and reports: `db.example:5432`, several with commas between. Without user or password.
    /// Asked for once for each life. By default it is not known.
    fn address(&self) -> Option<String> {
        None
    }

    /// The resources this one uses, and must therefore be drained before (S4): the
    /// [`id`](crate::ShutdownGuard::id)s of the guards it holds.
    fn depends_on(&self) -> Vec<ResourceId> {
        Vec::new()
    }

    /// Whether it is drained after all that do not say so, in time that is kept for it: telemetry, which tells of the
    /// others. It must not [depend](Self::depends_on) on one that does not say so.
    fn drains_last(&self) -> bool {
        false
    }

    /// Whether it can be initialised again after its drain, in a further life of its lifecycle: see
    /// [`Lifecycle::restart`](crate::Lifecycle::restart). Where it cannot, its guard refuses from then on, and it is in
    /// no further report.
    ///
    /// By default what was [opened](Self::opened) by the application cannot, since nobody here could open it again.
    fn is_restartable(&self) -> bool {
        self.opened().is_none()
    }

    /// The accounting of a resource that buffers records. Asked for once for each life, before it is initialised in that life:
    /// new accounting each time, as [`LedgerSlot`](crate::adapter::LedgerSlot) has them, or those of whatever holds the records.
    fn ledger(&self) -> Option<Arc<dyn Accounting>> {
        None
    }

    /// How many sessions the pool has open, and how many of them are idle, where that is known: what
    /// [`ShutdownGuard::status`](crate::ShutdownGuard::status) shows. Must not block. By default it is not known.
    fn size(&self, pool: &Self::Pool) -> Option<Size> {
        let _ = pool;
        None
    }
}

/// A resource whose guard hands out checkouts: what [`ShutdownGuard::get`](crate::ShutdownGuard::get) is for.
///
/// Both methods are on the path of every checkout, so they are plain `async fn`s and allocate nothing of their own (C1).
#[diagnostic::on_unimplemented(
    message = "`{Self}` has nothing to check out",
    note = "what it was opened as is reached by `guard.pool().await`; a resource that hands something out implements `Checkouts` too"
)]
pub trait Checkouts: Resource {
    /// What callers use: the driver's own pooled connection or handle.
    type Checkout: Send + 'static;

    /// Gets one checkout from the pool.
    ///
    /// # Cancel safety
    /// Must be cancel safe: core drops it when draining begins.
    ///
    /// # Errors
    /// The driver's error as the source. Core does not try again.
    fn checkout(&self, pool: &Self::Pool) -> impl Future<Output = Result<Self::Checkout, Error>> + Send;

    /// Takes back what [`checkout`](Self::checkout) gave. By default it is dropped, which returns it to most pools; an
    /// adapter that must see what comes back while it drains does so here. Must not block and must not panic: it runs
    /// in a destructor.
    fn give_back(&self, pool: &Self::Pool, checkout: Self::Checkout) {
        let _ = pool;
        drop(checkout);
    }
}

/// How many sessions a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "adapters make it, and a pool has no more to say of its size")]
pub struct Size {
    /// That are open.
    pub open: usize,
    /// Those of them that nobody has, where that is known.
    pub idle: Option<usize>,
}

/// Names one resource among all of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId(pub(crate) u64);
