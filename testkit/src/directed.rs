//! A resource whose steps a test directs.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use winddown_core::{
    Capabilities, Checkouts, Error, Resource, ResourceId,
    adapter::{Accounting, Drain, Latency, Size},
};

/// Any resource, with its steps counted, held and made to fail by a [`Director`]. What is not directed is the
/// resource's own.
#[derive(Debug)]
pub struct Directed<R> {
    resource: R,
    director: Director,
}

/// Directs a resource: counts its steps, holds them at an event, makes initialisations fail. Clones direct the same one.
#[derive(Debug, Clone, Default)]
pub struct Director {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    init: Point,
    checkout: Point,
    goodbye: Point,
    failures: Mutex<VecDeque<Error>>,
    reserve: Mutex<Option<Duration>>,
}

impl Director {
    /// A director who lets everything pass.
    pub fn new() -> Self {
        Self::default()
    }

    /// The resource that is directed from here.
    pub fn direct<R: Resource>(&self, resource: R) -> Directed<R> {
        Directed { resource, director: self.clone() }
    }

    /// Before each attempt to initialise.
    pub fn init(&self) -> &Point {
        &self.inner.init
    }

    /// Before each checkout is asked of the driver.
    pub fn checkout(&self) -> &Point {
        &self.inner.checkout
    }

    /// Before the goodbye.
    pub fn goodbye(&self) -> &Point {
        &self.inner.goodbye
    }

    /// Makes the next attempts to initialise fail, each with one of these errors, before the driver is asked.
    pub fn fail_inits(&self, errors: impl IntoIterator<Item = Error>) {
        self.inner.failures.lock().unwrap_or_else(PoisonError::into_inner).extend(errors);
    }

    /// Has the resource keep so much time for the end of its drain. For tests whose drain uses its budget up: the least
    /// that core keeps is enough for a machine that does little else.
    pub fn reserve(&self, time: Duration) {
        *self.inner.reserve.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("inits", &self.init.reached())
            .field("checkouts", &self.checkout.reached())
            .field("goodbyes", &self.goodbye.reached())
            .finish_non_exhaustive()
    }
}

/// A place in the code of a resource: counts who reaches it, and holds them there while it is told to.
#[derive(Debug, Default)]
pub struct Point {
    state: watch::Sender<PointState>,
}

#[derive(Debug, Default)]
struct PointState {
    reached: usize,
    held: bool,
}

impl Point {
    /// Holds whoever comes from here on, until [`release`](Self::release).
    pub fn hold(&self) {
        self.state.send_modify(|state| state.held = true);
    }

    /// Lets pass whoever is held and whoever comes.
    pub fn release(&self) {
        self.state.send_modify(|state| state.held = false);
    }

    /// How many have reached it.
    pub fn reached(&self) -> usize {
        self.state.borrow().reached
    }

    /// Ready when so many have reached it.
    pub async fn reached_by(&self, count: usize) {
        // The sender is in `self`, so it cannot be closed.
        let _ = self.state.subscribe().wait_for(|state| state.reached >= count).await;
    }

    async fn pass(&self) {
        self.state.send_modify(|state| state.reached += 1);
        let _ = self.state.subscribe().wait_for(|state| !state.held).await;
    }
}

// What is forgotten here would silently be the trait's default, and not the resource's own.
#[deny(clippy::missing_trait_methods)]
impl<R: Resource> Resource for Directed<R> {
    type Pool = R::Pool;

    fn name(&self) -> &str {
        self.resource.name()
    }

    async fn init(&self) -> Result<R::Pool, Error> {
        self.director.init().pass().await;
        let failure = self.director.inner.failures.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match failure {
            Some(error) => Err(error),
            None => self.resource.init().await,
        }
    }

    fn opened(&self) -> Option<R::Pool> {
        self.resource.opened()
    }

    fn draining(&self, pool: &R::Pool) {
        self.resource.draining(pool);
    }

    async fn goodbye(&self, pool: &R::Pool, drain: &Drain) -> Result<(), Error> {
        self.director.goodbye().pass().await;
        self.resource.goodbye(pool, drain).await
    }

    async fn cancel(&self, pool: &R::Pool, drain: &Drain) -> Result<(), Error> {
        self.resource.cancel(pool, drain).await
    }

    async fn flush(&self, pool: &R::Pool) -> Result<(), Error> {
        self.resource.flush(pool).await
    }

    fn capabilities(&self) -> Capabilities {
        self.resource.capabilities()
    }

    fn latency(&self) -> Option<Arc<Latency>> {
        self.resource.latency()
    }

    fn address(&self) -> Option<String> {
        self.resource.address()
    }

    fn reserve(&self, pool: &R::Pool) -> Duration {
        let directed = *self.director.inner.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        directed.unwrap_or_else(|| self.resource.reserve(pool))
    }

    fn depends_on(&self) -> Vec<ResourceId> {
        self.resource.depends_on()
    }

    fn drains_last(&self) -> bool {
        self.resource.drains_last()
    }

    fn is_restartable(&self) -> bool {
        self.resource.is_restartable()
    }

    fn ledger(&self) -> Option<Arc<dyn Accounting>> {
        self.resource.ledger()
    }

    fn size(&self, pool: &R::Pool) -> Option<Size> {
        self.resource.size(pool)
    }
}

impl<R: Checkouts> Checkouts for Directed<R> {
    type Checkout = R::Checkout;

    async fn checkout(&self, pool: &R::Pool) -> Result<R::Checkout, Error> {
        self.director.checkout().pass().await;
        self.resource.checkout(pool).await
    }

    fn give_back(&self, pool: &R::Pool, checkout: R::Checkout) {
        self.resource.give_back(pool, checkout);
    }
}
