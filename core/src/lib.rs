#![doc = include_str!("../README.md")]

// What an application uses.
mod error;
mod guard;
mod lifecycle;
mod platform;
mod report;
mod work;

// What an adapter implements, and what it is given for that.
mod credentials;
mod latency;
mod name;
mod resource;
mod rested;

// What makes it go.
mod clock;
mod conductor;
mod gate;
mod init;
mod log_line;
mod node;
mod notify;
mod panics;
mod plan;
mod sync;

pub mod memory;

#[doc(hidden)]
pub use crate::log_line::warning_line;

pub use crate::{
    conductor::{EXIT_AT_DEADLINE, ReportFormat},
    credentials::{Credentials, CredentialsFuture, CredentialsProvider},
    error::{BoxError, Error, ErrorKind},
    guard::{Checkout, ShutdownGuard, Tracked, as_dependent},
    init::Retry,
    latency::Latency,
    lifecycle::{Builder, Lifecycle, State},
    name::client_name,
    platform::{BUDGET_VARIABLE, Budget, PLATFORMS, Platform},
    report::{Books, Ledger, Ledgers, Outcome, Reason, Records, Report, ResourceReport, Sessions, Step, Straggler},
    resource::{Capabilities, Drain, Resource, ResourceId},
    rested::Rested,
    work::{Hook, HookResult},
};
