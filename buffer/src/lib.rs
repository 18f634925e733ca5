#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::adapter::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

// What an application uses.
mod push;
mod replay;
mod spill;
mod writer;

/// What the command of each adapter that replays spilled records is made of.
#[cfg(feature = "cli")]
pub mod cli;

// What an adapter implements, and what needs none.
mod sink;
pub mod sql;
mod write_with;

// What makes it go.
mod flusher;
mod name;
mod pace;
mod queue;
mod spilling;
mod writing;

pub use uuid;

pub use crate::{
    flusher::Flusher,
    push::{Push, PushError},
    queue::Room,
    replay::{Progress, Replay, Replayed, SpillFile, Unread, spilled},
    sink::{Batch, BatchKey, Delivery, Sink, WriteError},
    spill::{Spill, SpillKey},
    write_with::{WriteWith, Writing},
    writer::BatchWriter,
};
