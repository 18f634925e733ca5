//! Turns a panic of foreign code into an error, so that it costs one resource and not the drain (L2).

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

use crate::{Error, ErrorKind};

/// Runs the future; a panic in it becomes an error of kind [`ErrorKind::Panicked`].
///
/// Unwind safety: the future is dropped, not polled again, after it has panicked.
pub(crate) async fn catch<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll,
        Err(panic) => Poll::Ready(Err(error(&*panic))),
    })
    .await
}

/// The error for a caught panic, with its message where it is text.
pub(crate) fn error(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Error::new(ErrorKind::Panicked, format!("panicked: {}", text.replace('\n', " ")))
}
