//! What a buffer writes to, and what it hands over.

use std::{
    error::Error as StdError,
    fmt,
    future::{Future, ready},
    ops::{Deref, Range},
    slice,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use uuid::{Builder, Uuid};
use winddown_core::{Checkout, Checkouts, Error};

/// Writes batches of records through a checkout of a pool: an `INSERT`, a `COPY`, a pipeline, a bulk request.
///
/// An adapter crate or the application implements this, or gives a closure to [`WriteWith`](crate::WriteWith);
/// [`BatchWriter`](crate::BatchWriter) decides when a batch is written, tries again, finds the records that the target
/// refuses, and counts.
pub trait Sink<T: Send + Sync + 'static>: Send + Sync + 'static {
    /// What it writes through. The buffer holds a guard of it and is therefore drained first (S4).
    type Target: Checkouts;

    /// What becomes of a batch whose outcome nobody knows, for the connection broke during the commit.
    ///
    /// A promise for all batches: it must not change while the buffer lives.
    fn delivery(&self) -> Delivery;

    /// Writes one batch, all or nothing: `Ok` says that the target has every record of it. In a database that is one
    /// transaction, committed before this returns.
    ///
    /// Batches are never empty. As many are written at once as [`in_flight`](crate::BatchWriter::in_flight) says, each
    /// through a checkout of its own. One that comes again has the same records in the same order, and the same
    /// [key](Batch::key).
    ///
    /// Runs on the application's runtime, and while draining on a thread and a current-thread runtime of its own, so it
    /// must not use `block_in_place`. A driver that blocks takes a clone of the batch into its closure.
    ///
    /// # Cancel safety
    /// Need not be cancel safe: it is dropped when it hangs ([`BatchWriter::write_within`](crate::BatchWriter::write_within)), when
    /// the drain's time is up, or when the application's runtime ends. The
    /// outcome of what it was writing is unknown then, and so is that of a batch whose write panics.
    ///
    /// # Errors
    /// What is known of the batch, and the driver's error: see [`WriteError`].
    fn write(
        &self,
        checkout: &mut Checkout<Self::Target>,
        batch: &Batch<T>,
    ) -> impl Future<Output = Result<(), WriteError>> + Send;

    /// Looks whether the target is there and takes such records: the table, its columns, the permission. The buffer asks once,
    /// when it is initialised, so that what can never be written fails the start and not every batch.
    ///
    /// By default there is nothing to look at.
    ///
    /// # Cancel safety
    /// Must be cancel safe, and must change nothing.
    ///
    /// # Errors
    /// What is wrong with the target, and what to do about it; [`retryable`](Error::retryable) for what may pass.
    fn check(&self, checkout: &mut Checkout<Self::Target>) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = checkout;
        ready(Ok(()))
    }

    /// Takes the checkout of a write that was given up because it hung; the write's future is dropped before. Its connection
    /// must serve nobody else, and where the server can be asked over another one, what it still does for this one is ended, so
    /// that the same batch can be written again elsewhere.
    ///
    /// By default the checkout is dropped, which is right where that alone ends its use.
    ///
    /// # Cancel safety
    /// Must be cancel safe: what is left then is the pool's to see to.
    fn abandon(&self, checkout: Checkout<Self::Target>) -> impl Future<Output = ()> + Send {
        drop(checkout);
        ready(())
    }

    /// Where the records go, in a word: the table, the stream. It is part of the buffer's default name, which a replay asks for,
    /// and must be the same in each process. By default there is none.
    fn target(&self) -> Option<&str> {
        None
    }
}

/// How often a record is in the target that was accepted, written and not reported otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "there is no other way")]
pub enum Delivery {
    /// Once. The target remembers the [keys](Batch::key) of the batches that it has, and writing one again changes
    /// nothing; so a batch whose outcome is unknown is written again.
    ExactlyOnce,
    /// Once, or more often: a batch whose outcome is unknown is written again, whatever the target has of it.
    AtLeastOnce,
    /// Once, or not at all: a batch whose outcome is unknown is not written again, and reported as in doubt.
    AtMostOnce,
}

/// Why a batch was not written, by what is to be done about it.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_enums, reason = "a buffer must know what to do with each")]
pub enum WriteError {
    /// The target has nothing of it, and may accept the same batch later: it restarts, is locked, is full. The batch is
    /// kept, and written again after a pause.
    Retry(Error),
    /// The target has nothing of it, and refuses at least one of its records for what is in it. The batch is divided
    /// until that record is alone; the others are written.
    Rejected(Error),
    /// The target has nothing of it, for it came up against a limit that a smaller batch would keep: the time of a statement, its
    /// memory, its locks. The batch is divided down to one record, and that one is tried again like [`Retry`](Self::Retry).
    ///
    /// The halves have keys of their own. So with [`ExactlyOnce`](Delivery::ExactlyOnce) it is an answer only behind the batch's
    /// key: a write that ran out of time while another one still had the key says `Retry`.
    TooLarge(Error),
    /// The target has nothing of it, and it is no record's fault, nor will it pass: no such table, no permission. The batch
    /// is given up: spilled, or lost.
    Failed(Error),
    /// Whether the target has it is not known: the connection broke while the commit was under way. See [`Delivery`].
    Unknown(Error),
}

impl WriteError {
    /// The error itself, whatever is to be done about it.
    pub fn error(&self) -> &Error {
        let (Self::Retry(error)
        | Self::Rejected(error)
        | Self::TooLarge(error)
        | Self::Failed(error)
        | Self::Unknown(error)) = self;
        error
    }
}

/// For errors that say that nothing was written: [`Retry`](WriteError::Retry) if they are retryable or come of a target
/// that is shutting down, else [`Failed`](WriteError::Failed).
impl From<Error> for WriteError {
    fn from(error: Error) -> Self {
        if error.is_retryable() || error.is_shutting_down() { Self::Retry(error) } else { Self::Failed(error) }
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Retry(error) | WriteError::TooLarge(error) => error.retryable(),
            WriteError::Rejected(error) | WriteError::Failed(error) | WriteError::Unknown(error) => error,
        }
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error().fmt(f)
    }
}

impl StdError for WriteError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error().source()
    }
}

/// Names one batch for ever: a UUID of version 7, so that newer ones sort behind older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchKey(Uuid);

impl BatchKey {
    pub(crate) fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The smallest key that a batch may have which was made at this time, to the millisecond: all that sort before it are of
    /// older batches. What a target remembers can be forgotten by it.
    pub fn first_at(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Of 48 bits; those of a time too far away are all ones.
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).min((1 << 48) - 1);
        Self(Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid())
    }

    /// The key of a half of the batch with this key: of the same age, and always the same, so that a replay that was cut short
    /// finds which halves it has written.
    fn half(self, which: u8) -> Self {
        let mut bytes = *self.as_bytes();
        // 48 bits of time come first, with the version behind them; the rest is random, and here a hash.
        let hash = Uuid::new_v5(&self.0, &[which]);
        bytes[8..].copy_from_slice(&hash.as_bytes()[8..]);
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes, for a column of type `uuid` or `binary(16)`.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl From<Uuid> for BatchKey {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl From<BatchKey> for Uuid {
    fn from(key: BatchKey) -> Self {
        key.0
    }
}

/// As UUIDs are written: in lower case, with hyphens.
impl fmt::Display for BatchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Records that are written together. Derefs to a slice; a clone is another handle on the same records.
pub struct Batch<T> {
    key: BatchKey,
    records: Arc<Vec<T>>,
    /// Those of `records` that are in it: a batch that was divided shares them.
    range: Range<usize>,
}

impl<T> Batch<T> {
    pub(crate) fn with_key(key: BatchKey, records: Vec<T>) -> Self {
        Self { key, range: 0..records.len(), records: Arc::new(records) }
    }

    /// Names this batch: the same whenever it is written, in this process or by a replay, and never that of another.
    pub fn key(&self) -> BatchKey {
        self.key
    }

    /// The same batch, with its key, of other records: for a sink that hands it on to another one.
    ///
    /// # Errors
    /// The first one that a record cannot be made into.
    pub fn try_map<U, E>(&self, make: impl FnMut(&T) -> Result<U, E>) -> Result<Batch<U>, E> {
        Ok(Batch::with_key(self.key, self.iter().map(make).collect::<Result<_, _>>()?))
    }

    /// Two batches of one half each, with keys of their own.
    pub(crate) fn halves(&self) -> [Self; 2] {
        let Range { start, end } = self.range;
        let middle = start + (end - start) / 2;
        [(0, start..middle), (1, middle..end)].map(|(which, range)| Self {
            key: self.key.half(which),
            records: Arc::clone(&self.records),
            range,
        })
    }

    /// The memory of the records, if there is no other handle on them.
    pub(crate) fn into_memory(self) -> Option<Vec<T>> {
        Arc::into_inner(self.records)
    }
}

/// A batch with a new key.
impl<T> From<Vec<T>> for Batch<T> {
    fn from(records: Vec<T>) -> Self {
        Self::with_key(BatchKey::new(), records)
    }
}

impl<T> Deref for Batch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.records[self.range.clone()]
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
        Self { key: self.key, records: Arc::clone(&self.records), range: self.range.clone() }
    }
}

impl<T> fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the records: they are the application's data and do not belong into logs.
        f.debug_struct("Batch").field("key", &self.key()).field("len", &self.len()).finish()
    }
}
