//! Connections of any type, described by closures.

use std::fmt;

use futures_util::future::BoxFuture;
use winddown_core::Capabilities;

use crate::speaks::{Canceller, Leaving, Speaks};

type Goodbye<C> = Box<dyn for<'a> Fn(&'a mut C) -> BoxFuture<'a, ()> + Send + Sync>;
type TakesCanceller<C> = Box<dyn Fn(&mut C) -> Canceller + Send + Sync>;

/// What can be done for connections that this crate knows nothing of. What is not given is not claimed.
///
/// Nobody sees their ends, so these are reported as unconfirmed, which is no failure.
///
/// ```
/// use winddown_pools::Closures;
///
/// # struct Connection;
/// # impl Connection {
/// #     async fn quit(&mut self) {}
/// #     async fn rollback(&mut self) {}
/// # }
/// let session = Closures::<Connection>::new()
///     .goodbye(|connection| Box::pin(connection.quit()))
///     .reset(|connection| Box::pin(connection.rollback()));
/// ```
pub struct Closures<C> {
    goodbye: Option<Goodbye<C>>,
    reset: Option<Goodbye<C>>,
    canceller: Option<TakesCanceller<C>>,
}

impl<C> Closures<C> {
    /// Nothing can be done: each connection is dropped when nobody has it any more, where its pool parts with it.
    pub fn new() -> Self {
        Self { goodbye: None, reset: None, canceller: None }
    }

    /// Says the protocol's goodbye. It is dropped when what is left must be cut.
    #[must_use]
    pub fn goodbye(mut self, goodbye: impl for<'a> Fn(&'a mut C) -> BoxFuture<'a, ()> + Send + Sync + 'static) -> Self {
        self.goodbye = Some(Box::new(goodbye));
        self
    }

    /// Ends what a caller has left on a connection that comes back, before the pool gets it.
    #[must_use]
    pub fn reset(mut self, reset: impl for<'a> Fn(&'a mut C) -> BoxFuture<'a, ()> + Send + Sync + 'static) -> Self {
        self.reset = Some(Box::new(reset));
        self
    }

    /// Takes along, when a connection is handed out, what stops its statement while somebody else has it. Must not wait. Only a
    /// statement of this connection may be stopped by it.
    #[must_use]
    pub fn canceller(mut self, canceller: impl Fn(&mut C) -> Canceller + Send + Sync + 'static) -> Self {
        self.canceller = Some(Box::new(canceller));
        self
    }
}

impl<C> Default for Closures<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Send + 'static> Speaks<C> for Closures<C> {
    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::NONE;
        can.goodbye = self.goodbye.is_some();
        can.cancel = self.canceller.is_some();
        can
    }

    fn canceller(&self, connection: &mut C) -> Option<Canceller> {
        self.canceller.as_ref().map(|canceller| canceller(connection))
    }

    fn resets(&self) -> bool {
        self.reset.is_some()
    }

    async fn reset(&self, connection: &mut C) {
        if let Some(reset) = &self.reset {
            reset(connection).await;
        }
    }

    async fn goodbye(&self, leaving: &mut Leaving<C>) -> bool {
        if let (Some(goodbye), Some(connection)) = (&self.goodbye, leaving.get()) {
            goodbye(connection).await;
        }
        false
    }
}

impl<C> fmt::Debug for Closures<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closures")
            .field("goodbye", &self.goodbye.is_some())
            .field("reset", &self.reset.is_some())
            .field("canceller", &self.canceller.is_some())
            .finish()
    }
}
