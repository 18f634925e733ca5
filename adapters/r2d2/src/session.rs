//! A connection that can be taken out of its place.

use std::{
    any::Any,
    fmt,
    ops::{Deref, DerefMut},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{runtime::Handle, sync::oneshot};
use winddown_core::{Error, ErrorKind};
use winddown_pools::Canceller;

use crate::control::Counted;

/// A connection as the pool has it: it derefs to the driver's own.
///
/// r2d2 does not part with a connection. So what it has is a place for one, from which a drain takes it.
///
/// # Panics
/// Derefs panic where there is no connection: in the middle of [`run`](Self::run), if its future was dropped, and once it was
/// [taken](Self::take).
pub struct Session<C> {
    /// `None` while it is away, and once it has ended.
    connection: Option<C>,
    /// Where it comes back from the thread that works with it.
    away: Option<oneshot::Receiver<C>>,
    note: Option<Box<dyn Any + Send + Sync>>,
    /// Nothing runs on it but what is asked from here.
    is_ours: Arc<AtomicBool>,
    /// Also had by the thread that works with the connection, which ends there if nobody waits for it any more.
    counted: Arc<Counted>,
}

impl<C> Session<C> {
    pub(crate) fn new(
        connection: C,
        counted: Counted,
        is_ours: Arc<AtomicBool>,
        note: Option<Box<dyn Any + Send + Sync>>,
    ) -> Self {
        Self { connection: Some(connection), away: None, note, is_ours, counted: Arc::new(counted) }
    }

    /// What was [noted](crate::Pool::noting) of this connection when it was opened.
    pub fn note<T: 'static>(&self) -> Option<&T> {
        self.note.as_ref()?.downcast_ref()
    }

    /// Takes the connection out of its place, to end it. Nobody gets this session any more then.
    pub fn take(session: &mut Self) -> Option<C> {
        if !session.is_here() {
            // Who works with it ends it.
            session.away = None;
        }
        session.connection.take()
    }

    /// It is lent to somebody, or about to be looked at. Stops what runs there until it is [ours](Self::ours).
    pub(crate) fn lent(&self, canceller: Canceller) -> Canceller {
        self.is_ours.store(false, Ordering::Relaxed);
        canceller.unless(&self.is_ours)
    }

    /// The connection, once it is in its place, which nobody else has from then on. `None` when it has ended.
    pub(crate) async fn ours(&mut self) -> Option<&mut C> {
        self.back().await;
        self.is_ours.store(true, Ordering::Relaxed);
        self.connection.as_mut()
    }

    /// Whether the connection is in its place.
    pub(crate) fn is_here(&mut self) -> bool {
        if let Some(away) = &mut self.away {
            match away.try_recv() {
                Ok(connection) => (self.connection, self.away) = (Some(connection), None),
                Err(oneshot::error::TryRecvError::Empty) => {}
                Err(oneshot::error::TryRecvError::Closed) => self.away = None,
            }
        }
        self.connection.is_some()
    }

    /// Ready when the connection is in its place, or has ended.
    async fn back(&mut self) {
        if let Some(away) = &mut self.away {
            self.connection = away.await.ok();
            self.away = None;
        }
    }
}

impl<C: Send + 'static> Session<C> {
    /// Works with the connection on a thread that may block, once it has done what it was asked for before.
    ///
    /// # Cancel safety
    /// Dropped, the work goes on, and so does its statement. The session waits for that: it is lent to nobody before, and a drain has
    /// the statement stopped, if it can.
    ///
    /// # Errors
    /// [`ErrorKind::Panicked`] when the work panicked: the connection has ended with that. [`ErrorKind::Checkout`] when it had ended
    /// before, and [`ErrorKind::Config`] outside of a runtime.
    pub async fn run<T, F>(&mut self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut C) -> T + Send + 'static,
    {
        let runtime = Handle::try_current().map_err(|outside| {
            Error::new(ErrorKind::Config, "a connection that blocks is used outside of a runtime").with_source(outside)
        })?;
        self.back().await;
        let Some(mut connection) = self.connection.take() else {
            return Err(Error::new(ErrorKind::Checkout, "the connection has ended"));
        };
        let (comes_back, away) = oneshot::channel();
        self.away = Some(away);
        let counted = Arc::clone(&self.counted);
        let working = runtime.spawn_blocking(move || {
            let done = work(&mut connection);
            // Where nobody wants it any more it ends here, and is counted as long.
            drop(comes_back.send(connection));
            drop(counted);
            done
        });
        let done = working.await;
        self.back().await;
        done.map_err(|failure| Error::new(ErrorKind::Panicked, "what worked with the connection").with_source(failure))
    }

    /// Ends the connection by this on a thread that may block, as a driver does that says goodbye by value.
    pub(crate) async fn end(&mut self, ends: impl FnOnce(C) + Send + 'static) {
        let Some(connection) = Self::take(self) else { return };
        match Handle::try_current() {
            Ok(runtime) => {
                if let Err(failure) = runtime.spawn_blocking(move || ends(connection)).await {
                    tracing::debug!(error = %failure, "a session could not say goodbye");
                }
            }
            Err(_) => ends(connection),
        }
    }
}

impl<C> Deref for Session<C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.connection.as_ref().expect("the connection is here unless the future of `run` was dropped")
    }
}

impl<C> DerefMut for Session<C> {
    fn deref_mut(&mut self) -> &mut C {
        self.is_here();
        self.connection.as_mut().expect("the connection is here unless the future of `run` was dropped")
    }
}

impl<C> fmt::Debug for Session<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What was noted may be a secret.
        f.debug_struct("Session").field("is_here", &self.connection.is_some()).finish_non_exhaustive()
    }
}
