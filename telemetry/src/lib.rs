#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::adapter::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "tracing-appender")]
mod appender;
#[cfg(any(feature = "otel", feature = "tracing-appender"))]
mod aside;
#[cfg(feature = "otel")]
mod otel;

#[cfg(feature = "otel")]
pub use opentelemetry_sdk;
#[cfg(feature = "tracing-appender")]
pub use tracing_appender;

#[cfg(feature = "tracing-appender")]
pub use crate::appender::{Appender, non_blocking, non_blocking_with};
#[cfg(feature = "otel")]
pub use crate::otel::OpenTelemetry;
