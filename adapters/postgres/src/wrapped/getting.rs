//! A caller who waits for a connection of the pool, and may go.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use deadpool_postgres::{Client, PoolError};
use tokio::{runtime::Handle, time::timeout};

use super::Wrapped;
use crate::config::CONNECT_TIMEOUT;

type FromPool = Pin<Box<dyn Future<Output = Result<Client, PoolError>> + Send>>;

pub(super) struct Getting {
    wrapped: Arc<Wrapped>,
    /// `None` once it is over.
    from_pool: Option<FromPool>,
    /// It was not there at once.
    waits: Option<Waits>,
}

/// One who waits. The drain is not over before.
struct Waits(Arc<Wrapped>);

impl Waits {
    fn begin(wrapped: &Arc<Wrapped>) -> Self {
        wrapped.state().getting += 1;
        Self(Arc::clone(wrapped))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.state().getting -= 1;
        self.0.changed.notify_one();
    }
}

impl Getting {
    pub(super) fn new(wrapped: &Arc<Wrapped>) -> Self {
        let pool = wrapped.pool.clone();
        let from_pool = Box::pin(async move { pool.get().await });
        Self { wrapped: Arc::clone(wrapped), from_pool: Some(from_pool), waits: None }
    }
}

impl Future for Getting {
    type Output = Result<Client, PoolError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { wrapped, from_pool, waits } = &mut *self;
        let Some(future) = from_pool else { return Poll::Pending };
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            waits.get_or_insert_with(|| Waits::begin(wrapped));
        }
        let got = ready!(polled);
        *from_pool = None;
        Poll::Ready(got)
    }
}

impl Drop for Getting {
    fn drop(&mut self) {
        let (Some(from_pool), Some(waits)) = (self.from_pool.take(), self.waits.take()) else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            // As long as opening one may take in a pool of the adapter's own.
            if let Ok(Ok(client)) = timeout(CONNECT_TIMEOUT, from_pool).await {
                waits.0.give_back(client);
            }
        });
    }
}
