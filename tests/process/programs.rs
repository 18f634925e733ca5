//! The programs that the cases end. Each is a small `main` of the kind that users write.

use std::{
    env,
    future::pending,
    hint,
    io::Write,
    net::TcpStream,
    process::ExitCode,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use opentelemetry::trace::{Span, Tracer, TracerProvider};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use winddown::{
    Capabilities, Error, Lifecycle, Resource,
    adapter::Drain,
    buffer::{BatchWriter, Push},
    lambda::{Flush, Function, LambdaEvent, lambda_runtime, service_fn},
    memory::Memory,
    sqlite::{Insert, Sqlite},
    telemetry::{OpenTelemetry, non_blocking, opentelemetry_sdk},
};

use winddown_testkit::{Director, child::ready};

use crate::{ending, platform, scripted, spills, stops, web};

/// Longer than any budget here.
const FOR_EVER: Duration = Duration::from_secs(3600);

pub(crate) fn run(program: &str) -> ExitCode {
    if let Some(ended) = ending::run(program) {
        return ended;
    }
    let runtime = match program {
        "starved_single" | "blocks_single" | "two_handlers_single" => {
            Builder::new_current_thread().enable_all().build()
        }
        _ => Builder::new_multi_thread().worker_threads(2).enable_all().build(),
    };
    let result = runtime.unwrap().block_on(async {
        match program {
            "idle" => idle().await,
            "buffered" => buffered().await,
            "held" => held().await,
            "straggler" => straggler().await,
            "hangs" => faulty(Fault::Hangs).await,
            "panics" => faulty(Fault::Panics).await,
            "blocks" | "blocks_single" => faulty(Fault::Blocks).await,
            "starved" => starved(2).await,
            "starved_single" => starved(0).await,
            "slow_init" => slow_init().await,
            "failing_init" => failing_init().await,
            "ignores" => ignores().await,
            "writer" => writer().await,
            "hoarder" => hoarder().await,
            "listens" => listens().await,
            "drains_itself" => drains_itself().await,
            "panicking_work" => panicking_work().await,
            "chatty" => chatty().await,
            "unreadable" => unreadable().await,
            "lambda" => lambda().await,
            "concurrent" => concurrent().await,
            "flushing" => flushing().await,
            "plain" => plain().await,
            "scripted" => scripted::function().await,
            "scripted_extension" => scripted::extension(),
            "telemetry_hangs" => telemetry_hangs().await,
            other => match platform::run(other).await {
                Some(ended) => ended,
                None => match spills::run(other).await {
                    Some(ended) => ended,
                    None => match web::run(other).await {
                        Some(ended) => ended,
                        None => stops::program(other).await,
                    },
                },
            },
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The work of a program that waits for its end.
pub(crate) async fn until_stopped(lifecycle: &Lifecycle) -> Result<(), Error> {
    let stop = lifecycle.draining();
    let work = async {
        ready();
        stop.await;
        Ok::<_, Error>(())
    };
    lifecycle.run(work).await.map(drop)
}

async fn idle() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    let _spare = lifecycle.guard(Memory::new("spare"));
    drop((db.get().await?, db.get().await?));
    until_stopped(&lifecycle).await
}

async fn buffered() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Sqlite::from_env()?);
    let insert = Insert::into("audit", ["number"]);
    let audit = lifecycle.guard(BatchWriter::new(&db, insert).name("audit").max_age(FOR_EVER));
    for number in 0..100_i64 {
        audit.push((number,)).await?;
    }
    until_stopped(&lifecycle).await
}

async fn held() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    let checkout = db.get().await?;
    let draining = lifecycle.draining();
    tokio::spawn(async move {
        draining.await;
        sleep(Duration::from_millis(300)).await;
        drop(checkout);
    });
    until_stopped(&lifecycle).await
}

async fn straggler() -> Result<(), Error> {
    const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let lifecycle = Lifecycle::detect()?;
    // Settles for the first half of its time, and has the other one for the statement.
    let director = Director::new();
    director.reserve(FOR_EVER);
    let db = lifecycle.guard_as("sqlite", director.direct(Sqlite::from_env()?));
    let checkout = db.get().await?;
    tokio::spawn(async move {
        let query = checkout.interact(|connection| connection.query_row(ENDLESS, [], |row| row.get::<_, i64>(0))).await;
        // Also in the output, to see that it ended before the process did.
        println!("query ended: {:?}", query.map(|result| result.is_err()));
        drop(checkout);
    });
    until_stopped(&lifecycle).await
}

enum Fault {
    Hangs,
    Panics,
    Blocks,
}

struct Faulty(Fault);

impl Resource for Faulty {
    type Pool = ();

    fn name(&self) -> &str {
        "faulty"
    }
    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
        match self.0 {
            Fault::Hangs => pending().await,
            Fault::Panics => panic!("the driver has a bug"),
            Fault::Blocks => {
                thread::sleep(FOR_EVER);
                Ok(())
            }
        }
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::NO_SESSIONS
    }
}

async fn faulty(fault: Fault) -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let _faulty = lifecycle.guard(Faulty(fault));
    let db = lifecycle.guard(Memory::new("db"));
    drop(db.get().await?);
    until_stopped(&lifecycle).await
}

/// Every thread that could run the application in a busy loop: `workers` of the runtime, and this one.
async fn starved(workers: usize) -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Sqlite::from_env()?);
    let _never = lifecycle.guard(Faulty(Fault::Hangs));
    drop(db.get().await?);
    lifecycle.init().await?;
    let all_busy = Arc::new(Barrier::new(workers + 1));
    for _ in 0..workers {
        let all_busy = Arc::clone(&all_busy);
        tokio::spawn(async move {
            all_busy.wait();
            spin();
        });
    }
    all_busy.wait();
    ready();
    spin();
    Ok(())
}

fn spin() {
    let end = Instant::now() + FOR_EVER;
    while Instant::now() < end {
        hint::spin_loop();
    }
}

pub(crate) struct SlowInit;

impl Resource for SlowInit {
    type Pool = ();

    fn name(&self) -> &str {
        "slow"
    }
    async fn init(&self) -> Result<(), Error> {
        ready();
        pending().await
    }
    async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
        Ok(())
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::NO_SESSIONS
    }
}

async fn slow_init() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    drop(db.get().await?);
    let _slow = lifecycle.guard(SlowInit);
    lifecycle.run(pending::<Result<(), Error>>()).await.map(drop)
}

async fn failing_init() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let _db = lifecycle.guard(Memory::new("db"));
    let _bad = lifecycle.guard(Sqlite::open("/no/such/directory/app.db"));
    lifecycle.run(pending::<Result<(), Error>>()).await.map(drop)
}

/// A `main` that never asks what became of the lifecycle.
async fn ignores() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    drop(db.get().await?);
    ready();
    pending().await
}

/// Asks for the drain, and gets the signal while that waits for a checkout.
async fn drains_itself() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    let checkout = db.get().await?;
    tokio::spawn(async move {
        sleep(Duration::from_secs(1)).await;
        drop(checkout);
    });
    let drain = lifecycle.drain();
    let said = async {
        lifecycle.draining().await;
        ready();
    };
    let (report, ()) = tokio::join!(drain, said);
    if report.is_clean() { Ok(()) } else { lifecycle.finish(Ok(())).await.map(drop) }
}

/// Waits for the signal in its own way, and drains then.
async fn listens() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    drop(db.get().await?);
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    ready();
    terminate.recv().await;
    lifecycle.drain().await;
    lifecycle.finish(Ok(())).await.map(drop)
}

async fn panicking_work() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let _db = lifecycle.guard(Memory::new("db"));
    let work = async {
        if lifecycle.state() == winddown::State::Running {
            panic!("the application has a bug");
        }
        Ok::<_, Error>(())
    };
    lifecycle.run(work).await.map(drop)
}

/// Accepts records as quickly as it can until it is stopped, and says how many on its standard output.
async fn writer() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Sqlite::from_env()?);
    let insert = Insert::into("audit", ["number"]);
    let audit =
        lifecycle.guard(BatchWriter::new(&db, insert).name("audit").batch_size(64).max_age(Duration::from_millis(5)));
    let work = async {
        let mut accepted = 0_i64;
        ready();
        while audit.push((accepted,)).await.is_ok() {
            accepted += 1;
            // As a handler would between two records.
            tokio::task::yield_now().await;
        }
        println!("accepted {accepted}");
        Ok::<_, Error>(())
    };
    // Tracked work is drained before the buffer, and would not be refused; this is what happens between requests.
    let stopped = async {
        lifecycle.draining().await;
        Ok::<_, Error>(())
    };
    let (report, _) = tokio::join!(lifecycle.run(stopped), work);
    report.map(drop)
}

/// Has more buffered when it is stopped than fits into its budget.
async fn hoarder() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Sqlite::from_env()?);
    let insert = Insert::into("audit", ["number"]);
    let audit = BatchWriter::new(&db, insert).name("audit").capacity(50_000).batch_size(1_000).max_age(FOR_EVER);
    let audit = lifecycle.guard(audit);
    // More quickly than the flusher writes.
    for number in 0..50_000_i64 {
        audit.push((number,)).await?;
    }
    until_stopped(&lifecycle).await
}

/// Fills standard error before it waits.
async fn chatty() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    drop(db.get().await?);
    thread::spawn(|| {
        // Blocks when the pipe is full, holding the lock of standard error.
        let mut stderr = std::io::stderr().lock();
        while stderr.write_all(&[b'.'; 4096]).is_ok() {}
    });
    until_stopped(&lifecycle).await
}

async fn unreadable() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let _db = lifecycle.guard(Sqlite::open(env::var("SQLITE_PATH").unwrap()));
    lifecycle.init().await
}

async fn lambda() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    let _file = env::var_os("SQLITE_PATH").map(|path| lifecycle.guard(Sqlite::open(path)));
    let lives = lifecycle.clone();
    let handler = service_fn(async |event: LambdaEvent<serde_json::Value>| {
        let session = db.get().await?;
        assert!(event.payload["panic"].is_null(), "the handler has a bug");
        until_draining(&event.payload, &lives).await;
        if let Some(ms) = event.payload["run_ms"].as_u64() {
            session.run(Duration::from_millis(ms)).await?;
        }
        Ok::<_, lambda_runtime::Error>(event.payload)
    });
    winddown::lambda::run(lifecycle, handler).await
}

/// With `when_draining` an invocation says that it has begun, and goes on when draining has begun.
async fn until_draining(event: &serde_json::Value, lifecycle: &Lifecycle) {
    if event["when_draining"] == serde_json::Value::Bool(true) {
        println!("begun");
        lifecycle.draining().await;
    }
}

/// A function that takes several invocations at once, each with a session of its own.
async fn concurrent() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db").size(8));
    let lives = lifecycle.clone();
    let handler = service_fn(move |event: LambdaEvent<serde_json::Value>| {
        let (db, lifecycle) = (db.clone(), lives.clone());
        async move {
            let session = db.get().await?;
            until_draining(&event.payload, &lifecycle).await;
            session.run(Duration::from_millis(event.payload["run_ms"].as_u64().unwrap_or_default())).await?;
            Ok::<_, lambda_runtime::Error>(event.payload)
        }
    });
    winddown::lambda::run_concurrent(lifecycle, handler).await
}

/// A function that buffers a record for each invocation. `FLUSH` says when it is flushed, else that is the default.
async fn flushing() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Sqlite::from_env()?);
    let insert = Insert::into("audit", ["number"]);
    let audit = lifecycle.guard(BatchWriter::new(&db, insert).name("audit").max_age(FOR_EVER));
    let handler = service_fn(async |event: LambdaEvent<serde_json::Value>| {
        let number = event.payload["number"].as_i64().ok_or("no number")?;
        audit.push((number,)).await?;
        assert!(event.payload["panic"].is_null(), "the handler has a bug");
        if event.payload["fail"].is_null() { Ok(event.payload) } else { Err(lambda_runtime::Error::from("no luck")) }
    });
    let mut function = Function::new(lifecycle);
    if let Ok(flush) = env::var("FLUSH") {
        function = function.flush(match flush.as_str() {
            "before the response" => Flush::BeforeResponse,
            "after the response" => Flush::AfterResponse,
            "on drain" => Flush::OnDrain,
            other => panic!("no policy {other}"),
        });
    }
    if let Ok(ms) = env::var("FLUSH_WITHIN_MS") {
        function = function.flush_within(Duration::from_millis(ms.parse().unwrap()));
    }
    function.run(handler).await
}

/// A function without winddown, with the hook of `lambda_runtime`. It says through one connection what it does.
async fn plain() -> Result<(), Error> {
    let connection = Arc::new(TcpStream::connect(env::var("SERVER").unwrap()).unwrap());
    let say = move |line: &str| (&*connection).write_all(line.as_bytes()).unwrap();
    say("hello\n");
    let (tick, bye, query) = (say.clone(), say.clone(), say);
    thread::spawn(move || {
        loop {
            tick("tick\n");
            thread::sleep(Duration::from_millis(20));
        }
    });
    let hook = async move || {
        if let Ok(ms) = env::var("HOOK_MS") {
            sleep(Duration::from_millis(ms.parse().unwrap())).await;
        }
        bye("bye\n");
    };
    lambda_runtime::spawn_graceful_shutdown_handler(hook).await;
    let handler = service_fn(async |event: LambdaEvent<serde_json::Value>| {
        query("query\n");
        Ok::<_, lambda_runtime::Error>(event.payload)
    });
    lambda_runtime::run(handler).await.unwrap();
    Ok(())
}

/// An exporter and a log that never come to an end.
#[derive(Debug)]
struct Stuck;

impl SpanExporter for Stuck {
    async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
        thread::sleep(FOR_EVER);
        Ok(())
    }
}

impl Write for Stuck {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        thread::sleep(FOR_EVER);
        Ok(line.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn telemetry_hangs() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let provider = SdkTracerProvider::builder().with_batch_exporter(Stuck).build();
    let _traces = lifecycle.guard(OpenTelemetry::traces(&provider));
    let (mut log, appender) = non_blocking(Stuck);
    let _log = lifecycle.guard(appender);
    let db = lifecycle.guard(Memory::new("db"));
    drop(db.get().await?);
    provider.tracer("test").start("lost").end();
    log.write_all(b"lost\n").unwrap();
    until_stopped(&lifecycle).await
}
