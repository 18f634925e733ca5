//! A function for the front door: it answers what an event asks for, and ends on SIGTERM as `sim_graceful` does.
//!
//! An HTTP event is answered with its method, path, query and body as text; for `/stream` in pieces, with 201 and a header. Another
//! event is answered with itself and the process's id; with `{"pieces": N}` in pieces, one each 20 ms, with `{"ms": N}` it says `begun` and
//! answers after that time, with `{"fail": TEXT}` with an error, with `{"exit": CODE}` not at all.

use std::time::Duration;

use lambda_extension::Extension;
use lambda_runtime::streaming::{self, Body};
use lambda_runtime::{Error, FunctionResponse, LambdaEvent, MetadataPrelude, StreamResponse, service_fn};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut sigterm = signal(SignalKind::terminate())?;
    let extension = Extension::new().with_extension_name("front-door").with_events(&[]).register().await?;
    tokio::spawn(extension.run());
    tokio::spawn(async move {
        sigterm.recv().await;
        std::process::exit(0);
    });
    lambda_runtime::run(service_fn(handler)).await
}

async fn handler(event: LambdaEvent<Value>) -> Result<FunctionResponse<Value, Body>, Error> {
    let event = event.payload;
    if let Some(code) = event["exit"].as_i64() {
        std::process::exit(i32::try_from(code)?);
    }
    if let Some(message) = event["fail"].as_str() {
        return Err(message.into());
    }
    if let Some(time) = event["ms"].as_u64() {
        println!("begun");
        tokio::time::sleep(Duration::from_millis(time)).await;
    }
    let context = &event["requestContext"];
    if event["rawPath"] == "/stream" {
        let mut prelude = MetadataPrelude { status_code: "201".parse()?, ..MetadataPrelude::default() };
        prelude.headers.insert("x-streamed", "yes".parse()?);
        return Ok(pieces(3, prelude));
    }
    if let Some(count) = event["pieces"].as_u64() {
        return Ok(pieces(count, MetadataPrelude::default()));
    }
    let answer = if context.is_object() {
        let said = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let words = [&context["http"]["method"], &event["rawPath"], &event["rawQueryString"], &event["body"]].map(said);
        json!({"statusCode": 202, "headers": {"x-words": "4"}, "cookies": ["a=1"], "body": words.join("|")})
    } else {
        json!({"event": event, "pid": std::process::id()})
    };
    Ok(FunctionResponse::BufferedResponse(answer))
}

fn pieces(count: u64, metadata_prelude: MetadataPrelude) -> FunctionResponse<Value, Body> {
    let (mut sender, stream) = streaming::channel();
    tokio::spawn(async move {
        for number in 1..=count {
            if sender.send_data(format!("piece {number} ").into()).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    FunctionResponse::StreamingResponse(StreamResponse { metadata_prelude, stream })
}
