//! A connection of the pool's, as the guard hands it out.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use sqlx::pool::PoolConnection;
use tokio::runtime::Handle;

#[cfg(feature = "buffer")]
use crate::asker;
use crate::{
    backend::Backend,
    book::{Book, Place},
};

/// A checkout: the pool's [`PoolConnection`], and which session of the server's it is.
///
/// `connection.as_mut()` is the driver's own connection, which statements are executed on, and so is what a `&mut` of it derefs to.
pub struct Lent<DB: Backend> {
    /// There until it is given back.
    conn: Option<PoolConnection<DB>>,
    place: Place<DB>,
    /// It is not used again.
    closes: bool,
    /// Whoever gives it back may be in none.
    runtime: Handle,
}

impl<DB: Backend> Lent<DB> {
    pub(crate) fn new(
        book: &Arc<Book<DB>>,
        conn: PoolConnection<DB>,
        session: Option<DB::Session>,
        runtime: Handle,
    ) -> Self {
        Self { conn: Some(conn), place: Place::new(book, session), closes: false, runtime }
    }

    /// Has the server stop what it runs.
    ///
    /// # Cancel safety
    /// Dropped, it may have been told or not.
    #[cfg(feature = "buffer")]
    pub(crate) fn stop(&self) -> impl Future<Output = ()> + Send + use<DB> {
        let (book, session) = (Arc::clone(self.place.book()), self.place.session());
        async move {
            if let Some(session) = session {
                asker::stop(&book, session).await;
            }
        }
    }

    /// Has the connection closed when it is given back, and not used again, as the driver's own method of this name does.
    pub fn close_on_drop(&mut self) {
        self.closes = true;
    }

    pub(crate) fn into_parts(mut self) -> Option<Parts<DB>> {
        let conn = self.conn.take()?;
        Some(Parts { conn, place: self.place.take(), closes: self.closes, runtime: self.runtime.clone() })
    }
}

/// What a checkout is made of.
pub(crate) struct Parts<DB: Backend> {
    pub(crate) conn: PoolConnection<DB>,
    pub(crate) place: Place<DB>,
    pub(crate) closes: bool,
    pub(crate) runtime: Handle,
}

const STILL_THERE: &str = "a connection is there until it is given back";

impl<DB: Backend> Deref for Lent<DB> {
    type Target = PoolConnection<DB>;

    fn deref(&self) -> &PoolConnection<DB> {
        self.conn.as_ref().expect(STILL_THERE)
    }
}

impl<DB: Backend> DerefMut for Lent<DB> {
    fn deref_mut(&mut self) -> &mut PoolConnection<DB> {
        self.conn.as_mut().expect(STILL_THERE)
    }
}

impl<DB: Backend> Drop for Lent<DB> {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            // The driver gives it back in a task.
            let _entered = self.runtime.enter();
            drop(conn);
        }
    }
}

impl<DB: Backend> fmt::Debug for Lent<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("session", &self.place.session()).finish_non_exhaustive()
    }
}
