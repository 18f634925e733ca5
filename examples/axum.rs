//! A web server that is drained on SIGTERM: requests in flight end, then the pool says goodbye.
//!
//! `cargo run --example axum --features http-body,sqlite`, then `curl localhost:PORT/count`, and Ctrl-C while a slow request runs:
//! `curl localhost:PORT/slow`, or `curl -N localhost:PORT/pages`.

use std::time::Duration;

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
use winddown::{
    Error, ErrorKind, Lifecycle, ShutdownGuard, adapter::with_dependent_access, listen_address, sqlite::Sqlite,
};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Sqlite::open(std::env::temp_dir().join("winddown-axum.db")));

    let app = Router::new()
        .route("/count", get(count))
        .route("/slow", get(slow))
        .route("/pages", get(pages))
        // Every request is tracked: it may check out until its end, also when that is after SIGTERM.
        .layer(middleware::from_fn_with_state(lifecycle.clone(), track))
        .with_state(db);

    // Where the platform says, as Lambda does for Web Functions, and Cloud Run.
    let address = listen_address("127.0.0.1:0")?;
    let listener = tokio::net::TcpListener::bind(&address).await.map_err(|error| no_address(&address, error))?;
    println!("listening on {}", listener.local_addr().map_err(|error| no_address(&address, error))?);
    lifecycle.run(axum::serve(listener, app).with_graceful_shutdown(lifecycle.draining())).await.map(drop)
}

async fn track(State(lifecycle): State<Lifecycle>, request: Request, next: Next) -> Response {
    // The report names what did not end in time.
    let name = format!("{} {}", request.method(), request.uri().path());
    let Ok(tracked) = lifecycle.track_as(name) else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let response = with_dependent_access(next.run(request)).await;
    // The body is polled after this, by a task of the server: it belongs to the request all the same.
    response.map(|body| Body::new(tracked.body(body)))
}

async fn count(State(db): State<ShutdownGuard<Sqlite>>) -> Result<String, (StatusCode, String)> {
    let failed = |error: &dyn std::fmt::Display| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let connection = db.get().await.map_err(|error| failed(&error))?;
    let tables =
        connection.interact(|c| c.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)));
    let tables = tables.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    Ok(format!("{tables} tables\n"))
}

/// Asks the database only after a while.
async fn slow(db: State<ShutdownGuard<Sqlite>>) -> Result<String, (StatusCode, String)> {
    tokio::time::sleep(Duration::from_millis(700)).await;
    count(db).await
}

/// Sends ten pages, one by one, each read with a checkout of its own.
async fn pages(State(db): State<ShutdownGuard<Sqlite>>) -> Body {
    Body::from_stream(stream::iter(1..=10).then(move |page| {
        let db = db.clone();
        async move {
            let read = count(State(db)).await.map_err(|(_, error)| error)?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok::<_, String>(format!("page {page}: {read}"))
        }
    }))
}

fn no_address(address: &str, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Config, format!("cannot listen on {address}: set PORT to a free one")).with_source(error)
}
