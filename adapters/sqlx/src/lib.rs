#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::adapter::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod asker;
mod backend;
mod book;
mod error;
mod goodbye;
mod lent;
mod resource;
#[cfg(feature = "buffer")]
mod sink;

pub use sqlx;

#[cfg(feature = "sqlx-sqlite")]
#[doc(hidden)]
pub use crate::backend::Interrupt;
#[cfg(feature = "sqlx-mysql")]
#[doc(hidden)]
pub use crate::backend::MySqlSession;
#[cfg(feature = "sqlx-postgres")]
#[doc(hidden)]
pub use crate::backend::PgSession;
#[doc(hidden)]
pub use crate::backend::{Known, Listed, Server};
#[cfg(feature = "buffer")]
#[doc(hidden)]
pub use crate::sink::Dialect;
#[cfg(feature = "buffer")]
pub use crate::sink::{Insert, Parameters, Values};
pub use crate::{backend::Backend, lent::Lent, resource::Sqlx};
