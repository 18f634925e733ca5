#![doc = include_str!("../README.md")]

mod pool;

pub use deadpool;
#[cfg(feature = "diesel")]
pub use winddown_pools::Establish;
pub use winddown_pools::{Canceller, Closures, Driver, Leaving, Lent, Speaks};

pub use crate::pool::DeadpoolPools;

/// A pool of deadpool that the application has built, as a resource: `Deadpool::wrap(pool)`.
pub type Deadpool<M, S = Driver> = winddown_pools::Wrapped<DeadpoolPools<M>, S>;
