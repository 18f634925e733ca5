//! A Web Function: an HTTP server that ends on SIGTERM when what is in flight is answered.
//!
//! `/` answers with its request's body, `/slow` after `?ms`, `/fail` with 500, `/exit` not at all; `/until-sigterm` says `begun` and
//! answers when SIGTERM has come. `/burn` keeps one CPU busy for `?ms`, and answers how much of it this process had.
//! Arguments: `late MS` listens that late, `deaf` never listens, `stay` does not end on SIGTERM.

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::routing::get;
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[derive(Deserialize)]
struct Time {
    #[serde(default)]
    ms: u64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_default();
    // before it listens: a signal may come as soon as it does
    let mut sigterm = signal(SignalKind::terminate())?;
    let (stop, stopped) = watch::channel(false);
    match mode.as_str() {
        "late" => tokio::time::sleep(Duration::from_millis(arguments.next().unwrap_or_default().parse()?)).await,
        "deaf" => std::future::pending().await,
        _ => {}
    }
    let waiting = stopped.clone();
    let app = Router::new()
        .route("/", get(|body: String| async { body }).post(|body: String| async { body }))
        .route("/slow", get(|Query(time): Query<Time>| tokio::time::sleep(Duration::from_millis(time.ms))))
        .route("/fail", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "failed") }))
        .route("/exit", get(exit))
        .route("/burn", get(|Query(time): Query<Time>| async move { burn(Duration::from_millis(time.ms)) }))
        .route("/hoard", get(hoard))
        .route(
            "/until-sigterm",
            get(move || {
                let mut stopped = waiting.clone();
                async move {
                    println!("begun");
                    // an error is that main has returned
                    let _ = stopped.wait_for(|stopped| *stopped).await;
                    "answered"
                }
            }),
        );
    let listener = TcpListener::bind(std::env::var("AWS_LAMBDA_HTTP_ENDPOINT")?).await?;
    tokio::spawn(async move {
        sigterm.recv().await;
        println!("SIGTERM");
        if mode != "stay" {
            stop.send_replace(true);
        } else {
            std::future::pending::<()>().await;
        }
    });
    let mut ends = stopped;
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            if ends.wait_for(|stopped| *stopped).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
        .await?;
    println!("goodbye");
    Ok(())
}

async fn exit() -> StatusCode {
    std::process::exit(3)
}

/// How many milliseconds of a CPU this process has got while so much time went by.
fn burn(time: Duration) -> String {
    let used = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
    let (begun, before) = (Instant::now(), used());
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
    format!("{} {}", (used() - before).as_millis(), begun.elapsed().as_millis())
}

/// Takes so many MB, and touches each page of them.
async fn hoard(Query(time): Query<Megabytes>) -> String {
    let mut taken = vec![0_u8; time.mb * 1024 * 1024];
    taken.iter_mut().step_by(4096).for_each(|page| *page = 1);
    taken.len().to_string()
}

#[derive(Deserialize)]
struct Megabytes {
    mb: usize,
}
