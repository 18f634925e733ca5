//! Pools of sqlx on PostgreSQL, MySQL and MariaDB in containers, and on files of SQLite's: the conformance suite, and what only this
//! adapter promises.

// The servers are those of the other adapters' tests, which do more with them.
#[path = "sqlx/beside.rs"]
mod beside;
#[path = "../../postgres/tests/conformance/pgbouncer.rs"]
mod bouncer;
#[path = "sqlx/carried.rs"]
mod carried;
#[path = "sqlx/failover.rs"]
mod failover;
#[path = "conformance/mysql.rs"]
mod mysql;
#[path = "../../mysql/tests/conformance/server.rs"]
#[expect(dead_code, reason = "the other adapter's tests do more with it")]
mod mysql_server;
#[path = "sqlx/pgbouncer.rs"]
mod pgbouncer;
#[path = "conformance/postgres.rs"]
mod postgres;
#[path = "sqlx/scene.rs"]
mod scene;
#[path = "../../postgres/tests/conformance/server.rs"]
mod server;
#[path = "sqlx/sink.rs"]
mod sink;
#[path = "sqlx/soak.rs"]
mod soak;
#[path = "conformance/sqlite.rs"]
mod sqlite;
#[path = "../../sqlite/tests/conformance/server.rs"]
#[expect(dead_code, reason = "the other adapter's tests do more with it")]
mod sqlite_file;
#[path = "sqlx/wrapped.rs"]
mod wrapped;

use std::process::ExitCode;

use winddown_testkit::{Suite, containers, trials};

use crate::{
    mysql::SqlxMySql,
    mysql_server::{MariaDb, MySql},
    postgres::{SqlxPostgres, WrappedPostgres},
    sqlite::SqlxSqlite,
};

fn main() -> ExitCode {
    if let Some(ended) = soak::program() {
        return ended;
    }
    let left_out = containers::skipped();
    Suite::new()
        .harness::<SqlxPostgres>()
        .harness::<WrappedPostgres>()
        .harness::<SqlxMySql<MySql>>()
        .harness::<SqlxMySql<MariaDb>>()
        .harness::<SqlxSqlite>()
        .tests(
            left_out,
            trials! {
                beside:
                    one_lifecycle_drains_both_ways_to_one_file_and_a_server;
                carried:
                    a_transaction_that_was_left_open_is_rolled_back_in_postgres
                    a_transaction_of_the_drivers_that_was_dropped_is_rolled_back
                    a_transaction_that_was_left_open_is_rolled_back_in_mariadb_and_sqlite;
                failover:
                    a_buffer_writes_to_the_successor_all_that_it_accepted
                    what_a_server_that_takes_no_writes_has_not_taken_is_in_the_report;
                sink:
                    a_batch_is_written_once_however_often_it_comes
                    what_is_wrong_with_a_record_is_told_from_what_is_wrong_with_the_table
                    everything_that_was_accepted_is_in_the_table_after_the_drain
                    a_write_that_hangs_is_stopped_on_the_server_and_its_batch_is_written_once;
                pgbouncer:
                    behind_a_pooler_sessions_say_goodbye_and_nobody_elses_statement_is_stopped;
                wrapped:
                    a_pool_is_drained_though_it_was_never_used_through_the_guard
                    sessions_are_told_from_connections_to_others_that_have_the_same_end_here
                    the_pool_of_the_guard_is_the_drivers
                    what_was_taken_from_the_pool_itself_is_cancelled_and_seen_to_end
                    what_may_be_another_pools_is_left_alone
                    what_the_guard_has_handed_out_is_cancelled_beside_another_pool
                    a_statement_that_nobody_waits_for_is_cancelled_without_a_cache_of_statements_too
                    one_that_is_to_be_closed_when_it_is_given_back_is_closed
                    a_session_is_asked_once_who_it_is;
            },
        )
        .tests(left_out, soak::trials())
        .run()
}
