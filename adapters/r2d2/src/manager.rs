//! The manager of a pool that can be drained.

use std::{
    any::Any,
    error::Error as StdError,
    fmt,
    sync::{Arc, OnceLock, atomic::AtomicBool},
};

use r2d2::{HandleError, LoggingErrorHandler, ManageConnection};

use crate::{control::Control, session::Session};

/// What is noted of a connection, which is told whether nothing of a caller's runs there.
pub(crate) type Notes<C> = Box<dyn Fn(&mut C, &Arc<AtomicBool>) -> Box<dyn Any + Send + Sync> + Send + Sync>;

/// The application's manager, which opens nothing more once the drain has begun: [`Pool`](crate::Pool) makes it.
pub struct Manager<M: ManageConnection> {
    pub(crate) inner: Arc<M>,
    pub(crate) control: Arc<Control>,
    pub(crate) notes: Option<Notes<M::Connection>>,
}

impl<M: ManageConnection> ManageConnection for Manager<M> {
    type Connection = Session<M::Connection>;
    type Error = ConnectError<M::Error>;

    fn connect(&self) -> Result<Session<M::Connection>, ConnectError<M::Error>> {
        let opening = self.control.open().ok_or(ConnectError::Draining)?;
        let mut connection = match self.inner.connect() {
            Ok(connection) => connection,
            Err(error) => {
                opening.failed(error.to_string());
                return Err(ConnectError::Manager(error));
            }
        };
        if self.control.is_closed() {
            opening.failed("the pool is drained".to_owned());
            return Err(ConnectError::Draining);
        }
        let is_ours = Arc::default();
        let note = self.notes.as_ref().map(|notes| notes(&mut connection, &is_ours));
        Ok(Session::new(connection, opening.opened(), is_ours, note))
    }

    fn is_valid(&self, session: &mut Session<M::Connection>) -> Result<(), ConnectError<M::Error>> {
        match session.is_here() {
            true => self.inner.is_valid(session).map_err(ConnectError::Manager),
            false => Err(ConnectError::Draining),
        }
    }

    /// Called when one comes back, which is idle at once if it is not.
    fn has_broken(&self, session: &mut Session<M::Connection>) -> bool {
        let is_broken = !session.is_here() || self.control.is_closed() || self.inner.has_broken(session);
        self.control.comes.notify_one();
        is_broken
    }
}

impl<M: ManageConnection> fmt::Debug for Manager<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The application's may show where it connects to, and as whom.
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

/// Why a connection was not opened, or is none any more.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is no other reason")]
pub enum ConnectError<E> {
    /// The pool is being drained.
    Draining,
    /// So says the application's manager.
    Manager(E),
}

impl<E: fmt::Display> fmt::Display for ConnectError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Draining => f.write_str("the pool is being drained"),
            Self::Manager(error) => error.fmt(f),
        }
    }
}

impl<E: StdError> StdError for ConnectError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Draining => None,
            // It is shown in its place.
            Self::Manager(error) => error.source(),
        }
    }
}

/// Tells the application's handler of the errors of its manager. That a drain opens nothing is none: a pool goes on trying, after
/// pauses that grow to half of its `connection_timeout`, and would log each try.
pub(crate) struct Handler<E>(pub(crate) Arc<OnceLock<Box<dyn HandleError<E>>>>);

impl<E: StdError + 'static> HandleError<ConnectError<E>> for Handler<E> {
    fn handle_error(&self, error: ConnectError<E>) {
        match (error, self.0.get()) {
            (ConnectError::Draining, _) => {}
            (ConnectError::Manager(error), Some(handler)) => handler.handle_error(error),
            // What r2d2 has by default.
            (ConnectError::Manager(error), None) => LoggingErrorHandler.handle_error(error),
        }
    }
}

impl<E> fmt::Debug for Handler<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").finish_non_exhaustive()
    }
}
