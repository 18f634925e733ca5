//! Connections of any type that blocks, described by closures.

use std::{fmt, sync::Arc};

use tokio::task::spawn_blocking;
use winddown_core::{BoxError, Capabilities};
use winddown_pools::{Canceller, Leaving, Peer, Speaks};

use crate::session::Session;

type Goodbye<C> = Arc<dyn Fn(C) + Send + Sync>;
type Reset<C> = Arc<dyn Fn(&mut C) + Send + Sync>;
type TakesCanceller<C> = Box<dyn Fn(&mut Session<C>) -> Option<Canceller> + Send + Sync>;

/// What can be done for connections whose driver blocks. What is not given is not claimed.
///
/// Nobody sees their ends, so these are reported as unconfirmed, which is no failure. The closures are called on threads that may block,
/// but for where it says so.
///
/// ```
/// use winddown_r2d2::Closures;
///
/// # struct Connection;
/// # impl Connection {
/// #     fn quit(self) {}
/// #     fn rollback(&mut self) {}
/// # }
/// let session = Closures::<Connection>::new().goodbye(Connection::quit).reset(Connection::rollback);
/// ```
pub struct Closures<C> {
    goodbye: Option<Goodbye<C>>,
    reset: Option<Reset<C>>,
    canceller: Option<TakesCanceller<C>>,
}

impl<C> Closures<C> {
    /// Nothing can be done: each connection is dropped when nobody has it any more.
    pub fn new() -> Self {
        Self { goodbye: None, reset: None, canceller: None }
    }

    /// Says the protocol's goodbye. Where a drop says it, that is `drop`.
    #[must_use]
    pub fn goodbye(mut self, goodbye: impl Fn(C) + Send + Sync + 'static) -> Self {
        self.goodbye = Some(Arc::new(goodbye));
        self
    }

    /// Ends what a caller has left on a connection that comes back, before the pool gets it.
    #[must_use]
    pub fn reset(mut self, reset: impl Fn(&mut C) + Send + Sync + 'static) -> Self {
        self.reset = Some(Arc::new(reset));
        self
    }

    /// Takes along, when a session is handed out, what stops its statement while somebody else has it. Must not block: what has to be
    /// asked for first is [noted](crate::Pool::noting) when the session is opened. What is returned may block. Only a statement of this
    /// session may be stopped by it; where nothing proves which that is, there is none.
    #[must_use]
    pub fn canceller<K, E>(mut self, canceller: impl Fn(&mut Session<C>) -> Option<K> + Send + Sync + 'static) -> Self
    where
        K: Fn() -> Result<(), E> + Send + Sync + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        self.canceller = Some(Box::new(move |session| {
            let stops = Arc::new(canceller(session)?);
            Some(Canceller::new(move || {
                let stops = Arc::clone(&stops);
                async move { spawn_blocking(move || stops().map_err(Into::into)).await? }
            }))
        }));
        self
    }
}

impl<C> Default for Closures<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Send + 'static> Speaks<Session<C>> for Closures<C> {
    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::NONE;
        can.goodbye = self.goodbye.is_some();
        can.cancel = self.canceller.is_some();
        can
    }

    fn canceller(&self, session: &mut Session<C>) -> Option<Canceller> {
        let canceller = self.canceller.as_ref()?(session)?;
        Some(session.lent(canceller))
    }

    fn resets(&self) -> bool {
        self.reset.is_some()
    }

    async fn reset(&self, session: &mut Session<C>) {
        session.ours().await;
        if let Some(reset) = self.reset.clone() {
            // Where it panics the connection has ended, which the pool finds out.
            let _ = session.run(move |connection| reset(connection)).await;
        }
    }

    async fn settled(&self, session: &mut Session<C>) -> Result<Option<Peer>, BoxError> {
        match session.ours().await {
            Some(_) => Ok(None),
            None => Err("the connection has ended".into()),
        }
    }

    async fn goodbye(&self, leaving: &mut Leaving<Session<C>>) -> bool {
        let Some(session) = leaving.get() else { return false };
        match self.goodbye.clone() {
            Some(goodbye) => session.end(move |connection| goodbye(connection)).await,
            None => session.end(drop).await,
        }
        false
    }

    fn cut(&self, session: &mut Session<C>) {
        drop(Session::take(session));
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
