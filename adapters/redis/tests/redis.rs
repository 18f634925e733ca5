//! Redis and Valkey in containers, with a connection for each checkout and with one that all share: the conformance suite, what
//! only this adapter promises, and what is claimed about many drains. All of it is one binary, so that each server is started
//! once.

#[path = "redis/acl.rs"]
mod acl;
#[path = "redis/blocked.rs"]
mod blocked;
#[path = "redis/carried.rs"]
mod carried;
#[cfg(feature = "buffer")]
#[path = "redis/checked.rs"]
mod checked;
#[cfg(feature = "cluster")]
#[path = "conformance/cluster.rs"]
mod cluster;
#[path = "redis/credentials.rs"]
mod credentials;
#[path = "redis/driver.rs"]
mod driver;
#[path = "redis/errors.rs"]
mod errors;
#[path = "conformance/group.rs"]
mod group;
#[path = "redis/held.rs"]
mod held;
#[path = "redis/life.rs"]
mod life;
#[cfg(feature = "cluster")]
#[path = "redis/nodes.rs"]
mod nodes;
#[path = "redis/outage.rs"]
mod outage;
#[path = "redis/pops.rs"]
mod pops;
#[path = "redis/queued.rs"]
mod queued;
#[path = "redis/readonly.rs"]
mod readonly;
#[path = "redis/rest.rs"]
mod rest;
#[path = "redis/runtimes.rs"]
mod runtimes;
#[path = "redis/scene.rs"]
mod scene;
#[path = "conformance/sentinel.rs"]
mod sentinel;
#[path = "redis/sentinels.rs"]
mod sentinels;
#[path = "conformance/server.rs"]
mod server;
#[path = "redis/shared.rs"]
mod shared;
#[cfg(feature = "buffer")]
#[path = "redis/signals.rs"]
mod signals;
#[cfg(feature = "buffer")]
#[path = "redis/sink.rs"]
mod sink;
#[cfg(feature = "buffer")]
#[path = "redis/soak.rs"]
mod soak;
#[path = "redis/strangers.rs"]
mod strangers;
#[path = "redis/subscriber.rs"]
mod subscriber;
#[path = "redis/tls.rs"]
mod tls;
#[path = "redis/unix.rs"]
mod unix;
#[path = "redis/wrapped.rs"]
mod wrapped;
#[cfg(feature = "deadpool")]
#[path = "redis/wrapped_pool.rs"]
mod wrapped_pool;
#[cfg(all(feature = "buffer", feature = "deadpool"))]
#[path = "redis/wrapped_pool_soak.rs"]
mod wrapped_pool_soak;
#[cfg(feature = "buffer")]
#[path = "redis/wrapped_signals.rs"]
mod wrapped_signals;
#[path = "conformance/wrapped.rs"]
mod wraps;
#[cfg(feature = "deadpool")]
#[path = "conformance/wrapped_pool.rs"]
mod wraps_pool;

use std::process::ExitCode;

use winddown_testkit::{Suite, containers, trials};

#[cfg(feature = "cluster")]
use crate::cluster::RedisCluster;
use crate::{
    sentinel::RedisSentinel,
    server::{OfItsOwn, Redis8, RedisServer, SharedByAll, Valkey8},
    wraps::{Manager, Multiplexed, Wrapped},
};

fn main() -> ExitCode {
    #[cfg(all(feature = "buffer", feature = "deadpool"))]
    if let Some(ended) = wrapped_pool_soak::program() {
        return ended;
    }
    #[cfg(feature = "buffer")]
    if let Some(ended) = soak::program() {
        return ended;
    }
    let left_out = containers::skipped();
    let suite = Suite::new()
        .harness::<RedisServer<Redis8, OfItsOwn>>()
        .harness::<RedisServer<Redis8, SharedByAll>>()
        .harness::<RedisServer<Valkey8, OfItsOwn>>()
        .harness::<RedisServer<Valkey8, SharedByAll>>()
        .harness::<RedisSentinel>()
        .harness::<Wrapped<Manager>>()
        .harness::<Wrapped<Multiplexed>>();
    #[cfg(feature = "cluster")]
    let suite = suite.harness::<RedisCluster>().harness::<Wrapped<wraps::Cluster>>();
    #[cfg(feature = "deadpool")]
    let suite = suite.harness::<wraps_pool::WrappedPool>().tests(
        left_out,
        trials! {
            wrapped_pool:
                a_pool_is_drained_though_it_was_never_used_through_the_guard
                its_own_pool_is_to_be_had_from_the_guard
                a_pop_of_a_checkout_is_ended
                a_pop_that_nobody_waits_for_is_ended_and_handed_to_nobody
                what_was_taken_from_the_pool_directly_is_ended_and_says_goodbye
                what_comes_back_to_the_pool_directly_says_goodbye
                what_is_not_proven_to_be_the_pools_is_left_alone
                s8_what_a_caller_has_left_the_next_one_does_not_find
                what_was_sent_is_executed_before_the_drain_ends
                one_whose_server_does_not_answer_does_not_hold_up_the_drain
                a_user_who_may_not_ask_about_clients_is_drained_and_the_connection_shows_its_end
                a_session_that_is_being_opened_when_the_drain_begins_says_goodbye;
        },
    );
    let suite = suite.tests(left_out, winddown_testkit::life::trials::<scene::Server>()).tests(
        left_out,
        trials! {
            acl:
                a_user_who_may_not_ping_is_let_in_and_keeps_its_connections
                what_cannot_be_cancelled_is_known_from_the_start
                a_server_that_does_not_know_hello_is_logged_on_to_as_of_old
                a_server_that_knows_no_client_commands_works_without_cancelling;
            blocked:
                what_nobody_waits_for_is_executed_when_the_runtime_is_not_polled_any_more
                what_nobody_waits_for_is_executed_when_the_runtime_is_blocked
                what_nobody_waits_for_is_executed_when_the_runtime_is_gone;
            carried:
                s8_a_watch_that_was_left_does_not_abort_the_next_transaction
                s8_a_transaction_that_was_left_open_swallows_no_command
                s8_a_database_that_was_chosen_is_left_with_its_checkout
                s8_a_session_that_was_changed_for_good_ends_with_its_checkout
                s8_what_is_as_it_was_makes_no_round_trip
                s8_what_would_leave_a_shared_connection_changed_is_refused
                what_would_silence_a_session_is_refused_and_holds_up_nothing
                a_command_without_an_answer_that_was_only_queued_is_not_called_written;
            credentials:
                the_provider_is_asked_once_for_each_new_session
                a_password_that_changes_is_followed
                the_providers_error_is_behind_that_of_the_checkout_and_no_secret_is_shown;
            driver:
                sessions_are_listed_under_the_programs_name_or_the_one_that_is_configured
                pipelines_transactions_and_databases_work_on_a_checkout
                a_transaction_that_fails_says_what_the_driver_says
                subscriptions_get_their_messages_and_end_with_the_drain
                both_versions_of_the_protocol_are_drained;
            errors:
                what_the_server_refuses_says_what_to_do
                what_cannot_be_reached_is_worth_another_try
                a_server_that_is_full_is_worth_another_try;
            held:
                a_checkout_that_does_nothing_is_ended_with_a_goodbye
                whatever_waits_is_ended_and_counted
                what_is_queued_behind_a_command_that_waits_is_executed
                a_command_that_begins_after_the_cancelling_is_ended_too
                a_transaction_that_is_open_at_the_goodbye_is_not_executed
                a_session_that_ends_before_the_goodbye_begins_is_counted
                a_session_that_is_given_up_before_the_goodbye_begins_is_counted
                a_command_that_cannot_be_unblocked_is_killed;
            life:
                the_connection_that_all_share_says_goodbye_before_the_process_is_frozen
                the_connection_that_all_share_is_replaced_too;
            outage:
                all_who_wait_for_a_server_that_is_gone_share_one_series_of_tries
                all_who_wait_for_a_closed_port_are_told_in_the_time_of_one
                all_who_wait_for_a_server_that_says_nothing_are_told_in_the_time_of_one
                who_waits_for_a_place_in_the_pool_shares_the_outcome
                idle_connections_of_a_server_that_says_nothing_are_asked_once;
            pops:
                l6_a_pop_that_nobody_waits_for_takes_nothing_while_others_are_waited_for
                l6_a_pop_that_was_given_up_before_is_ended_when_draining_begins
                s6_what_a_pop_takes_for_nobody_is_in_the_report
                a_pop_that_somebody_waits_for_is_ended_at_once_where_that_is_asked_for;
            queued:
                commands_that_nobody_waits_for_are_executed_before_the_goodbye
                commands_whose_futures_were_dropped_are_executed_before_the_goodbye
                a_command_that_the_server_refuses_is_reported_lost
                what_a_broken_connection_did_not_get_is_reported
                an_unfinished_caller_is_told_when_its_time_is_up
                commands_keep_their_order;
            readonly:
                writers_follow_a_name_that_leads_to_another_primary
                a_refusal_in_a_pipeline_or_to_nobody_counts_as_well
                who_reads_from_a_replica_keeps_its_sessions
                writers_find_the_primary_that_sentinels_have_made;
            rest:
                a_checkout_without_a_rest_makes_no_round_trip
                a_checkout_after_a_rest_makes_one_round_trip
                a_network_that_is_cut_holds_a_checkout_up_for_the_check_timeout
                a_session_that_is_still_busy_is_not_handed_out_again
                one_connection_that_does_not_answer_speaks_for_all_of_its_age;
            sentinels:
                a_failover_is_followed_and_no_session_is_left_on_either_server
                a_primary_that_was_killed_is_replaced_and_its_successor_is_drained
                a_drain_in_the_middle_of_a_failover_is_not_held_up
                a_sentinel_that_does_not_answer_is_passed_over
                what_the_sentinels_cannot_tell_says_what_to_do;
            shared:
                a_connection_that_was_closed_is_opened_anew_once_for_all
                a_connection_that_somebody_has_waited_for_in_vain_is_replaced
                a_server_that_comes_back_is_found_by_the_command_that_waits
                a_reconnect_in_progress_does_not_outlive_the_drain
                nothing_connects_anew_after_the_drain;
            runtimes:
                a_pool_outlives_the_runtimes_that_its_sessions_were_opened_in
                a_shared_session_outlives_the_runtime_that_it_was_opened_in;
            subscriber:
                a_subscriber_learns_that_its_connection_has_ended_and_subscribes_again
                who_is_told_of_the_end_of_a_session_does_not_get_it_again
                a_subscriber_learns_that_its_connection_was_replaced
                who_only_listens_learns_of_a_server_that_says_nothing
                who_subscribes_to_nothing_is_not_asked;
            strangers:
                s7_a_stranger_who_has_our_number_after_a_restart_is_left_alone
                s7_a_stranger_who_has_the_number_of_what_was_wrapped_is_left_alone
                s7_what_the_server_does_not_prove_to_be_ours_is_not_ended_there;
            tls:
                the_scheme_says_whether_a_session_is_encrypted
                the_certificate_must_be_for_the_name_and_from_a_root
                another_authority_and_an_expired_certificate_are_refused
                twenty_sessions_say_goodbye_over_tls
                a_command_that_waits_is_ended_over_tls;
            unix:
                sessions_over_a_socket_file_say_goodbye
                a_command_that_waits_is_ended_over_a_socket_file;
            wrapped:
                what_was_sent_is_executed_before_the_drain_ends_in_every_form
                one_whose_server_does_not_answer_does_not_hold_up_the_drain
                a_pop_behind_the_guard_s_back_is_ended_when_draining_begins
                a_question_that_comes_late_has_nothing_opened_behind_the_goodbye
                one_that_was_opened_anew_behind_the_guard_s_back_is_ended
                a_manager_that_connects_anew_by_itself_is_told_no_goodbye
                a_user_who_may_not_ask_about_clients_is_drained_and_nothing_is_claimed
                one_whose_runtime_is_gone_is_drained
                one_whose_runtime_is_not_polled_is_ended_on_the_server
                what_was_checked_out_sends_nothing_after_the_goodbye;
        },
    );
    #[cfg(feature = "cluster")]
    let suite = suite.tests(
        left_out,
        trials! {
            nodes:
                commands_that_nobody_waits_for_are_executed_on_every_node
                a_node_that_was_killed_does_not_hold_up_the_drain
                a_slot_that_moves_is_followed_and_its_new_node_is_drained_too
                a_redirect_while_draining_is_followed_and_nothing_is_left_of_it
                a_command_without_an_answer_whose_slot_has_moved_is_reported_lost
                nothing_is_opened_after_the_drain
                what_cannot_be_a_cluster_says_what_to_do;
        },
    );
    #[cfg(all(feature = "buffer", feature = "deadpool"))]
    let suite = suite.tests(left_out, vec![wrapped_pool_soak::trial()]);
    #[cfg(feature = "buffer")]
    let suite = suite.tests(left_out, soak::trials()).tests(
        left_out,
        trials! {
            checked:
                what_can_be_appended_to_passes_the_check_and_nothing_is_changed
                a_key_of_another_type_is_found
                a_user_who_may_not_append_is_told_so
                a_server_that_takes_no_writes_now_is_worth_another_try
                a_write_that_hangs_is_given_up_and_written_once;
            readonly:
                a_buffer_loses_nothing_when_its_primary_becomes_a_replica;
            sink:
                a_batch_is_written_whole_or_not_at_all
                a_batch_that_comes_again_is_written_once
                what_is_wrong_with_a_record_is_told_from_what_is_wrong_with_the_target
                what_a_user_may_not_do_leaves_nothing_behind
                what_passes_can_be_written_again
                a_batch_whose_answer_was_cut_off_is_written_once
                batches_are_forgotten_when_they_are_old
                a_large_batch_is_as_whole_as_a_small_one
                everything_that_was_accepted_is_there_after_the_drain
                s8_a_batch_that_was_only_queued_or_aborted_is_not_called_written
                s8_no_record_is_lost_to_what_a_caller_has_left;
        },
    );
    #[cfg(all(feature = "buffer", feature = "cluster"))]
    let suite = suite.tests(
        left_out,
        trials! {
            nodes:
                a_batch_is_written_once_in_a_cluster_whatever_its_slot;
        },
    );
    suite.run()
}
