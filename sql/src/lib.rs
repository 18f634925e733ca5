#![doc = include_str!("../README.md")]

pub mod mysql;
pub mod postgres;
pub mod sqlite;

/// What is to be thought of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "whoever asks must know what to do with each")]
pub enum Verdict {
    /// The same may go well later.
    Passes,
    /// A limit of time, memory or locks was reached, which less work would keep.
    MuchWork,
    /// A limit of size was reached, which fewer records would keep; where there is one alone, nothing will.
    TooLarge,
    /// It is in what was written.
    OfRecord,
    /// It will be the same again.
    Fails,
}
