//! How long opening one session may take.

use std::{fmt, future::Future, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{Error, ErrorKind};

/// The limit for opening one session with one address of a server, from the first packet to the end of the login. All of its
/// steps are inside the one limit, so that a server that accepts and then says nothing costs no more than one that is not there.
///
/// ```
/// # use std::{io, time::Duration};
/// # use winddown_core::adapter::Opening;
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// # async fn connect() -> io::Result<()> { Ok(()) }
/// # async fn log_in(_: ()) -> io::Result<()> { Ok(()) }
/// let opening = Opening::of("db.example:5432", Duration::from_secs(5));
/// let socket = opening.step("connecting", connect()).await??;
/// let session = opening.step("the login", log_in(socket)).await??;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Opening {
    whom: String,
    limit: Duration,
    deadline: Instant,
}

impl Opening {
    /// Begins now, with this address, for errors.
    pub fn of(whom: impl fmt::Display, limit: Duration) -> Self {
        let now = Instant::now();
        // What nobody lives to see is no limit.
        let deadline = now.checked_add(limit).unwrap_or(now + Duration::from_secs(60 * 60 * 24 * 365));
        Self { whom: whom.to_string(), limit, deadline }
    }

    /// Does one step, named as in "TLS was not over".
    ///
    /// # Cancel safety
    /// As that of the step, which is dropped at the limit.
    ///
    /// # Errors
    /// [`retryable`](Error::retryable), and naming the address and the step, when the limit was there first.
    pub async fn step<F: Future>(&self, step: &str, doing: F) -> Result<F::Output, Error> {
        timeout_at(self.deadline, doing).await.map_err(|_| {
            let Self { whom, limit, .. } = self;
            let text = format!("{whom}: {step} was not over within the connect_timeout of {limit:?}");
            Error::new(ErrorKind::Init, text).retryable()
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);
    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn all_steps_are_inside_one_limit() {
        let opening = Opening::of("db:1", LIMIT);
        opening.step("connecting", sleep(LIMIT / 2)).await.unwrap();
        opening.step("TLS", sleep(LIMIT / 2 - MS)).await.unwrap();
        let error = opening.step("the login", sleep(2 * MS)).await.unwrap_err();
        assert_eq!(error.to_string(), "db:1: the login was not over within the connect_timeout of 5s");
        assert!(error.is_retryable());
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_no_clock_has_is_none() {
        Opening::of("db:1", Duration::MAX).step("connecting", sleep(LIMIT)).await.unwrap();
    }
}
