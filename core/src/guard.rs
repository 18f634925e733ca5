//! What application code holds: the guard, and its checkouts.

use std::{
    fmt,
    future::Future,
    ops::{Deref, DerefMut},
    panic::Location,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::timeout;

use crate::{
    Checkouts, Error, ErrorKind, Resource, ResourceId,
    node::Slot,
    ticket::{Gated as _, Ticket},
};

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
            let ticket = Ticket::of_checkout(slot, site)?;
            match slot.pool() {
                Some(pool) => Ok(pool),
                None => init_with(slot, &ticket).await,
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

    /// How the pool stands at this moment, for metrics and logs.
    pub fn status(&self) -> Status {
        self.slot.now().status()
    }

    fn refusal(&self) -> Error {
        Error::shutting_down(self.name())
    }
}

impl<R: Checkouts> ShutdownGuard<R> {
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
            let mut checkout = Checkout { value: None, ticket: Ticket::of_checkout(slot, site)? };
            let pool = match slot.pool() {
                Some(pool) => pool,
                // Boxed, since it happens once: inline it would make the future of every checkout larger.
                None => Box::pin(init_with(slot, &checkout.ticket)).await?,
            };
            let result = {
                let mut driver = pin!(self.slot.resource().checkout(pool));
                // The value goes straight to its place: every move on its way is time on the hot path.
                let Checkout { value, ticket } = &mut checkout;
                ticket.unless_refused(|context| driver.as_mut().poll(context).map_ok(|got| *value = Some(got))).await
            };
            match result {
                // The driver may have been connecting when draining began and succeeded afterwards: then the checkout
                // is dropped here, and so given back.
                Ok(()) => match checkout.ticket.hand_out() {
                    Ok(()) => {
                        if let Some(limit) = slot.settings().warn_after {
                            checkout.ticket.warn_after(limit);
                        }
                        Ok(checkout)
                    }
                    Err(refusal) => Err(checkout.ticket.count(refusal)),
                },
                // A driver whose pool is closed under a waiting caller says so in its own way.
                Err(error) if checkout.ticket.is_refused() && !error.is_shutting_down() => {
                    Err(checkout.ticket.count(self.refusal().with_source(error)))
                }
                Err(error) => Err(checkout.ticket.count(error.of(self.name()))),
            }
        }
    }

    /// The same, for this long at most: waiting for a slot, opening a session and the first initialisation included.
    ///
    /// # Cancel safety
    /// Cancel safe, see [`get`](Self::get).
    ///
    /// # Errors
    /// Those of [`get`](Self::get), and [`Timeout`](ErrorKind::Timeout).
    #[track_caller]
    pub fn get_timeout(&self, limit: Duration) -> impl Future<Output = Result<Checkout<R>, Error>> + Send + use<'_, R> {
        let get = self.get();
        async move {
            timeout(limit, get).await.unwrap_or_else(|_| {
                let Status { size, idle, out, waiting } = self.status();
                let known = |what: Option<usize>| what.map_or_else(|| "?".to_owned(), |what| what.to_string());
                let (size, idle) = (known(size), known(idle));
                let text = format!(
                    "no checkout within {limit:?}: {out} are out, {waiting} wait, {size} sessions are open, {idle} idle"
                );
                Err(Error::new(ErrorKind::Timeout, text).of(self.name()).retryable())
            })
        }
    }

    /// A checkout if one can be had without waiting; `None` where all are out, none is open yet, or the resource is not
    /// initialised. It opens nothing that it knows of: where the adapter does not tell how many are
    /// [idle](Resource::size), a session that the driver begins to open for it is given up.
    ///
    /// # Errors
    /// Those of [`get`](Self::get).
    #[track_caller]
    pub fn try_get(&self) -> Result<Option<Checkout<R>>, Error> {
        let slot = self.slot.now();
        let idle = |pool| slot.resource().size(pool).and_then(|size| size.idle);
        if slot.pool().is_none_or(|pool| idle(pool) == Some(0)) {
            // Refused all the same once it drains.
            return Ticket::of_checkout(slot, Location::caller()).map(|_| None);
        }
        match pin!(self.get()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(checkout) => checkout.map(Some),
            Poll::Pending => Ok(None),
        }
    }
}

/// How a pool stands: see [`ShutdownGuard::status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Sessions that are open, where the adapter knows, and it is initialised.
    pub size: Option<usize>,
    /// Those of them that nobody has.
    pub idle: Option<usize>,
    /// Checkouts that are out.
    pub out: usize,
    /// Callers that wait for one.
    pub waiting: usize,
}

async fn init_with<'a, R: Resource>(slot: &'a Arc<Slot<R>>, ticket: &Ticket<Slot<R>>) -> Result<&'a R::Pool, Error> {
    let mut init = pin!(slot.initialised());
    ticket.unless_refused(|context| init.as_mut().poll(context)).await.map_err(|error| ticket.count(error))
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
pub struct Checkout<R: Checkouts> {
    /// There until it is dropped.
    value: Option<R::Checkout>,
    /// Dropped after the value is given back.
    ticket: Ticket<Slot<R>>,
}

impl<R: Checkouts> Checkout<R> {
    /// The name of its resource in reports. An associated function, so that it hides nothing of the driver's.
    pub fn name(checkout: &Self) -> &str {
        checkout.ticket.holder().name()
    }
}

impl<R: Checkouts> Deref for Checkout<R> {
    type Target = R::Checkout;

    fn deref(&self) -> &R::Checkout {
        self.value.as_ref().expect(STILL_THERE)
    }
}

impl<R: Checkouts> DerefMut for Checkout<R> {
    fn deref_mut(&mut self) -> &mut R::Checkout {
        self.value.as_mut().expect(STILL_THERE)
    }
}

const STILL_THERE: &str = "a checkout has its value until it is dropped";

impl<R: Checkouts> Drop for Checkout<R> {
    fn drop(&mut self) {
        if let (Some(value), Some(pool)) = (self.value.take(), self.ticket.holder().pool()) {
            self.ticket.holder().resource().give_back(pool, value);
        }
    }
}

impl<R: Checkouts> fmt::Debug for Checkout<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkout").field("resource", &self.ticket.holder().name()).finish_non_exhaustive()
    }
}
