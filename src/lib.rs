#![doc = include_str!("../README.md")]

pub use winddown_core::*;

/// The write buffer: records in, batches out, flushed before its pool is drained.
#[cfg(feature = "buffer")]
pub use winddown_buffer as buffer;

/// AWS Lambda: `run` a function that drains on SIGTERM.
#[cfg(feature = "lambda")]
pub use winddown_lambda as lambda;

/// A local AWS Lambda lifecycle, to run functions under.
#[cfg(feature = "sim")]
pub use winddown_sim as sim;

/// SQLite through `deadpool-sqlite`.
#[cfg(feature = "sqlite")]
pub use winddown_sqlite as sqlite;
