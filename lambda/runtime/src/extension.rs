//! The internal extension without which Lambda sends no SIGTERM.
//!
//! A function that has no extension is killed without a word (AWS Lambda Developer Guide, "Lambda execution environment
//! lifecycle", shutdown phase: 0 ms without extensions, 500 ms with an internal one). An internal extension that
//! subscribes to no events is enough, and the only kind that Managed Instances accept.

use std::time::Duration;

use lambda_extension::Extension;
use tokio::time::timeout;

use crate::warn;

/// Unique in the function: registering a name twice is refused.
const NAME: &str = "_winddown";

/// An Extensions API that does not answer must not use up init's 10 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// Registers the extension and polls it from then on. Must be over before the runtime asks for its first invocation,
/// which closes registration.
///
/// Where that fails the function works as before, and is told of its end as little as before: that is said once.
pub(crate) async fn register() {
    let register = Extension::new().with_extension_name(NAME).with_events(&[]).register();
    let consequence =
        "no extension could be registered, so Lambda will end this function without SIGTERM and nothing is drained";
    match timeout(PATIENCE, register).await {
        // Init ends only when every registered extension polls. The poll is never answered, as there are no events: it
        // waits in the socket and costs nothing.
        Ok(Ok(extension)) => {
            tokio::spawn(async move {
                if let Err(error) = extension.run().await {
                    tracing::debug!(%error, "the extension's poll ended");
                }
            });
        }
        Ok(Err(error)) => warn(consequence, &error),
        Err(_) => warn(consequence, &format_args!("the Extensions API did not answer within {PATIENCE:?}")),
    }
}
