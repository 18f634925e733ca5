//! A function that does nothing, with winddown: what the bench `cold_start` compares with `without_winddown`.

use winddown_core::{Error, Lifecycle};
use winddown_lambda::{LambdaEvent, lambda_runtime, run, service_fn};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let handler =
        service_fn(async |event: LambdaEvent<serde_json::Value>| Ok::<_, lambda_runtime::Error>(event.payload));
    run(Lifecycle::detect()?, handler).await
}
