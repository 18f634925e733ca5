//! Claims that are about many times in a row. `cargo xtask soak` runs them full size, the tests in a smaller one.

#[path = "conformance/server.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod server;

use std::process::ExitCode;

use winddown_testkit::{Harness as _, soak};

use crate::server::{PostgreSql, Seventeen};

type Server = PostgreSql<Seventeen>;

fn main() -> ExitCode {
    soak::run(soak::trials::<Server>(), Server::stop_shared)
}
