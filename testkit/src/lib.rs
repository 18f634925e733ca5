#![doc = include_str!("../README.md")]

#[cfg(feature = "load")]
pub mod buffered;
pub mod cases;
#[cfg(feature = "certificates")]
pub mod certificates;
#[cfg(feature = "load")]
pub mod chaos;
#[cfg(feature = "load")]
pub mod child;
#[cfg(feature = "containers")]
pub mod containers;
mod directed;
#[cfg(feature = "load")]
pub mod frozen;
mod harness;
pub mod life;
mod limit;
mod logs;
pub mod proxy;
pub mod same_end;
pub mod scene;
mod servers;
mod size;
#[cfg(feature = "load")]
pub mod slow;
#[cfg(feature = "load")]
pub mod soak;
#[cfg(feature = "load")]
pub mod starved;
mod stranger;
mod suite;
pub mod trials;
pub mod wire;

pub use libtest_mimic::Trial;
pub use winddown_core;

pub use crate::{
    directed::{Directed, Director, Point},
    harness::{CheckoutOf, Harness, InProcess, Need, Outcome, ServerUse, Setup},
    logs::LogSearch,
    servers::{Leasable, Leased, Servers, gone},
    stranger::Stranger,
    suite::{Case, Suite},
};
