//! An external extension: registers under its file name for INVOKE and SHUTDOWN, and prints what it is handed.
//!
//! Its argument makes it behave otherwise: `invoke` registers for INVOKE only, `shutdown` for SHUTDOWN only, `slow` takes 6 s for each, `stay` does not
//! exit after SHUTDOWN, `crash` exits with 5 on its first invocation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lambda_extension::{Error, Extension, LambdaEvent, NextEvent, service_fn};

static SLOW: AtomicBool = AtomicBool::new(false);
static STAYS: AtomicBool = AtomicBool::new(false);
static CRASHES: AtomicBool = AtomicBool::new(false);

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mode = std::env::args().nth(1).unwrap_or_default();
    SLOW.store(mode == "slow", Ordering::Relaxed);
    STAYS.store(mode == "stay", Ordering::Relaxed);
    CRASHES.store(mode == "crash", Ordering::Relaxed);
    let events: &[&str] = match mode.as_str() {
        "invoke" => &["INVOKE"],
        "shutdown" => &["SHUTDOWN"],
        _ => &["INVOKE", "SHUTDOWN"],
    };
    Extension::new().with_events(events).with_events_processor(service_fn(handle)).run().await
}

async fn handle(event: LambdaEvent) -> Result<(), Error> {
    match event.next {
        NextEvent::Invoke(event) => {
            if CRASHES.load(Ordering::Relaxed) {
                std::process::exit(5);
            }
            if SLOW.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_secs(6)).await;
            }
            println!("INVOKE {}", event.request_id);
        }
        NextEvent::Shutdown(event) => {
            println!("SHUTDOWN {} {}", event.shutdown_reason, event.deadline_ms);
            if STAYS.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            std::process::exit(0);
        }
    }
    Ok(())
}
