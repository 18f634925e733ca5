//! A real process with a pool of `deadpool-redis` that the application has built, told to stop many times.

use std::{process::ExitCode, time::Duration};

use redis::{aio::ConnectionLike, cmd};
use winddown_core::{BoxError, Error, Lifecycle};
use winddown_redis::{Config, Redis, redis};
use winddown_testkit::{
    InProcess, Trial, child,
    soak::wrapped::{self, Runs, SESSIONS, told_to_stop},
};

use crate::wraps_pool::{WrappedPool, pool};

const BUDGET: Duration = Duration::from_secs(8);

/// More than the process opens.
const MOST: usize = 16;

pub(crate) fn program() -> Option<ExitCode> {
    wrapped::program(works)
}

/// Ten idle sessions, none of which the guard has seen, or nine and one in a pop.
async fn works(runs: Runs) -> Result<(), BoxError> {
    let lifecycle = Lifecycle::detect()?;
    let config = Config::from_env()?;
    let user = config.driver.redis_settings().username().unwrap_or_default().to_owned();
    let pool = pool(&config, MOST);
    let cache = lifecycle.guard_as("db", Redis::wrap(pool.clone()));
    let mut connections = Vec::new();
    for _ in 0..SESSIONS {
        let mut connection = pool.get().await?;
        cmd("PING").exec_async(&mut connection).await?;
        connections.push(connection);
    }
    drop(connections);
    match runs {
        Runs::Guard => {
            let mut connection = cache.get().await?;
            tokio::spawn(async move { pops(&mut *connection, user).await });
        }
        Runs::Pool => {
            let mut connection = pool.get().await?;
            tokio::spawn(async move { pops(&mut connection, user).await });
        }
        Runs::Nothing => {}
    }
    child::ready();
    Ok(child::until_stopped(&lifecycle).await?)
}

/// It is ended.
async fn pops(connection: &mut (impl ConnectionLike + Send), user: String) {
    let _ = cmd("BLPOP").arg(format!("{{{user}}}:never")).arg(0).exec_async(connection).await;
}

impl InProcess for WrappedPool {
    fn environment(&self) -> Vec<(&'static str, String)> {
        self.0.environment()
    }

    fn from_env() -> Result<Redis, Error> {
        Ok(Redis::wrap(pool(&Config::from_env()?, MOST)))
    }
}

pub(crate) fn trial() -> Trial {
    wrapped::trial::<WrappedPool>(|harness| Box::pin(told_to_stop(harness, BUDGET)))
}
