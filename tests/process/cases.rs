//! The cases. What must end by the deadline uses its budget up, and has [`LATE`] more, as a busy machine may end a process that
//! late; what must not wait for it has a budget that no machine uses up, and a bound of half of it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    path::Path,
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;
use winddown::{EXIT_AT_DEADLINE, Outcome, Reason, sqlite::rusqlite::Connection};
use winddown_testkit::child::{Child, Ended, example};

use crate::lambda::LATE;

/// For what uses it up: drains must end 250 ms before it, and those that do not hang have seconds for their own.
const BUDGET: Duration = Duration::from_secs(4);

/// For what does not: it takes a small part of it.
const AMPLE: Duration = Duration::from_secs(120);
const AT_ONCE: Duration = Duration::from_secs(60);

/// Lists a file's cases with their names.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub(crate) const ALL: &[(&str, fn())] = &[$((stringify!($case), $case)),*];
    };
}
pub(crate) use cases;

cases![
    idle_says_goodbye_and_exits_0,
    an_interrupt_drains_as_well,
    buffered_records_are_written,
    the_example_with_a_spill_keeps_its_promise,
    a_checkout_that_comes_back_late_is_waited_for,
    a_straggler_is_interrupted_and_named,
    l1_l2_a_resource_that_hangs_is_named_and_costs_only_itself,
    l2_a_resource_that_panics_costs_only_itself,
    l1_l2_a_resource_that_blocks_its_thread_is_named_and_costs_only_itself,
    l1_l2_the_same_on_a_single_threaded_runtime,
    l1_a_starved_runtime_neither_hides_the_signal_nor_stops_the_clock,
    l1_a_starved_single_threaded_runtime_neither,
    a_stop_during_a_slow_init_is_heeded,
    a_failed_init_is_rolled_back_and_exits_1,
    l5_a_second_signal_ends_the_wait_at_once,
    where_the_platform_repeats_sigterm_only_another_signal_ends_the_wait,
    one_request_that_arrives_as_several_signals_does_not_force,
    an_application_that_listens_for_the_signal_too_is_drained,
    a_signal_during_a_drain_that_was_asked_for_does_not_cut_it_short,
    work_that_panics_is_drained_all_the_same,
    a_main_that_ignores_the_lifecycle_is_ended_at_the_deadline,
    l1_a_report_that_nobody_reads_does_not_hold_up_the_end,
    soak_s5_every_record_a_writer_had_accepted_is_accounted_for,
    soak_s5_what_does_not_fit_into_the_budget_is_reported_lost,
    an_unknown_budget_is_one_clear_line,
    an_unreadable_database_path_is_one_clear_line,
    a_function_outside_lambda_is_told_what_to_do,
    without_an_extensions_api_the_function_warns_and_goes_on,
    an_extensions_api_that_refuses_is_warned_of_once,
    systemd_is_told,
    a_web_server_answers_the_requests_in_flight_and_is_drained,
    a_body_that_a_web_server_sends_at_sigterm_checks_out_until_its_end,
    telemetry_that_hangs_is_named_and_keeps_the_process_from_nothing,
];

fn outcome(ended: &Ended, name: &str) -> Outcome {
    let report = ended.report();
    report.resource(name).unwrap_or_else(|| panic!("no {name} in\n{report}")).outcome
}

/// A database with a table for records, and what is left in it.
pub(crate) struct Database {
    folder: TempDir,
}

impl Database {
    pub(crate) fn new() -> Self {
        let database = Self { folder: tempfile::tempdir().unwrap() };
        Connection::open(database.path())
            .unwrap()
            .execute_batch("CREATE TABLE audit(number INTEGER PRIMARY KEY)")
            .unwrap();
        database
    }

    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("app.db")
    }

    fn start(&self, program: &str, budget: Duration) -> Child {
        let budget = budget.as_millis().to_string();
        let path = self.path();
        Child::start_with(program, &[("WINDDOWN_BUDGET_MS", budget.as_ref()), ("SQLITE_PATH", path.as_os_str())])
    }

    fn is_closed(&self) -> bool {
        let beside = |suffix| Path::new(&format!("{}{suffix}", self.path().display())).exists();
        !beside("-wal") && !beside("-shm")
    }

    pub(crate) fn rows(&self) -> u64 {
        let connection = Connection::open(self.path()).unwrap();
        let count: i64 = connection.query_row("SELECT count(*) FROM audit", [], |row| row.get(0)).unwrap();
        count.unsigned_abs()
    }
}

fn idle_says_goodbye_and_exits_0() {
    let ended = Child::start("idle", AMPLE).ready().terminate().end();
    assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.stderr);
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
    let report = ended.report();
    assert!(report.is_clean(), "{report}");
    assert_eq!((&report.reason, report.budget), (&Reason::Signal("SIGTERM".into()), AMPLE));
    assert_eq!(report.resource("db").unwrap().sessions.closed, 2);
    assert_eq!(report.resource("spare").unwrap().sessions.closed, 1, "opened by init");
}

fn an_interrupt_drains_as_well() {
    let ended = Child::start("idle", AMPLE).ready().signal(Signal::INT).end();
    assert_eq!(ended.code, Some(0));
    assert_eq!(ended.report().reason, Reason::Signal("SIGINT".into()));
}

fn buffered_records_are_written() {
    let database = Database::new();
    let ended = database.start("buffered", AMPLE).ready().terminate().end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
    assert!(database.is_closed());
    assert_eq!(database.rows(), 100);
    let records = ended.report().resource("audit").unwrap().records.unwrap();
    assert_eq!((records.accepted, records.written, records.lost), (100, 100, 0));
}

fn the_example_with_a_spill_keeps_its_promise() {
    // It has some seconds, and a quarter of one for the disk: how often that is enough is the machine's business.
    once_of(10, || {
        let output = example("spill").output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // Always: what is called spilled is there.
        let spilled = stdout.contains("1000 spilled");
        assert!(!spilled || output.status.success(), "{stdout}{stderr}");
        if !spilled {
            return Err(format!("{stdout}{stderr}"));
        }
        assert!(stdout.contains("replayed 1000 records from 1 file"), "{stdout}");
        assert!(stdout.ends_with("1000 of 1000 records are in the database\n"), "{stdout}");
        Ok(())
    });
}

/// For what a machine has to keep up for: it does so at least once of so many times.
pub(crate) fn once_of(times: usize, mut attempt: impl FnMut() -> Result<(), String>) {
    let mut failed = Vec::new();
    while let Err(text) = attempt() {
        failed.push(text);
        assert!(failed.len() < times, "not once of {times} times:\n{}", failed.join("\n"));
    }
}

fn a_checkout_that_comes_back_late_is_waited_for() {
    let ended = Child::start("held", AMPLE).ready().terminate().end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.took >= Duration::from_millis(300), "{:?}", ended.took);
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
    assert!(ended.report().is_clean(), "{}", ended.report());
}

fn a_straggler_is_interrupted_and_named() {
    let database = Database::new();
    let ended = database.start("straggler", BUDGET).ready().terminate().end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.took < BUDGET + LATE, "{:?}", ended.took);
    assert!(database.is_closed());
    let report = ended.report();
    let row = report.resource("sqlite").unwrap();
    assert_eq!((row.outcome, row.sessions.cancelled, row.left_out), (Outcome::Drained, 1, 0), "{report}");
    assert_eq!(row.stragglers.len(), 1);
    assert!(row.stragglers[0].site.contains("programs.rs"), "{report}");
}

fn l1_l2_a_resource_that_hangs_is_named_and_costs_only_itself() {
    hung("hangs");
}

fn l1_l2_a_resource_that_blocks_its_thread_is_named_and_costs_only_itself() {
    hung("blocks");
}

fn l1_l2_the_same_on_a_single_threaded_runtime() {
    hung("blocks_single");
}

fn hung(program: &str) {
    let ended = Child::start(program, BUDGET).ready().terminate().end();
    // Its own end, for which it has a moment, or the conductor's.
    assert!(matches!((ended.code, ended.signal), (Some(1 | EXIT_AT_DEADLINE), None)), "{}", ended.stderr);
    assert!(ended.took < BUDGET + LATE, "{:?}", ended.took);
    if !is_report_out(&ended) {
        return;
    }
    assert_eq!(outcome(&ended, "faulty"), Outcome::Hung);
    let db = ended.report().resource("db").unwrap();
    assert_eq!(db.outcome, Outcome::Drained);
    assert!(db.took < BUDGET / 2, "{}", ended.report());
}

/// A drain that uses its budget up leaves 125 ms for the report: on a machine that has none of them for it, the process is
/// ended without.
fn is_report_out(ended: &Ended) -> bool {
    assert!(ended.report.is_some() || ended.code == Some(EXIT_AT_DEADLINE), "{}", ended.stderr);
    ended.report.is_some()
}

fn l2_a_resource_that_panics_costs_only_itself() {
    let ended = Child::start("panics", AMPLE).ready().terminate().end();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
    assert_eq!(outcome(&ended, "faulty"), Outcome::Panicked);
    assert!(ended.report().resource("faulty").unwrap().error.as_ref().unwrap().contains("the driver has a bug"));
    assert_eq!(outcome(&ended, "db"), Outcome::Drained);
}

fn l1_a_starved_runtime_neither_hides_the_signal_nor_stops_the_clock() {
    starved("starved");
}

fn l1_a_starved_single_threaded_runtime_neither() {
    starved("starved_single");
}

fn starved(program: &str) {
    let database = Database::new();
    let ended = database.start(program, BUDGET).ready().terminate().end();
    // The application never comes to its own end.
    assert_eq!((ended.code, ended.signal), (Some(EXIT_AT_DEADLINE), None), "{}", ended.stderr);
    assert!(ended.took < BUDGET + LATE, "{:?}", ended.took);
    assert!(database.is_closed());
    if !is_report_out(&ended) {
        return;
    }
    assert_eq!(outcome(&ended, "faulty"), Outcome::Hung);
    assert_eq!(outcome(&ended, "sqlite"), Outcome::Drained, "{}", ended.report());
}

fn a_stop_during_a_slow_init_is_heeded() {
    let ended = Child::start("slow_init", BUDGET).ready().terminate().end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.took < BUDGET + LATE, "{:?}", ended.took);
    assert_eq!(outcome(&ended, "slow"), Outcome::NotInitialised);
    assert_eq!(outcome(&ended, "db"), Outcome::Drained);
}

fn a_failed_init_is_rolled_back_and_exits_1() {
    let ended = Child::start("failing_init", BUDGET).end();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let report = ended.report();
    assert_eq!(report.reason, Reason::InitFailed);
    assert_eq!(outcome(&ended, "sqlite"), Outcome::NotInitialised);
    assert!(matches!(outcome(&ended, "db"), Outcome::Drained | Outcome::NotInitialised), "{report}");
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.contains("/no/such/directory"), "{last}");
}

fn l5_a_second_signal_ends_the_wait_at_once() {
    let child = Child::start("hangs", AMPLE).ready().terminate();
    // What comes within 100 ms of the first is the same request.
    thread::sleep(Duration::from_secs(3));
    let ended = child.terminate().end();
    assert_eq!((ended.code, ended.signal), (Some(128 + 15), None), "{}", ended.stderr);
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
    let report = ended.report();
    assert!(report.forced && !report.is_clean(), "{report}");
    assert_eq!(outcome(&ended, "faulty"), Outcome::Hung);
    assert_eq!(outcome(&ended, "db"), Outcome::Drained);
}

fn where_the_platform_repeats_sigterm_only_another_signal_ends_the_wait() {
    let budget = AMPLE.as_millis().to_string();
    let heroku = [("DYNO", "web.1"), ("WINDDOWN_BUDGET_MS", &budget)];
    let child = Child::start_with("hangs", &heroku).ready().terminate();
    thread::sleep(Duration::from_secs(1));
    let child = child.terminate();
    // Where it forced, the process would end within this, with the first signal's status.
    thread::sleep(Duration::from_secs(2));
    let ended = child.signal(Signal::INT).end();
    assert_eq!((ended.code, ended.signal), (Some(128 + 2), None), "{}", ended.stderr);
    assert!(ended.report().forced, "{}", ended.report());
}

fn one_request_that_arrives_as_several_signals_does_not_force() {
    let ended = Child::start("held", AMPLE).ready().terminate().terminate().signal(Signal::INT).end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.report().is_clean(), "{}", ended.report());
}

fn an_application_that_listens_for_the_signal_too_is_drained() {
    for _ in 0..20 {
        let ended = Child::start("listens", AMPLE).ready().terminate().end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let report = ended.report();
        assert!(report.is_clean() && !report.forced, "{report}");
    }
}

fn a_signal_during_a_drain_that_was_asked_for_does_not_cut_it_short() {
    let ended = Child::start("drains_itself", AMPLE).ready().terminate().end();
    assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.stderr);
    let report = ended.report();
    assert!(report.is_clean() && !report.forced, "{report}");
    assert_eq!(report.reason, Reason::Requested);
}

fn work_that_panics_is_drained_all_the_same() {
    let ended = Child::start("panicking_work", BUDGET).end();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(ended.report().reason, Reason::WorkEnded);
    assert_eq!(outcome(&ended, "db"), Outcome::Drained);
    assert_eq!(ended.stderr.lines().last(), Some("panicked: the application has a bug"));
}

fn a_main_that_ignores_the_lifecycle_is_ended_at_the_deadline() {
    let ended = Child::start("ignores", BUDGET).ready().terminate().end();
    assert_eq!((ended.code, ended.signal), (Some(0), None), "everything was drained: {}", ended.stderr);
    assert!(ended.took < BUDGET + LATE, "{:?}", ended.took);
    assert!(ended.report().is_clean());
}

fn l1_a_report_that_nobody_reads_does_not_hold_up_the_end() {
    let (child, _unread) = Child::start("chatty", BUDGET).ready().deaf();
    let ended = child.terminate().end();
    assert_eq!((ended.code, ended.signal), (Some(0), None));
    assert!(ended.took < BUDGET + LATE, "{:?}", ended.took);
}

fn soak_s5_every_record_a_writer_had_accepted_is_accounted_for() {
    let signals = if std::env::var_os("WINDDOWN_SOAK").is_some() { 500 } else { 50 };
    let seed = fastrand::u64(..);
    println!("seed {seed}; {}", soak(signals, &mut fastrand::Rng::with_seed(seed)));
}

/// Ends a writer so many times at a random moment.
fn soak(signals: u32, random: &mut fastrand::Rng) -> String {
    let (mut accepted, mut written, mut lost) = (0, 0, 0);
    for round in 0..signals {
        let database = Database::new();
        let mut child = database.start("writer", AMPLE).ready();
        thread::sleep(Duration::from_micros(random.u64(..40_000)));
        child = child.terminate();
        let said = child.line();
        let ended = child.end();
        assert_eq!(ended.code, Some(0), "round {round}: {}", ended.stderr);
        assert!(ended.took < AT_ONCE, "round {round}: {:?}\n{}", ended.took, ended.stderr);
        let said: u64 = said.trim().strip_prefix("accepted ").unwrap().parse().unwrap();
        let records = ended.report().resource("audit").unwrap().records.unwrap();
        assert_eq!(records.accepted, said, "round {round}");
        assert_eq!(records.accepted, records.written + records.lost, "round {round}");
        assert!(database.is_closed(), "round {round}");
        assert_eq!(database.rows(), records.written, "round {round}");
        accepted += records.accepted;
        written += records.written;
        lost += records.lost;
    }
    format!("{signals} signals: {accepted} records accepted = {written} written + {lost} reported lost")
}

/// Budgets that are too small for what is buffered: the accounting still add up, and the file has what they call written.
fn soak_s5_what_does_not_fit_into_the_budget_is_reported_lost() {
    let rounds = if std::env::var_os("WINDDOWN_SOAK").is_some() { 200 } else { 20 };
    let (mut accepted, mut written, mut lost, mut in_doubt) = (0, 0, 0, 0);
    for round in 0..rounds {
        let database = Database::new();
        let path = database.path();
        let budget = format!("{}", 10 + round % 20);
        let variables = [("WINDDOWN_BUDGET_MS", budget.as_ref()), ("SQLITE_PATH", path.as_os_str())];
        let child = Child::start_with("hoarder", &variables).ready().terminate();
        let ended = child.end();
        assert!(ended.took < BUDGET + LATE, "round {round}: {:?}", ended.took);
        // The margin is 5 ms at the least, and on a busy machine the report may not be out by then.
        let Some(report) = &ended.report else { continue };
        let records = report.resource("audit").unwrap().records.unwrap();
        assert_eq!(records.accepted, records.written + records.lost + records.in_doubt, "round {round}: {report}");
        let rows = database.rows();
        assert!(
            (records.written..=records.written + records.in_doubt).contains(&rows),
            "round {round}: {rows} {report}"
        );
        if records.lost + records.in_doubt > 0 {
            assert!(!report.is_clean(), "round {round}: {report}");
            assert_ne!(ended.code, Some(0), "round {round}: {report}");
        }
        accepted += records.accepted;
        written += records.written;
        lost += records.lost;
        in_doubt += records.in_doubt;
    }
    println!("{accepted} records accepted = {written} written + {lost} reported lost + {in_doubt} in doubt");
    assert!(lost > 0, "the budgets were not too small, or no report came out in time");
}

fn an_unknown_budget_is_one_clear_line() {
    let ended = Child::start_with("idle", &[("WINDDOWN_BUDGET_MS", "soon")]).end();
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.stderr,
        "WINDDOWN_BUDGET_MS=\"soon\" is not a whole number of milliseconds: set it to one, like 500, or unset it\n"
    );
}

fn an_unreadable_database_path_is_one_clear_line() {
    let ended = Child::start_with("unreadable", &[("SQLITE_PATH", "/no/such/directory/app.db")]).end();
    assert_eq!(ended.code, Some(1));
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| !line.starts_with('{')).collect();
    assert_eq!(lines.len(), 1, "{}", ended.stderr);
    assert!(lines[0].starts_with("sqlite: ") && lines[0].contains("/no/such/directory/app.db"), "{}", lines[0]);
}

fn a_function_outside_lambda_is_told_what_to_do() {
    let ended = Child::start("lambda", BUDGET).end();
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("AWS_LAMBDA_RUNTIME_API is not set: start the function on Lambda"),
        "{}",
        ended.stderr
    );
}

fn without_an_extensions_api_the_function_warns_and_goes_on() {
    // As a URL, which `cargo lambda watch` gives.
    refused("http://", 404);
}

fn an_extensions_api_that_refuses_is_warned_of_once() {
    refused("", 403);
}

/// A Lambda that has a Runtime API and nothing else: no invocation ever comes, and extensions are answered with
/// `status`.
fn refused(scheme: &str, status: u16) {
    let (variables, next) = refusing(scheme, status);
    let child = Child::start_with("lambda", &variables);
    next.recv_timeout(AMPLE).expect("the function asks for an invocation");
    let ended = child.terminate().end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
    assert_eq!(ended.stderr.matches("winddown: no extension could be registered").count(), 1, "{}", ended.stderr);
    assert_eq!(outcome(&ended, "db"), Outcome::Drained);
}

/// Starts it: what a function needs in its environment, and who hears of each time that it asks for an invocation.
pub(crate) fn refusing(scheme: &str, status: u16) -> ([(&'static str, String); 5], Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (asked, next) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, asked) = (stream.unwrap(), asked.clone());
            thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                for request in lines {
                    if request.contains("/runtime/invocation/next") {
                        asked.send(()).unwrap();
                    } else if request.contains("/extension/register") {
                        let body = "{}";
                        write!(stream, "HTTP/1.1 {status} No\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
                    }
                }
            });
        }
    });
    let variables = [
        ("WINDDOWN_BUDGET_MS", AMPLE.as_millis().to_string()),
        ("AWS_LAMBDA_RUNTIME_API", format!("{scheme}{address}")),
        ("AWS_LAMBDA_FUNCTION_NAME", "f".into()),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".into()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128".into()),
    ];
    (variables, next)
}

/// Here the process ends by itself: `main` returns, and nothing of what hangs is waited for again.
fn telemetry_that_hangs_is_named_and_keeps_the_process_from_nothing() {
    let ended = Child::start("telemetry_hangs", BUDGET).ready().terminate().end();
    // Its own end, for which it has a moment, or the conductor's.
    assert!(matches!((ended.code, ended.signal), (Some(1 | EXIT_AT_DEADLINE), None)), "{}", ended.stderr);
    assert!(ended.took < BUDGET + LATE, "{:?}", ended.took);
    if !is_report_out(&ended) {
        return;
    }
    let hung = |name| outcome(&ended, name) == Outcome::Hung;
    assert!(hung("traces") && hung("log"), "{}", ended.report());
    assert_eq!(outcome(&ended, "db"), Outcome::Drained);
    assert!(ended.report().resource("db").unwrap().took < BUDGET / 2);
}

/// The axum example: a request that is in flight at SIGTERM, and asks the database only after it, gets its answer.
fn a_web_server_answers_the_requests_in_flight_and_is_drained() {
    let budget = AMPLE.as_millis().to_string();
    let mut server = Child::example("axum", &[("WINDDOWN_BUDGET_MS", &budget)]);
    let said = server.line();
    let address = said.trim().strip_prefix("listening on ").unwrap().to_owned();
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
        stream
    };
    let answer = |mut stream: TcpStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(answer(ask("/count")).starts_with("HTTP/1.1 200"));
    let in_flight = ask("/slow");
    // Until the server has it for sure; it takes longer than that.
    thread::sleep(Duration::from_secs(2));
    let server = server.terminate();
    let answer = answer(in_flight);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("tables\n"), "{answer}");
    let ended = server.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(outcome(&ended, "sqlite"), Outcome::Drained);
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
}

fn a_body_that_a_web_server_sends_at_sigterm_checks_out_until_its_end() {
    let budget = AMPLE.as_millis().to_string();
    let mut server = Child::example("axum", &[("WINDDOWN_BUDGET_MS", &budget)]);
    let said = server.line();
    let address = said.trim().strip_prefix("listening on ").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /pages HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = BufReader::new(stream);
    let mut read = String::new();
    while !read.contains("page 2") {
        assert!(answer.read_line(&mut read).unwrap() > 0, "{read}");
    }
    let server = server.terminate();
    answer.read_to_string(&mut read).unwrap();
    assert!(read.contains("page 10: ") && read.ends_with("0\r\n\r\n"), "{read}");
    let ended = server.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(outcome(&ended, "sqlite"), Outcome::Drained);
}

fn systemd_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(AMPLE)).unwrap();
    let budget = AMPLE.as_millis().to_string();
    let child =
        Child::start_with("idle", &[("WINDDOWN_BUDGET_MS", budget.as_ref()), ("NOTIFY_SOCKET", path.as_os_str())]);
    let child = child.ready().terminate();
    let mut message = [0; 1024];
    // That it is ready.
    socket.recv(&mut message).unwrap();
    let length = socket.recv(&mut message).unwrap();
    let message = String::from_utf8_lossy(&message[..length]).into_owned();
    assert!(message.lines().any(|line| line == "STOPPING=1"), "{message}");
    let extended = format!("EXTEND_TIMEOUT_USEC={}", AMPLE.as_micros());
    assert!(message.lines().any(|line| line == extended), "{message}");
    assert_eq!(child.end().code, Some(0));
    fs::remove_file(path).unwrap();
}
