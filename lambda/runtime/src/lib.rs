#![doc = include_str!("../README.md")]

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

use std::io::{self, Write};

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
        let line = winddown_core::warning_line(message, &error.to_string()) + "\n";
        // Where standard error is closed there is nobody to tell, and an invocation is not to fail of that.
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }
}
