//! What only adapters need: the traits that make something a resource, what core gives them while it drains, and what adapters
//! of network servers share.
//!
//! [`Resource`] is the page to begin with, and [`Memory`](crate::memory::Memory) the smallest complete adapter.
//! `docs/adapter-guide.md` leads through one.

pub use crate::{
    accounting::{Accounting, Ledger, LedgerSlot},
    capabilities::Capabilities,
    credentials::credentials,
    dependent::with_dependent_access,
    descriptors::{SpareDescriptors, is_out_of_descriptors, out_of_descriptors},
    drain::{Drain, End, Ends, News, Source},
    getting::{Getting, Lender},
    idle_check::IdleCheck,
    latency::Latency,
    lifetime::Lifetime,
    log_line::{error_line, warning_line},
    name::client_name,
    opening::Opening,
    outdated::Outdated,
    panics::panic_message,
    resource::{Checkouts, Resource, ResourceId, Size},
    standard_error::write_line,
};
