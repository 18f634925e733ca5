//! Pools of r2d2 on servers in containers: the conformance suite, and what only this adapter promises.

#[path = "../../postgres/tests/conformance/built.rs"]
#[expect(dead_code, reason = "its drivers need no task, so it lacks something else")]
mod built;
#[path = "r2d2/diesel.rs"]
mod diesel;
#[path = "../../postgres/tests/conformance/server.rs"]
#[expect(dead_code, reason = "the adapter of PostgreSQL has more tests")]
mod server;
#[path = "r2d2/stops.rs"]
mod stops;
#[path = "r2d2/wrapped.rs"]
mod wrapped;

use std::process::ExitCode;

use winddown_testkit::{Suite, containers, trials};

fn main() -> ExitCode {
    Suite::new()
        .harness::<diesel::R2d2Diesel>()
        .tests(
            containers::skipped(),
            trials! {
                wrapped:
                    a_pool_is_drained_though_it_was_never_used_through_the_guard
                    a_pool_that_opens_all_at_once_leaves_none_and_opens_none_after_it
                    what_comes_back_to_the_pool_directly_says_goodbye
                    what_breaks_while_draining_is_not_replaced_and_nothing_is_logged
                    who_waits_is_refused_and_holds_up_no_runtime
                    who_waits_gets_what_comes_back_and_what_is_opened
                    why_nothing_was_opened_is_said
                    s8_a_transaction_does_not_reach_the_next_caller
                    s8_nor_does_one_that_comes_back_on_a_thread_without_a_runtime
                    a_transaction_of_a_test_is_let_be
                    work_that_panics_costs_its_connection_alone
                    by_closures_a_statement_is_stopped_and_sessions_say_goodbye;
                stops:
                    an_identity_is_read_as_the_server_writes_it
                    s7_a_number_that_is_another_s_by_now_is_left_alone
                    nothing_is_stopped_that_is_not_proven_to_be_ours;
            },
        )
        .run()
}
