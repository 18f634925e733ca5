//! A function that gets SIGTERM, because it registers an internal extension for no events, and exits 0 on it.
//!
//! Its handler answers with its event; with `{"sleep_ms": N}` it takes that long, with `{"fail": TEXT}` it fails, with
//! `{"exit": CODE}` it exits.

use std::time::Duration;

use lambda_extension::Extension;
use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Error> {
    // before the first /next: a signal may come as soon as init is over
    let mut sigterm = signal(SignalKind::terminate())?;
    // before the first /next, too: that closes registration
    let extension = Extension::new().with_extension_name("graceful").with_events(&[]).register().await?;
    // never gets an event; but init waits for every registered extension to ask for one
    tokio::spawn(extension.run());
    tokio::spawn(async move {
        sigterm.recv().await;
        println!("goodbye");
        std::process::exit(0);
    });
    lambda_runtime::run(service_fn(handler)).await
}

async fn handler(event: LambdaEvent<Value>) -> Result<Value, Error> {
    let event = event.payload;
    if let Some(time) = event["sleep_ms"].as_u64() {
        tokio::time::sleep(Duration::from_millis(time)).await;
    }
    if let Some(code) = event["exit"].as_i64() {
        std::process::exit(i32::try_from(code)?);
    }
    match event["fail"].as_str() {
        Some(message) => Err(message.into()),
        None => Ok(event),
    }
}
