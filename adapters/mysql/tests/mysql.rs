//! MySQL and MariaDB in containers: the conformance suite, what only this adapter promises, and what is claimed about many
//! drains. All of it is one binary, so that each server is started once.

#[path = "mysql/blocked.rs"]
mod blocked;
#[path = "mysql/cancelled.rs"]
mod cancelled;
#[cfg(feature = "buffer")]
#[path = "mysql/checked.rs"]
mod checked;
#[path = "mysql/credentials.rs"]
mod credentials;
#[path = "mysql/driver.rs"]
mod driver;
#[path = "mysql/errors.rs"]
mod errors;
#[cfg(feature = "buffer")]
#[path = "mysql/failover.rs"]
mod failover;
#[path = "mysql/full.rs"]
mod full;
#[path = "mysql/gone.rs"]
mod gone;
#[path = "mysql/held.rs"]
mod held;
#[path = "mysql/hosts.rs"]
mod hosts;
#[cfg(feature = "buffer")]
#[path = "mysql/hung.rs"]
mod hung;
#[path = "mysql/life.rs"]
mod life;
#[path = "mysql/mute.rs"]
mod mute;
#[path = "mysql/rest.rs"]
mod rest;
#[path = "mysql/runtimes.rs"]
mod runtimes;
#[path = "mysql/scene.rs"]
mod scene;
#[path = "conformance/server.rs"]
mod server;
#[cfg(feature = "buffer")]
#[path = "mysql/sink.rs"]
mod sink;
#[cfg(feature = "buffer")]
#[path = "mysql/soak.rs"]
mod soak;
#[path = "mysql/state.rs"]
mod state;
#[path = "mysql/strangers.rs"]
mod strangers;
#[path = "mysql/tls.rs"]
mod tls;
#[path = "mysql/unix.rs"]
mod unix;
#[path = "mysql/unproven.rs"]
mod unproven;
#[cfg(feature = "buffer")]
#[path = "mysql/warned.rs"]
mod warned;
#[path = "mysql/wrapped.rs"]
mod wrapped;
#[path = "conformance/wrapped.rs"]
mod wrapped_pool;
#[cfg(feature = "buffer")]
#[path = "mysql/wrapped_soak.rs"]
mod wrapped_soak;

use std::process::ExitCode;

use winddown_testkit::{Suite, containers, trials};

use crate::{
    server::{MariaDb, MySql, Tenancy},
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
    let left_out = containers::skipped();
    let suite = Suite::new().harness::<Tenancy<MySql>>().harness::<Tenancy<MariaDb>>().harness::<WrappedPool>();
    let suite = suite.tests(left_out, winddown_testkit::life::trials::<Tenancy<MySql>>()).tests(
        left_out,
        trials! {
            blocked:
                sessions_are_gone_when_the_runtime_goes_as_the_drain_begins;
            cancelled:
                a_statement_whose_session_was_replaced_is_stopped_by_the_drain
                a_result_that_nobody_reads_ends_with_the_drain
                a_result_that_a_slow_server_stops_late_ends_with_a_goodbye
                a_result_that_was_given_back_half_read_is_stopped
                a_result_that_is_refused_in_the_end_does_not_cost_the_connection;
            credentials:
                the_provider_is_asked_once_for_each_new_session
                a_password_that_changes_is_followed
                sessions_of_each_user_are_asked_about_by_that_user
                the_providers_error_is_behind_that_of_the_checkout_and_no_secret_is_shown
                both_ways_to_log_in_with_a_password_work_without_encryption;
            driver:
                sessions_are_listed_under_the_programs_name_or_the_one_that_is_configured
                what_a_caller_leaves_behind_the_next_one_does_not_find
                without_a_reset_a_session_keeps_its_variables_and_no_transaction
                a_connection_that_was_taken_from_the_pool_directly_is_tidied_up_too
                the_drivers_pool_and_errors_can_be_reached;
            errors:
                what_the_server_refuses_says_what_to_do
                what_cannot_be_reached_is_worth_another_try
                a_server_that_is_full_is_worth_another_try;
            full:
                a_limit_that_is_reached_by_statements_is_named_in_the_report
                a_session_that_is_idle_cancels_where_there_is_no_room_for_another
                an_abandoned_statement_is_cancelled_though_the_limit_is_reached;
            gone:
                a_server_that_never_speaks_does_not_hold_up_the_drain
                a_server_that_is_full_lets_the_drain_ask_once_sessions_have_ended
                sessions_that_were_abandoned_are_forgotten_when_they_are_over;
            held:
                a_checkout_without_a_statement_is_ended_and_called_cut
                a_statement_that_begins_after_the_cancelling_is_cancelled_too
                a_transaction_that_is_open_at_the_goodbye_is_rolled_back
                a_transaction_that_was_given_back_open_is_rolled_back
                a_result_that_was_read_by_half_does_not_hold_up_the_drain
                twenty_statements_are_cancelled_at_once;
            hosts:
                sessions_with_another_server_behind_the_same_address_are_neither_killed_nor_called_closed
                a_statement_is_cancelled_on_a_server_that_was_started_again;
            mute:
                a_server_that_says_nothing_fails_the_initialisation
                a_server_that_does_not_accept_fails_the_initialisation
                the_next_address_is_tried
                a_server_that_says_nothing_fails_the_checkout
                a_statement_of_the_set_up_that_does_not_end_fails_the_initialisation;
            rest:
                a_checkout_without_a_rest_makes_no_round_trip
                a_checkout_after_a_rest_makes_one_round_trip
                a_network_that_is_cut_holds_a_checkout_up_for_the_check_timeout
                a_caller_that_goes_during_the_check_costs_no_goodbye
                an_answer_that_comes_too_late_costs_no_goodbye
                one_connection_that_does_not_answer_speaks_for_all_of_its_age;
            runtimes:
                a_guard_outlives_the_runtimes_that_its_sessions_were_opened_in
                what_is_idle_when_its_runtime_ends_says_goodbye
                a_statement_whose_runtime_ends_fails_at_once_and_is_stopped_by_the_drain
                a_statement_that_ends_with_its_callers_runtime_is_stopped_by_the_drain
                what_is_being_opened_when_its_runtime_ends_holds_up_no_drain
                a_pool_of_the_drivers_has_nobody_wait_when_its_runtime_has_ended;
            state:
                text_is_the_same_before_and_after_a_reset
                text_is_the_same_in_a_pool_of_the_drivers
                every_variable_is_after_a_reset_what_it_was
                the_next_caller_is_in_the_configured_database
                without_a_reset_transactions_and_locks_end_all_the_same
                the_next_caller_has_the_roles_of_a_new_session;
            strangers:
                sessions_that_have_our_numbers_after_a_restart_are_left_alone
                sessions_are_told_from_those_of_others_while_one_of_them_runs_what_is_no_text;
            tls:
                sessions_are_encrypted_and_say_goodbye
                a_statement_is_cancelled_over_tls
                the_name_and_the_authority_of_the_certificate_are_checked
                an_expired_certificate_is_refused
                a_server_without_tls_is_refused
                a_user_who_must_encrypt_is_told_so;
            unix:
                sessions_over_a_socket_file_say_goodbye
                a_statement_is_cancelled_over_a_socket_file;
            unproven:
                a_session_that_outlived_a_start_of_its_server_is_not_taken_for_gone
                a_server_that_takes_one_statement_at_a_time_keeps_its_sessions
                sessions_whose_end_nobody_can_see_say_goodbye
                nothing_is_ended_where_nothing_is_proven
                what_runs_on_behind_a_broken_connection_is_in_the_report;
            wrapped:
                a_pool_is_drained_though_it_was_never_used_through_the_guard
                sessions_that_were_handed_out_are_seen_to_end
                a_statement_of_a_checkout_is_cancelled
                a_statement_that_nobody_waits_for_is_cancelled
                a_result_that_a_slow_server_stops_late_ends_with_a_goodbye
                a_result_that_was_given_back_half_read_is_stopped
                what_was_taken_from_the_pool_directly_is_cancelled_and_says_goodbye
                what_comes_back_to_the_pool_directly_says_goodbye
                whenever_it_comes_back_to_the_pool_directly_it_is_in_the_report
                what_others_keep_without_a_statement_is_cut_and_stays_theirs
                what_is_not_proven_to_be_the_pools_is_left_alone
                another_process_with_the_same_user_is_left_alone
                what_the_server_has_ended_while_it_was_idle_is_in_no_count;
        },
    );
    #[cfg(feature = "buffer")]
    let suite = suite.tests(left_out, soak::trials()).tests(left_out, vec![wrapped_soak::trial()]).tests(
        left_out,
        trials! {
            checked:
                what_can_be_written_to_passes_the_check_and_nothing_is_changed
                a_target_that_cannot_be_written_to_says_what_to_do
                a_table_of_keys_that_cannot_be_written_to_says_what_to_do
                a_check_without_an_answer_is_worth_another_try;
            failover:
                writers_go_on_where_the_address_leads_to
                a_buffer_loses_nothing_when_another_server_takes_over
                those_who_only_read_keep_their_sessions;
            hung:
                a_write_that_hangs_is_given_up_and_written_once_over_another_connection
                a_session_that_may_be_somebody_elses_is_not_ended;
            warned:
                what_the_server_cuts_outside_its_strict_mode_is_refused
                what_the_server_only_remarks_on_is_written
                a_list_of_warnings_that_is_cut_short_is_not_trusted
                a_limit_that_a_smaller_batch_would_keep_is_told_from_an_outage
                prepared_statements_that_others_have_used_up_pass;
            sink:
                a_batch_is_written_whole_or_not_at_all
                a_batch_that_comes_again_is_written_once
                what_is_wrong_with_a_record_is_told_from_what_is_wrong_with_the_table
                what_passes_can_be_written_again
                a_batch_whose_commit_was_cut_off_is_written_once
                names_are_taken_as_they_are
                the_table_of_the_keys_is_created_or_it_is_said_how
                keys_are_forgotten_when_they_are_old
                values_arrive_as_they_were_whichever_way
                a_large_batch_goes_in_several_statements
                what_is_there_already_is_ignored_or_updated
                loading_that_the_server_does_not_allow_says_what_to_set
                the_records_that_the_table_refuses_are_found_and_the_others_are_written
                everything_that_was_accepted_is_in_the_table_after_the_drain;
        },
    );
    suite.run()
}
