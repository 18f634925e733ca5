//! The conformance suite against real files.

#[path = "conformance/server.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod server;

use crate::server::Embedded;

winddown_testkit::conformance!(Embedded);
