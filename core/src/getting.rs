//! A caller who waits for a connection of a pool, and may go.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{runtime::Handle, time::timeout};

/// Whose connections are got by [`Getting`].
pub trait Lender<T>: Send + Sync + 'static {
    /// One more waits for a connection. Its drain is not over before nobody does.
    fn begin_getting(&self);

    /// One less.
    fn end_getting(&self);

    /// Takes a connection back that nobody wants any more, as a checkout.
    fn give_back(self: &Arc<Self>, connection: T);
}

/// Gets a connection from a pool whose driver closes without a word what it opens for nobody: what is opened for a caller who goes is
/// opened to its end, and given back.
///
/// # Cancel safety
/// Dropped, it goes on as a task of the runtime that it is dropped in, until its limit. Outside of a runtime it ends.
pub struct Getting<P: Lender<T>, T: Send + 'static, E: Send + 'static> {
    lender: Arc<P>,
    /// `None` once it is over.
    from_pool: Option<FromPool<T, E>>,
    /// It was not there at once.
    waits: Option<Waits<P, T>>,
    limit: Duration,
}

type FromPool<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// One who waits.
struct Waits<P: Lender<T>, T> {
    lender: Arc<P>,
    connection: PhantomData<fn(T)>,
}

impl<P: Lender<T>, T> Waits<P, T> {
    fn begin(lender: &Arc<P>) -> Self {
        lender.begin_getting();
        Self { lender: Arc::clone(lender), connection: PhantomData }
    }
}

impl<P: Lender<T>, T> Drop for Waits<P, T> {
    fn drop(&mut self) {
        self.lender.end_getting();
    }
}

impl<P: Lender<T>, T: Send + 'static, E: Send + 'static> Getting<P, T, E> {
    /// From this pool, and not for longer than this once its caller has gone.
    pub fn new(
        lender: &Arc<P>,
        from_pool: impl Future<Output = Result<T, E>> + Send + 'static,
        limit: Duration,
    ) -> Self {
        Self { lender: Arc::clone(lender), from_pool: Some(Box::pin(from_pool)), waits: None, limit }
    }
}

impl<P: Lender<T>, T: Send + 'static, E: Send + 'static> Future for Getting<P, T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { lender, from_pool, waits, .. } = &mut *self;
        let Some(future) = from_pool else { return Poll::Pending };
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            waits.get_or_insert_with(|| Waits::begin(lender));
        }
        let got = ready!(polled);
        *from_pool = None;
        Poll::Ready(got)
    }
}

impl<P: Lender<T>, T: Send + 'static, E: Send + 'static> Drop for Getting<P, T, E> {
    fn drop(&mut self) {
        let (Some(from_pool), Some(waits)) = (self.from_pool.take(), self.waits.take()) else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        let limit = self.limit;
        runtime.spawn(async move {
            if let Ok(Ok(connection)) = timeout(limit, from_pool).await {
                waits.lender.give_back(connection);
            }
        });
    }
}

impl<P: Lender<T>, T: Send + 'static, E: Send + 'static> fmt::Debug for Getting<P, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Getting").field("waits", &self.waits.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures_util::FutureExt as _;
    use tokio::sync::{Notify, oneshot};

    use super::*;

    #[derive(Default)]
    struct Pool {
        getting: AtomicUsize,
        back: AtomicUsize,
        changed: Notify,
    }

    impl Lender<u8> for Pool {
        fn begin_getting(&self) {
            self.getting.fetch_add(1, Ordering::SeqCst);
        }

        fn end_getting(&self) {
            self.getting.fetch_sub(1, Ordering::SeqCst);
            self.changed.notify_one();
        }

        fn give_back(self: &Arc<Self>, _: u8) {
            self.back.fetch_add(1, Ordering::SeqCst);
        }
    }

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn what_is_opened_for_somebody_who_has_gone_is_given_back() {
        let (pool, (open, opened)) = (Arc::new(Pool::default()), oneshot::channel());
        let mut getting = Box::pin(Getting::new(&pool, opened, LIMIT));
        assert!((&mut getting).now_or_never().is_none());
        assert_eq!(pool.getting.load(Ordering::SeqCst), 1);
        drop(getting);
        assert_eq!(pool.getting.load(Ordering::SeqCst), 1);
        open.send(7).unwrap();
        pool.changed.notified().await;
        assert_eq!((pool.getting.load(Ordering::SeqCst), pool.back.load(Ordering::SeqCst)), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_is_not_waited_for_longer_than_its_limit() {
        let pool = Arc::new(Pool::default());
        let mut getting = Box::pin(Getting::new(&pool, std::future::pending::<Result<u8, Infallible>>(), LIMIT));
        assert!((&mut getting).now_or_never().is_none());
        drop(getting);
        let began = tokio::time::Instant::now();
        pool.changed.notified().await;
        assert_eq!((pool.getting.load(Ordering::SeqCst), pool.back.load(Ordering::SeqCst)), (0, 0));
        assert!(began.elapsed() >= LIMIT);
    }

    #[tokio::test]
    async fn one_that_is_there_at_once_waits_for_nothing() {
        let pool = Arc::new(Pool::default());
        let got = Getting::new(&pool, async { Ok::<_, Infallible>(7) }, LIMIT).await;
        assert_eq!((got, pool.getting.load(Ordering::SeqCst)), (Ok(7), 0));
        assert_eq!(pool.back.load(Ordering::SeqCst), 0);
    }
}
