//! When init is over, and how it fails.

mod common;

use std::time::Duration;

use winddown_sim::{Config, ErrorKind, Reason, Sim};

use common::{assert_group_gone, at_ms, events, example, function, misbehave};

/// For what hangs.
const SHORT: Duration = Duration::from_millis(300);

/// The same where others have done their part by then.
const SHORT_FOR_ONE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn init_ends_when_the_function_and_its_extensions_have_asked_for_their_next_event() {
    let sim = Sim::start(function("sim_graceful")).await.expect("init");
    let record = sim.shutdown(Reason::Spindown).await;
    let done = at_ms(&record, "init done");
    assert!(done >= at_ms(&record, "function ready"), "{record}");
    assert!(done >= at_ms(&record, "extension ready graceful"), "{record}");
}

#[tokio::test]
async fn a_registered_extension_that_never_polls_keeps_init_from_ending() {
    let error =
        Sim::start(misbehave("register-without-poll").init_timeout(SHORT_FOR_ONE)).await.expect_err("init hangs");
    assert_eq!(error.kind(), ErrorKind::InitTimeout);
    let text = error.to_string();
    assert!(text.contains("extension silent to GET /2020-01-01/extension/event/next"), "{text}");
    assert!(!text.contains("the function to GET"), "the function did its part: {text}");
    let record = error.record().expect("a record");
    assert!(events(record).contains(&"function ready"), "{record}");
    assert!(at_ms(record, "init failed") >= 5_000.0, "{record}");
    assert_group_gone(record.function.pid.expect("a started function"));
}

#[tokio::test]
async fn a_function_that_never_asks_for_an_event_is_an_init_timeout() {
    let error = Sim::start(misbehave("never-next").init_timeout(SHORT)).await.expect_err("init hangs");
    assert_eq!(error.kind(), ErrorKind::InitTimeout);
    let text = error.to_string();
    assert!(text.contains("the function to GET /2018-06-01/runtime/invocation/next"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_group_gone(error.record().and_then(|record| record.function.pid).expect("a started function"));
}

#[tokio::test]
async fn an_exit_during_init_is_told_with_its_code() {
    let error = Sim::start(misbehave("exit-in-init")).await.expect_err("init fails");
    assert_eq!(error.kind(), ErrorKind::InitExit);
    assert!(error.to_string().contains("exit code 7"), "{error}");
    let record = error.record().expect("a record");
    assert_eq!(record.function.exit_code, Some(7));
    assert!(!record.shutdown.sigterm_sent && !record.function.killed);
}

#[tokio::test]
async fn an_init_error_is_told_with_its_type_and_message() {
    let error = Sim::start(misbehave("init-error")).await.expect_err("init fails");
    assert_eq!(error.kind(), ErrorKind::InitError);
    assert!(error.to_string().contains("Config.Missing: DATABASE_URL is not set"), "{error}");
    let record = error.record().expect("a record");
    assert!(record.function.killed, "no extension, no SIGTERM: {record}");
    assert_group_gone(record.function.pid.expect("a started function"));
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_an_error_that_names_it() {
    let error = Sim::start(Config::new("./no-such-bootstrap")).await.expect_err("nothing to start");
    assert_eq!(error.kind(), ErrorKind::Start);
    assert!(error.to_string().contains("./no-such-bootstrap"), "{error}");
    assert!(std::error::Error::source(&error).is_some(), "the cause is kept");
    assert!(error.record().is_none(), "nothing happened");
}

#[tokio::test]
async fn a_missing_function_behind_an_external_extension_is_the_same_error_and_ends_the_extension() {
    let external = example("sim_external_extension");
    let config = Config::new("./no-such-bootstrap").capture_output().external_extension(external, [] as [&str; 0]);
    let error = Sim::start(config).await.expect_err("nothing to start");
    assert_eq!(error.kind(), ErrorKind::Start);
    assert!(error.to_string().contains("./no-such-bootstrap"), "{error}");
    let record = error.record().expect("a record of the extension's life");
    assert_eq!(events(record).last(), Some(&"extension exit sim_external_extension 0"), "{record}");
}

#[tokio::test]
async fn the_function_is_started_after_every_external_extension_has_registered() {
    let external = example("sim_external_extension");
    let sim = Sim::start(function("sim_graceful").external_extension(external, [] as [&str; 0])).await.expect("init");
    let record = sim.shutdown(Reason::Spindown).await;
    let registered = at_ms(&record, "extension registered sim_external_extension (external)");
    assert!(registered < at_ms(&record, "extension registered graceful (internal)"), "{record}");
}

#[tokio::test]
async fn an_external_extension_that_does_not_register_is_named_when_init_times_out() {
    // any program that does not register under its file name
    let config =
        function("sim_graceful").external_extension(example("sim_misbehave"), ["never-next"]).init_timeout(SHORT);
    let error = Sim::start(config).await.expect_err("init hangs");
    assert_eq!(error.kind(), ErrorKind::InitTimeout);
    assert!(error.to_string().contains("external extension sim_misbehave to register"), "{error}");
    let record = error.record().expect("a record");
    assert_eq!(record.function.pid, None, "the function was never started");
}

#[tokio::test]
async fn sigterm_during_init_reaches_a_function_that_has_registered() {
    let sim = Sim::launch(misbehave("register-without-poll")).await.expect("it starts");
    // its registration is enough: SIGTERM does not wait for init
    while !sim.timeline().iter().any(|entry| entry.event.starts_with("extension registered")) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let record = sim.shutdown(Reason::Spindown).await;
    assert!(record.shutdown.sigterm_sent, "{record}");
    assert_eq!(record.function.signal, Some(15));
    assert_eq!(sim.ready().await.expect_err("init never ended").kind(), ErrorKind::Ended);
}
