//! Something done around each invocation.

use std::{
    future::Future,
    task::{Context as Task, Poll},
};

use lambda_runtime::{Context, LambdaEvent, LambdaInvocation};
use tower::Service;

/// What `lambda_runtime` passes down: the request as it came, and the event that the handler gets.
pub(crate) trait Invocation {
    fn context(&self) -> &Context;
}

impl Invocation for LambdaInvocation {
    fn context(&self) -> &Context {
        &self.context
    }
}

impl<A> Invocation for LambdaEvent<A> {
    fn context(&self) -> &Context {
        &self.context
    }
}

/// A service whose futures are wrapped by what is told whose invocation it is: `tower::util::MapFuture` is not.
#[derive(Debug, Clone)]
pub(crate) struct Around<S, W> {
    inner: S,
    wrap: W,
}

impl<S, W> Around<S, W> {
    pub(crate) fn new(inner: S, wrap: W) -> Self {
        Self { inner, wrap }
    }
}

impl<I, S, W, G, F> Service<I> for Around<S, W>
where
    I: Invocation,
    S: Service<I>,
    W: FnMut(&Context) -> G,
    G: FnOnce(S::Future) -> F,
    F: Future<Output = Result<S::Response, S::Error>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = F;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, invocation: I) -> F {
        let wrap = (self.wrap)(invocation.context());
        wrap(self.inner.call(invocation))
    }
}
