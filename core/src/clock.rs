//! A clock that is cheap enough to read on every checkout.

use std::time::Duration;

/// An instant of the coarse monotonic clock: exact to a few milliseconds, a quarter of the price of `Instant::now`.
/// It says how long a straggler has been out, where milliseconds do not matter, and nothing else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coarse(#[cfg(target_os = "linux")] Duration, #[cfg(not(target_os = "linux"))] std::time::Instant);

#[cfg(target_os = "linux")]
impl Coarse {
    pub(crate) fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        Self(Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    pub(crate) fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

#[cfg(not(target_os = "linux"))]
impl Coarse {
    pub(crate) fn now() -> Self {
        Self(std::time::Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}
