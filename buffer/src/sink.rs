//! What a buffer writes to, and what it hands over.

use std::{fmt, future::Future, ops::Deref, slice, sync::Arc};

use winddown_core::{Checkout, Error, Resource};

/// Writes batches of records through a checkout of a pool: an `INSERT`, a pipeline, a bulk request.
///
/// An adapter crate or the application implements this; [`BatchWriter`](crate::BatchWriter) decides when a batch is
/// written, keeps the order, tries again and counts.
pub trait Sink<T: Send + Sync + 'static>: Send + Sync + 'static {
    /// What it writes through. The buffer holds a guard of it and is therefore drained first (S4).
    type Target: Resource;

    /// Writes one batch, all or nothing: `Ok` says that the target has every record of it, `Err` that it has none. In a
    /// database that is one transaction, committed before this returns.
    ///
    /// Batches come one at a time, in the order in which their records were accepted, and never empty. A batch whose
    /// error was retryable comes again, the same records in the same order.
    ///
    /// Runs on the application's runtime, and while draining on a thread and a current-thread runtime of its own, so it
    /// must not use `block_in_place`. A driver that blocks takes a clone of the batch into its closure.
    ///
    /// # Cancel safety
    /// Need not be cancel safe: it is dropped when the drain's time is up, or when the application's runtime ends. What
    /// it was writing then counts as in doubt, and is not written again. So does a batch whose write panics.
    ///
    /// # Errors
    /// [`Write`](winddown_core::ErrorKind::Write) with the driver's error as the source;
    /// [`retryable`](Error::retryable) if the same batch may be accepted later (the server restarts, is locked, is
    /// full), for it is then kept and written again; any other error loses the batch.
    ///
    /// An error whose outcome is not known (the connection broke during the commit) breaks the promise that the target
    /// has nothing: return it as retryable where writing twice is harmless, and not where a loss is.
    fn write(
        &self,
        checkout: &mut Checkout<Self::Target>,
        batch: &Batch<T>,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Records that are written together. Derefs to a slice; a clone is another handle on the same records.
pub struct Batch<T> {
    records: Arc<Vec<T>>,
}

impl<T> From<Vec<T>> for Batch<T> {
    fn from(records: Vec<T>) -> Self {
        Self { records: Arc::new(records) }
    }
}

impl<T> Deref for Batch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.records
    }
}

impl<'a, T> IntoIterator for &'a Batch<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T> Clone for Batch<T> {
    fn clone(&self) -> Self {
        Self { records: Arc::clone(&self.records) }
    }
}

impl<T> fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the records: they are the application's data and do not belong into logs.
        f.debug_struct("Batch").field("len", &self.len()).finish()
    }
}
