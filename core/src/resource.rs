//! The trait that an adapter implements, and what core gives it while it drains.

use std::{
    borrow::Cow,
    fmt,
    future::{Future, poll_fn},
    sync::Arc,
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use crate::{
    Error, ErrorKind, Latency,
    gate::Gate,
    plan::RESERVE_FLOOR,
    report::{Accounting, AtCut, Step, Tally},
};

/// Something initialised once and drained once: a pool, a client, a buffer.
///
/// An adapter implements this for its backend; an application hands it to
/// [`Lifecycle::guard`](crate::Lifecycle::guard) and uses the guard. What is the same for all backends (states,
/// counting, retries, order, deadlines, the report) is in core, once; an adapter only speaks to its driver.
///
/// The methods are plain `async fn`s in the trait, not boxed ones, so that a checkout allocates nothing (C1). Core
/// keeps resources behind an object-safe trait of its own.
///
/// # Where the methods run
/// [`init`](Self::init) and [`checkout`](Self::checkout) run on the application's runtime. [`goodbye`](Self::goodbye)
/// and [`cancel`](Self::cancel) run on a thread and a current-thread runtime of their own, which live until the whole
/// lifecycle is drained: a resource that blocks its thread then costs only itself (L2), and a starved application does
/// not keep the others from their goodbye. So these two must not use `block_in_place`, and they may wait for tasks of
/// the application's runtime but must not rely on them alone.
pub trait Resource: Send + Sync + 'static {
    /// The driver's own pool or client. Always reachable through [`ShutdownGuard::pool`](crate::ShutdownGuard::pool).
    type Pool: Send + Sync + 'static;

    /// What callers use: the driver's own pooled connection or handle.
    type Checkout: Send + 'static;

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
    /// - counts with [`Drain::count_closed`] what the server has closed its side of, with [`Drain::count_unconfirmed`] what was ended where
    ///   nobody can see that, and with [`Drain::count_cut`] the rest; with [`Drain::count_ended`] what was closed and cut, and what is
    ///   still open, so that the sum is right at every moment;
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
    /// By default 50 ms. What a [server](Self::latency) needs is added by itself.
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
    /// new accounting each time, as [`LedgerSlot`](crate::LedgerSlot) has them, or those of whatever holds the records.
    fn ledger(&self) -> Option<Arc<dyn Accounting>> {
        None
    }
}

/// Names one resource among all of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId(pub(crate) u64);

/// What a resource can do when it drains. Each field is `true` when the resource can; differences between backends are
/// data, and the report shows what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Says the protocol's goodbye, where closing the socket alone would leave the server guessing.
    pub goodbye: bool,
    /// Sees that the server has closed its side. Where it does not, what it ends is called unconfirmed, not closed.
    pub confirmed_end: bool,
    /// Stops statements on the server.
    pub cancel: bool,
    /// Sees every session, also those that were opened behind the guard's back.
    pub all_sessions: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self { goodbye: true, confirmed_end: true, cancel: true, all_sessions: true };

    /// Nothing.
    pub const NONE: Self = Self { goodbye: false, confirmed_end: false, cancel: false, all_sessions: false };

    /// Of a resource that has no sessions with a server: there is none that it could not end.
    pub const NO_SESSIONS: Self = Self::ALL;

    /// The same with stopping statements on the server.
    #[must_use]
    pub const fn with_cancel(mut self) -> Self {
        self.cancel = true;
        self
    }

    /// The same with seeing that the server has closed its side.
    #[must_use]
    pub const fn with_confirmed_end(mut self) -> Self {
        self.confirmed_end = true;
        self
    }

    /// The same with the protocol's goodbye.
    #[must_use]
    pub const fn with_goodbye(mut self) -> Self {
        self.goodbye = true;
        self
    }

    /// The same with sight of sessions that were opened behind the guard's back.
    #[must_use]
    pub const fn with_all_sessions(mut self) -> Self {
        self.all_sessions = true;
        self
    }

    /// The same without stopping statements on the server.
    #[must_use]
    pub const fn without_cancel(mut self) -> Self {
        self.cancel = false;
        self
    }

    /// The same without seeing that the server has closed its side.
    #[must_use]
    pub const fn without_confirmed_end(mut self) -> Self {
        self.confirmed_end = false;
        self
    }

    /// The same without the protocol's goodbye.
    #[must_use]
    pub const fn without_goodbye(mut self) -> Self {
        self.goodbye = false;
        self
    }

    /// The same without sight of sessions that were opened behind the guard's back.
    #[must_use]
    pub const fn without_all_sessions(mut self) -> Self {
        self.all_sessions = false;
        self
    }

    /// What is missing, in words for the report.
    pub fn missing(&self) -> Vec<Cow<'static, str>> {
        let Self { goodbye, confirmed_end, cancel, all_sessions } = *self;
        [
            (goodbye, "say goodbye"),
            (confirmed_end, "see the server's end"),
            (cancel, "cancel statements"),
            (all_sessions, "see every session"),
        ]
        .into_iter()
        .filter_map(|(can, what)| (!can).then_some(what.into()))
        .collect()
    }
}

/// One drain of one resource, as its adapter sees it: the instants that matter, and where to count.
///
/// The counts are in the report even if the adapter hangs afterwards, so an adapter counts each session when it is
/// sure of it, not at the end.
pub struct Drain {
    pub(crate) deadlines: Deadlines,
    pub(crate) grace: Duration,
    pub(crate) gate: Arc<Gate>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) began: Instant,
}

/// The instants of one drain, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadlines {
    /// Settling ends, cancelling begins.
    pub(crate) settle: Instant,
    /// What is left is cut.
    pub(crate) cut: Instant,
    /// The resource is left as it is.
    pub(crate) end: Instant,
}

/// No further error is quoted beyond this length.
const MOST_QUOTED: usize = 1000;

impl Drain {
    /// When the resource is left as it is, whatever it does.
    pub fn deadline(&self) -> Instant {
        self.deadlines.end
    }

    /// How long what nobody waits for may go on, from when draining begins or its checkout comes back: what is about to end is
    /// let end. Some answers of the server, as [`Resource::latency`] knows it.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Ready when every checkout is back.
    pub async fn until_returned(&self) {
        poll_fn(|context| self.gate.poll_settled(context)).await;
    }

    /// Ready when settling has ended, and the time that is kept for the last resort begins: see [`Resource::reserve`].
    pub async fn until_cancel(&self) {
        tokio::time::sleep_until(self.deadlines.settle).await;
    }

    /// Ready when what is left must be cut, shortly before [`deadline`](Self::deadline).
    pub async fn until_cut(&self) {
        tokio::time::sleep_until(self.deadlines.cut).await;
        self.tally.step(Step::Cut);
        let (after, out) = (self.began.elapsed(), self.gate.out() as u64);
        self.tally.change(|known| {
            known.at_cut.get_or_insert(AtCut { after, out, before: known.sessions.cut });
        });
    }

    /// So many sessions are open at this moment, in no other count. Where the drain is left with them, because it has not ended
    /// in time, has failed or blocks its thread, the report calls them cut: the adapter need not come to that.
    pub fn set_open(&self, sessions: usize) {
        self.tally.change(|known| known.open = sessions as u64);
    }

    /// What has happened since this was last said, at once: so many were closed, so many cut, and so many are still
    /// [open](Self::set_open).
    pub fn count_ended(&self, closed: usize, cut: usize, open: usize) {
        self.tally.change(|known| {
            known.sessions.closed += closed as u64;
            known.sessions.cut += cut as u64;
            known.open = open as u64;
        });
    }

    /// So many sessions said goodbye, and the server has closed its side.
    pub fn count_closed(&self, sessions: usize) {
        self.tally.change(|known| known.sessions.closed += sessions as u64);
    }

    /// So many sessions were ended from our side in order, and nobody can see whether the server has closed its own. Where the
    /// capabilities say that this is so of [all](Capabilities::confirmed_end), what is counted as closed counts as this.
    pub fn count_unconfirmed(&self, sessions: usize) {
        self.tally.change(|known| known.sessions.unconfirmed += sessions as u64);
    }

    /// So many sessions were cut, or are left to the end of the process.
    pub fn count_cut(&self, sessions: usize) {
        self.tally.change(|known| known.sessions.cut += sessions as u64);
    }

    /// So many sessions that the drain itself opened were not seen to end: those that ask a server, or cancel. They are of none of
    /// the pool's, and in no other count.
    pub fn count_left_behind(&self, sessions: usize) {
        self.tally.change(|known| known.sessions.left_behind += sessions as u64);
    }

    /// Quotes an error in the report, without making the outcome a failure. Several are quoted one after the other, each once.
    pub fn note(&self, error: &Error) {
        let text = error.to_string();
        self.tally.change(|known| match &mut known.error {
            Some(known) if known.contains(&text) => {}
            Some(known) if known.len() < MOST_QUOTED => {
                known.push_str("; ");
                known.push_str(&text);
            }
            // Whoever fails this often has been quoted enough.
            Some(_) => {}
            None => known.error = Some(text),
        });
    }

    /// Says in the report that something has gone another way than a drain in order: the outcome is
    /// [`Incomplete`](crate::Outcome::Incomplete), for this reason.
    pub fn incomplete(&self, reason: String) {
        self.tally.change(|known| {
            known.is_incomplete = true;
            known.reasons.push(reason);
        });
    }

    /// Says in the report why something was not done. That alone is no failure.
    pub fn reason(&self, reason: String) {
        self.tally.change(|known| known.reasons.push(reason));
    }

    /// The server was asked to stop so many statements.
    pub fn count_cancelled(&self, statements: usize) {
        self.tally.change(|known| known.sessions.cancelled += statements as u64);
    }

    /// Waits for all of these, each of which asks the server to stop one statement, and counts those that succeed when
    /// they do.
    ///
    /// # Cancel safety
    /// Those that are not over are aborted when it is dropped; what was counted stands.
    ///
    /// # Errors
    /// The error of the last one that failed.
    pub async fn await_cancels(&self, mut asking: JoinSet<Result<(), Error>>) -> Result<(), Error> {
        let mut result = Ok(());
        while let Some(asked) = asking.join_next().await {
            let panicked =
                |error| Error::new(ErrorKind::Panicked, "cancelling a statement panicked").with_source(error);
            match asked.map_err(panicked).flatten() {
                Ok(()) => self.count_cancelled(1),
                Err(error) => result = Err(error),
            }
        }
        result
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain").field("deadlines", &self.deadlines).finish_non_exhaustive()
    }
}
