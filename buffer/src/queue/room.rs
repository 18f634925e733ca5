//! Room for records, and who waits for it.

use std::sync::Arc;

use tokio::sync::TryAcquireError;
use winddown_core::Error;

use super::{Queue, Writer};
use crate::PushError;

/// Room for one record: what a checkout of a buffer is. Free again if it is dropped unused.
///
/// [`Push::push`](crate::Push::push) checks one out, fills it and drops it; there is nothing else to do with it.
#[derive(Debug)]
pub struct Room<T: Send + Sync> {
    queue: Arc<Queue<T>>,
    filled: bool,
}

impl<T: Send + Sync> Room<T> {
    /// Accepts the record. Fails only after the drain is over, for a room that was held until then.
    pub(crate) fn put(&mut self, record: T) -> Result<(), PushError<T>> {
        self.queue.put(record)?;
        self.filled = true;
        Ok(())
    }
}

impl<T: Send + Sync> Drop for Room<T> {
    fn drop(&mut self) {
        if !self.filled {
            self.queue.room.add_permits(1);
        }
    }
}

impl<T: Send + Sync> Queue<T> {
    /// Room for one record; waits for it.
    ///
    /// # Cancel safety
    /// Cancel safe; the place in the line is lost.
    pub(crate) async fn room(self: &Arc<Self>) -> Result<Room<T>, Error> {
        // First without tokio's cooperative budget: where there is room this must not wait, or `try_push` would take an
        // exhausted budget for a full buffer. It cannot overtake, since permits are free only where nobody waits.
        let permit = match self.room.try_acquire() {
            Err(TryAcquireError::NoPermits) => self.room.acquire().await.ok(),
            permit => permit.ok(),
        };
        match permit {
            Some(permit) => {
                // Given back by hand, by whatever becomes of the record.
                permit.forget();
                Ok(Room { queue: Arc::clone(self), filled: false })
            }
            None if self.state().writer == Writer::Closed => Err(self.closed()),
            None => Err(self.nobody_writes()),
        }
    }
}
