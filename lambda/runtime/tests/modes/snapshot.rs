//! SnapStart: drained before the snapshot, alive again after the restore.

use std::time::Duration;

use serde_json::json;
use winddown_core::{EXIT_AT_DEADLINE, Reason, Report};
use winddown_testkit::child::{Ended, report};

use crate::{
    api::{Api, LATE, begun, end, terminate},
    cases,
};

cases![
    a_snapshot_has_no_sessions_and_a_restored_function_opens_its_own,
    a_restored_function_is_drained_on_sigterm_with_an_invocation_in_flight,
    an_init_that_fails_after_the_restore_is_posted,
    a_function_that_is_told_to_stop_at_its_snapshot_ends_inside_the_budget,
    elsewhere_nothing_is_drained_before_the_end,
    a_signal_is_heeded_whichever_life_it_meets,
];

const SNAPSHOT: &[(&str, &str)] = &[("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")];

fn reports(ended: &Ended) -> Vec<Report> {
    ended.stderr.lines().filter_map(report).collect()
}

async fn a_snapshot_has_no_sessions_and_a_restored_function_opens_its_own() {
    // Twice from the same state: a process cannot be cloned, so two are taken to their snapshot.
    for id in 0..2 {
        let api = Api::start().await;
        let function = api.function("restored", SNAPSHOT);
        api.at_snapshot().await;
        api.restore();
        api.invoke(id, json!({}));
        // One said goodbye before the snapshot; the one that is there now was opened after it.
        let answer = api.posted(&format!("{id}/response")).await;
        assert_eq!(answer.body, json!({ "goodbyes": 1, "sessions": 1 }).to_string());
        let ended = terminate(function).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let [before, after] = reports(&ended).try_into().unwrap();
        assert_eq!((&before.reason, &after.reason), (&Reason::Requested, &Reason::Signal("SIGTERM".into())));
        for report in [before, after] {
            assert!(report.is_clean(), "{report}");
            assert_eq!(report.resource("db").unwrap().sessions.closed, 1, "{report}");
        }
    }
}

async fn a_restored_function_is_drained_on_sigterm_with_an_invocation_in_flight() {
    let api = Api::start().await;
    let function = api.function("concurrent", SNAPSHOT);
    api.at_snapshot().await;
    api.restore();
    api.invoke(0, json!({ "when_draining": true, "run_ms": 150 }));
    let ended = terminate(begun(function, 1).await).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    api.posted("0/response").await;
    let [before, after] = reports(&ended).try_into().unwrap();
    assert!(before.is_clean() && after.is_clean(), "{before}{after}");
    assert!(after.took >= Duration::from_millis(150), "it was waited for: {after}");
}

async fn an_init_that_fails_after_the_restore_is_posted() {
    let api = Api::start().await;
    let function = api.function("restored", &[SNAPSHOT[0], ("SERVER_ENDS", "1")]);
    api.at_snapshot().await;
    api.restore();
    let posted = api.posted("restore/error").await;
    assert!(posted.body.contains("connection refused"), "{}", posted.body);
    let ended = end(function).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.lines().any(|line| line.contains("db") && line.contains("connection refused")));
    assert!(!ended.stderr.contains("the Runtime API failed"), "{}", ended.stderr);
}

async fn a_function_that_is_told_to_stop_at_its_snapshot_ends_inside_the_budget() {
    let stopped = async |budget: Option<&str>| {
        let api = Api::start().await;
        let variables: Vec<_> = budget.map(|budget| ("WINDDOWN_BUDGET_MS", budget)).into_iter().collect();
        let function = api.function_within_lambdas_budget("restored", &[SNAPSHOT, &variables].concat());
        api.at_snapshot().await;
        terminate(function).await
    };
    // It waits for its restore, and has nothing to drain: the conductor ends it.
    let ended = stopped(Some("5000")).await;
    assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.stderr);
    assert!(ended.took < Duration::from_secs(5) + LATE, "{:?}", ended.took);
    // In so little time a busy machine may not come to see that.
    let ended = stopped(None).await;
    assert!(matches!((ended.code, ended.signal), (Some(0 | EXIT_AT_DEADLINE), None)), "{ended:?}");
    assert!(ended.took < Duration::from_millis(500) + LATE, "{:?}", ended.took);
}

async fn elsewhere_nothing_is_drained_before_the_end() {
    let api = Api::start().await;
    let function = api.function("restored", &[]);
    api.invoke(0, json!({}));
    assert_eq!(api.posted("0/response").await.body, json!({ "goodbyes": 0, "sessions": 1 }).to_string());
    let ended = terminate(function).await;
    assert_eq!(reports(&ended).len(), 1);
}

async fn a_signal_is_heeded_whichever_life_it_meets() {
    let api = Api::start().await;
    for round in 0..30 {
        let function = begun(api.function("many_lives", &[]), 1).await;
        tokio::time::sleep(Duration::from_micros(round * 300)).await;
        let ended = terminate(function).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "0 sessions\n"), "{}", ended.stderr);
        assert!(ended.took < Duration::from_secs(30), "by itself, and not at its last moment: {:?}", ended.took);
    }
}
