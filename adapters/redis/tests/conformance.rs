//! The conformance suite against Redis and Valkey: with a connection for each checkout, and with one that all share.

#[cfg(feature = "cluster")]
#[path = "conformance/cluster.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod cluster;
#[path = "conformance/group.rs"]
mod group;
#[path = "conformance/sentinel.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod sentinel;
#[path = "conformance/server.rs"]
mod server;

use std::process::ExitCode;

use winddown_testkit::Suite;

#[cfg(feature = "cluster")]
use crate::cluster::RedisCluster;
use crate::{
    sentinel::RedisSentinel,
    server::{OfItsOwn, Redis8, RedisServer, SharedByAll, Valkey8},
};

fn main() -> ExitCode {
    let suite = Suite::new()
        .harness::<RedisServer<Redis8, OfItsOwn>>()
        .harness::<RedisServer<Redis8, SharedByAll>>()
        .harness::<RedisServer<Valkey8, OfItsOwn>>()
        .harness::<RedisServer<Valkey8, SharedByAll>>()
        .harness::<RedisSentinel>();
    #[cfg(feature = "cluster")]
    let suite = suite.harness::<RedisCluster>();
    suite.run()
}
