//! A closure as a sink, for what has no adapter.

use std::{fmt, future::Future, marker::PhantomData, pin::Pin};

use winddown_core::{Checkout, Checkouts};

use crate::{Batch, Delivery, Sink, WriteError};

/// A sink that is a closure, for what has no adapter: an HTTP client, a message broker, a statement of one's own.
///
/// ```
/// # use winddown_buffer::{Batch, BatchWriter, Delivery, WriteError, WriteWith};
/// # use winddown_core::{Checkout, Client, Error, ErrorKind, Lifecycle};
/// # #[derive(Clone)] struct Http;
/// # impl Http { async fn post(&self, _: &[String]) -> Result<(), std::io::Error> { Ok(()) } }
/// # fn main() -> Result<(), Error> {
/// # let lifecycle = Lifecycle::builder().signals(false).build()?;
/// let events = lifecycle.guard(Client::opened("events", Http));
/// let sink = WriteWith::new(Delivery::AtLeastOnce, |client: &mut Checkout<Client<Http>>, batch: &Batch<String>| {
///     Box::pin(async move {
///         let failed = |error| Error::new(ErrorKind::Write, "cannot post events").with_source(error);
///         client.post(batch).await.map_err(|error| WriteError::Unknown(failed(error)))
///     })
/// });
/// let buffer = lifecycle.guard(BatchWriter::new(&events, sink));
/// # Ok(())
/// # }
/// ```
pub struct WriteWith<R, F> {
    delivery: Delivery,
    write: F,
    target: PhantomData<fn(R)>,
}

/// The future of one write.
pub type Writing<'a> = Pin<Box<dyn Future<Output = Result<(), WriteError>> + Send + 'a>>;

impl<R: Checkouts, F> WriteWith<R, F> {
    /// Writes with this closure. It returns a boxed future, and promises what [`Sink::write`] promises.
    pub fn new<T>(delivery: Delivery, write: F) -> Self
    where
        F: for<'a> Fn(&'a mut Checkout<R>, &'a Batch<T>) -> Writing<'a>,
    {
        Self { delivery, write, target: PhantomData }
    }
}

impl<T, R, F> Sink<T> for WriteWith<R, F>
where
    T: Send + Sync + 'static,
    R: Checkouts,
    F: for<'a> Fn(&'a mut Checkout<R>, &'a Batch<T>) -> Writing<'a> + Send + Sync + 'static,
{
    type Target = R;

    fn delivery(&self) -> Delivery {
        self.delivery
    }

    async fn write(&self, checkout: &mut Checkout<R>, batch: &Batch<T>) -> Result<(), WriteError> {
        (self.write)(checkout, batch).await
    }
}

impl<R, F> fmt::Debug for WriteWith<R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteWith").field("delivery", &self.delivery).finish_non_exhaustive()
    }
}
