//! One resource in the registry, and the drain protocol of one resource.

use std::{
    io,
    panic::Location,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, timeout_at};

use crate::{
    Capabilities, Error, ErrorKind, Resource, ResourceId, Status, Step,
    accounting::Accounting,
    dependent::with_dependent_access,
    drain::{Deadlines, Drain},
    gate::{Admits, Gate, wake},
    init::{InitCell, Retry},
    latency::Latency,
    panics,
    report::in_words,
    reserve::{RESERVE_FLOOR, Reserve},
    standby::{Drainer, Needs, Own, Standby},
    ticket::{Gated, Ticket},
};

/// How long an initialisation that is under way may still take. A server that is there has answered by then; one that
/// is not must not use up the 30 s of a platform that gives them.
const INIT_PATIENCE: Duration = Duration::from_secs(1);

/// When a node is drained, relative to the others that do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Before all others: tracked work.
    First,
    Normal,
    /// After all others: telemetry.
    Last,
}

/// A resource as the lifecycle sees it, whatever its types. But for `init`, `flush` and `drain` nothing here runs foreign code,
/// so that the conductor can call it.
#[async_trait]
pub(crate) trait Node: Send + Sync {
    fn facts(&self) -> &Facts;
    fn gate(&self) -> &Arc<Gate>;
    /// The time to keep for cancelling and for the last goodbyes; none where nothing is initialised.
    fn reserve(&self) -> Reserve;
    /// What it can do, as far as that is known by now.
    fn capabilities(&self) -> Capabilities;
    async fn init(self: Arc<Self>) -> Result<(), Error>;
    /// The initialisation that is under way, if one is.
    fn unfinished(&self) -> Option<Unfinished>;
    /// Ends it: there has been time enough.
    fn give_up(&self);
    /// How its pool stands at this moment. Asks the resource for its size.
    #[cfg(feature = "metrics")]
    fn status(&self) -> Status;
    async fn flush(self: Arc<Self>) -> Result<(), Error>;
    /// What it is drained on, once.
    fn drainer(&self) -> io::Result<Standby<Own>>;
    /// Tells the resource that draining has begun, if it is initialised.
    fn draining(&self);
    async fn drain(self: Arc<Self>, drain: Drain) -> Result<Ended, Error>;
    /// The same resource for a further life of its lifecycle; none where it has only one. Asks the resource about itself,
    /// and is called once, when this life is over.
    fn renew(self: Arc<Self>) -> Option<Renewal>;
}

/// A node of a further life, which guards do not see before it is linked.
pub(crate) struct Renewal {
    pub(crate) node: Arc<dyn Node>,
    pub(crate) link: Box<dyn FnOnce() + Send>,
}

/// What a resource said of itself when it was registered.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) id: ResourceId,
    pub(crate) name: String,
    pub(crate) order: Order,
    pub(crate) depends_on: Vec<ResourceId>,
    pub(crate) capabilities: Capabilities,
    pub(crate) latency: Option<Arc<Latency>>,
    pub(crate) address: Option<String>,
    pub(crate) ledger: Option<Arc<dyn Accounting>>,
}

/// An initialisation that is under way.
#[derive(Debug)]
pub(crate) struct Unfinished {
    pub(crate) waited: Duration,
    /// ` (its address)`, where that is known.
    pub(crate) whom: String,
    /// Of its last try.
    pub(crate) last: Option<Error>,
    /// All of this.
    pub(crate) error: Error,
}

/// What is known of the initialisation of one resource.
#[derive(Debug, Default)]
struct Trying {
    /// When the one that is under way began.
    since: Option<Instant>,
    /// Of the last try, if that failed.
    failed: Option<Error>,
}

/// How the drain of a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// There was nothing to drain (S3).
    NotInitialised,
    Drained,
    /// Its deadline was there first.
    Hung,
}

/// A resource with everything that core keeps for it in one life of the lifecycle. A further life has a slot of its own,
/// so nothing here is ever taken back: a gate does not open again, a pool is not replaced. What is of an earlier life, as a
/// checkout that never came back, stays with its slot.
#[derive(Debug)]
pub(crate) struct Slot<R: Resource> {
    facts: Facts,
    resource: Arc<R>,
    pool: InitCell<R::Pool>,
    trying: Mutex<Trying>,
    reserve: OnceLock<Duration>,
    /// What it says that it can do once it is initialised: a server may have told it more.
    capabilities: OnceLock<Capabilities>,
    gate: Arc<Gate>,
    settings: Settings,
    drainer: Drainer,
    /// The same resource in the life after this one.
    next: OnceLock<Arc<Self>>,
}

/// What a lifecycle says of all its resources.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// How failed initialisations are tried again.
    pub(crate) retry: Retry,
    /// There is a warning of a checkout that is out for longer.
    pub(crate) warn_after: Option<Duration>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl<R: Resource> Slot<R> {
    pub(crate) fn new(resource: R, name: String, settings: Settings) -> Self {
        let order = if resource.drains_last() { Order::Last } else { Order::Normal };
        Self::in_order(resource, name, order, settings)
    }

    pub(crate) fn in_order(resource: R, name: String, order: Order, settings: Settings) -> Self {
        // Relaxed: only uniqueness is asked of it.
        let id = ResourceId(NEXT_ID.fetch_add(1, Ordering::Relaxed));
        Self::in_new_life(Arc::new(resource), id, name, order, settings)
    }

    fn in_new_life(resource: Arc<R>, id: ResourceId, name: String, order: Order, settings: Settings) -> Self {
        let facts = Facts {
            id,
            name,
            order,
            depends_on: resource.depends_on(),
            capabilities: resource.capabilities(),
            latency: resource.latency(),
            address: resource.address(),
            ledger: resource.ledger(),
        };
        if let Some(ledger) = &facts.ledger {
            panics::watch(ledger);
        }
        let opened = resource.opened();
        let reserve = OnceLock::new();
        if let Some(pool) = &opened {
            // The lock is new, so this cannot fail.
            let _ = reserve.set(resource.reserve(pool));
        }
        let drainer = Drainer::default();
        // Where it cannot be had now, initialising fails of it.
        let _ = drainer.prepare(needs(order));
        Self {
            facts,
            resource,
            pool: InitCell::new(opened),
            trying: Mutex::default(),
            reserve,
            capabilities: OnceLock::new(),
            gate: Arc::new(Gate::new(Admits::Everyone)),
            settings,
            drainer,
            next: OnceLock::new(),
        }
    }

    /// The slot of the life that is lived now.
    pub(crate) fn now(self: &Arc<Self>) -> &Arc<Self> {
        let mut slot = self;
        while let Some(next) = slot.next.get() {
            slot = next;
        }
        slot
    }

    pub(crate) fn id(&self) -> ResourceId {
        self.facts.id
    }

    pub(crate) fn resource(&self) -> &R {
        &self.resource
    }

    pub(crate) fn settings(&self) -> Settings {
        self.settings
    }

    pub(crate) fn pool(&self) -> Option<&R::Pool> {
        self.pool.get()
    }

    /// The pool, once it is initialised: joins the attempt that is running or starts one.
    pub(crate) async fn initialised(self: &Arc<Self>) -> Result<&R::Pool, Error> {
        // A dependent, whoever began it: what it uses itself (a buffer its pool) is then still handed out.
        let attempts = || with_dependent_access(Self::attempts(Arc::clone(self)));
        let attempt = InitCell::start(self, |slot| &slot.pool, attempts).map_err(|error| error.of(self.name()))?;
        self.pool.outcome(attempt).await.map_err(|error| error.of(self.name()))?;
        // The outcome was a success, and a value is never taken back.
        self.pool.get().ok_or_else(|| Error::shutting_down(self.name()))
    }

    /// Tries until it succeeds, the error is not retryable, the tries are used up, or draining begins.
    async fn attempts(slot: Arc<Self>) -> Result<R::Pool, Error> {
        // An attempt is inside the gate, so that draining does not overlook it, and is woken by refusal.
        let ticket = Ticket::enter(&slot, Location::caller())?;
        ticket.is_not_a_checkout()?;
        *slot.trying() = Trying { since: Some(Instant::now()), failed: None };
        let mut pauses = slot.settings.retry.pauses();
        loop {
            let attempt = async {
                slot.drainer.prepare(needs(slot.facts.order)).map_err(cannot_be_drained)?;
                // Boxed, as it is once in a life: else it nests too deep for the compiler, with what a driver does to connect.
                panics::catch(Box::pin(slot.resource.init())).await
            };
            let error = match attempt.await {
                Ok(pool) => {
                    // In one life there is one success.
                    let _ = slot.reserve.set(slot.resource.reserve(&pool));
                    let _ = slot.capabilities.set(slot.resource.capabilities());
                    *slot.trying() = Trying::default();
                    return Ok(pool);
                }
                Err(error) => error,
            };
            slot.trying().failed = Some(error.clone());
            let Some(pause) = pauses.next().filter(|_| error.is_retryable()) else {
                slot.trying().since = None;
                return Err(error);
            };
            tracing::debug!(resource = slot.name(), %error, ?pause, "initialisation failed, trying again");
            let refused = std::future::poll_fn(|context| ticket.poll_refused(context));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = refused => return Err(Error::shutting_down(slot.name()).with_source(error)),
            }
        }
    }

    /// How the pool stands at this moment.
    pub(crate) fn status(&self) -> Status {
        let size = self.pool().and_then(|pool| self.resource.size(pool));
        let (size, idle) = size.map_or((None, None), |size| (Some(size.open), size.idle));
        // An initialisation that is under way waits inside too, and is nobody's call.
        let waiting = self.gate.waiting().saturating_sub(usize::from(self.is_trying()));
        Status { size, idle, out: self.gate.out(), waiting }
    }

    /// Why it is not initialised, where that was tried.
    fn why_not(&self) -> Option<Error> {
        self.unfinished().map(|unfinished| unfinished.error).or_else(|| self.trying().failed.clone())
    }

    /// Whether an initialisation is under way.
    fn is_trying(&self) -> bool {
        self.trying().since.is_some()
    }

    fn trying(&self) -> MutexGuard<'_, Trying> {
        // No foreign code runs under it, and it is whole at every unlock.
        self.trying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the drain of a resource needs of the system. Tracked work is waited for, and nothing else.
fn needs(order: Order) -> Needs {
    if order == Order::First { Needs::Nothing } else { Needs::Descriptors }
}

/// It is not opened then.
fn cannot_be_drained(source: io::Error) -> Error {
    let text = "the system does not give the thread and the descriptors that its drain will need: raise the limits of the process";
    Error::new(ErrorKind::Init, text).with_source(source).retryable()
}

impl<R: Resource> Gated for Slot<R> {
    #[inline]
    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn name(&self) -> &str {
        &self.facts.name
    }
}

#[async_trait]
impl<R: Resource> Node for Slot<R> {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    fn reserve(&self) -> Reserve {
        let latency = self.facts.latency.as_deref().map(Latency::expected);
        match self.reserve.get() {
            Some(least) => Reserve::new(*least, latency),
            // It may succeed yet, and then has to be drained.
            None if self.pool.is_running() => Reserve::new(RESERVE_FLOOR, latency),
            None => Reserve::NONE,
        }
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.get().copied().unwrap_or(self.facts.capabilities)
    }

    async fn init(self: Arc<Self>) -> Result<(), Error> {
        self.initialised().await.map(|_| ())
    }

    fn unfinished(&self) -> Option<Unfinished> {
        let (waited, last) = {
            let trying = self.trying();
            (trying.since?.elapsed(), trying.failed.clone())
        };
        let whom = self.facts.address.as_ref().map(|address| format!(" ({address})")).unwrap_or_default();
        let error = Error::new(ErrorKind::Timeout, format!("not initialised after {waited:.1?}{whom}"));
        let error = match &last {
            Some(last) => error.with_source(last.clone()),
            None => error,
        };
        Some(Unfinished { waited, whom, last, error })
    }

    fn give_up(&self) {
        self.pool.give_up();
    }

    #[cfg(feature = "metrics")]
    fn status(&self) -> Status {
        Self::status(self)
    }

    async fn flush(self: Arc<Self>) -> Result<(), Error> {
        // What is not initialised holds nothing.
        let Some(pool) = self.pool() else { return Ok(()) };
        panics::catch(self.resource.flush(pool)).await.map_err(|error| error.of(self.name()))
    }

    fn drainer(&self) -> io::Result<Standby<Own>> {
        self.drainer.take(needs(self.facts.order))
    }

    fn renew(self: Arc<Self>) -> Option<Renewal> {
        if !self.resource.is_restartable() {
            return None;
        }
        let Facts { id, name, order, .. } = &self.facts;
        let next = Arc::new(Self::in_new_life(Arc::clone(&self.resource), *id, name.clone(), *order, self.settings));
        let node = Arc::clone(&next) as Arc<dyn Node>;
        let link = Box::new(move || {
            // One life begins at a time, so nobody has set it.
            let _ = self.next.set(next);
        });
        Some(Renewal { node, link })
    }

    fn draining(&self) {
        if let Some(pool) = self.pool() {
            self.resource.draining(pool);
        }
    }

    /// The drain protocol, from top to bottom.
    async fn drain(self: Arc<Self>, drain: Drain) -> Result<Ended, Error> {
        let Deadlines { settle, cut, end } = drain.deadlines;
        let step = |step| drain.tally.step(step);

        // 1. Refuse: dependents too, they are drained.
        step(Step::Refuse);
        wake(self.gate.refuse(Admits::Nobody));
        let Some(pool) = self.pool.stop(settle.min(Instant::now() + INIT_PATIENCE)).await else {
            if let Some(error) = self.why_not() {
                drain.note(&error);
            }
            step(Step::Done);
            return Ok(Ended::NotInitialised);
        };

        // 2. and 3. Goodbye to the idle at once, and to each one that comes back.
        step(Step::Settle);
        let mut goodbye = pin!(panics::catch(self.resource.goodbye(pool, &drain)));
        let mut result = None;
        let settling = async {
            result = Some((&mut goodbye).await);
            drain.until_returned().await;
        };
        if timeout_at(settle, settling).await.is_err() {
            // 4. Cancel what still runs on the server.
            step(Step::Cancel);
            let stragglers = self.gate.stragglers();
            drain.tally.change(|known| known.stragglers = stragglers);
            let cancel = async {
                let began = Instant::now();
                let asked = timeout_at(cut, panics::catch(self.resource.cancel(pool, &drain))).await;
                step(Step::Goodbye);
                asked.unwrap_or_else(|_| {
                    // What it counted stands in the report, and the cut follows now.
                    let whom = self.facts.address.as_deref().unwrap_or("the server");
                    drain.reason(format!(
                        "cancelling ran out of time: {whom} did not answer within {}",
                        in_words(began.elapsed())
                    ));
                    Ok(())
                })
            };
            // 5. Goodbye to the rest. The adapter cuts what is left at `Drain::until_cut`; a checkout that is still out then
            // stays with its holder, and is not waited for any longer.
            let rest = async {
                if result.is_none() {
                    result = Some((&mut goodbye).await);
                }
                let _ = timeout_at(cut, drain.until_returned()).await;
            };
            let (cancelled, in_time) = tokio::join!(cancel, timeout_at(end, rest));
            if in_time.is_err() {
                return Ok(Ended::Hung);
            }
            if let Err(error) = cancelled {
                // What was not cancelled shows in what became of the sessions.
                drain.note(&error);
            }
        }
        match result {
            Some(result) => result?,
            None => return Ok(Ended::Hung),
        }
        step(Step::Done);
        Ok(Ended::Drained)
    }
}
