//! A pool of r2d2 that can be drained.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock},
};

use futures_util::future::BoxFuture;
use r2d2::{Builder, HandleError, ManageConnection};

use crate::{
    control::Control,
    manager::{Handler, Manager, Notes},
};

/// A pool of r2d2, which a drain can keep from opening more: it derefs to r2d2's own.
///
/// Built as r2d2 builds one, with the application's manager in ours. That does not block. With r2d2's default of `min_idle`, which is
/// its `max_size`, threads of the pool begin at once to open as many: `min_idle(Some(0))` opens none before the first use.
pub struct Pool<M: ManageConnection> {
    pool: r2d2::Pool<Manager<M>>,
    pub(crate) control: Arc<Control>,
    handler: Arc<OnceLock<Box<dyn HandleError<M::Error>>>>,
    /// Nothing is stopped from now on. Ready when what was begun for that has ended.
    pub(crate) stopped: Option<Stopped>,
}

pub(crate) type Stopped = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

impl<M: ManageConnection> Pool<M> {
    /// One with these settings, whose connections this manager opens. Its resource is told by
    /// [`Closures`](crate::Closures) how they end: `R2d2::wrap(pool).session_with(closures)`.
    ///
    /// An `error_handler` of the settings is not used: [here](Self::error_handler) is another place for it.
    ///
    /// # Panics
    /// As r2d2 does, where `min_idle` is more than `max_size`.
    pub fn new(settings: Builder<Manager<M>>, manager: M) -> Self {
        Self::build(settings, Arc::new(manager), None)
    }

    /// The same, with a [note](crate::Session::note) of each connection: what has to be asked for before it is lent, as the number by
    /// which a statement of it is stopped. Asked on a thread of the pool's, where that may wait.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn noting<T, F>(settings: Builder<Manager<M>>, manager: M, notes: F) -> Self
    where
        T: Send + Sync + 'static,
        F: Fn(&mut M::Connection) -> T + Send + Sync + 'static,
    {
        Self::build(settings, Arc::new(manager), Some(Box::new(move |connection, _| Box::new(notes(connection)))))
    }

    pub(crate) fn build(settings: Builder<Manager<M>>, inner: Arc<M>, notes: Option<Notes<M::Connection>>) -> Self {
        let (control, handler) = (Arc::<Control>::default(), Arc::<OnceLock<_>>::default());
        let settings = settings.error_handler(Box::new(Handler(Arc::clone(&handler))));
        let pool = settings.build_unchecked(Manager { inner, control: Arc::clone(&control), notes });
        Self { pool, control, handler, stopped: None }
    }

    /// Gives the errors of the manager to this one, if it is the first. By default they are logged, as r2d2 does.
    #[must_use]
    pub fn error_handler(self, handler: Box<dyn HandleError<M::Error>>) -> Self {
        if self.handler.set(handler).is_err() {
            tracing::warn!("a pool of r2d2 has a handler of errors already");
        }
        self
    }
}

impl<M: ManageConnection> Deref for Pool<M> {
    type Target = r2d2::Pool<Manager<M>>;

    fn deref(&self) -> &r2d2::Pool<Manager<M>> {
        &self.pool
    }
}

impl<M: ManageConnection> Clone for Pool<M> {
    fn clone(&self) -> Self {
        let Self { pool, control, handler, stopped } = self;
        Self {
            pool: pool.clone(),
            control: Arc::clone(control),
            handler: Arc::clone(handler),
            stopped: stopped.clone(),
        }
    }
}

impl<M: ManageConnection> fmt::Debug for Pool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("state", &self.pool.state()).finish_non_exhaustive()
    }
}
