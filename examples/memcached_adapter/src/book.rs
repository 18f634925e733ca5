//! Which sessions of a pool are open, and how those that are not have ended.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::Notify;
use winddown_core::adapter::{End, Ends, News};

use crate::session::Session;

/// The book of one pool.
#[derive(Debug, Default)]
pub(crate) struct Book {
    page: Mutex<Page>,
    pub(crate) changed: Notify,
}

#[derive(Debug, Default)]
struct Page {
    /// Idle, checked out, being opened or closed.
    open: usize,
    /// Nobody has them any more, and they have not said goodbye.
    returned: Vec<Session>,
    /// How sessions have ended in this drain. Before it nobody asks.
    ends: Option<Ends>,
    /// Nobody says goodbye any more.
    is_closed: bool,
}

impl Book {
    /// One session more, which is open until this is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Entry {
        self.page().open += 1;
        Entry { book: Arc::downgrade(self), end: End::Uncounted }
    }

    /// Nobody has this session any more.
    pub(crate) fn put(&self, session: Session) {
        let mut page = self.page();
        if page.is_closed {
            drop(page);
            return session.cut();
        }
        page.returned.push(session);
        drop(page);
        self.changed.notify_one();
    }

    /// Those that nobody has, to be closed by whoever asks.
    pub(crate) fn returned(&self) -> Vec<Session> {
        mem::take(&mut self.page().returned)
    }

    /// What has happened since this was last asked, all at one moment.
    pub(crate) fn news(&self) -> News<Session> {
        let mut page = self.page();
        let ends = page.ends.replace(Ends::default()).unwrap_or_default();
        News { returned: mem::take(&mut page.returned), ends, open: page.open }
    }

    /// The last news: what is open now is cut, and what comes back later ends without a goodbye.
    pub(crate) fn close(&self) -> Ends {
        let mut page = self.page();
        page.is_closed = true;
        let mut ends = page.ends.take().unwrap_or_default();
        ends.cut += page.open;
        let returned = mem::take(&mut page.returned);
        drop(page);
        returned.into_iter().for_each(Session::cut);
        ends
    }

    fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's entry in the book. It does not keep the book: of a pool that is gone nobody asks.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) book: Weak<Book>,
    /// How the session ends, if it ends now.
    pub(crate) end: End,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(book) = self.book.upgrade() else { return };
        let mut page = book.page();
        page.open -= 1;
        if let Some(ends) = &mut page.ends {
            ends.record(mem::replace(&mut self.end, End::Uncounted));
        }
        drop(page);
        book.changed.notify_one();
    }
}
