#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::adapter::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod around;
mod environment;
mod extension;
mod flush;
mod init_error;
mod invocations;
mod limit;
mod others;
mod run;
mod snapshot;

pub use lambda_runtime::{self, Context, LambdaEvent, service_fn};

pub use crate::{
    flush::Flush,
    limit::INIT_LIMIT_VARIABLE,
    run::{Function, run, run_concurrent},
};

/// Says something that must be seen: through tracing where the function has set it up, else on standard error, which
/// Lambda puts into the function's log as well.
fn warn(message: &str, error: &dyn std::fmt::Display) {
    if tracing::dispatcher::has_been_set() {
        tracing::warn!(%error, "{message}");
    } else {
        winddown_core::adapter::write_line(&winddown_core::adapter::warning_line(message, &error.to_string()));
    }
}
