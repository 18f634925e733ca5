#![doc = include_str!("../README.md")]

mod pool;

pub use bb8;
#[cfg(feature = "diesel")]
pub use winddown_pools::Establish;
pub use winddown_pools::{Canceller, Closures, Driver, Leaving, Lent, Speaks};

pub use crate::pool::Bb8Pools;

/// A pool of bb8 that the application has built, as a resource: `Bb8::wrap(pool)`.
pub type Bb8<M, S = Driver> = winddown_pools::Wrapped<Bb8Pools<M>, S>;
