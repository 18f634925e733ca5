//! The cases: plain async functions over a [`Harness`]. Each panics if something is not as it should be.
//!
//! Times are bounds well above scheduling noise: what must not wait has a budget that is never used up, what is about
//! the deadline has one of seconds and a reserve of half of it.

mod application;
mod drain;
mod faults;
mod init;
mod refuse;
pub(crate) mod scene;
mod secrets;

pub use self::{application::*, drain::*, faults::*, init::*, refuse::*, secrets::*};
use crate::{Case, Harness, case};

/// All of them.
pub fn all<H: Harness>() -> Vec<Case<H>> {
    vec![
        // init
        case!(s1_a_hundred_concurrent_first_uses_initialise_once, Shared, [Init]),
        case!(s1_a_failed_init_reaches_all_who_waited_and_can_be_tried_again, Shared, [Init]),
        case!(s1_a_cancelled_caller_neither_cancels_nor_repeats_an_init, Shared, [Init]),
        case!(an_init_that_fails_for_now_is_tried_again, Shared, [Init]),
        case!(a_wrong_password_is_an_error_at_once, Shared, [Init, Password]),
        case!(a_full_server_is_asked_again_until_it_has_room, Own, [Init, Full]),
        case!(s3_one_that_was_never_used_opens_nothing_and_is_not_drained, Shared, [Init]),
        case!(s3_an_init_under_way_when_draining_begins_is_drained_too, Shared, [Init]),
        case!(an_init_that_hangs_is_given_up_and_leaves_no_session, Own, [Init, Pause]),
        // refuse
        case!(s2_after_the_drain_began_nothing_is_handed_out, Shared, []),
        case!(s2_a_waiter_is_woken_by_the_refusal, Shared, [Slots]),
        case!(s2_a_checkout_that_was_connecting_is_not_handed_out_and_its_session_is_gone, Shared, []),
        case!(s6_a_bare_checkout_that_was_connecting_is_seen, Shared, []),
        case!(s2_a_checkout_that_the_driver_was_connecting_leaves_no_session, Shared, []),
        case!(s2_a_checkout_that_was_connecting_to_a_slow_server_leaves_no_session, Own, [Slow]),
        case!(s2_callers_that_race_the_drain_are_served_or_refused, Shared, []),
        case!(a_cancelled_checkout_leaks_nothing, Shared, []),
        case!(a_checkout_that_was_dropped_while_connecting_leaves_no_session, Own, [Proxy, Slow, Slots]),
        // drain
        case!(s6_l3_idle_sessions_are_gone_when_drain_returns, Shared, []),
        case!(s6_sessions_that_are_out_are_gone_when_drain_returns, Shared, []),
        case!(idle_sessions_do_not_wait_for_those_that_are_out, Shared, [Slots]),
        case!(a_checkout_held_past_settling_is_ended_and_its_site_named, Shared, []),
        case!(a_statement_that_ends_in_time_is_let_end, Shared, [Statements]),
        case!(a_straggler_s_statement_is_stopped_on_the_server, Shared, [Statements]),
        case!(a_statement_whose_future_was_dropped_is_stopped_on_the_server, Shared, [Statements]),
        case!(l6_a_statement_whose_future_was_dropped_is_stopped_when_draining_begins, Shared, [Statements, Cancel]),
        case!(l6_it_is_stopped_while_others_are_waited_for, Shared, [Slots, Statements, Cancel]),
        case!(s6_the_numbers_of_the_report_are_the_server_s, Shared, [Slots, Statements]),
        case!(s3_it_is_drained_once_however_often_that_is_asked_for, Shared, []),
        case!(s3_s6_each_life_opens_its_own_sessions_and_ends_them, Shared, []),
        case!(s3_dropped_without_a_drain_it_is_not_drained, Shared, []),
        case!(c3_goodbyes_run_concurrently, Own, [Slow, Slots]),
        case!(s6_l2_a_frozen_application_does_not_make_the_report_untrue, Shared, []),
        // the application
        case!(idle_sessions_say_goodbye_when_the_runtime_is_not_polled_any_more, Shared, [DrivesItself]),
        case!(idle_sessions_say_goodbye_when_the_runtime_is_blocked, Shared, [DrivesItself]),
        case!(idle_sessions_say_goodbye_when_the_runtime_is_gone, Shared, [DrivesItself, OutlivesRuntime]),
        // faults
        case!(l1_a_server_paused_before_the_drain_is_left_by_the_deadline, Own, [Pause]),
        case!(l1_a_server_paused_while_settling_is_left_by_the_deadline, Own, [Pause]),
        case!(l1_a_server_paused_at_the_goodbye_is_left_by_the_deadline, Own, [Pause]),
        case!(l1_a_statement_on_a_paused_server_is_left_by_the_deadline, Own, [Pause, Statements]),
        case!(a_server_that_was_killed_is_not_waited_for, Own, [Kill]),
        case!(a_server_killed_under_a_statement_is_not_waited_for, Own, [Kill, Statements]),
        case!(a_server_that_was_started_again_is_used_and_drained, Own, [Kill, Replaces, SeesAll]),
        case!(s7_strangers_with_our_numbers_after_a_restart_are_left_alone, Own, [Kill, Statements, Strangers]),
        case!(
            s7_strangers_are_left_alone_though_our_statement_was_on_a_server_that_restarted,
            Own,
            [Kill, SeesAll, Statements, Strangers]
        ),
        case!(l1_a_server_behind_a_cut_network_is_left_by_the_deadline, Own, [Partition]),
        case!(l1_a_statement_behind_a_cut_network_is_left_by_the_deadline, Own, [Partition, Statements]),
        case!(sessions_the_server_closed_are_replaced_on_the_next_use, Shared, [CloseIdle, Replaces]),
        case!(after_a_thaw_the_first_use_gets_a_session_that_works, Shared, [CloseIdle, Replaces]),
        case!(sessions_that_were_ended_while_the_process_stood_still_are_replaced, Shared, [CloseIdle, Replaces]),
        case!(sessions_the_server_closed_are_no_failure_of_the_drain, Shared, [CloseIdle]),
        // secrets
        case!(no_password_in_debug_report_error_or_log, Shared, [Password, Statements]),
    ]
}
