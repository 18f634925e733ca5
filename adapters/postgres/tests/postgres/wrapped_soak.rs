//! A real process with a pool that the application has built, told to stop many times.

use std::{process::ExitCode, time::Duration};

use winddown_core::{BoxError, Lifecycle};
use winddown_postgres::{Config, Postgres};
use winddown_testkit::{
    Trial, child,
    scene::ENDLESS,
    soak::wrapped::{self, Runs, SESSIONS, told_to_stop},
};

use crate::{
    server,
    wrapped_pool::{WrappedPool, from_env},
};

const BUDGET: Duration = Duration::from_secs(8);

pub(crate) fn program() -> Option<ExitCode> {
    wrapped::program(works)
}

/// Ten idle sessions, none of which the guard has seen, or nine and one with a statement.
async fn works(runs: Runs) -> Result<(), BoxError> {
    let lifecycle = Lifecycle::detect()?;
    let pool = from_env(Config::from_env()?);
    let db = lifecycle.guard_as("db", Postgres::wrap(pool.clone()));
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        let client = pool.get().await?;
        client.query_one("SELECT 1", &[]).await?;
        clients.push(client);
    }
    drop(clients);
    match runs {
        Runs::Guard => {
            let client = db.get().await?;
            // It is stopped.
            tokio::spawn(async move { server::run(&client, ENDLESS).await });
        }
        Runs::Pool => {
            let client = pool.get().await?;
            tokio::spawn(async move { server::run(&client, ENDLESS).await });
        }
        Runs::Nothing => {}
    }
    child::ready();
    Ok(child::until_stopped(&lifecycle).await?)
}

pub(crate) fn trial() -> Trial {
    wrapped::trial::<WrappedPool>(|harness| Box::pin(told_to_stop(harness, BUDGET)))
}
