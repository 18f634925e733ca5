//! The conformance suite against PostgreSQL, and against PostgreSQL through PgBouncer.

#[path = "conformance/pgbouncer.rs"]
mod pgbouncer;
#[path = "conformance/server.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod server;

use std::process::ExitCode;

use winddown_testkit::Suite;

use crate::{
    pgbouncer::PgBouncer,
    server::{Eighteen, PostgreSql, Seventeen},
};

fn main() -> ExitCode {
    Suite::new().harness::<PostgreSql<Seventeen>>().harness::<PostgreSql<Eighteen>>().harness::<PgBouncer>().run()
}
