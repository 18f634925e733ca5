//! A local AWS Lambda lifecycle: init, invoke, freeze, thaw, SIGTERM, SIGKILL.
//!
//! The entry point is [`Sim::start`]: it starts a function written in any language as a child process, speaks the
//! Runtime API and the Extensions API to it over loopback, and returns when init is over.
//!
//! ```no_run
//! use serde_json::json;
//! use winddown_sim::{Config, Error, Reason, Sim};
//!
//! # async fn run() -> Result<(), Error> {
//! let sim = Sim::start(Config::new("./bootstrap").capture_output()).await?;
//! let invocation = sim.invoke(json!({"name": "Ada"})).await?;
//! assert!(invocation.ok);
//!
//! sim.freeze().await?; // SIGSTOP: no timer of the function runs now
//! sim.thaw();
//!
//! let record = sim.shutdown(Reason::Spindown).await;
//! assert!(record.ended_by_itself(), "{record}");
//! assert_eq!(record.shutdown.budget_ms, 500); // one internal extension, no external one
//! # Ok(())
//! # }
//! ```
//!
//! # The rules that are kept
//!
//! - Registration of internal extensions closes at the function's first `/next`; init ends when the function *and*
//!   every registered extension have asked for their next event.
//! - No extension registered: SIGKILL at once, no SIGTERM. Otherwise SIGTERM to the function's process group and SIGKILL
//!   when the budget ends: 500 ms with internal extensions only, 300 ms with an external one.
//! - External extensions are told after the function has ended, and have until 2,000 ms after shutdown began.
//! - Those that have subscribed to telemetry are told of init, invocations and log lines, the last before they are to end.
//! - A freeze stops the whole tree of processes, and shutdown ends it.
//!
//! [`Config::managed_instances`], [`Config::web_function`] and [`Config::snap_start`] have rules of their own. Where all of them come from, and where
//! the simulator differs from Lambda, is in `docs/sim-fidelity.md` of the repository.
//!
//! # What it needs
//!
//! A Unix with process groups, and a tokio runtime with I/O and time enabled. Time must not be paused: the function is
//! a real process and lives in real time.

mod adoption;
mod api;
mod cgroup;
mod config;
mod environment;
mod error;
mod mark;
mod process;
mod record;
mod shutdown;
mod sim;
mod state;
mod telemetry;
mod tree;

pub use config::Config;
pub use error::{Error, ErrorKind};
pub use record::{
    EventType, ExtensionKind, ExtensionRecord, FunctionRecord, Invocation, InvocationError, OutputLine, Part, Reason,
    Record, Reset, ShutdownRecord, Stream, TimelineEntry,
};
pub use sim::Sim;
