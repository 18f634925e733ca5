//! Any client or pool as a resource, described by closures: no crate and no trait needed.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    Checkouts, Error, ErrorKind, Resource,
    drain::{Drain, Ends},
    error::BoxError,
    resource::Size,
};

type Running<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;
type Call<C> = Box<dyn Fn(C) -> Running<()> + Send + Sync>;
type Count<C> = Box<dyn Fn(&C) -> usize + Send + Sync>;

/// A client or pool that has no adapter, as a resource: opened once, handed out, closed once, in the order of the drain and by
/// its deadline.
///
/// ```
/// # use winddown_core::{Client, Error, Lifecycle};
/// # use std::io;
/// # #[derive(Clone)] struct Pool;
/// # impl Pool {
/// #     async fn connect() -> io::Result<Self> { Ok(Self) }
/// #     async fn acquire(&self) -> io::Result<()> { Ok(()) }
/// #     async fn close(&self) {}
/// #     fn size(&self) -> usize { 0 }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// # let lifecycle = Lifecycle::builder().signals(false).build()?;
/// let orders = Client::new("orders", Pool::connect)
///     .checkout(|pool| async move { pool.acquire().await })
///     .open(|pool| pool.size())
///     .close(|pool| async move { pool.close().await });
/// let orders = lifecycle.guard(orders);
/// let connection = orders.get().await?;
/// # drop(connection);
/// # assert!(lifecycle.drain().await.is_clean());
/// # Ok(())
/// # }
/// ```
///
/// Each closure gets a clone of the client, as the pools and clients of most drivers are meant to be shared.
///
/// # What its drain can do
/// It waits until every checkout is back, or until there is only the time that is [kept](Resource::reserve) for the last
/// goodbyes, and closes the client then. Nobody sees how the server takes that, so its sessions are reported as unconfirmed, which
/// is no failure; what is still open afterwards, or when the time is over, is cut. Statements are not cancelled, and each session
/// waits for the slowest: an adapter does better where there is one.
///
/// Without [`close`](Self::close) it is left as it is, once its checkouts are back: what is open ends with the process.
pub struct Client<C, K = Itself> {
    name: String,
    source: ClientSource<C>,
    checkout: K,
    flush: Option<Call<C>>,
    close: Option<Call<C>>,
    open: Option<Count<C>>,
}

enum ClientSource<C> {
    Connects(Box<dyn Fn() -> Running<C> + Send + Sync>),
    Opened(C),
}

/// Checkouts of a [`Client`] that was not told how to check something out: clones of the client itself.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Itself;

impl<C: Clone + Send + Sync + 'static> Client<C> {
    /// A client that is opened by this, once: by [`Lifecycle::init`](crate::Lifecycle::init) or on first use, and again where
    /// that fails.
    pub fn new<F, Fut, E>(name: impl Into<String>, connect: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<C, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let connect = move || {
            let connecting = connect();
            Box::pin(async move { connecting.await.map_err(Into::into) }) as Running<C>
        };
        Self::of(name.into(), ClientSource::Connects(Box::new(connect)))
    }

    /// A client that is open already. It is drained even if it was never used through the guard, and cannot be opened again after
    /// that.
    pub fn opened(name: impl Into<String>, client: C) -> Self {
        Self::of(name.into(), ClientSource::Opened(client))
    }

    fn of(name: String, source: ClientSource<C>) -> Self {
        Self { name, source, checkout: Itself, flush: None, close: None, open: None }
    }
}

impl<C: Clone + Send + Sync + 'static, K> Client<C, K> {
    /// How one checkout is had from it: what [`ShutdownGuard::get`](crate::ShutdownGuard::get) does. Without it a checkout is a
    /// clone of the client.
    ///
    /// A drain waits for checkouts. The closure's future has to be cancel safe: it is dropped when draining begins.
    #[must_use]
    pub fn checkout<F, Fut, T, E>(self, checkout: F) -> Client<C, F>
    where
        F: Fn(C) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Into<BoxError> + 'static,
    {
        let Self { name, source, checkout: _, flush, close, open } = self;
        Client { name, source, checkout, flush, close, open }
    }

    /// Sends what the client holds, as often as [`Lifecycle::flush`](crate::Lifecycle::flush) is called, and once before it is
    /// closed. It has to be cancel safe.
    #[must_use]
    pub fn flush<F, Fut, T>(mut self, flush: F) -> Self
    where
        F: Fn(C) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = T> + Send + 'static,
        T: crate::HookResult,
    {
        self.flush = Some(call(flush));
        self
    }

    /// Closes it, in the drain, when every checkout is back or there is no more time to wait for them.
    #[must_use]
    pub fn close<F, Fut, T>(mut self, close: F) -> Self
    where
        F: Fn(C) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = T> + Send + 'static,
        T: crate::HookResult,
    {
        self.close = Some(call(close));
        self
    }

    /// How many sessions with a server are open, for the report. Must not block. Without it the client counts as one.
    #[must_use]
    pub fn open(mut self, open: impl Fn(&C) -> usize + Send + Sync + 'static) -> Self {
        self.open = Some(Box::new(open));
        self
    }
}

fn call<C: Send + 'static, F, Fut, T>(call: F) -> Call<C>
where
    F: Fn(C) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = T> + Send + 'static,
    T: crate::HookResult,
{
    Box::new(move |client| {
        let running = call(client);
        Box::pin(async move { running.await.into_result() })
    })
}

impl<C: Clone + Send + Sync + 'static, K: Send + Sync + 'static> Resource for Client<C, K> {
    type Pool = C;

    fn name(&self) -> &str {
        &self.name
    }

    async fn init(&self) -> Result<C, Error> {
        match &self.source {
            // Whether it passes nobody here can tell, so it is tried again.
            ClientSource::Connects(connect) => connect()
                .await
                .map_err(|source| Error::new(ErrorKind::Init, "cannot connect").with_source(source).retryable()),
            ClientSource::Opened(client) => Ok(client.clone()),
        }
    }

    fn opened(&self) -> Option<C> {
        match &self.source {
            ClientSource::Connects(_) => None,
            ClientSource::Opened(client) => Some(client.clone()),
        }
    }

    async fn goodbye(&self, client: &C, drain: &Drain) -> Result<(), Error> {
        let open = || self.open.as_ref().map(|open| open(client));
        drain.set_open(open().unwrap_or(1));
        tokio::select! {
            () = drain.until_returned() => {}
            () = drain.until_cancel() => {}
        }
        let Some(close) = &self.close else {
            self.flush(client).await?;
            // Nobody says goodbye for it. It ends with the process, and is no failure of the drain.
            drain.count(Ends { unconfirmed: open().unwrap_or(1), ..Ends::default() }, 0);
            return Ok(());
        };
        let is_closed = AtomicBool::new(false);
        let closing = async {
            self.flush(client).await?;
            let failed = |source| Error::new(ErrorKind::Incomplete, "cannot close it").with_source(source);
            close(client.clone()).await.map_err(failed)?;
            // Only this future asks for it.
            is_closed.store(true, Ordering::Relaxed);
            Ok(())
        };
        drain.closing(|| open().unwrap_or_else(|| usize::from(!is_closed.load(Ordering::Relaxed))), closing).await
    }

    async fn flush(&self, client: &C) -> Result<(), Error> {
        let Some(flush) = &self.flush else { return Ok(()) };
        let failed = |source| Error::new(ErrorKind::Work, "cannot flush it").with_source(source);
        flush(client.clone()).await.map_err(failed)
    }

    fn size(&self, client: &C) -> Option<Size> {
        let open = self.open.as_ref().map(|open| open(client))?;
        Some(Size { open, idle: None })
    }
}

impl<C: Clone + Send + Sync + 'static> Checkouts for Client<C> {
    type Checkout = C;

    async fn checkout(&self, client: &C) -> Result<C, Error> {
        Ok(client.clone())
    }
}

impl<C, F, Fut, T, E> Checkouts for Client<C, F>
where
    C: Clone + Send + Sync + 'static,
    F: Fn(C) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Into<BoxError> + 'static,
{
    type Checkout = T;

    async fn checkout(&self, client: &C) -> Result<T, Error> {
        let failed = |source: E| Error::new(ErrorKind::Checkout, "no checkout").with_source(source);
        (self.checkout)(client.clone()).await.map_err(failed)
    }
}

impl<C, K> fmt::Debug for Client<C, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client: it may hold a password.
        f.debug_struct("Client").field("name", &self.name).finish_non_exhaustive()
    }
}
