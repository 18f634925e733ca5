//! Pools of deadpool on servers in containers: the conformance suite, and what only this adapter promises.

#[path = "../../postgres/tests/conformance/pgbouncer.rs"]
#[expect(dead_code, reason = "the adapter of PostgreSQL has more tests")]
mod bouncer;
#[path = "../../postgres/tests/conformance/built.rs"]
mod built;
#[path = "deadpool/diesel.rs"]
mod diesel;
#[path = "../../postgres/tests/conformance/diesel_async.rs"]
mod diesel_async;
#[path = "deadpool/mysql.rs"]
mod mysql;
#[path = "../../mysql/tests/conformance/server.rs"]
#[expect(dead_code, reason = "the adapter of MySQL has more tests")]
mod mysql_server;
#[path = "deadpool/production.rs"]
mod production;
#[path = "../../postgres/tests/conformance/server.rs"]
#[expect(dead_code, reason = "the adapter of PostgreSQL has more tests")]
mod server;
#[path = "deadpool/wrapped.rs"]
mod wrapped;

use std::process::ExitCode;

use winddown_testkit::{Suite, containers, trials};

fn main() -> ExitCode {
    Suite::new()
        .harness::<diesel::DeadpoolDiesel>()
        .harness::<mysql::DeadpoolMysql>()
        .tests(
            containers::skipped(),
            trials! {
                production:
                    behind_a_pooler_a_statement_is_stopped_and_nobody_elses
                    through_a_failover_sessions_with_both_servers_are_accounted_for;
                wrapped:
                    sessions_are_told_from_connections_to_others_that_have_the_same_end_here
                    what_comes_back_to_the_pool_directly_says_goodbye
                    what_is_taken_from_the_pool_and_does_not_come_back_is_counted
                    by_closures_a_statement_is_stopped_and_sessions_say_goodbye
                    what_the_server_could_not_be_asked_to_stop_is_not_called_stopped
                    ends_are_seen_while_a_stranger_runs_what_is_no_text
                    one_that_is_ended_while_it_is_reset_is_not_called_cut
                    s8_a_transaction_in_mysql_does_not_reach_the_next_caller;
            },
        )
        .run()
}
