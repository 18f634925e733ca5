//! The types that the model checker replaces. Under `--cfg winddown_loom` the gate is built on loom's types, so that
//! `gate/models.rs` walks every interleaving; otherwise these are the standard library's.

#[cfg(not(winddown_loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU8, Ordering},
};

#[cfg(winddown_loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU8, Ordering},
};
