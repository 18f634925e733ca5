//! How a process is told to stop, and by whom: during an init that `main` waits for, by further signals, beside handlers of
//! others, and where nobody can be told of it.

use std::{
    fs,
    future::pending,
    io,
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use winddown::{Error, Lifecycle, Outcome, Reason, ReportFormat, memory::Memory};
use winddown_testkit::{
    child::{Child, Ended, ROLE},
    scene::until,
};

use crate::{
    cases::{cases, refusing},
    programs::{SlowInit, until_stopped},
};

/// Not used up by any machine.
const AMPLE: Duration = Duration::from_secs(60);

cases![
    a_stop_during_an_init_that_main_waits_for_is_drained_before_main_ends,
    a_main_that_asks_whether_it_was_stopped_exits_0,
    an_init_that_takes_too_long_is_given_up_and_named,
    a_failed_init_is_logged_as_an_error,
    one_line_says_that_a_drain_begins,
    a_further_signal_begins_a_drain_where_the_application_asks_for_it,
    a_further_signal_ends_a_process_that_did_not_ask_for_it,
    a_handler_that_was_there_before_is_warned_of,
    a_later_handler_of_ctrlc_is_warned_of,
    nobody_is_warned_of_handlers_where_there_are_none,
    run_without_signals_says_what_to_do,
    a_closed_standard_error_fails_nothing,
    a_closed_standard_error_fails_no_function,
    systemd_is_told_when_init_is_over,
];

pub(crate) async fn program(name: &str) -> Result<(), Error> {
    match name {
        "explicit_init" => explicit_init().await,
        "explicit_init_asks" => explicit_init_asks().await,
        "mute_init" => mute_init().await,
        "for_people" => until_stopped_after(Lifecycle::builder().report(ReportFormat::Table).build()?).await,
        "hangup" => {
            let signals = [SignalKind::hangup(), SignalKind::user_defined1()];
            until_stopped_after(Lifecycle::builder().stop_on(signals).build()?).await
        }
        "handled_before" => handled_before().await,
        "ctrlc_after" => ctrlc_after().await,
        "without_signals" => until_stopped_after(Lifecycle::builder().signals(false).build()?).await,
        other => panic!("no program {other}"),
    }
}

async fn until_stopped_after(lifecycle: Lifecycle) -> Result<(), Error> {
    let db = lifecycle.guard(Memory::new("db"));
    drop(db.get().await?);
    until_stopped(&lifecycle).await
}

/// A resource that takes half a second for its goodbye, and one that is never initialised.
fn slow_both_ways(lifecycle: &Lifecycle) -> winddown::ShutdownGuard<Memory> {
    let db = lifecycle.guard(Memory::new("db"));
    db.resource().server().slow(Duration::from_millis(500));
    let _slow = lifecycle.guard(SlowInit);
    db
}

async fn explicit_init() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = slow_both_ways(&lifecycle);
    drop(db.get().await?);
    lifecycle.init().await?;
    unreachable!("it is never initialised");
}

async fn explicit_init_asks() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = slow_both_ways(&lifecycle);
    drop(db.get().await?);
    match lifecycle.init().await {
        Err(error) if lifecycle.wait_if_stopped(&error).await => Ok(()),
        other => other,
    }
}

async fn mute_init() -> Result<(), Error> {
    let lifecycle = Lifecycle::builder().init_limit(Duration::from_secs(4)).build()?;
    let _db = lifecycle.guard(Memory::new("db"));
    let _slow = lifecycle.guard(SlowInit);
    lifecycle.run(pending::<Result<(), Error>>()).await.map(drop)
}

async fn handled_before() -> Result<(), Error> {
    let mut terminated =
        signal(SignalKind::terminate()).map_err(|error| Error::new(winddown::ErrorKind::Config, error.to_string()))?;
    tokio::spawn(async move { terminated.recv().await });
    until_stopped_after(Lifecycle::detect()?).await
}

async fn ctrlc_after() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let also = lifecycle.clone();
    // What the warning asks for.
    ctrlc::set_handler(move || {
        also.begin_drain();
    })
    .map_err(|error| Error::new(winddown::ErrorKind::Config, error.to_string()))?;
    // Its thread gives itself the name by which it is seen, when it first runs.
    until("the thread of ctrlc has its name", async || {
        let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
        threads
            .map(|thread| fs::read_to_string(thread.path().join("comm")))
            .any(|name| name.is_ok_and(|name| name == "ctrl-c\n"))
    })
    .await;
    until_stopped_after(lifecycle).await
}

fn outcome(ended: &Ended, name: &str) -> Outcome {
    let report = ended.report();
    report.resource(name).unwrap_or_else(|| panic!("no {name} in\n{report}")).outcome
}

fn a_stop_during_an_init_that_main_waits_for_is_drained_before_main_ends() {
    let ended = Child::start("explicit_init", AMPLE).ready().terminate().end();
    let report = ended.report();
    assert_eq!(report.reason, Reason::Signal("SIGTERM".into()));
    assert_eq!(outcome(&ended, "db"), Outcome::Drained, "{report}");
    let slow = report.resource("slow").unwrap();
    assert_eq!(slow.outcome, Outcome::NotInitialised);
    assert!(slow.error.as_ref().unwrap().starts_with("not initialised after"), "{report}");
    // That of a `main` that returns an error.
    assert_eq!((ended.code, ended.signal), (Some(1), None), "{}", ended.stderr);
    assert!(ended.stderr.ends_with("shutting down: draining began during start\n"), "{}", ended.stderr);
}

fn a_main_that_asks_whether_it_was_stopped_exits_0() {
    let ended = Child::start("explicit_init_asks", AMPLE).ready().terminate().end();
    assert_eq!(outcome(&ended, "db"), Outcome::Drained);
    assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.stderr);
}

fn an_init_that_takes_too_long_is_given_up_and_named() {
    let ended = Child::start("mute_init", AMPLE).ready().end();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let report = ended.report();
    assert_eq!(report.reason, Reason::InitFailed);
    let error = report.error.as_deref().unwrap();
    assert!(error.starts_with("slow: not initialised after "), "{error}");
    assert!(report.budget <= Duration::from_secs(1), "what is left of the limit: {report}");
    assert_eq!(outcome(&ended, "slow"), Outcome::NotInitialised);
    assert!(ended.stderr.lines().last().unwrap().contains("slow: not initialised after "), "{}", ended.stderr);
}

fn a_failed_init_is_logged_as_an_error() {
    let ended = Child::start("failing_init", AMPLE).end();
    let lines: Vec<serde_json::Value> =
        ended.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(lines.len(), 2, "{}", ended.stderr);
    for line in lines {
        assert_eq!(line["level"], "ERROR", "{line}");
        let message = line["message"].as_str().unwrap();
        assert!(message.starts_with("init failed: sqlite: ") && message.contains("/no/such/directory"), "{message}");
        // The driver's text, once.
        assert_eq!(message.matches("unable to open database file").count(), 1, "{message}");
    }
}

fn one_line_says_that_a_drain_begins() {
    let ended = Child::start("for_people", AMPLE).ready().terminate().end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("winddown: SIGTERM, draining, 60 s\nwinddown: drained in "), "{}", ended.stderr);

    let ended = Child::start("idle", AMPLE).ready().terminate().end();
    let first = ended.stderr.lines().next().unwrap();
    let line: serde_json::Value = serde_json::from_str(first).unwrap();
    assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &"SIGTERM, draining, 60 s".into()), "{first}");
    assert_eq!((&line["type"], &line["budget_ms"]), (&"winddown.draining".into(), &60_000.into()), "{first}");
}

fn a_further_signal_begins_a_drain_where_the_application_asks_for_it() {
    for (signal, name) in [(Signal::HUP, "SIGHUP"), (Signal::USR1, "SIGUSR1"), (Signal::TERM, "SIGTERM")] {
        let ended = Child::start("hangup", AMPLE).ready().signal(signal).end();
        assert_eq!((ended.code, ended.signal), (Some(0), None), "{name}: {}", ended.stderr);
        assert_eq!(ended.report().reason, Reason::Signal(name.into()));
        assert_eq!(outcome(&ended, "db"), Outcome::Drained);
    }
}

fn a_further_signal_ends_a_process_that_did_not_ask_for_it() {
    let ended = Child::start("idle", AMPLE).ready().signal(Signal::HUP).end();
    assert_eq!((ended.code, ended.signal), (None, Some(Signal::HUP.as_raw())), "{}", ended.stderr);
    assert!(ended.report.is_none());
}

fn a_handler_that_was_there_before_is_warned_of() {
    let ended = Child::start("handled_before", AMPLE).ready().terminate().end();
    let warning = "winddown: SIGTERM had a handler before the lifecycle was made: it runs first";
    assert_eq!(ended.stderr.matches(warning).count(), 1, "{}", ended.stderr);
    assert!(!ended.stderr.contains("SIGINT had a handler"), "{}", ended.stderr);
    assert_eq!((ended.code, outcome(&ended, "db")), (Some(0), Outcome::Drained));
}

fn a_later_handler_of_ctrlc_is_warned_of() {
    let ended = Child::start("ctrlc_after", AMPLE).ready().terminate().end();
    let warning = "winddown: the crate ctrlc has a handler for signals: it has replaced the lifecycle's";
    assert_eq!(ended.stderr.matches(warning).count(), 1, "{}", ended.stderr);
    // By what its handler calls.
    assert_eq!(ended.report().reason, Reason::Requested);
    assert_eq!((ended.code, outcome(&ended, "db")), (Some(0), Outcome::Drained));
}

fn nobody_is_warned_of_handlers_where_there_are_none() {
    let ended = Child::start("idle", AMPLE).ready().terminate().end();
    assert!(!ended.stderr.contains("handler"), "{}", ended.stderr);
}

fn run_without_signals_says_what_to_do() {
    let ended = Child::start("without_signals", AMPLE).end();
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.starts_with("this lifecycle receives no signals, so SIGTERM would end the process"),
        "{}",
        ended.stderr
    );
}

/// Starts a program whose standard error is closed from the beginning.
fn deaf(program: &str, variables: &[(&str, String)]) -> (Command, mpsc::Sender<Pid>) {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, program).envs(variables.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    let (over, watched) = mpsc::channel();
    thread::spawn(move || {
        let Ok(pid) = watched.recv() else { return };
        if watched.recv_timeout(AMPLE * 2) == Err(mpsc::RecvTimeoutError::Timeout) {
            // So that a case with a child that hangs fails.
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    (command, over)
}

fn a_closed_standard_error_fails_nothing() {
    for program in ["idle", "handled_before", "ctrlc_after", "for_people"] {
        let (mut command, over) = deaf(program, &[("WINDDOWN_BUDGET_MS", AMPLE.as_millis().to_string())]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        over.send(pid).unwrap();
        let mut said = io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(line, "ready\n", "{program}");
        kill_process(pid, Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{program}");
        drop(over);
    }
}

fn a_closed_standard_error_fails_no_function() {
    // It has something to say: no extension could be registered.
    let (variables, next) = refusing("", 403);
    let (mut command, over) = deaf("lambda", &variables);
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_child(&child);
    over.send(pid).unwrap();
    next.recv_timeout(AMPLE).expect("the function asks for an invocation");
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn systemd_is_told_when_init_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(AMPLE)).unwrap();
    let budget = AMPLE.as_millis().to_string();
    let child =
        Child::start_with("idle", &[("WINDDOWN_BUDGET_MS", budget.as_ref()), ("NOTIFY_SOCKET", path.as_os_str())])
            .ready();
    let next = || {
        let mut message = [0; 1024];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    let child = child.terminate();
    assert!(next().contains("STOPPING=1"));
    assert_eq!(child.end().code, Some(0));
}
