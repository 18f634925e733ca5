//! Servers in containers, and what can happen to a server: paused, killed, cut off.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use winddown_testkit::containers::Setup;
//!
//! let server = Setup::image("postgres:17")
//!     .env("POSTGRES_PASSWORD", "secret")
//!     .ready(["listening on IPv4 address", "database system is ready to accept connections"])
//!     .start()
//!     .await?;
//! let address = server.address(5432);
//! # Ok(())
//! # }
//! ```
//!
//! Images are made by `cargo xtask images`. Tests connect to a container's own address, so that no proxy of the engine
//! stands between a test and its server; that needs an engine on the same Linux machine.
//!
//! Whatever is started here goes when its handle is dropped, and when this process ends without having dropped it, by
//! a panic, Ctrl-C or SIGKILL too: see `winddown-reaper`.

mod container;
mod engine;
mod log;
mod network;
mod setup;

pub use self::{
    container::{Container, Freezer, Output},
    network::Network,
    setup::Setup,
};

/// Why tests that need a container are to be left out, when it was asked for.
///
/// A test prints it and returns; nothing is left out without being told to.
#[must_use]
pub fn skipped() -> Option<&'static str> {
    let set = std::env::var_os("WINDDOWN_SKIP_CONTAINERS").is_some_and(|value| !value.is_empty());
    set.then_some("WINDDOWN_SKIP_CONTAINERS is set: tests that need a server in a container do not run")
}
