//! Web Functions: a server that is waited for, requests at once, and SIGTERM without an extension.

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use winddown_sim::{Config, ErrorKind, Reason, Sim};

use common::{AMPLE, COMMAND, LATE_MS, at_ms, events, example, function, within_lambdas_limits};

fn web() -> Config {
    function("sim_web").web_function(64)
}

#[tokio::test]
async fn a_server_gets_requests_and_sigterm_without_an_extension() {
    let sim = Sim::start(web()).await.expect("init");
    let invocation = sim.request("POST", "/?token=secret", "hello").await.expect("a live environment");
    assert!(invocation.ok, "{:?}", invocation.error);
    assert_eq!((&invocation.payload["statusCode"], &invocation.payload["body"]), (&200.into(), &"hello".into()));
    assert!(invocation.payload["headers"]["content-type"].is_string(), "{}", invocation.payload);

    let record = sim.shutdown(Reason::Spindown).await;
    assert!(record.ended_by_itself(), "{record}");
    assert_eq!((record.function.exit_code, record.extensions.len()), (Some(0), 0), "{record}");
    assert!(at_ms(&record, "function listens") <= at_ms(&record, "init done"));
    assert!(events(&record).contains(&"invoke 1 POST /"), "without the query: {:?}", events(&record));
}

#[tokio::test]
async fn it_is_told_where_it_listens_and_what_it_is() {
    let sim = Sim::start(web()).await.expect("init");
    let pid = sim.function_pid().expect("it runs");
    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).expect("its variables");
    let value =
        |name: &str| environment.split('\0').find_map(|it| it.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
    assert_eq!(value("AWS_LAMBDA_INITIALIZATION_TYPE").as_deref(), Some("native-http"));
    assert!(value("AWS_LAMBDA_HTTP_ENDPOINT").is_some_and(|endpoint| endpoint.starts_with("127.")), "{environment}");
    assert!(value("AWS_LAMBDA_RUNTIME_API").is_some());
    sim.shutdown(Reason::Spindown).await;
}

#[tokio::test]
async fn as_many_requests_run_at_once_as_were_asked_for_and_end_after_sigterm() {
    let sim = Sim::start(web().web_function(3)).await.expect("init");
    let request = || sim.request("GET", "/until-sigterm", "");
    let seen = AtomicUsize::new(0);
    let shutdown = async {
        let all = |line: &str| line == "begun" && seen.fetch_add(1, Ordering::Relaxed) + 1 == 3;
        sim.wait_for_line(|line| all(&line.line)).await.expect("they begin");
        sim.shutdown(Reason::Spindown).await
    };
    let (a, b, c, d, record) = tokio::join!(request(), request(), request(), request(), shutdown);
    let (mut answered, mut refused) = (0, 0);
    for request in [a, b, c, d] {
        match request {
            Ok(invocation) => answered += usize::from(invocation.ok),
            Err(error) => refused += usize::from(error.kind() == ErrorKind::Ended),
        }
    }
    // the fourth has waited for its turn, and shutdown had begun when it came
    assert_eq!((answered, refused), (3, 1), "{record}");
    assert!(record.ended_by_itself(), "{record}");
}

#[tokio::test]
async fn a_server_that_does_not_end_is_killed_after_a_second() {
    let sim = Sim::start(within_lambdas_limits("sim_web").arg("stay").web_function(64)).await.expect("init");
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!((record.shutdown.budget_ms, record.function.killed), (1_000, true), "{record}");
    assert!((1_000.0..1_000.0 + LATE_MS).contains(&record.shutdown.took_ms), "after {} ms", record.shutdown.took_ms);
}

#[tokio::test]
async fn a_server_that_listens_late_is_waited_for_and_one_that_never_does_has_failed() {
    let sim = Sim::start(web().args(["late", "300"])).await.expect("init");
    assert!(sim.request("GET", "/", "").await.expect("a live environment").ok);
    sim.shutdown(Reason::Spindown).await;

    let deaf = web().arg("deaf").init_timeout(Duration::from_millis(300)).budget(Duration::from_millis(100));
    let error = Sim::start(deaf).await.expect_err("deaf");
    assert_eq!(error.kind(), ErrorKind::InitTimeout);
    assert!(error.to_string().contains("AWS_LAMBDA_HTTP_ENDPOINT"), "{error}");
}

#[tokio::test]
async fn what_fails_is_in_the_record_and_the_environment_lives_on() {
    let sim = Sim::start(web().timeout(Duration::from_secs(2))).await.expect("init");
    for (target, error_type, status) in
        [("/fail", "Function.ServerError", Value::from(500)), ("/slow?ms=60000", "Sandbox.Timedout", Value::Null)]
    {
        let failed = sim.request("GET", target, "").await.expect("a live environment");
        assert_eq!(failed.error.expect("an error").error_type, error_type);
        assert_eq!(failed.payload["statusCode"], status);
    }
    let missing = sim.request("GET", "/missing", "").await.expect("a live environment");
    assert!(missing.ok && missing.payload["statusCode"] == 404, "an answer like any other: {}", missing.payload);
    assert!(sim.shutdown(Reason::Spindown).await.ended_by_itself());
}

#[tokio::test]
async fn a_server_that_exits_ends_the_environment() {
    let sim = Sim::start(web()).await.expect("init");
    let failed = sim.request("GET", "/exit", "").await.expect("a live environment");
    assert_eq!(failed.error.expect("an error").error_type, "Runtime.ExitError");
    assert_eq!(sim.request("GET", "/", "").await.expect_err("it is gone").kind(), ErrorKind::Ended);
    let record = sim.shutdown(Reason::Spindown).await;
    assert_eq!((record.function.exit_code, record.shutdown.reason), (Some(3), Reason::Failure), "{record}");
}

#[tokio::test]
async fn what_a_web_function_has_not_is_refused_with_a_reason() {
    let sim = Sim::start(web()).await.expect("init");
    let no_events = sim.invoke(Value::Null).await.expect_err("no events");
    let no_freeze = sim.freeze().await.expect_err("no freeze");
    assert_eq!((no_events.kind(), no_freeze.kind()), (ErrorKind::Unsupported, ErrorKind::Unsupported));
    for (method, target) in [("GE T", "/"), ("GET", "index"), ("GET", "/ /")] {
        let error = sim.request(method, target, "").await.expect_err("no request");
        assert!(error.kind() == ErrorKind::Start && error.to_string().contains("like GET /"), "{error}");
    }
    sim.shutdown(Reason::Spindown).await;

    let sim = Sim::start(function("sim_graceful")).await.expect("init");
    let no_requests = sim.request("GET", "/", "").await.expect_err("no server");
    assert_eq!(no_requests.kind(), ErrorKind::Unsupported);
    sim.shutdown(Reason::Spindown).await;

    for config in [web().reinit(), web().external_extension("extension", [""]), web().web_function(0)] {
        assert_eq!(Sim::start(config).await.expect_err("no such environment").kind(), ErrorKind::Start);
    }
}

#[test]
fn the_command_sends_requests_and_ends_with_0() {
    let run = |options: &[&str], mode: &str| {
        let mut command = Command::new(COMMAND);
        command.args(["run", "--json", "-", "--web"]).args(options).arg("--").arg(example("sim_web")).arg(mode);
        command.output().expect("the command runs")
    };
    let limit = format!("{}s", AMPLE.as_secs());
    let ample = ["--budget", &limit, "--init-timeout", &limit, "--timeout", &limit];
    let requests =
        ["--request", "GET /slow?ms=20", "--request", "POST / two words", "--times", "50", "--max-concurrency", "8"];
    let output = run(&[&ample[..], &requests].concat(), "");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("100 invocations, 0 failed"), "{stderr}");
    let record: Value = serde_json::from_slice(&output.stdout).expect("the record");
    let bodies =
        record["invocations"].as_array().expect("a list").iter().filter(|it| it["payload"]["body"] == "two words");
    assert_eq!(bodies.count(), 50);

    let output = run(&["--budget", "50ms"], "stay");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("make its shutdown shorter"), "{stderr}");

    for (wrong, says) in [(&["--request", "index"][..], "like 'GET /'"), (&["--freeze", "1s"], "cannot be used with")] {
        let output = run(wrong, "");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(says), "{stderr}");
    }
}

#[tokio::test]
async fn a_budget_that_is_set_is_told_to_the_function() {
    let told = async |config: Config| {
        let sim = Sim::start(config).await.expect("init");
        let pid = sim.function_pid().expect("it runs");
        let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).expect("its variables");
        sim.shutdown(Reason::Spindown).await;
        environment.split('\0').find_map(|it| it.strip_prefix("WINDDOWN_BUDGET_MS=").map(str::to_owned))
    };
    let plain = || within_lambdas_limits("sim_graceful").timeout(AMPLE).init_timeout(AMPLE);
    assert_eq!(told(plain()).await, None, "Lambda's own is known by other signs");
    assert_eq!(told(plain().budget(Duration::from_millis(200))).await.as_deref(), Some("200"));
    assert_eq!(told(plain().budget(Duration::ZERO)).await.as_deref(), Some("10"), "the least that can be said");
    let set = plain().budget(Duration::from_millis(200)).env("WINDDOWN_BUDGET_MS", "150");
    assert_eq!(told(set).await.as_deref(), Some("150"), "what is set stays");
    let external = plain().external_extension(example("sim_external_extension"), ["shutdown"]);
    assert_eq!(told(external).await.as_deref(), Some("300"), "it sees no folder of extensions here");
}
