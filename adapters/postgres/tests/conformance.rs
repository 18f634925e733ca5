//! The conformance suite against PostgreSQL, and against PostgreSQL through PgBouncer.

#[path = "conformance/pgbouncer.rs"]
mod pgbouncer;
#[path = "conformance/server.rs"]
mod server;

use std::process::ExitCode;

use winddown_testkit::Suite;

use crate::{
    pgbouncer::PgBouncer,
    server::{PostgreSql, Seventeen},
};

fn main() -> ExitCode {
    Suite::new().harness::<PostgreSql<Seventeen>>().harness::<PgBouncer>().run()
}
