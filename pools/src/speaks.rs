//! What is said to the server over a connection, whose driver knows nothing of drains.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::future::BoxFuture;
use winddown_core::{BoxError, Capabilities};
use winddown_net::own_sockets::Peer;

/// Speaks with a server over connections of this type: what is known of a driver.
///
/// [`Driver`](crate::Driver) has it of the drivers that this crate knows, and [`Closures`](crate::Closures) of any. What a method does
/// not do by default must not be claimed by the [capabilities](Self::capabilities).
pub trait Speaks<C>: Send + Sync + 'static {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Whether it says goodbye on a connection that its pool does not part with.
    fn is_in_place(&self) -> bool {
        true
    }

    /// How what runs on this connection is stopped while somebody else has it. Called when it is handed out, and must not wait. By
    /// default it is not stopped.
    fn canceller(&self, connection: &mut C) -> Option<Canceller> {
        let _ = connection;
        None
    }

    /// Whether a connection that came back is [reset](Self::reset) before the pool gets it. By default it is not.
    fn resets(&self) -> bool {
        false
    }

    /// Ends what the last caller has left on the connection, once all is answered that runs on it. What it cannot end its pool has
    /// to find out.
    ///
    /// # Cancel safety
    /// Is dropped only with the runtime.
    fn reset(&self, connection: &mut C) -> impl Future<Output = ()> + Send {
        let _ = connection;
        std::future::ready(())
    }

    /// Whether the driver has given the connection up in the middle of a statement, which may run on: it is cut. By default none is.
    fn is_abandoned(&self, connection: &C) -> bool {
        let _ = connection;
        false
    }

    /// Ready when all is answered that runs on the connection, with whom the server has at its other end: where its end is
    /// seen. By default nobody is asked.
    ///
    /// # Cancel safety
    /// Is dropped when what is left must be cut.
    ///
    /// # Errors
    /// When it has ended already.
    fn settled(&self, connection: &mut C) -> impl Future<Output = Result<Option<Peer>, BoxError>> + Send {
        let _ = connection;
        std::future::ready(Ok(None))
    }

    /// Whether its server has a session on its list until after its socket was closed, as MySQL has. By default it has not.
    fn unlists_late(&self) -> bool {
        false
    }

    /// Says goodbye. The connection is of no use from then on. `true` if the driver has shown that the server has closed its side.
    ///
    /// # Cancel safety
    /// Is dropped when what is left must be cut.
    fn goodbye(&self, leaving: &mut Leaving<C>) -> impl Future<Output = bool> + Send;

    /// Closes the connection as it is, without waiting for anything. By default it is left to its pool.
    fn cut(&self, connection: &mut C) {
        let _ = connection;
    }
}

/// Asks the server to stop what runs on one connection.
#[derive(Clone)]
pub struct Canceller {
    asks: Arc<dyn Fn() -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync>,
    unless: Option<Arc<AtomicBool>>,
}

impl Canceller {
    /// One that asks so.
    pub fn new<F, Fut, E>(asks: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let asks = Arc::new(move || -> BoxFuture<'static, Result<(), BoxError>> {
            let asking = asks();
            Box::pin(async move { asking.await.map_err(Into::into) })
        });
        Self { asks, unless: None }
    }

    /// The same, which does not ask while it is known that nothing of a caller's runs.
    #[must_use]
    pub fn unless(self, nothing_runs: &Arc<AtomicBool>) -> Self {
        Self { unless: Some(Arc::clone(nothing_runs)), ..self }
    }

    pub(crate) fn is_needed(&self) -> bool {
        // It is looked at again before long.
        !self.unless.as_ref().is_some_and(|nothing_runs| nothing_runs.load(Ordering::Relaxed))
    }

    /// Asks.
    ///
    /// # Errors
    /// When the server could not be asked.
    pub(crate) async fn cancel(&self) -> Result<(), BoxError> {
        (self.asks)().await
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What it holds may be a secret.
        f.debug_struct("Canceller").finish_non_exhaustive()
    }
}

/// A connection that nobody gets any more.
pub struct Leaving<C>(Kind<C>);

enum Kind<C> {
    /// `None` once it was taken.
    Owned(Option<C>),
    /// Its pool does not part with it, and would open another one in its place if it got it back: it is kept to the end of the process.
    Kept(Box<dyn DerefMut<Target = C> + Send>),
}

impl<C> Leaving<C> {
    /// One that is its pool's no more.
    pub fn owned(connection: C) -> Self {
        Self(Kind::Owned(Some(connection)))
    }

    /// One that its pool still counts. It is never given back.
    pub fn kept(object: impl DerefMut<Target = C> + Send + 'static) -> Self {
        Self(Kind::Kept(Box::new(object)))
    }

    /// The connection. `None` once it was [taken](Self::take).
    pub fn get(&mut self) -> Option<&mut C> {
        match &mut self.0 {
            Kind::Owned(connection) => connection.as_mut(),
            Kind::Kept(object) => Some(&mut *object),
        }
    }

    /// The connection itself, for drivers that end it by value, if its pool has parted with it.
    pub fn take(&mut self) -> Option<C> {
        match &mut self.0 {
            Kind::Owned(connection) => connection.take(),
            Kind::Kept(_) => None,
        }
    }

    /// It has ended.
    pub(crate) fn over(self) {
        if let Kind::Kept(object) = self.0 {
            std::mem::forget(object);
        }
    }
}

impl<C> fmt::Debug for Leaving<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_owned = matches!(self.0, Kind::Owned(_));
        f.debug_struct("Leaving").field("is_owned", &is_owned).finish_non_exhaustive()
    }
}

/// A checkout: what the pool hands out, by which it goes back there.
pub struct Lent<O> {
    pub(crate) object: O,
    pub(crate) number: u64,
}

impl<O> Deref for Lent<O> {
    type Target = O;

    fn deref(&self) -> &O {
        &self.object
    }
}

impl<O> DerefMut for Lent<O> {
    fn deref_mut(&mut self) -> &mut O {
        &mut self.object
    }
}

impl<O> fmt::Debug for Lent<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("number", &self.number).finish_non_exhaustive()
    }
}
