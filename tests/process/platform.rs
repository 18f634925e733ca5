//! Functions under the simulator, and what the platform does to them at a bad moment: a freeze with something unsent, SIGTERM in
//! the middle of a stream, a limit that comes while they wait.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use winddown::{
    Error, Hook, Lifecycle,
    lambda::{
        LambdaEvent,
        lambda_runtime::{self, StreamResponse},
        service_fn,
    },
    memory::Memory,
    postgres::Postgres,
    sim::{ErrorKind, Reason, Sim},
};

use crate::{
    cases::cases,
    lambda::{ended_well, function_of, play},
};

cases![
    what_a_client_behind_a_hook_holds_has_been_sent_when_the_function_is_frozen,
    a_body_that_checks_out_for_each_page_is_streamed_to_its_end_after_sigterm,
    an_init_that_waits_for_a_mute_server_is_an_error_and_not_a_timeout,
    another_handler_that_would_end_the_process_in_the_drain_is_warned_of,
    another_extension_that_ends_nothing_is_not_warned_of,
];

/// The program of this name, if it is one of these.
pub(crate) async fn run(program: &str) -> Option<Result<(), Error>> {
    Some(match program {
        "tracked_errors" => tracked_errors().await,
        "paging" => paging().await,
        "mute_postgres" => mute_postgres().await,
        "two_handlers_single" => two_handlers().await,
        "two_extensions" => two_extensions().await,
        _ => return None,
    })
}

/// A client that sends its events when it is told to, as error trackers do. It appends them to a file.
#[derive(Clone)]
struct Tracker {
    file: PathBuf,
    held: Arc<Mutex<Vec<String>>>,
}

impl Tracker {
    fn capture(&self, event: &str) {
        self.held.lock().unwrap().push(event.to_owned());
    }

    async fn send(&self) -> std::io::Result<()> {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        let mut file = fs::File::options().create(true).append(true).open(&self.file)?;
        held.iter().try_for_each(|event| writeln!(file, "{event}"))
    }
}

/// Captures an event in each invocation. With `FLUSHES` its hook says how the tracker is flushed.
async fn tracked_errors() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let tracker = Tracker { file: env::var_os("EVENTS").unwrap().into(), held: Arc::default() };
    let (last, flushed) = (tracker.clone(), tracker.clone());
    let mut hook = Hook::new(async move || last.send().await);
    if env::var_os("FLUSHES").is_some() {
        hook = hook.flush(move || {
            let tracker = flushed.clone();
            async move { tracker.send().await }
        });
    }
    lifecycle.on_drain("tracker", hook.last());
    let handler = service_fn(async |event: LambdaEvent<Value>| {
        tracker.capture("an event");
        Ok::<_, lambda_runtime::Error>(event.payload)
    });
    winddown::lambda::run(lifecycle, handler).await
}

fn what_a_client_behind_a_hook_holds_has_been_sent_when_the_function_is_frozen() {
    for (flushes, while_frozen) in [(true, [1, 2, 3]), (false, [0, 0, 0])] {
        let folder = tempfile::tempdir().unwrap();
        let events = folder.path().join("events");
        let sent = || fs::read_to_string(&events).map_or(0, |events| events.lines().count());
        let record = play(async {
            let config = function_of("tracked_errors").env("EVENTS", events.to_str().unwrap());
            let config = if flushes { config.env("FLUSHES", "1") } else { config };
            let sim = Sim::start(config).await.unwrap();
            for expected in while_frozen {
                assert!(sim.invoke(json!({})).await.unwrap().ok);
                sim.freeze().await.unwrap();
                assert_eq!(sent(), expected, "flushes: {flushes}");
            }
            sim.shutdown(Reason::Spindown).await
        });
        ended_well(&record);
        assert_eq!(sent(), 3, "the rest in the drain");
    }
}

/// Streams four pages, each read with a checkout of its own. The third waits until draining has begun.
async fn paging() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    let lives = lifecycle.clone();
    let handler = service_fn(move |_: LambdaEvent<Value>| {
        let (db, lifecycle) = (db.clone(), lives.clone());
        let pages = stream::iter(0..4).then(move |page| {
            let (db, lifecycle) = (db.clone(), lifecycle.clone());
            async move {
                if page == 2 {
                    println!("begun");
                    lifecycle.draining().await;
                }
                let page = db.get().await.map_or_else(|error| format!("[{error}] "), |_| format!("page {page} "));
                Ok::<_, lambda_runtime::Error>(page)
            }
        });
        async { Ok::<_, lambda_runtime::Error>(StreamResponse::from(Box::pin(pages))) }
    });
    winddown::lambda::run(lifecycle, handler).await
}

fn a_body_that_checks_out_for_each_page_is_streamed_to_its_end_after_sigterm() {
    let record = play(async {
        let sim = Sim::start(function_of("paging")).await.unwrap();
        let stop = async {
            sim.wait_for_line(|output| output.line == "begun").await.unwrap();
            sim.shutdown(Reason::Spindown).await
        };
        let (invocation, record) = tokio::join!(sim.invoke(json!({})), stop);
        let invocation = invocation.unwrap();
        assert!(invocation.ok, "{:?}", invocation.error);
        let body = invocation.payload.as_str().unwrap();
        assert!(body.ends_with("page 0 page 1 page 2 page 3 "), "{body}");
        record
    });
    ended_well(&record);
}

async fn mute_postgres() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let _memory = lifecycle.guard(Memory::new("memory"));
    let _db = lifecycle.guard(Postgres::from_env()?);
    echo(lifecycle).await
}

/// The server accepts, and says nothing. The platform has more patience than the function is told of, so that a busy machine
/// makes nothing of this.
fn an_init_that_waits_for_a_mute_server_is_an_error_and_not_a_timeout() {
    const LIMIT: Duration = Duration::from_secs(3);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://user:secret@{}/orders?sslmode=disable", server.local_addr().unwrap());
    let limit = LIMIT.as_millis().to_string();
    let config = function_of("mute_postgres").env("WINDDOWN_INIT_LIMIT_MS", limit).env("DATABASE_URL", url);
    let error = play(Sim::start(config)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InitError, "{error}");
    let text = error.to_string();
    assert!(text.contains("postgres") && !text.contains("secret"), "{text}");
}

async fn echo(lifecycle: Lifecycle) -> Result<(), Error> {
    let handler = service_fn(async |event: LambdaEvent<Value>| Ok::<_, lambda_runtime::Error>(event.payload));
    winddown::lambda::run(lifecycle, handler).await
}

/// On one thread, so that its task has come to its poll when the time is over.
async fn two_handlers() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    lambda_runtime::spawn_graceful_shutdown_handler(async || ()).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    echo(lifecycle).await
}

/// The output of such a function, from its start to the end of its first invocation.
fn output_of(program: &str) -> (Vec<String>, Vec<String>) {
    let record = play(async {
        let sim = Sim::start(function_of(program)).await.unwrap();
        assert!(sim.invoke(json!({})).await.unwrap().ok);
        sim.shutdown(Reason::Spindown).await
    });
    let output = record.output.iter().map(|output| output.line.clone()).collect();
    (output, record.extensions.iter().map(|extension| extension.name.clone()).collect())
}

fn another_handler_that_would_end_the_process_in_the_drain_is_warned_of() {
    let (output, extensions) = output_of("two_handlers_single");
    let warned = output.iter().filter(|line| line.contains("spawn_graceful_shutdown_handler")).count();
    assert_eq!(warned, 1, "{output:?}");
    assert_eq!(extensions.len(), 2, "{extensions:?}");
}

/// Registers an extension and polls it, as one that ships telemetry does.
async fn two_extensions() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let api = env::var("AWS_LAMBDA_RUNTIME_API").unwrap();
    let mut stream = TcpStream::connect(&api).unwrap();
    let register = format!(
        "POST /2020-01-01/extension/register HTTP/1.1\r\nhost: {api}\r\nlambda-extension-name: telemetry\r\n\
         content-length: 13\r\n\r\n{{\"events\":[]}}"
    );
    stream.write_all(register.as_bytes()).unwrap();
    let mut answer = BufReader::new(stream.try_clone().unwrap());
    let id = loop {
        let mut line = String::new();
        assert!(answer.read_line(&mut line).unwrap() > 0, "no identifier");
        if let Some(id) = line.to_lowercase().trim().strip_prefix("lambda-extension-identifier: ") {
            break id.to_owned();
        }
    };
    let next = format!(
        "GET /2020-01-01/extension/event/next HTTP/1.1\r\nhost: {api}\r\nlambda-extension-identifier: {id}\r\n\r\n"
    );
    stream.write_all(next.as_bytes()).unwrap();
    echo(lifecycle).await
}

fn another_extension_that_ends_nothing_is_not_warned_of() {
    let (output, extensions) = output_of("two_extensions");
    assert!(!output.iter().any(|line| line.contains("spawn_graceful_shutdown_handler")), "{output:?}");
    assert!(extensions.iter().any(|name| name == "telemetry"), "{extensions:?}");
}
