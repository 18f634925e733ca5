//! A clock that is cheap enough to read on every checkout.

use std::time::Duration;

/// An instant of the system's coarse monotonic clock: exact to a few milliseconds, a quarter of the price of
/// `std::time::Instant::now`. It says how long a straggler has been out, where milliseconds do not matter, and nothing
/// else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coarse(coarsetime::Instant);

impl Coarse {
    pub(crate) fn now() -> Self {
        Self(coarsetime::Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed().into()
    }
}
