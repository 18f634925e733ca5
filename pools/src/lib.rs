#![doc = include_str!("../README.md")]

mod closures;
mod driver;
mod lends;
mod sight;
mod speaks;
mod wrapped;

pub use winddown_net::own_sockets::Peer;

#[cfg(feature = "diesel")]
pub use crate::driver::Establish;
pub use crate::{
    closures::Closures,
    driver::Driver,
    lends::{Lends, Taking},
    speaks::{Canceller, Leaving, Lent, Speaks},
    wrapped::Wrapped,
};
