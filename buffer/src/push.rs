//! What an application does with a buffer: push and flush.

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use winddown_core::{Error, ErrorKind, Records, ShutdownGuard};

use crate::{BatchWriter, Sink};

/// Pushing into a guarded [`BatchWriter`], and flushing it. Implemented for its guard, and by nobody else.
pub trait Push<T>: sealed::Sealed {
    /// Accepts a record: it will be written, or reported as lost or in doubt. Waits while the buffer is full, and
    /// initialises it if need be. Callers that wait get room in the order in which they came.
    ///
    /// `Ok` says that the record is in the buffer, not that it is in the target: for that, [`flush`](Self::flush).
    ///
    /// # Cancel safety
    /// Accepted or not at all: if the future is dropped before it is ready, the record is dropped with it and is not
    /// counted. To keep it, wait with [`try_push`](Self::try_push).
    ///
    /// # Errors
    /// Each gives the record back, and it is not counted:
    /// - [`ShuttingDown`](ErrorKind::ShuttingDown) once draining has begun, also for a caller that was waiting (S2);
    /// - [`Config`](ErrorKind::Config) when a setting of the buffer cannot be used, [`Init`](ErrorKind::Init) when its
    ///   target could not be initialised;
    /// - [`Checkout`](ErrorKind::Checkout) when nobody writes any more: the runtime the buffer was initialised on has
    ///   ended.
    #[track_caller]
    fn push(&self, record: T) -> impl Future<Output = Result<(), PushError<T>>> + Send;

    /// The same without waiting.
    ///
    /// # Errors
    /// As [`push`](Self::push), and
    /// - [`Full`](ErrorKind::Full) when there is no room;
    /// - [`Init`](ErrorKind::Init) while the buffer is not initialised yet. Asking has begun it.
    #[track_caller]
    fn try_push(&self, record: T) -> Result<(), PushError<T>>;

    /// Writes now what is buffered, and returns when every record that was accepted before this call has left the
    /// buffer: written, lost or in doubt. Any number of callers may flush at once.
    ///
    /// While the target is away it waits, since the records do: put a timeout round it where that matters.
    ///
    /// # Cancel safety
    /// Cancel safe: what was buffered is written all the same.
    ///
    /// # Errors
    /// - [`Write`](ErrorKind::Write) when any of the records that were in the buffer is lost or in doubt; the first
    ///   error is the source;
    /// - [`ShuttingDown`](ErrorKind::ShuttingDown) once draining has begun, which flushes by itself. A call that was
    ///   made before returns with its result, or with an error when the drain is over;
    /// - [`Checkout`](ErrorKind::Checkout) when nobody writes any more, see [`push`](Self::push);
    /// - what [`push`](Self::push) returns while the buffer is not initialised.
    #[track_caller]
    fn flush(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// What became of the records so far: accepted = written + spilled + lost + in doubt + pending, at every moment.
    fn records(&self) -> Records;
}

impl<T: Send + Sync + 'static, S: Sink<T>> Push<T> for ShutdownGuard<BatchWriter<T, S>> {
    #[track_caller]
    fn push(&self, record: T) -> impl Future<Output = Result<(), PushError<T>>> + Send {
        let room = self.get();
        async move {
            match room.await {
                Ok(mut room) => room.put(record),
                Err(error) => Err(PushError::new(record, error)),
            }
        }
    }

    #[track_caller]
    fn try_push(&self, record: T) -> Result<(), PushError<T>> {
        match now(self.get()) {
            Some(Ok(mut room)) => room.put(record),
            Some(Err(error)) => Err(PushError::new(record, error)),
            None => Err(PushError::new(record, why_not_now(self))),
        }
    }

    #[track_caller]
    fn flush(&self) -> impl Future<Output = Result<(), Error>> + Send {
        let flusher = self.pool();
        async move { flusher.await?.queue().flush().await }
    }

    fn records(&self) -> Records {
        self.resource().records()
    }
}

/// Why a checkout has to be waited for.
fn why_not_now<T: Send + Sync + 'static, S: Sink<T>>(guard: &ShutdownGuard<BatchWriter<T, S>>) -> Error {
    let error = match now(guard.pool()) {
        Some(Ok(_)) => Error::new(ErrorKind::Full, "the buffer is full"),
        Some(Err(error)) => return error,
        None => Error::new(ErrorKind::Init, "not initialised yet: wait for `Lifecycle::init` or a push").retryable(),
    };
    error.of(guard.name())
}

/// The output of a future that is ready at once.
fn now<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// A record that was not accepted, and why.
///
/// `?` turns it into an [`Error`] and drops the record. Neither `Debug` nor `Display` shows the record.
pub struct PushError<T> {
    record: T,
    error: Error,
}

impl<T> PushError<T> {
    pub(crate) fn new(record: T, error: Error) -> Self {
        Self { record, error }
    }

    /// The record, back.
    pub fn into_record(self) -> T {
        self.record
    }

    /// Why it was not accepted.
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.error.kind()
    }
}

impl<T> From<PushError<T>> for Error {
    fn from(error: PushError<T>) -> Self {
        error.error
    }
}

impl<T> fmt::Display for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl<T> fmt::Debug for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl<T> StdError for PushError<T> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

mod sealed {
    #[expect(unnameable_types, reason = "that is what seals")]
    pub trait Sealed {}

    impl<T: Send + Sync + 'static, S: crate::Sink<T>> Sealed for winddown_core::ShutdownGuard<crate::BatchWriter<T, S>> {}
}
