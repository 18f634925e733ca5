//! The functions that the cases run.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use lambda_http::{Adapter, Request, RequestExt};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    runtime::Builder,
};
use winddown_core::{
    Error, ErrorKind, Hook, Lifecycle, ReportFormat, Resource, Retry,
    adapter::Drain,
    memory::{Memory, Server},
};
use winddown_lambda::{
    LambdaEvent,
    lambda_runtime::{
        self, StreamResponse,
        streaming::{Body, Response, channel},
    },
    run_concurrent, service_fn,
};
use winddown_testkit::Director;

pub(crate) fn run(program: &str) -> ExitCode {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.unwrap().block_on(async {
        match program {
            "concurrent" => concurrent().await,
            "metrics" => metrics().await,
            "restored" => restored().await,
            "many_lives" => many_lives().await,
            "streaming" => streaming().await,
            "paging" => paging().await,
            "http" => http().await,
            "mute" => mute().await,
            "no_signals" => no_signals().await,
            "cannot_flush" => cannot_flush().await,
            other => panic!("no program {other}"),
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

/// Runs a statement for `run_ms` in each invocation, with `when_draining` not before draining has begun, then checks out
/// once more. `RESERVE_MS` is what the database keeps of the budget.
async fn concurrent() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let director = Director::new();
    if let Ok(ms) = std::env::var("RESERVE_MS") {
        director.reserve(Duration::from_millis(ms.parse().unwrap()));
    }
    let db = lifecycle.guard_as("db", director.direct(Memory::new("db")));
    let lives = lifecycle.clone();
    let handler = service_fn(move |event: LambdaEvent<Value>| {
        let (db, lifecycle) = (db.clone(), lives.clone());
        async move {
            println!("begun");
            let session = db.get().await?;
            if event.payload["when_draining"] == json!(true) {
                lifecycle.draining().await;
                println!("draining");
            }
            let ms = event.payload["run_ms"].as_u64().unwrap_or_default();
            session.run(Duration::from_millis(ms)).await?;
            drop(session);
            assert!(event.payload["panic"].is_null(), "the handler has a bug");
            drop(db.get().await?);
            Ok::<_, lambda_runtime::Error>(event.payload)
        }
    });
    run_concurrent(lifecycle, handler).await
}

/// Its report is metrics too.
async fn metrics() -> Result<(), Error> {
    let lifecycle = Lifecycle::builder().report(ReportFormat::CloudWatch).build()?;
    let db = lifecycle.guard(Memory::new("db"));
    let handler = service_fn(async |event: LambdaEvent<Value>| {
        let _session = db.get().await?;
        Ok::<_, lambda_runtime::Error>(event.payload)
    });
    winddown_lambda::run(lifecycle, handler).await
}

/// Says with each answer how many sessions its database has now, and how many have said goodbye.
async fn restored() -> Result<(), Error> {
    let lifecycle = Lifecycle::builder().retry(Retry::never()).build()?;
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    if std::env::var_os("SERVER_ENDS").is_some() {
        // After the last goodbye, before the restore.
        let server = server.clone();
        lifecycle.on_drain("the server ends", Hook::new(async move || server.kill()).last());
    }
    let handler = service_fn(async |_: LambdaEvent<Value>| {
        let _session = db.get().await?;
        Ok::<_, lambda_runtime::Error>(json!({ "sessions": server.sessions(), "goodbyes": server.goodbyes() }))
    });
    winddown_lambda::run(lifecycle, handler).await
}

/// Streams three chunks, 60 ms apart, each after a statement on the session that the stream holds.
async fn streaming() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    let handler = service_fn(async |_: LambdaEvent<Value>| {
        let session = db.get().await?;
        let (mut sender, body) = channel();
        tokio::spawn(async move {
            println!("begun");
            for chunk in ["one ", "two ", "three"] {
                session.run(Duration::from_millis(60)).await?;
                sender.send_data(chunk.into()).await?;
            }
            Ok::<_, lambda_runtime::Error>(())
        });
        Ok::<Response<Body>, lambda_runtime::Error>(Response::from(body))
    });
    winddown_lambda::run(lifecycle, handler).await
}

/// Streams four pages, each read with a checkout of its own, by the task of `lambda_runtime` that sends them. The third
/// waits until draining has begun.
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
                Ok::<_, lambda_runtime::Error>(match db.get().await {
                    Ok(_session) => format!("page {page} "),
                    Err(error) => format!("[{error}] "),
                })
            }
        });
        async { Ok::<_, lambda_runtime::Error>(StreamResponse::from(Box::pin(pages))) }
    });
    match std::env::var_os("AWS_LAMBDA_MAX_CONCURRENCY") {
        Some(_) => run_concurrent(lifecycle, handler).await,
        None => winddown_lambda::run(lifecycle, handler).await,
    }
}

async fn http() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    let handler = service_fn(move |request: Request| {
        let db = db.clone();
        async move {
            let _session = db.get().await?;
            Ok::<_, lambda_http::Error>(format!("{} {}", request.method(), request.raw_http_path()))
        }
    });
    let handler = Adapter::from(handler);
    match std::env::var_os("AWS_LAMBDA_MAX_CONCURRENCY") {
        Some(_) => run_concurrent(lifecycle, handler).await,
        None => winddown_lambda::run(lifecycle, handler).await,
    }
}

/// Initialises through a server that accepts and says nothing; with `AFTER_RESTORE` only in its second life.
struct Mute {
    server: TcpListener,
    lives: AtomicUsize,
}

impl Resource for Mute {
    type Pool = ();

    fn name(&self) -> &str {
        "orders"
    }
    fn address(&self) -> Option<String> {
        self.server.local_addr().ok().map(|address| address.to_string())
    }
    async fn init(&self) -> Result<(), Error> {
        let life = self.lives.fetch_add(1, Ordering::SeqCst);
        if std::env::var_os("AFTER_RESTORE").is_some() && life == 0 {
            return Ok(());
        }
        let failed = |error| Error::new(ErrorKind::Init, "cannot connect").with_source(error);
        let mut stream = TcpStream::connect(self.server.local_addr().unwrap()).await.map_err(failed)?;
        stream.read_u8().await.map(drop).map_err(failed)
    }
    async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
        Ok(())
    }
}

async fn mute() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let _db = lifecycle.guard(Memory::new("db"));
    // Its backlog accepts.
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", server.local_addr().unwrap());
    let _mute = lifecycle.guard(Mute { server, lives: AtomicUsize::new(0) });
    let handler = service_fn(async |event: LambdaEvent<Value>| Ok::<_, lambda_runtime::Error>(event.payload));
    winddown_lambda::run(lifecycle, handler).await
}

async fn no_signals() -> Result<(), Error> {
    let lifecycle = Lifecycle::builder().signals(false).build()?;
    let _db = lifecycle.guard(Memory::new("db"));
    let handler = service_fn(async |event: LambdaEvent<Value>| Ok::<_, lambda_runtime::Error>(event.payload));
    winddown_lambda::run(lifecycle, handler).await
}

/// Warns at the end of each invocation.
async fn cannot_flush() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let flush = || std::future::ready(Err::<(), _>("the tracker is away"));
    lifecycle.on_drain("tracker", Hook::new(async || ()).flush(flush));
    let handler = service_fn(async |event: LambdaEvent<Value>| Ok::<_, lambda_runtime::Error>(event.payload));
    winddown_lambda::run(lifecycle, handler).await
}

/// Lives and lives again until it is told to stop; then says how many sessions are left.
async fn many_lives() -> Result<(), Error> {
    let lifecycle = Lifecycle::builder().report(None).build()?;
    let server = Server::new();
    let db = lifecycle.guard(Memory::on(&server, "db"));
    println!("begun");
    loop {
        match lifecycle.init().await {
            Ok(()) => {}
            Err(error) if lifecycle.wait_if_stopped(&error).await => break,
            Err(error) => return Err(error),
        }
        // Refused where the signal is there.
        let _ = db.get().await;
        lifecycle.drain().await;
        if let Err(error) = lifecycle.restart() {
            assert!(error.is_shutting_down(), "{error}");
            break;
        }
    }
    println!("{} sessions", server.sessions());
    lifecycle.finish(Ok(())).await.map(drop)
}
