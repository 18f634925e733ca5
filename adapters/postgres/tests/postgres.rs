//! PostgreSQL in containers, directly and through PgBouncer: the conformance suite, what only this adapter promises, and what
//! is claimed about many drains. All of it is one binary, so that each server is started once.

#[path = "postgres/cancelled.rs"]
mod cancelled;
#[path = "postgres/carried.rs"]
mod carried;
#[path = "postgres/credentials.rs"]
mod credentials;
#[path = "postgres/driver.rs"]
mod driver;
#[path = "postgres/errors.rs"]
mod errors;
#[path = "postgres/failover.rs"]
mod failover;
#[path = "postgres/held.rs"]
mod held;
#[path = "postgres/hosts.rs"]
mod hosts;
#[cfg(feature = "buffer")]
#[path = "postgres/hung.rs"]
mod hung;
#[path = "postgres/life.rs"]
mod life;
#[path = "postgres/opening.rs"]
mod opening;
#[path = "conformance/pgbouncer.rs"]
mod pgbouncer;
#[path = "postgres/rest.rs"]
mod rest;
#[path = "postgres/runtimes.rs"]
mod runtimes;
#[path = "postgres/scene.rs"]
mod scene;
#[path = "conformance/server.rs"]
mod server;
#[cfg(feature = "buffer")]
#[path = "postgres/sink.rs"]
mod sink;
#[cfg(feature = "buffer")]
#[path = "postgres/sink_check.rs"]
mod sink_check;
#[cfg(feature = "buffer")]
#[path = "postgres/sink_limits.rs"]
mod sink_limits;
#[cfg(feature = "buffer")]
#[path = "postgres/soak.rs"]
mod soak;
#[path = "postgres/tls.rs"]
mod tls;
#[path = "postgres/unix.rs"]
mod unix;
#[path = "postgres/wrapped.rs"]
mod wrapped;
#[path = "conformance/wrapped.rs"]
mod wrapped_pool;
#[cfg(feature = "buffer")]
#[path = "postgres/wrapped_soak.rs"]
mod wrapped_soak;

use std::process::ExitCode;

use winddown_testkit::{Suite, containers, trials};

use crate::{
    pgbouncer::PgBouncer,
    server::{Eighteen, PostgreSql, Seventeen},
    wrapped_pool::WrappedPool,
};

fn main() -> ExitCode {
    #[cfg(feature = "buffer")]
    if let Some(ended) = soak::program().or_else(wrapped_soak::program) {
        return ended;
    }
    if let Some(ended) = wrapped::program() {
        return ended;
    }
    if let Some(ended) = tls::program() {
        return ended;
    }
    let left_out = containers::skipped();
    let suite = Suite::new()
        .harness::<PostgreSql<Seventeen>>()
        .harness::<PostgreSql<Eighteen>>()
        .harness::<PgBouncer>()
        .harness::<WrappedPool>();
    let suite = suite.tests(left_out, winddown_testkit::life::trials::<PostgreSql<Seventeen>>()).tests(
        left_out,
        trials! {
            cancelled:
                a_statement_whose_session_was_replaced_is_stopped_before_it_is_forgotten
                a_statement_that_could_not_be_stopped_before_the_drain_is_in_its_report
                a_statement_whose_connection_broke_is_stopped
                a_statement_whose_connection_broke_and_that_could_not_be_stopped_is_in_the_report
                a_statement_counts_as_cancelled_only_if_it_was_seen_to_end
                where_the_server_gave_no_key_a_statement_is_let_end_and_nobody_is_asked
                a_stranger_with_the_number_of_a_session_is_not_touched
                a_result_that_nobody_reads_is_stopped_and_its_session_says_goodbye
                where_a_pooler_ends_too_a_statement_is_not_waited_for_and_is_named;
            carried:
                a_transaction_that_is_open_is_not_handed_on
                a_transaction_ends_with_its_checkout_though_nobody_gets_the_session_next
                a_session_without_a_transaction_is_handed_on_without_a_message
                a_transaction_that_is_open_in_a_wrapped_pool_is_not_handed_on_by_the_guard;
            credentials:
                the_provider_is_asked_once_for_each_new_session
                a_password_that_changes_is_followed
                the_providers_error_is_behind_that_of_the_checkout_and_no_secret_is_shown;
            driver:
                sessions_are_listed_under_the_programs_name_or_the_one_that_is_configured
                a_cached_statement_is_prepared_once_for_each_connection
                closing_what_was_prepared_is_not_stopped
                transactions_copies_and_streams_work_on_a_checkout
                the_drivers_pool_and_errors_can_be_reached;
            errors:
                what_the_server_refuses_says_what_to_do
                what_cannot_be_reached_is_worth_another_try
                a_server_that_is_full_is_worth_another_try;
            failover:
                one_refused_write_replaces_all_sessions_and_the_address_is_asked_anew
                a_transaction_that_is_read_only_by_itself_replaces_nothing
                who_wants_a_read_only_server_keeps_the_session;
            held:
                a_checkout_without_a_statement_is_ended_with_a_goodbye
                a_statement_that_begins_after_the_cancelling_is_cancelled_too
                a_transaction_that_is_open_at_the_goodbye_is_rolled_back
                a_copy_that_is_never_ended_leaves_no_row_and_does_not_hold_up_the_drain;
            hosts:
                a_host_that_refuses_is_passed_over
                a_host_that_does_not_answer_is_passed_over_after_the_connect_timeout
                a_server_that_does_not_allow_writes_is_passed_over_with_a_goodbye
                random_balancing_reaches_every_host_and_none_the_first
                a_statement_is_cancelled_on_the_server_that_runs_it;
            opening:
                a_server_that_accepts_and_says_nothing_is_passed_over
                a_server_that_says_nothing_fails_the_initialisation_and_the_step_is_named
                without_a_setting_there_is_a_limit
                a_checkout_that_opens_a_session_has_the_limit_too
                a_request_to_cancel_has_the_limit_too;
            rest:
                a_checkout_without_a_rest_makes_no_round_trip
                a_checkout_after_a_rest_makes_one_round_trip
                a_statement_whose_connection_broke_while_the_process_stood_still_is_stopped
                a_network_that_is_cut_holds_a_checkout_up_for_the_check_timeout
                one_connection_that_does_not_answer_speaks_for_all_of_its_age;
            runtimes:
                a_guard_outlives_the_runtimes_that_its_sessions_were_opened_in
                a_statement_goes_on_when_the_runtime_ends_that_its_session_was_opened_in
                what_is_being_opened_when_its_runtime_ends_holds_up_no_drain;
            tls:
                the_mode_says_whether_a_session_is_encrypted
                full_verification_wants_the_name_and_the_address_of_the_certificate
                another_authority_is_refused_wherever_roots_count
                an_expired_certificate_is_refused_wherever_roots_count
                a_certificate_of_the_first_version_is_taken_where_nobody_checks_it
                a_client_may_log_in_with_a_certificate
                the_cryptography_is_that_which_the_process_has_installed
                a_server_without_tls_is_used_by_prefer_alone
                a_user_who_must_encrypt_is_told_so
                tls_can_be_negotiated_directly
                channel_binding_can_be_required
                twenty_sessions_say_goodbye_over_tls
                a_statement_is_cancelled_over_tls;
            unix:
                sessions_over_a_socket_file_say_goodbye
                a_statement_is_cancelled_over_a_socket_file;
            wrapped:
                a_pool_is_drained_though_it_was_never_used_through_the_guard
                a_statement_of_a_checkout_is_cancelled
                only_what_runs_is_cancelled
                a_statement_that_nobody_waits_for_is_cancelled
                checkouts_that_are_given_back_unused_do_not_queue_up_before_a_slow_server
                what_was_taken_from_the_pool_directly_is_cancelled_and_says_goodbye
                sessions_are_told_from_connections_to_others_that_have_the_same_end_here
                what_comes_back_to_the_pool_directly_says_goodbye
                a_checkout_that_comes_back_when_the_pool_was_just_closed_says_goodbye
                a_drain_that_has_all_does_not_wait_for_callers_that_wait
                what_is_not_proven_to_be_the_pools_is_left_alone
                a_stranger_is_left_alone_where_ours_are_known
                where_the_runtime_is_blocked_what_runs_is_cancelled_and_the_deadline_holds
                where_the_runtime_is_gone_nothing_is_claimed
                a_session_that_is_being_opened_when_the_drain_begins_says_goodbye
                a_session_that_is_connected_when_others_have_left_is_seen_to_end_too
                who_was_opened_to_stop_a_statement_leaves_when_that_is_over
                over_tls_sessions_say_goodbye_and_statements_are_cancelled_as_the_pool_is_encrypted
                where_the_server_sees_another_client_the_others_are_asked_about_and_the_last_is_unconfirmed
                behind_a_pooler_sessions_say_goodbye_and_are_unconfirmed
                where_the_server_is_full_and_all_are_busy_what_runs_is_cancelled_unseen;
        },
    );
    #[cfg(feature = "buffer")]
    let suite = suite.tests(left_out, soak::trials()).tests(left_out, vec![wrapped_soak::trial()]).tests(
        left_out,
        trials! {
            carried:
                half_a_transfer_that_was_abandoned_is_not_committed_by_a_sink;
            failover:
                a_buffer_writes_to_the_successor_all_that_it_accepted;
            hung:
                a_write_that_hangs_is_ended_on_the_server_and_its_batch_is_written_once
                a_session_that_is_not_proven_ours_is_left_alone;
            sink_check:
                what_can_be_written_to_is_found_right_and_nothing_is_changed
                what_is_wrong_with_the_table_is_said_before_a_record_is_lost
                what_is_wrong_with_the_table_of_keys_is_said_before_a_record_is_lost
                what_a_way_of_writing_cannot_do_is_said_before_a_record_is_lost
                no_error_of_a_sink_shows_a_password_or_a_record;
            sink_limits:
                nothing_is_written_behind_a_beginning_that_the_server_has_refused
                a_limit_of_time_that_a_smaller_batch_keeps_is_told_from_an_outage
                a_buffer_learns_a_limit_of_time_and_every_row_is_written
                a_batch_that_is_written_already_is_not_divided
                a_code_that_a_trigger_makes_up_is_the_records
                a_statement_that_the_server_has_forgotten_is_prepared_again
                the_sinks_say_where_records_go;
            sink:
                a_batch_is_written_whole_or_not_at_all
                a_batch_is_written_once_however_often_it_comes
                only_what_is_to_be_written_once_has_a_key
                what_is_wrong_with_a_record_is_told_from_what_is_wrong_with_the_table
                a_table_that_may_not_be_written_to_is_no_records_fault
                a_row_that_a_policy_refuses_is_rejected
                after_a_copy_that_the_server_does_not_begin_no_answer_reaches_the_wrong_caller
                what_passes_is_worth_another_try
                a_batch_is_in_doubt_only_if_the_connection_broke_during_its_commit
                what_is_refused_at_the_commit_is_not_in_doubt
                a_write_that_is_given_up_leaves_no_transaction_open
                names_are_taken_as_they_are
                values_of_all_types_arrive_as_they_were
                the_table_of_keys_is_made_if_it_is_missing_or_the_error_says_how
                old_keys_are_deleted_behind_a_batch
                old_keys_that_cannot_be_deleted_cost_nothing
                a_batch_may_have_more_values_than_a_statement
                a_row_that_is_there_already_is_left_or_replaced
                a_table_that_was_altered_is_written_to_again
                a_batch_takes_few_round_trips
                both_write_through_a_pooler_of_transactions
                the_records_that_the_table_refuses_are_found_and_the_others_are_written
                everything_that_was_accepted_is_in_the_table_after_the_drain;
        },
    );
    suite.run()
}
