//! What tracked work answers with bit by bit.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use pin_project_lite::pin_project;

use crate::{
    Tracked,
    dependent::{in_dependent, is_dependent},
};

pin_project! {
    /// A stream, or a response body, that belongs to tracked work whichever task polls it.
    ///
    /// Servers poll the body of a response in tasks of their own, when the handler that made it is long over. So
    /// [`Tracked::scope`] round the handler does not reach it, and a body that checks out for each page would be refused
    /// in its middle once draining has begun. In this, guards hand out to it as they do to the handler, and the work is
    /// tracked until the stream is over or dropped.
    ///
    /// It is a [`Stream`] where it holds one; with the feature `http-body` it is a `Body` where it holds one, with that
    /// body's trailers and length.
    ///
    /// A stream that never ends by itself (server-sent events) holds up the resources until
    /// [its share of the budget](crate::Builder::work_share) is used up, and the drain until its end: end it at
    /// [`Lifecycle::draining`](crate::Lifecycle::draining).
    ///
    /// A task that the application spawns itself, as the sending half of a channel, is not polled through this: run it in
    /// [`Tracked::scope`] or [`with_dependent_access`](crate::adapter::with_dependent_access).
    ///
    /// # Cancel safety
    /// That of the stream; the work counts as done when this is dropped.
    #[must_use = "the work counts as done when this is dropped"]
    pub struct TrackedBody<B> {
        #[pin]
        body: B,
        tracked: Option<Arc<Tracked>>,
    }
}

impl Tracked {
    /// Ties the body of a response, or a stream, to the tracked work, which lasts until the body has been sent: guards hand
    /// out to it whichever task polls it. `examples/axum.rs` does so for every response, in a middleware.
    ///
    /// ```
    /// # use futures_util::{StreamExt, stream};
    /// # use winddown_core::{Error, Lifecycle, memory::Memory};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let lifecycle = Lifecycle::builder().signals(false).build()?;
    /// let db = lifecycle.guard(Memory::new("db"));
    /// let pages = stream::iter(1..=3).then(move |page| {
    ///     let db = db.clone();
    ///     async move { db.get().await.map(|_session| page) }
    /// });
    /// let body = lifecycle.track()?.body(pages);
    ///
    /// // What a server does with it, when the platform has said stop.
    /// lifecycle.begin_drain();
    /// let sent: Vec<_> = body.collect().await;
    /// assert!(sent.iter().all(Result::is_ok));
    /// assert!(lifecycle.drained().await.is_clean());
    /// # Ok(())
    /// # }
    /// ```
    pub fn body<B>(self, body: B) -> TrackedBody<B> {
        TrackedBody::new(body, Some(Arc::new(self)))
    }
}

impl<B> TrackedBody<B> {
    /// Ties the stream to work that may have more than this one; with `None` the stream is as it was.
    pub fn new(body: B, tracked: Option<Arc<Tracked>>) -> Self {
        Self { body, tracked }
    }

    /// Polls the body as what it is part of.
    fn poll_with<T>(self: Pin<&mut Self>, poll: impl FnOnce(Pin<&mut B>) -> Poll<Option<T>>) -> Poll<Option<T>> {
        let this = self.project();
        // Not counted any more, or inside already: nothing to add.
        let polled =
            if this.tracked.is_none() || is_dependent() { poll(this.body) } else { in_dependent(|| poll(this.body)) };
        if matches!(polled, Poll::Ready(None)) {
            *this.tracked = None;
        }
        polled
    }
}

impl<S: Stream> Stream for TrackedBody<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.poll_with(|stream| stream.poll_next(context))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.body.size_hint()
    }
}

#[cfg(feature = "http-body")]
impl<B: http_body::Body> http_body::Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        self.poll_with(|body| body.poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for TrackedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The body is left out: it may hold what is sent.
        f.debug_struct("TrackedBody").field("tracked", &self.tracked.is_some()).finish_non_exhaustive()
    }
}
