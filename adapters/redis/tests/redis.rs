//! Redis and Valkey in containers, with a connection for each checkout and with one that all share: the conformance suite, what
//! only this adapter promises, and what is claimed about many drains. All of it is one binary, so that each server is started
//! once.

#[path = "redis/blocked.rs"]
mod blocked;
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
#[path = "redis/gone.rs"]
mod gone;
#[path = "conformance/group.rs"]
mod group;
#[path = "redis/held.rs"]
mod held;
#[cfg(feature = "cluster")]
#[path = "redis/nodes.rs"]
mod nodes;
#[path = "redis/queued.rs"]
mod queued;
#[path = "redis/rest.rs"]
mod rest;
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
#[path = "redis/tls.rs"]
mod tls;
#[path = "redis/unix.rs"]
mod unix;
#[path = "redis/wrapped.rs"]
mod wrapped;

use std::process::ExitCode;

use winddown_testkit::{Suite, containers, trials};

#[cfg(feature = "cluster")]
use crate::cluster::RedisCluster;
use crate::{
    sentinel::RedisSentinel,
    server::{OfItsOwn, Redis8, RedisServer, SharedByAll, Valkey8},
};

fn main() -> ExitCode {
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
        .harness::<RedisSentinel>();
    #[cfg(feature = "cluster")]
    let suite = suite.harness::<RedisCluster>();
    let suite = suite.tests(
        left_out,
        trials! {
            blocked:
                sessions_say_goodbye_when_the_runtime_is_not_polled_any_more
                sessions_say_goodbye_when_the_runtime_is_blocked
                sessions_say_goodbye_when_the_runtime_is_gone;
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
            gone:
                a_checkout_that_was_dropped_while_connecting_leaves_no_session;
            held:
                a_checkout_that_does_nothing_is_ended_with_a_goodbye
                whatever_waits_is_ended_and_counted
                what_is_queued_behind_a_command_that_waits_is_executed
                a_command_that_begins_after_the_cancelling_is_ended_too
                a_transaction_that_is_open_at_the_goodbye_is_not_executed
                a_command_that_cannot_be_unblocked_is_killed;
            queued:
                commands_that_nobody_waits_for_are_executed_before_the_goodbye
                commands_whose_futures_were_dropped_are_executed_before_the_goodbye
                a_command_that_the_server_refuses_is_reported_lost
                what_a_broken_connection_did_not_get_is_reported
                an_unfinished_caller_is_told_when_its_time_is_up
                commands_keep_their_order;
            rest:
                a_checkout_without_a_rest_makes_no_round_trip
                a_checkout_after_a_rest_makes_one_round_trip
                sessions_that_were_ended_while_the_process_stood_still_are_replaced
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
                what_was_sent_through_a_manager_is_executed_before_the_drain_ends
                a_manager_whose_server_does_not_answer_does_not_hold_up_the_drain;
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
            sink:
                a_batch_is_written_whole_or_not_at_all
                a_batch_that_comes_again_is_written_once
                what_is_wrong_with_a_record_is_told_from_what_is_wrong_with_the_target
                what_a_user_may_not_do_leaves_nothing_behind
                what_passes_can_be_written_again
                a_batch_whose_answer_was_cut_off_is_written_once
                batches_are_forgotten_when_they_are_old
                a_large_batch_is_as_whole_as_a_small_one
                everything_that_was_accepted_is_there_after_the_drain;
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
