#![doc = include_str!("../README.md")]

pub mod buffered;
pub mod cases;
pub mod certificates;
pub mod chaos;
pub mod child;
pub mod containers;
mod directed;
pub mod frozen;
mod harness;
mod limit;
mod logs;
pub mod proxy;
pub mod scene;
mod servers;
pub mod slow;
pub mod soak;
pub mod starved;
mod stranger;
mod suite;
pub mod trials;
pub mod wire;

pub use libtest_mimic::Trial;
pub use winddown_core;

pub use crate::{
    directed::{Directed, Director, Point},
    harness::{CheckoutOf, Harness, InProcess, Need, ServerUse, Setup},
    logs::LogSearch,
    servers::{Leasable, Leased, Servers, gone},
    stranger::Stranger,
    suite::{Case, Suite},
};
