#![doc = include_str!("../README.md")]

pub mod buffered;
pub mod cases;
pub mod certificates;
pub mod child;
pub mod containers;
mod directed;
pub mod frozen;
mod harness;
mod logs;
pub mod proxy;
pub mod scene;
mod shared;
pub mod slow;
pub mod soak;
mod suite;
pub mod trials;

pub use winddown_core;

pub use crate::{
    directed::{Directed, Director, Point},
    harness::{CheckoutOf, Harness, Need, ServerUse, Setup},
    logs::LogSearch,
    shared::{Shared, gone},
    suite::{Case, Suite},
};
