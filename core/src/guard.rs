//! What application code holds: the guard, its checkouts, and tracked work.

use std::{
    fmt,
    future::{Future, poll_fn},
    ops::{Deref, DerefMut},
    panic::Location,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    Error, Resource, ResourceId, TrackedBody,
    gate::{Caller, Key},
    node::Slot,
};

tokio::task_local! {
    static DEPENDENT: ();
}

/// Runs a future as a dependent: while the lifecycle drains, guards still hand out to it, until their own drain begins.
///
/// Core does this for what it drains before a resource: buffers, hooks, and work in [`Tracked::scope`]. An adapter
/// needs it for tasks that it spawns itself and that use a guard it [depends on](Resource::depends_on), such as a
/// flush. The order of the drains is not changed by it: a resource waits for its dependents, not for this future.
///
/// # Cancel safety
/// That of the future.
pub async fn with_dependent_access<F: Future>(future: F) -> F::Output {
    DEPENDENT.scope((), future).await
}

/// Whether a drain waits for what runs here, as far as that can be told: see [`with_dependent_access`].
pub(crate) fn is_dependent() -> bool {
    DEPENDENT.try_with(|()| ()).is_ok()
}

/// Calls this as a dependent: one poll of what [`with_dependent_access`] is for.
pub(crate) fn in_dependent<T>(call: impl FnOnce() -> T) -> T {
    DEPENDENT.sync_scope((), call)
}

fn caller() -> Caller {
    if is_dependent() { Caller::Dependent } else { Caller::Application }
}

/// A resource as the application holds it: initialised on first use, handing out counted checkouts, drained once.
///
/// Made by [`Lifecycle::guard`](crate::Lifecycle::guard). Cheap to clone; all clones are the same guard.
///
/// Dropping guards drains nothing: draining is asynchronous and belongs to the lifecycle. A pool whose lifecycle is
/// never drained ends as it would without winddown.
///
/// In a further [life](crate::Lifecycle::restart) of the lifecycle it is the same guard, of a pool that is made anew. The
/// pools of earlier lives, which are closed, are let go of with the last guard.
pub struct ShutdownGuard<R: Resource> {
    pub(crate) slot: Arc<Slot<R>>,
}

impl<R: Resource> ShutdownGuard<R> {
    /// One checkout: initialises the resource if need be, then asks its driver.
    ///
    /// # Cancel safety
    /// Cancel safe. An initialisation that this call began goes on for the others (S1).
    ///
    /// # Errors
    /// - [`ShuttingDown`](crate::ErrorKind::ShuttingDown) once draining has begun, also for a caller that was waiting
    ///   for a slot (S2);
    /// - [`Init`](crate::ErrorKind::Init) when the initialisation this call waited for failed;
    /// - [`Checkout`](crate::ErrorKind::Checkout) when the driver could not; its error is the source.
    #[track_caller]
    pub fn get(&self) -> impl Future<Output = Result<Checkout<R>, Error>> + Send + use<'_, R> {
        let site = Location::caller();
        async move {
            let slot = self.slot.now();
            let mut checkout = Checkout { value: None, pass: Pass::of_checkout(slot, site)? };
            let pool = match slot.pool() {
                Some(pool) => pool,
                // Boxed, since it happens once: inline it would make the future of every checkout larger.
                None => Box::pin(init_with(slot, &checkout.pass)).await?,
            };
            let result = {
                let mut driver = pin!(self.slot.resource().checkout(pool));
                // The value goes straight to its place: every move on its way is time on the hot path.
                let Checkout { value, pass } = &mut checkout;
                pass.unless_refused(|context| driver.as_mut().poll(context).map_ok(|got| *value = Some(got))).await
            };
            match result {
                // The driver may have been connecting when draining began and succeeded afterwards: then the checkout
                // is dropped here, and so given back.
                Ok(()) => match checkout.pass.hand_out() {
                    Ok(()) => Ok(checkout),
                    Err(refusal) => Err(checkout.pass.count(refusal)),
                },
                // A driver whose pool is closed under a waiting caller says so in its own way.
                Err(error) if checkout.pass.is_refused() && !error.is_shutting_down() => {
                    Err(checkout.pass.count(self.refusal().with_source(error)))
                }
                Err(error) => Err(checkout.pass.count(error.of(self.name()))),
            }
        }
    }

    /// The driver's own pool, that of the life that is lived now, initialised if need be. What is taken from it directly is not counted: drain knows of it
    /// only what the driver tells.
    ///
    /// # Cancel safety
    /// Cancel safe, see [`get`](Self::get).
    ///
    /// # Errors
    /// As [`get`](Self::get), but for the driver's.
    #[track_caller]
    pub fn pool(&self) -> impl Future<Output = Result<&R::Pool, Error>> + Send + use<'_, R> {
        let site = Location::caller();
        async move {
            let slot = self.slot.now();
            let pass = Pass::of_checkout(slot, site)?;
            match slot.pool() {
                Some(pool) => Ok(pool),
                None => init_with(slot, &pass).await,
            }
        }
    }

    /// The resource itself, as it was given to [`Lifecycle::guard`](crate::Lifecycle::guard).
    pub fn resource(&self) -> &R {
        self.slot.resource()
    }

    /// The name it has in reports.
    pub fn name(&self) -> &str {
        self.slot.name()
    }

    /// Names this resource: what a dependent returns from [`Resource::depends_on`].
    pub fn id(&self) -> ResourceId {
        self.slot.id()
    }

    /// How many checkouts are out now.
    pub fn out(&self) -> usize {
        self.slot.now().gate().out()
    }

    fn refusal(&self) -> Error {
        Error::shutting_down(self.name())
    }
}

async fn init_with<'a, R: Resource>(slot: &'a Arc<Slot<R>>, pass: &Pass<R>) -> Result<&'a R::Pool, Error> {
    let mut init = pin!(slot.initialised());
    pass.unless_refused(|context| init.as_mut().poll(context)).await.map_err(|error| pass.count(error))
}

impl<R: Resource> Clone for ShutdownGuard<R> {
    fn clone(&self) -> Self {
        Self { slot: Arc::clone(&self.slot) }
    }
}

impl<R: Resource> fmt::Debug for ShutdownGuard<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The resource is left out: it may hold a password.
        f.debug_struct("ShutdownGuard")
            .field("name", &self.name())
            .field("initialised", &self.slot.now().pool().is_some())
            .field("out", &self.out())
            .finish()
    }
}

/// One counted use of a resource. Derefs to what the driver gave; dropping it gives that back, then counts it back.
pub struct Checkout<R: Resource> {
    /// There until it is dropped.
    value: Option<R::Checkout>,
    /// Dropped after the value is given back.
    pass: Pass<R>,
}

impl<R: Resource> Checkout<R> {
    /// The name of its resource in reports. An associated function, so that it hides nothing of the driver's.
    pub fn name(checkout: &Self) -> &str {
        checkout.pass.slot.name()
    }
}

impl<R: Resource> Deref for Checkout<R> {
    type Target = R::Checkout;

    fn deref(&self) -> &R::Checkout {
        self.value.as_ref().expect(STILL_THERE)
    }
}

impl<R: Resource> DerefMut for Checkout<R> {
    fn deref_mut(&mut self) -> &mut R::Checkout {
        self.value.as_mut().expect(STILL_THERE)
    }
}

const STILL_THERE: &str = "a checkout has its value until it is dropped";

impl<R: Resource> Drop for Checkout<R> {
    fn drop(&mut self) {
        if let (Some(value), Some(pool)) = (self.value.take(), self.pass.slot.pool()) {
            self.pass.slot.resource().give_back(pool, value);
        }
    }
}

impl<R: Resource> fmt::Debug for Checkout<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkout").field("resource", &self.pass.slot.name()).finish_non_exhaustive()
    }
}

/// A place inside the gate, given back on drop.
pub(crate) struct Pass<R: Resource> {
    slot: Arc<Slot<R>>,
    key: Key,
}

impl<R: Resource> Pass<R> {
    pub(crate) fn enter(slot: &Arc<Slot<R>>, site: &'static Location<'static>) -> Result<Self, Error> {
        match slot.gate().enter(caller(), site) {
            Ok(key) => Ok(Self { slot: Arc::clone(slot), key }),
            Err(_) => Err(Error::shutting_down(slot.name())),
        }
    }

    /// The same, and a refusal is counted.
    fn of_checkout(slot: &Arc<Slot<R>>, site: &'static Location<'static>) -> Result<Self, Error> {
        Self::enter(slot, site).inspect_err(|_| slot.gate().count_refusal(caller()))
    }

    /// Counts the error if it is a refusal.
    fn count(&self, error: Error) -> Error {
        if error.is_shutting_down() {
            self.slot.gate().count_refusal(self.key.caller());
        }
        error
    }

    pub(crate) fn label(&self, name: Box<str>) {
        self.slot.gate().label(self.key, name);
    }

    pub(crate) fn hand_out(&self) -> Result<(), Error> {
        self.slot.gate().hand_out(self.key).map_err(|_| Error::shutting_down(self.slot.name()))
    }

    /// What `poll` gets, or the refusal if draining begins while it is not ready.
    fn unless_refused<T>(
        &self,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<Result<T, Error>>,
    ) -> impl Future<Output = Result<T, Error>> {
        let refusal = || Error::shutting_down(self.slot.name());
        let mut waited = false;
        poll_fn(move |context| {
            if waited && self.slot.gate().resume(self.key).is_err() {
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
        self.slot.gate().poll_refused(self.key, context)
    }

    /// Counts as one who waits, so nobody settles for it; an error if it is refused by now.
    pub(crate) fn is_not_a_checkout(&self) -> Result<(), Error> {
        match self.poll_refused(&Context::from_waker(std::task::Waker::noop())) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(Error::shutting_down(self.slot.name())),
        }
    }

    fn is_refused(&self) -> bool {
        self.slot.gate().hand_out(self.key).is_err()
    }
}

impl<R: Resource> Drop for Pass<R> {
    fn drop(&mut self) {
        self.slot.gate().leave(self.key);
    }
}

/// Work that drain waits for: a request, a job, an invocation. Made by [`Lifecycle::track`](crate::Lifecycle::track).
///
/// Tracked work depends on every resource, so it is drained first: no resource says goodbye while it runs, or before
/// [its share of the budget](crate::Builder::work_share) is used up. Dropping this ends it.
#[must_use = "the work counts as done when this is dropped"]
pub struct Tracked {
    pass: Pass<crate::work::TrackedWork>,
}

impl Tracked {
    pub(crate) fn new(pass: Pass<crate::work::TrackedWork>) -> Self {
        Self { pass }
    }

    /// Runs a future as the tracked work: guards hand out to it also while the lifecycle drains, until it ends or its
    /// share of the budget does.
    ///
    /// # Cancel safety
    /// That of the future; the work is counted as done when this is dropped.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        let output = with_dependent_access(future).await;
        drop(self);
        output
    }

    /// Ties the body of a response, or a stream, to the tracked work, which lasts until the body has been sent: guards hand
    /// out to it whichever task polls it. `examples/axum.rs` does so for every response, in a middleware.
    ///
    /// ```
    /// # use futures_util::{StreamExt, stream};
    /// # use winddown_core::{Error, Lifecycle, memory::Memory};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let lifecycle = Lifecycle::builder().signals(false).build()?;
    /// let db = lifecycle.guard(Memory::new("db"));
    /// let pages = stream::iter(1..=3).then(move |page| {
    ///     let db = db.clone();
    ///     async move { db.get().await.map(|_session| page) }
    /// });
    /// let body = lifecycle.track()?.body(pages);
    ///
    /// // What a server does with it, when the platform has said stop.
    /// lifecycle.begin_drain();
    /// let sent: Vec<_> = body.collect().await;
    /// assert!(sent.iter().all(Result::is_ok));
    /// assert!(lifecycle.drained().await.is_clean());
    /// # Ok(())
    /// # }
    /// ```
    pub fn body<B>(self, body: B) -> TrackedBody<B> {
        TrackedBody::new(body, Some(Arc::new(self)))
    }
}

impl fmt::Debug for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").field("key", &self.pass.key).finish()
    }
}
