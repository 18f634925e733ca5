//! An external extension that subscribes to telemetry with the official SDK, and prints what it is told as `told TYPE RECORD`.
//!
//! Its arguments are the port it listens on, and the categories it subscribes to.

use lambda_extension::{
    Error, Extension, LambdaEvent, LambdaTelemetry, LogBuffering, NextEvent, SharedService, service_fn,
};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let port = args.next().ok_or("no port")?.parse()?;
    let types: Vec<String> = args.collect();
    let types: Vec<&str> = types.iter().map(String::as_str).collect();
    let buffering = LogBuffering { timeout_ms: 25, max_bytes: 262_144, max_items: 1_000 };
    Extension::new()
        .with_events(&["INVOKE", "SHUTDOWN"])
        .with_events_processor(service_fn(next))
        .with_telemetry_types(&types)
        .with_telemetry_port_number(port)
        .with_telemetry_buffering(buffering)
        .with_telemetry_processor(SharedService::new(service_fn(tell)))
        .run()
        .await
}

async fn next(event: LambdaEvent) -> Result<(), Error> {
    if let NextEvent::Shutdown(_) = event.next {
        println!("end");
        std::process::exit(0);
    }
    Ok(())
}

async fn tell(events: Vec<LambdaTelemetry>) -> Result<(), Error> {
    for event in events {
        let event = serde_json::to_value(&event.record)?;
        let (kind, record) = (event["type"].as_str().unwrap_or_default(), event["record"].to_string());
        // its own lines are telemetry, too
        if !record.starts_with("\"told ") {
            println!("told {kind} {record}");
        }
    }
    Ok(())
}
