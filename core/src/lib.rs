#![doc = include_str!("../README.md")]
// They panic where the other end is closed: `winddown_core::adapter::write_line` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

// What an application uses.
mod client;
mod error;
mod guard;
mod lifecycle;
mod platform;
mod report;
mod tracked;
mod work;

// What an adapter implements, and what it is given for that.
pub mod adapter;
mod capabilities;
mod credentials;
mod dependent;
mod descriptors;
mod drain;
mod idle_check;
mod latency;
mod lifetime;
mod name;
mod opening;
mod outdated;
mod resource;

// What makes it go.
mod accounting;
mod body;
mod clock;
mod conductor;
mod gate;
mod getting;
mod init;
mod life;
mod log_line;
mod node;
mod notify;
#[cfg(feature = "metrics")]
mod numbers;
mod overdue;
mod panics;
mod plan;
mod reserve;
mod signals;
mod standard_error;
mod standby;
mod sync;
mod tally;
mod ticket;

pub mod memory;

pub use crate::{
    body::TrackedBody,
    capabilities::Capabilities,
    client::{Client, Itself},
    conductor::{EXIT_AT_DEADLINE, ReportFormat},
    credentials::{Credentials, CredentialsFuture, CredentialsProvider},
    error::{BoxError, Error, ErrorKind},
    guard::{Checkout, ShutdownGuard, Status},
    init::Retry,
    life::State,
    lifecycle::{Builder, Lifecycle},
    platform::{BUDGET_VARIABLE, Budget, PLATFORMS, Platform, listen_address},
    report::{Outcome, Reason, Records, Report, ResourceReport, SessionCounts, Step, Straggler},
    resource::{Checkouts, Resource, ResourceId},
    tracked::Tracked,
    work::{Hook, HookResult},
};
pub use tokio::signal::unix::SignalKind;
pub use tokio_util::sync::CancellationToken;
