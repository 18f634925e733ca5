#![doc = include_str!("../README.md")]

mod sink;

pub use crate::sink::{Batch, Sink};
