#![doc = include_str!("../README.md")]

// What an application uses.
mod push;
mod replay;
mod spill;
mod writer;

// What an adapter implements, and what needs none.
mod sink;
mod write_with;

// What makes it go.
mod flusher;
mod pace;
mod queue;
mod spilling;
mod writing;

pub use uuid;

pub use crate::{
    flusher::Flusher,
    push::{Push, PushError},
    queue::Room,
    replay::{Replayed, replay},
    sink::{Batch, BatchKey, Delivery, Sink, WriteError},
    spill::Spill,
    write_with::{Shared, WriteWith, Writing},
    writer::BatchWriter,
};
