#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

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
mod queue;

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
