//! Pools of bb8 on servers in containers: the conformance suite, and what only this adapter promises.

#[path = "../../postgres/tests/conformance/built.rs"]
mod built;
#[path = "bb8/diesel.rs"]
mod diesel;
#[path = "../../postgres/tests/conformance/diesel_async.rs"]
mod diesel_async;
#[path = "bb8/postgres.rs"]
mod postgres;
#[path = "bb8/redis.rs"]
mod redis;
#[path = "../../redis/tests/conformance/server.rs"]
#[allow(dead_code, reason = "the adapter of Redis has more tests")]
mod redis_server;
#[path = "../../postgres/tests/conformance/server.rs"]
#[expect(dead_code, reason = "the adapter of PostgreSQL has more tests")]
mod server;
#[path = "bb8/wrapped.rs"]
mod wrapped;

use std::process::ExitCode;

use winddown_testkit::{Suite, containers, trials};

fn main() -> ExitCode {
    Suite::new()
        .harness::<postgres::Bb8Postgres>()
        .harness::<diesel::Bb8Diesel>()
        .harness::<redis::Bb8Redis>()
        .tests(
            containers::skipped(),
            trials! {
                wrapped:
                    a_pool_is_drained_though_it_was_never_used_through_the_guard
                    sessions_are_told_from_connections_to_others_that_have_the_same_end_here
                    what_comes_back_to_the_pool_directly_says_goodbye
                    what_the_pool_is_opening_for_nobody_is_waited_for
                    what_the_pool_can_not_open_is_not_called_clean
                    a_pool_with_sessions_in_reserve_leaves_none
                    s8_a_transaction_does_not_reach_the_next_caller
                    s8_nor_does_one_of_diesel_s
                    what_diesel_has_opened_itself_is_unconfirmed
                    by_closures_a_session_says_goodbye_and_is_unconfirmed
                    s8_what_a_caller_of_redis_leaves_does_not_reach_the_next_one;
            },
        )
        .run()
}
