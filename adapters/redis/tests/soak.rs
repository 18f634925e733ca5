//! Claims that are about many times in a row. `cargo xtask soak` runs them full size, the tests in a smaller one.
//!
//! Those about signals start this binary again as a program that is ended by a real one.

#[path = "conformance/server.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod server;
#[path = "soak/signals.rs"]
mod signals;

use std::process::ExitCode;

use winddown_testkit::{Harness as _, ServerUse, child, soak};

use crate::server::{OfItsOwn, Redis8, RedisServer};

type Server = RedisServer<Redis8, OfItsOwn>;

fn main() -> ExitCode {
    if let Some(program) = child::role() {
        return signals::run(&program);
    }
    let mut trials = soak::trials::<Server>();
    let signals: [(&str, soak::Claim<Server>); 4] = [
        ("s5_a_signal_loses_no_reply_command_on_one_thread", |s| Box::pin(signals::healthy(s, "one_thread"))),
        ("s5_a_signal_loses_no_reply_command_on_two_threads", |s| Box::pin(signals::healthy(s, "two_threads"))),
        ("s5_abandoned_commands_and_pipelines_are_executed", |s| Box::pin(signals::abandoned(s))),
        ("s5_what_a_stopped_server_does_not_get_is_reported", |s| Box::pin(signals::stopped(s))),
    ];
    trials.extend(signals.map(|(name, claim)| soak::trial(name, ServerUse::Own, claim)));
    soak::run(trials, Server::stop_shared)
}
