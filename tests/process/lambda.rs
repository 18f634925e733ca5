//! Functions under the simulator, and under AWS's own emulator.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use winddown::{
    Outcome, Report,
    sim::{Config, ErrorKind, EventType, Invocation, Reason, Record, Sim},
    sqlite::rusqlite::Connection,
};
use winddown_testkit::{
    child::{self, ROLE},
    containers,
    soak::rounds,
};

use crate::cases::{Database, cases, once_of};

cases![
    a_function_is_drained_and_ends_by_itself,
    a_function_is_drained_inside_lambdas_budget,
    an_invocation_in_flight_at_sigterm_gets_its_response,
    a_handler_that_panics_leaves_the_pool_usable,
    a_frozen_function_is_thawed_and_drained,
    an_init_error_reaches_lambda,
    records_are_durable_before_the_response_by_default,
    records_are_durable_after_the_response_and_before_the_freeze,
    where_lambda_does_not_tell_of_invocations_the_function_flushes_before_it_asks_for_the_next,
    records_are_carried_over_to_the_drain,
    a_handler_that_fails_or_panics_is_flushed_after_too,
    a_database_that_is_away_keeps_an_invocation_waiting_for_no_longer_than_it_is_told,
    a_flush_leaves_an_invocation_half_of_its_time,
    a_flush_leaves_a_drain_most_of_its_budget,
    soak_what_is_in_flight_on_managed_instances_is_answered_and_drained,
    each_life_of_a_snapshot_opens_its_own_sessions,
    the_quickstart_keeps_its_promise,
    the_quickstart_fails_when_the_promise_does_not_hold,
    the_example_with_postgresql_keeps_its_promise,
    the_example_with_postgresql_says_how_its_database_cannot_be_reached,
    four_backends_in_one_function_say_goodbye_at_once,
    a_function_is_drained_under_awss_own_emulator,
    a_function_flushes_after_its_response_under_awss_own_emulator,
];

/// Leaves out the cases that need a file from outside.
const SKIP_EMULATOR: &str = "WINDDOWN_SKIP_RIE";

/// Why a case is to be left out, where somebody has asked for that.
pub(crate) fn left_out(case: &str) -> Option<String> {
    match case {
        "a_function_is_drained_under_awss_own_emulator"
        | "a_function_flushes_after_its_response_under_awss_own_emulator"
        | "the_simulator_and_awss_own_emulator_agree_but_for_what_is_listed" => {
            env::var_os(SKIP_EMULATOR).map(|_| format!("{SKIP_EMULATOR} is set"))
        }
        "the_example_with_postgresql_keeps_its_promise"
        | "four_backends_in_one_function_say_goodbye_at_once"
        | "with_the_least_memory_lambda_has_four_backends_say_goodbye_in_seconds" => {
            containers::skipped().map(Into::into)
        }
        _ => None,
    }
}

/// Time that no machine uses up, for an invocation and from SIGTERM to SIGKILL: what a function does by itself, it does on
/// any machine.
pub(crate) const AMPLE: Duration = Duration::from_secs(60);

/// What a function is told that it has. Half of Lambda's share of it would do on an idle machine.
const BUDGET: Duration = Duration::from_secs(30);

/// So late may a busy machine end a process that has to be gone at an instant.
pub(crate) const LATE: Duration = Duration::from_secs(5);

/// With [`AMPLE`] time for everything, and [`BUDGET`].
fn ample(config: Config) -> Config {
    let config = config.init_timeout(AMPLE).timeout(AMPLE).budget(AMPLE);
    let config = config.env("WINDDOWN_INIT_LIMIT_MS", AMPLE.as_millis().to_string());
    config.env("WINDDOWN_BUDGET_MS", BUDGET.as_millis().to_string())
}

fn within_lambdas_limits(program: &str) -> Config {
    Config::new(env::current_exe().unwrap()).env(ROLE, program).capture_output()
}

fn function() -> Config {
    function_of("lambda")
}

/// This program as a function, with time for everything.
pub(crate) fn function_of(program: &str) -> Config {
    ample(within_lambdas_limits(program))
}

/// Runs a scene on a runtime of its own.
pub(crate) fn play<T>(scene: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(scene)
}

fn report(record: &Record) -> Report {
    record
        .output
        .iter()
        .find_map(|output| child::report(&output.line))
        .unwrap_or_else(|| panic!("no report in\n{record}"))
}

/// The function ended by itself, drained.
pub(crate) fn ended_well(record: &Record) {
    assert!(record.ended_by_itself(), "{record}\n{:?}", record.output);
    assert_eq!(record.function.exit_code, Some(0), "{record}");
    assert!(record.shutdown.sigterm_sent && !record.shutdown.overran);
    let report = report(record);
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.platform, "lambda");
}

/// What holds of any function that had so much time from SIGTERM to SIGKILL, however late the machine ran it: it was told,
/// its process is gone, and a report that is out calls nothing clean that is not.
fn ended_in_time(record: &Record, budget_ms: u32) {
    assert!(record.shutdown.sigterm_sent, "{record}");
    assert_eq!(record.shutdown.budget_ms, u64::from(budget_ms));
    assert!(record.shutdown.took_ms < f64::from(budget_ms) + ms(LATE), "{record}");
    let report = record.output.iter().find_map(|output| child::report(&output.line));
    if record.function.exit_code == Some(0) {
        assert!(report.is_some_and(|report| report.is_clean()), "{record}\n{:?}", record.output);
    }
}

/// Within Lambda's own budget, the platform as it is found: whether the drain is over by then is the machine's business.
fn a_function_is_drained_inside_lambdas_budget() {
    let record = play(async {
        let sim = Sim::start(within_lambdas_limits("lambda").timeout(AMPLE)).await.unwrap();
        assert!(sim.invoke(json!({})).await.unwrap().ok);
        sim.shutdown(Reason::Spindown).await
    });
    ended_in_time(&record, 500);
    if let Some(report) = record.output.iter().find_map(|output| child::report(&output.line)) {
        assert_eq!((report.platform.as_str(), report.budget), ("lambda", Duration::from_millis(500)));
        let db = report.resource("db").unwrap().sessions;
        assert!(db.closed + db.cut <= 1, "{report}");
    }
}

fn a_function_is_drained_and_ends_by_itself() {
    let record = play(async {
        let sim = Sim::start(function()).await.unwrap();
        for number in 0..3 {
            assert!(sim.invoke(json!({ "number": number })).await.unwrap().ok);
        }
        sim.shutdown(Reason::Spindown).await
    });
    ended_well(&record);
    assert_eq!(record.extensions.len(), 1);
    assert_eq!((record.extensions[0].name.as_str(), record.extensions[0].events.len()), ("_winddown", 0));
    assert_eq!(report(&record).resource("db").unwrap().sessions.closed, 1);
}

fn an_invocation_in_flight_at_sigterm_gets_its_response() {
    let record = play(async {
        let sim = Sim::start(function()).await.unwrap();
        let invocation = sim.invoke(json!({ "when_draining": true, "run_ms": 200 }));
        let stop = async {
            sim.wait_for_line(|output| output.line == "begun").await.unwrap();
            sim.shutdown(Reason::Spindown).await
        };
        let (invocation, record) = tokio::join!(invocation, stop);
        assert!(invocation.unwrap().ok);
        record
    });
    ended_well(&record);
    assert!(record.invocations[0].ok);
    assert!(record.shutdown.took_ms >= 200.0, "it was waited for: {record}");
}

fn a_handler_that_panics_leaves_the_pool_usable() {
    let record = play(async {
        let sim = Sim::start(function()).await.unwrap();
        assert!(!sim.invoke(json!({ "panic": true })).await.unwrap().ok);
        for _ in 0..20 {
            assert!(sim.invoke(json!({})).await.unwrap().ok);
        }
        sim.shutdown(Reason::Spindown).await
    });
    ended_well(&record);
    assert_eq!(report(&record).resource("db").unwrap().sessions.closed, 1, "one session served all of them");
}

fn a_frozen_function_is_thawed_and_drained() {
    let record = play(async {
        let sim = Sim::start(function()).await.unwrap();
        sim.invoke(json!({})).await.unwrap();
        sim.freeze().await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        sim.shutdown(Reason::Spindown).await
    });
    ended_well(&record);
}

fn an_init_error_reaches_lambda() {
    let error = play(Sim::start(function().env("SQLITE_PATH", "/no/such/directory/app.db"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InitError, "{error}");
    assert!(error.to_string().contains("/no/such/directory/app.db"), "{error}");
}

/// A function that buffers its records, under the simulator.
struct Buffering {
    database: Database,
    sim: Sim,
}

impl Buffering {
    async fn start(configure: impl FnOnce(Config) -> Config) -> Self {
        let database = Database::new();
        let config = ample(within_lambdas_limits("flushing")).env("SQLITE_PATH", database.path());
        // A lock lasts for as long as a test wants.
        let config = config.env("FLUSH_WITHIN_MS", "30000");
        Self { sim: Sim::start(configure(config)).await.unwrap(), database }
    }

    async fn invoke(&self, number: u64) -> Invocation {
        self.sim.invoke(json!({ "number": number })).await.unwrap()
    }

    /// The rows while the function is frozen: nothing that it has not written yet can still appear.
    async fn rows_while_frozen(&self) -> u64 {
        self.sim.freeze().await.unwrap();
        self.database.rows()
    }

    /// Keeps everybody else from writing until it is dropped.
    fn lock(&self) -> Connection {
        let connection = Connection::open(self.database.path()).unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        connection
    }

    /// Ready when the response of this invocation was sent, whether or not the environment may be frozen then.
    async fn responded(&self, number: u64) {
        let event = format!("response {number} ok");
        // The timeline has no event of its own.
        while !self.sim.timeline().iter().any(|entry| entry.event == event) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The function is drained well, and has written so many rows.
    async fn end(self, rows: u64) -> Record {
        let record = self.sim.shutdown(Reason::Spindown).await;
        ended_well(&record);
        assert_eq!(self.database.rows(), rows, "{record}");
        let records = report(&record).resource("audit").unwrap().records.unwrap();
        assert_eq!((records.accepted, records.written), (rows, rows));
        record
    }
}

const LOCKED: Duration = Duration::from_millis(400);

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn records_are_durable_before_the_response_by_default() {
    play(async {
        for policy in [None, Some("before the response")] {
            let function = Buffering::start(|config| policy.into_iter().fold(config, |c, p| c.env("FLUSH", p))).await;
            for number in 1..=3 {
                assert!(function.invoke(number).await.ok);
                assert_eq!(function.rows_while_frozen().await, number);
            }
            let lock = function.lock();
            let unlock = async {
                tokio::time::sleep(LOCKED).await;
                drop(lock);
            };
            let (invocation, ()) = tokio::join!(biased; function.invoke(4), unlock);
            assert!(invocation.ok && invocation.ms >= ms(LOCKED), "the response waits: {} ms", invocation.ms);
            assert_eq!(function.rows_while_frozen().await, 4);
            let record = function.end(4).await;
            let extension = &record.extensions[0];
            assert_eq!((extension.events.len(), extension.delivered), (0, 0), "nothing is asked of the Extensions API");
        }
    });
}

/// What is true after each response, whoever holds the freeze back.
async fn flushes_after_the_response(function: Buffering) -> Record {
    for number in 1..=3 {
        assert!(function.invoke(number).await.ok);
        assert_eq!(function.rows_while_frozen().await, number);
    }
    let lock = function.lock();
    let unlocked = AtomicBool::new(false);
    let invocation = async {
        let invocation = function.invoke(4).await;
        assert!(unlocked.load(Ordering::SeqCst), "the freeze waits");
        invocation
    };
    let unlock = async {
        function.responded(4).await;
        tokio::time::sleep(LOCKED).await;
        unlocked.store(true, Ordering::SeqCst);
        drop(lock);
    };
    let (invocation, ()) = tokio::join!(invocation, unlock);
    assert!(invocation.ok, "the response does not: {:?}", invocation.error);
    assert_eq!(function.rows_while_frozen().await, 4);
    function.end(4).await
}

fn records_are_durable_after_the_response_and_before_the_freeze() {
    let record = play(async {
        flushes_after_the_response(Buffering::start(|config| config.env("FLUSH", "after the response")).await).await
    });
    let extension = &record.extensions[0];
    assert_eq!((extension.events.as_slice(), extension.delivered), ([EventType::Invoke].as_slice(), 4));
}

fn where_lambda_does_not_tell_of_invocations_the_function_flushes_before_it_asks_for_the_next() {
    let record = play(async {
        let refusing = |config: Config| config.env("FLUSH", "after the response").refuse_invoke_to_internal();
        flushes_after_the_response(Buffering::start(refusing).await).await
    });
    assert_eq!((record.extensions.len(), record.extensions[0].events.len()), (1, 0), "still one for the signal");
}

fn records_are_carried_over_to_the_drain() {
    play(async {
        let function = Buffering::start(|config| config.env("FLUSH", "on drain")).await;
        for number in 1..=3 {
            assert!(function.invoke(number).await.ok);
            assert_eq!(function.rows_while_frozen().await, 0);
        }
        function.end(3).await;
    });
}

fn a_handler_that_fails_or_panics_is_flushed_after_too() {
    play(async {
        for policy in ["before the response", "after the response"] {
            let function = Buffering::start(|config| config.env("FLUSH", policy)).await;
            for (number, event) in
                [(1, json!({ "number": 1, "fail": true })), (2, json!({ "number": 2, "panic": true }))]
            {
                let invocation = function.sim.invoke(event).await.unwrap();
                let message = invocation.error.unwrap().message;
                assert!(message.contains(if number == 1 { "no luck" } else { "the handler has a bug" }), "{message}");
                assert_eq!(function.rows_while_frozen().await, number, "{policy}");
            }
            function.end(2).await;
        }
    });
}

fn a_database_that_is_away_keeps_an_invocation_waiting_for_no_longer_than_it_is_told() {
    play(async {
        for policy in ["before the response", "after the response"] {
            let function = Buffering::start(|config| config.env("FLUSH", policy).env("FLUSH_WITHIN_MS", "3000")).await;
            let lock = function.lock();
            let began = Instant::now();
            let invocation = function.invoke(1).await;
            let over = began.elapsed();
            let waited = if policy == "before the response" { invocation.ms } else { ms(over) };
            assert!(invocation.ok && (3_000.0..3_000.0 + ms(LATE)).contains(&waited), "{policy}: {waited} ms");
            let warned = function.sim.wait_for_line(|line| line.line.contains("could not be flushed")).await.unwrap();
            assert!(warned.line.contains("not over after 3s"), "{}", warned.line);
            assert_eq!(function.rows_while_frozen().await, 0);
            drop(lock);
            // What stayed in the buffer goes with what comes after it, as soon as the machine does that within the time there is.
            let mut pushed = 1;
            let mut rows = 0;
            while rows < pushed {
                pushed += 1;
                assert!(pushed < 20 && function.invoke(pushed).await.ok, "{policy}: {rows} of {pushed}");
                rows = function.rows_while_frozen().await;
            }
            function.end(pushed).await;
        }
    });
}

fn a_flush_leaves_an_invocation_half_of_its_time() {
    play(async {
        let timeout = Duration::from_secs(10);
        let function = Buffering::start(|config| config.timeout(timeout)).await;
        let lock = function.lock();
        let invocation = function.invoke(1).await;
        // Half of what was left when the handler had ended, and what had passed until then; told in whole milliseconds.
        assert!(invocation.ok && invocation.ms >= 4_998.0, "{} ms: {:?}", invocation.ms, invocation.error);
        drop(lock);
        function.end(1).await;
    });
}

fn a_flush_leaves_a_drain_most_of_its_budget() {
    play(async {
        let function = Buffering::start(|config| config.env("WINDDOWN_BUDGET_MS", "20000")).await;
        let lock = function.lock();
        let stop = async {
            // It waits for its flush then, and would for 30 s.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let unlock = async {
                function.responded(1).await;
                drop(lock);
            };
            let (record, ()) = tokio::join!(function.sim.shutdown(Reason::Spindown), unlock);
            record
        };
        let (invocation, record) = tokio::join!(function.invoke(1), stop);
        assert!(invocation.ok, "the response is sent: {:?}", invocation.error);
        assert!(invocation.ms >= 4_900.0, "after a quarter of the budget: {} ms", invocation.ms);
        ended_well(&record);
        assert_eq!(function.database.rows(), 1);
    });
}

const AT_ONCE: usize = 8;

/// Ends a function with eight invocations in flight, each of which needs 100 ms more when draining has begun. How it ended,
/// and how many were answered.
fn end_with_eight_in_flight(config: Config) -> (Record, usize) {
    play(async {
        let sim = Arc::new(Sim::start(config.managed_instances(AT_ONCE)).await.unwrap());
        let invocations: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let sim = Arc::clone(&sim);
                tokio::spawn(async move { sim.invoke(json!({ "when_draining": true, "run_ms": 100 })).await })
            })
            .collect();
        // Each line is looked at once, until the one that is wanted.
        let begun = AtomicUsize::new(0);
        let all =
            sim.wait_for_line(|output| output.line == "begun" && begun.fetch_add(1, Ordering::Relaxed) + 1 == AT_ONCE);
        all.await.unwrap();
        let record = sim.shutdown(Reason::Spindown).await;
        let mut answered = 0;
        for invocation in invocations {
            answered += usize::from(invocation.await.unwrap().unwrap().ok);
        }
        (record, answered)
    })
}

/// All are answered and drained where there is time; within Lambda's own limits it is counted how often they are.
fn soak_what_is_in_flight_on_managed_instances_is_answered_and_drained() {
    let rounds = rounds(100, 10);
    let mut in_time = 0;
    for round in 0..rounds {
        let (record, answered) = end_with_eight_in_flight(ample(within_lambdas_limits("concurrent")));
        assert!(record.ended_by_itself(), "round {round}: {record}\n{:?}", record.output);
        assert_eq!(answered, AT_ONCE, "round {round}: {record}");
        let ample = report(&record);
        assert!(ample.is_clean(), "round {round}: {ample}");
        assert_eq!(ample.resource("db").unwrap().sessions.closed, AT_ONCE as u64, "round {round}: {ample}");

        let (record, answered) = end_with_eight_in_flight(within_lambdas_limits("concurrent").timeout(AMPLE));
        ended_in_time(&record, 600);
        in_time += usize::from(record.ended_by_itself() && answered == AT_ONCE);
    }
    println!(
        "{rounds} of {rounds} times {AT_ONCE} in flight were answered, and their sessions closed; within 600 ms {in_time} times"
    );
}

/// Two environments, each restored from its own snapshot: see `Sim::snapshot` for why these are two.
fn each_life_of_a_snapshot_opens_its_own_sessions() {
    for _ in 0..2 {
        let record = play(async {
            let sim = Sim::start(function().snap_start()).await.unwrap();
            sim.snapshot().await.unwrap();
            sim.restore().await.unwrap();
            for number in 0..3 {
                assert!(sim.invoke(json!({ "number": number })).await.unwrap().ok);
            }
            sim.shutdown(Reason::Spindown).await
        });
        assert!(record.ended_by_itself(), "{record}\n{:?}", record.output);
        let reports: Vec<_> = record.output.iter().filter_map(|output| child::report(&output.line)).collect();
        let [snapshot, end] = reports.as_slice() else { panic!("{} reports in {:?}", reports.len(), record.output) };
        for report in [snapshot, end] {
            assert!(report.is_clean(), "{report}");
            let db = report.resource("db").unwrap();
            assert_eq!((db.outcome, db.sessions.closed), (Outcome::Drained, 1), "each life has a session: {report}");
        }
    }
}

/// [`BUDGET`] for the examples.
const BUDGET_MS: &str = "30000";

fn quickstart(invocations: u32) -> (std::process::Output, Value) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("seen.json");
    let mut command = child::example("quickstart");
    command.args(["--invocations", &invocations.to_string(), "--freeze-ms", "300", "--budget-ms", BUDGET_MS, "--json"]);
    command.arg(&file);
    let output = command.output().unwrap();
    let seen = fs::read(file).ok().and_then(|seen| serde_json::from_slice(&seen).ok()).unwrap_or_default();
    (output, seen)
}

fn the_quickstart_keeps_its_promise() {
    let (output, seen) = quickstart(200);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}");
    assert!(stdout.contains("The promise holds"), "{stdout}");
    assert_eq!(seen["with"]["accepted"], 600);
    assert_eq!(seen["with"]["rows"], 600);
    assert_eq!(seen["with"]["record"]["function"]["exit_code"], 0);
    assert_eq!(seen["without"]["record"]["function"]["signal"], 9);
    // How much of it was lost depends on how far its flusher had come when it was killed.
    assert!(seen["without"]["rows"].as_u64().unwrap() <= 600, "{stdout}");
}

fn the_quickstart_fails_when_the_promise_does_not_hold() {
    // Nothing is accepted, so nothing can be shown.
    let (output, _) = quickstart(0);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && stdout.contains("does NOT hold"), "{stdout}");
}

fn the_example_with_postgresql_keeps_its_promise() {
    let mut command = child::example("postgres_lambda");
    let output = command
        .args(["--invocations", "60", "--freeze-ms", "1200", "--budget-ms", BUDGET_MS])
        .env_remove("DATABASE_URL")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stdout.contains("180 records accepted, 180 rows in the database"), "{stdout}");
    assert!(stdout.contains("0 when its process has ended") && stdout.contains("The promise holds"), "{stdout}");
}

fn the_example_with_postgresql_says_how_its_database_cannot_be_reached() {
    let mut command = child::example("postgres_lambda");
    let output = command.env("DATABASE_URL", "postgres://app:s3cret@127.0.0.1:1/orders").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("cannot connect"), "{stderr}");
    assert!(!stderr.contains("s3cret"), "{stderr}");
}

fn four_backends_in_one_function_say_goodbye_at_once() {
    four_at_once(&[]);
}

/// Runs the example with these arguments besides, which fails unless it keeps its promise. Returns what it printed.
pub(crate) fn four_at_once(arguments: &[&str]) -> String {
    let mut example = child::example("four_at_once");
    let output = example.args(["--invocations", "50", "--budget-ms", BUDGET_MS]).args(arguments).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stdout.contains("The promise holds"), "{stdout}");
    // One SIGTERM, one report with all four.
    assert_eq!(stdout.matches("SIGTERM\n").count(), 1, "{stdout}");
    assert_eq!(stdout.matches("winddown: drained in").count(), 1, "{stdout}");
    let orders = stdout.lines().filter(|line| line.ends_with("when the process has ended: 0; orders: 50"));
    assert_eq!(orders.count(), 4, "{stdout}");
    stdout.into_owned()
}

/// The emulator's program: from `cargo xtask test`, or fetched now.
pub(crate) fn emulator() -> PathBuf {
    if let Some(path) = env::var_os("WINDDOWN_RIE") {
        return path.into();
    }
    let output = Command::new(env!("CARGO")).args(["xtask", "rie"]).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "`cargo xtask rie` failed; set {SKIP_EMULATOR} to leave these tests out");
    String::from_utf8(output.stdout).unwrap().trim().into()
}

fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// One invocation through the emulator's front door; none while it does not listen yet.
fn invoke(address: SocketAddr, event: &Value) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let event = event.to_string();
    write!(
        stream,
        "POST /2015-03-31/functions/function/invocations HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{event}",
        event.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    Some(answer)
}

fn lines(stream: impl Read + Send + 'static) -> thread::JoinHandle<Vec<String>> {
    thread::spawn(move || BufReader::new(stream).lines().map_while(Result::ok).collect())
}

/// Does not outlive its case, however that ends.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended, and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A function under AWS's own emulator.
pub(crate) struct Emulated {
    emulator: Emulator,
    front: SocketAddr,
    /// The function's output is mixed into the emulator's own, on whichever of the two.
    streams: [thread::JoinHandle<Vec<String>>; 2],
}

impl Emulated {
    fn start(program: &str, variables: &[(&str, &OsStr)]) -> Self {
        Self::start_by(Command::new(emulator()), program, variables)
    }

    /// By a command that becomes the emulator.
    pub(crate) fn start_by(mut emulator: Command, program: &str, variables: &[(&str, &OsStr)]) -> Self {
        let (front, api) = (free_port(), free_port());
        let mut emulator = emulator
            .args(["--runtime-interface-emulator-address", &front.to_string()])
            .args(["--runtime-api-address", &api.to_string()])
            .arg(env::current_exe().unwrap())
            .env(ROLE, program)
            .env("AWS_LAMBDA_FUNCTION_NAME", "function")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let streams = [lines(emulator.stdout.take().unwrap()), lines(emulator.stderr.take().unwrap())];
        Self { emulator: Emulator(emulator), front, streams }
    }

    pub(crate) fn invoke(&self, event: &Value) -> String {
        let patience = Instant::now() + AMPLE;
        loop {
            match invoke(self.front, event) {
                Some(answer) => return answer,
                None => assert!(Instant::now() < patience, "the emulator does not listen"),
            }
            thread::yield_now();
        }
    }

    /// Ends the emulator, and returns what was printed.
    fn kill(self) -> Vec<String> {
        drop(self.emulator);
        self.streams.map(|stream| stream.join().unwrap()).concat()
    }

    /// Tells the emulator to stop, and returns the function's report, if it came out in the emulator's time.
    fn stop(self) -> Result<Report, String> {
        let lines = self.terminate();
        lines.iter().find_map(|line| child::report(line)).ok_or_else(|| format!("no report in {lines:#?}"))
    }

    /// Tells the emulator to stop, and returns what was printed.
    pub(crate) fn terminate(mut self) -> Vec<String> {
        let began = Instant::now();
        kill_process(Pid::from_child(&self.emulator.0), Signal::TERM).unwrap();
        self.emulator.0.wait().unwrap();
        let took = began.elapsed();
        let lines = self.streams.map(|stream| stream.join().unwrap()).concat();
        assert!(took < AMPLE, "{took:?}");
        lines
    }
}

/// The emulator's own time, which nobody can set.
fn a_function_is_drained_under_awss_own_emulator() {
    once_of(10, || {
        let function = Emulated::start("lambda", &[]);
        let answer = function.invoke(&json!({ "number": 7 }));
        assert!(answer.contains(r#"{"number":7}"#), "{answer}");
        let report = function.stop()?;
        let db = report.resource("db").unwrap();
        assert!(db.sessions.closed + db.sessions.cut <= 1, "{report}");
        if report.is_clean() { Ok(()) } else { Err(report.to_string()) }
    });
}

fn a_function_flushes_after_its_response_under_awss_own_emulator() {
    once_of(10, || {
        let database = Database::new();
        let path = database.path();
        let variables = [
            ("FLUSH", OsStr::new("after the response")),
            ("FLUSH_WITHIN_MS", OsStr::new("30000")),
            ("AWS_LAMBDA_FUNCTION_TIMEOUT", OsStr::new("60")),
            ("SQLITE_PATH", path.as_os_str()),
        ];
        let function = Emulated::start("flushing", &variables);
        for number in 1..=3 {
            let answer = function.invoke(&json!({ "number": number }));
            let expected = format!(r#"{{"number":{number}}}"#);
            if !answer.contains(&expected) {
                panic!("{answer} and not {expected}; {:#?}", function.kill());
            }
            // The next invocation begins when the flush of the one before is over.
            assert!(database.rows() + 1 >= number);
        }
        let report = function.stop()?;
        let records = report.resource("audit").unwrap().records.unwrap();
        assert_eq!(records.accepted, records.written + records.lost + records.in_doubt, "{report}");
        assert!(database.rows() >= records.written, "{report}");
        if !report.is_clean() {
            return Err(report.to_string());
        }
        assert_eq!(database.rows(), 3);
        Ok(())
    });
}
