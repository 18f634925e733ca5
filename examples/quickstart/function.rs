//! The function, with winddown: what you would deploy.

use serde_json::{Value, json};
use winddown::{
    Error, Lifecycle, ShutdownGuard,
    buffer::{BatchWriter, Push},
    lambda::{Flush, Function, LambdaEvent, lambda_runtime, service_fn},
    sqlite::{Insert, Sqlite},
};

type Audit = ShutdownGuard<BatchWriter<(i64, String), Insert>>;

#[tokio::main]
pub(crate) async fn main() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Sqlite::from_env()?);
    let insert = Insert::into("audit", ["invocation", "what"]);
    let audit = lifecycle.guard(BatchWriter::new(&db, insert).name("audit"));
    // Carried over, so that records are still buffered at SIGTERM. By default they are written before each response.
    let function = Function::new(lifecycle).flush(Flush::OnDrain);
    function.run(service_fn(|event| handler(&audit, event))).await
}

async fn handler(audit: &Audit, event: LambdaEvent<Value>) -> Result<Value, lambda_runtime::Error> {
    let invocation = event.payload["invocation"].as_i64().ok_or("the event has no number `invocation`")?;
    for what in super::RECORDS {
        audit.push((invocation, what.to_owned())).await?;
    }
    Ok(json!({ "accepted": super::RECORDS.len() }))
}
