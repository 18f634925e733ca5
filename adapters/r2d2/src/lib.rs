#![doc = include_str!("../README.md")]

mod closures;
mod control;
#[cfg(feature = "diesel-postgres")]
mod diesel;
mod lends;
mod manager;
mod pool;
mod session;

pub use r2d2;
pub use winddown_pools::{Canceller, Driver, Leaving, Lent, Peer, Speaks};

#[cfg(feature = "diesel-postgres")]
pub use crate::diesel::DieselPostgres;
pub use crate::{
    closures::Closures,
    lends::R2d2Pools,
    manager::{ConnectError, Manager},
    pool::Pool,
    session::Session,
};

/// A pool of r2d2 as a resource: `R2d2::wrap(pool)`.
pub type R2d2<M, S = Driver> = winddown_pools::Wrapped<R2d2Pools<M>, S>;
