//! Claims that are about many times in a row. `cargo xtask soak` runs them full size, the tests in a smaller one.

#[path = "conformance/server.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod server;

use std::process::ExitCode;

use winddown_core::BoxError;
use winddown_testkit::{Harness as _, ServerUse, soak};

use crate::server::{MariaDb, MySql, Tenancy, Version};

fn main() -> ExitCode {
    let mut trials = soak::trials::<Tenancy<MySql>>();
    trials.extend(soak::trials::<Tenancy<MariaDb>>());
    const NAME: &str = "aborted_clients_does_not_rise_by_drains_of_idle_sessions";
    trials.push(soak::trial::<Tenancy<MySql>>(NAME, ServerUse::Own, |server| Box::pin(not_one_is_lost(server))));
    trials.push(soak::trial::<Tenancy<MariaDb>>(NAME, ServerUse::Own, |server| Box::pin(not_one_is_lost(server))));
    soak::run(trials, || async {
        Tenancy::<MySql>::stop_shared().await?;
        Tenancy::<MariaDb>::stop_shared().await
    })
}

/// Idle sessions, and what the server counts of clients that went away without a goodbye.
async fn not_one_is_lost<V: Version>(server: &Tenancy<V>) -> Result<String, BoxError> {
    let before = server.aborted_clients().await?;
    let figures = soak::idle(server).await?;
    match server.aborted_clients().await? - before {
        0 => Ok(format!("{figures}; Aborted_clients is still {before}")),
        lost => Err(format!("the server counts {lost} more clients that it has lost").into()),
    }
}
