//! The function: what you would deploy.

use serde_json::{Value, json};
use winddown::{
    Error, Lifecycle, ShutdownGuard,
    buffer::{BatchWriter, Push},
    lambda::{Flush, Function, LambdaEvent, lambda_runtime, service_fn},
    postgres::{CopyIn, Postgres},
};

type Audit = ShutdownGuard<BatchWriter<(i64, String), CopyIn>>;

#[tokio::main]
pub(crate) async fn main() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Postgres::from_env()?);
    let copy = CopyIn::into("audit", ["invocation", "what"]);
    let audit = lifecycle.guard(BatchWriter::new(&db, copy).name("audit"));
    // Carried over, so that records are still buffered at SIGTERM. By default they are written before each response.
    let function = Function::new(lifecycle).flush(Flush::OnDrain);
    function.run(service_fn(|event| handler(&db, &audit, event))).await
}

async fn handler(
    db: &ShutdownGuard<Postgres>,
    audit: &Audit,
    event: LambdaEvent<Value>,
) -> Result<Value, lambda_runtime::Error> {
    let invocation = event.payload["invocation"].as_i64().ok_or("the event has no number `invocation`")?;
    let visits = db.get().await?.query_one("INSERT INTO visits DEFAULT VALUES RETURNING id", &[]).await?;
    for what in super::RECORDS {
        audit.push((invocation, what.to_owned())).await?;
    }
    Ok(json!({ "accepted": super::RECORDS.len(), "visit": visits.get::<_, i64>(0) }))
}
