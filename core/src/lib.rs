#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

// What an application uses.
mod error;
mod guard;
mod lifecycle;
mod platform;
mod report;
mod work;

// What an adapter implements, and what it is given for that.
mod credentials;
mod descriptors;
mod idle_check;
mod latency;
mod name;
mod opening;
mod outdated;
mod resource;

// What makes it go.
mod body;
mod clock;
mod conductor;
mod gate;
mod init;
mod log_line;
mod node;
mod notify;
mod panics;
mod plan;
mod signals;
mod standard_error;
mod standby;
mod sync;

pub mod memory;

#[doc(hidden)]
pub use crate::{
    descriptors::SpareDescriptors, descriptors::is_out_of_descriptors, descriptors::out_of_descriptors,
    log_line::error_line, log_line::warning_line, panics::panic_message, standard_error::write_line,
};

pub use crate::{
    body::TrackedBody,
    conductor::{EXIT_AT_DEADLINE, ReportFormat},
    credentials::{Credentials, CredentialsFuture, CredentialsProvider},
    error::{BoxError, Error, ErrorKind},
    guard::{Checkout, ShutdownGuard, Tracked, with_dependent_access},
    idle_check::IdleCheck,
    init::Retry,
    latency::Latency,
    lifecycle::{Builder, Lifecycle, State},
    name::client_name,
    opening::Opening,
    outdated::Outdated,
    platform::{BUDGET_VARIABLE, Budget, PLATFORMS, Platform},
    report::{
        Accounting, Ledger, LedgerSlot, Outcome, Reason, Records, Report, ResourceReport, SessionCounts, Step,
        Straggler,
    },
    resource::{Capabilities, Drain, Resource, ResourceId},
    work::{Hook, HookResult},
};
pub use tokio::signal::unix::SignalKind;
