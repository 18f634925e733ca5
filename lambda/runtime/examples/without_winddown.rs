//! The function of `with_winddown` on `lambda_runtime` alone.

use winddown_lambda::{LambdaEvent, lambda_runtime, service_fn};

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    let handler =
        service_fn(async |event: LambdaEvent<serde_json::Value>| Ok::<_, lambda_runtime::Error>(event.payload));
    lambda_runtime::run(handler).await
}
