//! The conformance suite against Redis and Valkey: with a connection for each checkout, and with one that all share.

#[path = "conformance/server.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod server;

use std::process::ExitCode;

use winddown_testkit::Suite;

use crate::server::{OfItsOwn, Redis8, RedisServer, SharedByAll, Valkey8};

fn main() -> ExitCode {
    Suite::new()
        .harness::<RedisServer<Redis8, OfItsOwn>>()
        .harness::<RedisServer<Redis8, SharedByAll>>()
        .harness::<RedisServer<Valkey8, OfItsOwn>>()
        .harness::<RedisServer<Valkey8, SharedByAll>>()
        .run()
}
