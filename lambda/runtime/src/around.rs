//! Something done around each invocation.

use std::{
    future::Future,
    task::{Context, Poll},
};

use tower::Service;

/// A service that is called by a function, which has what all its calls have in common: `tower::util::MapFuture` does not
/// see the request.
///
/// The function is one of its own and no closure, so that this is as cloneable, and its futures are as movable between
/// threads, as the service that it is for.
#[derive(Debug, Clone)]
pub(crate) struct Around<S, C, F> {
    inner: S,
    common: C,
    call: F,
}

impl<S, C, F> Around<S, C, F> {
    pub(crate) fn new(inner: S, common: C, call: F) -> Self {
        Self { inner, common, call }
    }
}

impl<I, S, C, F, Fut, T> Service<I> for Around<S, C, F>
where
    S: Service<I>,
    F: Fn(&C, &mut S, I) -> Fut,
    Fut: Future<Output = Result<T, S::Error>>,
{
    type Response = T;
    type Error = S::Error;
    type Future = Fut;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: I) -> Fut {
        (self.call)(&self.common, &mut self.inner, request)
    }
}
