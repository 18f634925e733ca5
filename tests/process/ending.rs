//! How a process ends when its drain is over, and what a request that never ends costs.

use std::{
    convert::Infallible,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    process::ExitCode,
    thread,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{StreamExt, stream};
use tokio::{net::TcpListener, runtime::Builder, task::spawn_blocking, time::sleep};
use winddown::{EXIT_AT_DEADLINE, Error, Lifecycle, Outcome, adapter::with_dependent_access, memory::Memory};
use winddown_testkit::child::{Child, ready};

use crate::{cases::cases, lambda::LATE, programs::until_stopped};

cases![
    a_blocking_task_that_never_ends_keeps_the_process_from_nothing,
    a_read_of_standard_input_keeps_the_process_from_nothing,
    a_failure_of_the_work_is_seen_where_a_blocking_task_keeps_the_process,
    what_a_main_does_after_run_has_its_time_and_its_own_exit_status,
    what_a_main_does_without_its_runtime_has_the_time_that_is_set,
    requests_that_never_end_keep_idle_sessions_from_nothing_and_are_named,
];

/// No machine uses that up.
const AMPLE: Duration = Duration::from_secs(120);
const AT_ONCE: Duration = Duration::from_secs(60);

/// For what does use it up.
const SHORT: Duration = Duration::from_secs(8);

const FOR_EVER: Duration = Duration::from_secs(3600);

/// The programs of these cases.
pub(crate) fn run(program: &str) -> Option<ExitCode> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ended = |result: Result<(), Error>| if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    Some(match program {
        "blocking_task" => ended(runtime.block_on(blocking_task())),
        "reads_standard_input" => ended(runtime.block_on(reads_standard_input())),
        "fails_with_a_blocking_task" => ended(runtime.block_on(fails_with_a_blocking_task())),
        "works_on" => runtime.block_on(async {
            until_stopped(&Lifecycle::detect().unwrap()).await.unwrap();
            sleep(Duration::from_secs(2)).await;
            println!("worked on");
            ExitCode::from(7)
        }),
        "works_on_without_a_runtime" => {
            let lifecycle = Lifecycle::builder().exit_after(FOR_EVER).build().unwrap();
            runtime.block_on(until_stopped(&lifecycle)).unwrap();
            drop(runtime);
            thread::sleep(Duration::from_secs(2));
            println!("worked on");
            ExitCode::from(7)
        }
        "events" => ended(runtime.block_on(events())),
        _ => return None,
    })
}

async fn blocking_task() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    drop(db.get().await?);
    spawn_blocking(|| thread::sleep(FOR_EVER));
    until_stopped(&lifecycle).await
}

async fn reads_standard_input() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    // As tokio's own `stdin` does it.
    spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)
    });
    until_stopped(&lifecycle).await
}

async fn fails_with_a_blocking_task() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    spawn_blocking(|| thread::sleep(FOR_EVER));
    let draining = lifecycle.draining();
    let work = async {
        ready();
        draining.await;
        Err("the application has a bug")
    };
    lifecycle.run(work).await.map(drop)
}

/// A web server with a pool that is idle, and a stream of events that nothing ends.
async fn events() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    drop((db.get().await?, db.get().await?));
    let events = || async {
        let first = stream::iter([Ok::<_, Infallible>("data: first\n\n")]);
        Body::from_stream(first.chain(stream::pending()))
    };
    let app =
        Router::new().route("/events", get(events)).layer(middleware::from_fn_with_state(lifecycle.clone(), track));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    lifecycle.run(axum::serve(listener, app).with_graceful_shutdown(lifecycle.draining())).await.map(drop)
}

pub(crate) async fn track(State(lifecycle): State<Lifecycle>, request: Request, next: Next) -> Response {
    let name = format!("{} {}", request.method(), request.uri().path());
    let Ok(tracked) = lifecycle.track_as(name) else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let response = with_dependent_access(next.run(request)).await;
    response.map(|body| Body::new(tracked.body(body)))
}

fn a_blocking_task_that_never_ends_keeps_the_process_from_nothing() {
    let ended = Child::start("blocking_task", AMPLE).ready().terminate().end();
    assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.stderr);
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
    assert!(ended.report().is_clean(), "{}", ended.stderr);
    assert!(ended.stderr.contains("spawn_blocking"), "it says so: {}", ended.stderr);
}

fn a_read_of_standard_input_keeps_the_process_from_nothing() {
    let ended = Child::start_with_input("reads_standard_input", AMPLE).ready().terminate().end();
    assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.stderr);
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
    assert!(ended.report().is_clean(), "{}", ended.stderr);
}

fn a_failure_of_the_work_is_seen_where_a_blocking_task_keeps_the_process() {
    let ended = Child::start("fails_with_a_blocking_task", AMPLE).ready().terminate().end();
    assert_eq!((ended.code, ended.signal), (Some(1), None), "{}", ended.stderr);
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
}

fn what_a_main_does_after_run_has_its_time_and_its_own_exit_status() {
    let ended = Child::start("works_on", AMPLE).ready().terminate().end();
    assert_eq!((ended.code, ended.signal), (Some(7), None), "{}", ended.stderr);
    assert_eq!(ended.stdout, "worked on\n");
}

fn what_a_main_does_without_its_runtime_has_the_time_that_is_set() {
    let ended = Child::start("works_on_without_a_runtime", AMPLE).ready().terminate().end();
    assert_eq!((ended.code, ended.signal), (Some(7), None), "{}", ended.stderr);
    assert_eq!(ended.stdout, "worked on\n");
}

fn requests_that_never_end_keep_idle_sessions_from_nothing_and_are_named() {
    let mut server = Child::start("events", SHORT);
    let address = server.line();
    let address = address.trim();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /events HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();
    let mut events = BufReader::new(stream);
    let mut read = String::new();
    while !read.contains("data: first") {
        assert!(events.read_line(&mut read).unwrap() > 0, "{read}");
    }
    // Half a request.
    let mut half = TcpStream::connect(address).unwrap();
    write!(half, "GET /events HTTP/1.1\r\nhost:").unwrap();
    let ended = server.terminate().end();
    // Its own end, for which it has a moment, or the conductor's.
    assert!(matches!((ended.code, ended.signal), (Some(1 | EXIT_AT_DEADLINE), None)), "{}", ended.stderr);
    assert!(ended.took < SHORT + LATE, "{:?}", ended.took);
    let report = ended.report();
    let db = report.resource("db").unwrap();
    assert_eq!((db.outcome, db.sessions.closed), (Outcome::Drained, 2), "{report}");
    let work = report.resource("tracked work").unwrap();
    let mut names: Vec<_> = work.stragglers.iter().flat_map(|straggler| straggler.names.clone()).collect();
    names.sort();
    assert_eq!(names, ["GET /events", "run"], "{report}");
    assert!(work.reasons.iter().any(|reason| reason.contains("drained beside it")), "{report}");
}
