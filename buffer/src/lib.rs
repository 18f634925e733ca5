#![doc = include_str!("../README.md")]

// What an application uses.
mod push;
mod writer;

// What an adapter implements.
mod sink;

// What makes it go.
mod flusher;
mod queue;

pub use crate::{
    flusher::Flusher,
    push::{Push, PushError},
    queue::Room,
    sink::{Batch, BatchKey, Delivery, Sink, WriteError},
    writer::BatchWriter,
};
pub use uuid;
