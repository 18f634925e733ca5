//! The conformance suite against MySQL and MariaDB.

#[path = "conformance/server.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod server;

use crate::server::{MariaDb, MySql, Tenancy};

winddown_testkit::conformance!(Tenancy<MySql>, Tenancy<MariaDb>);
