//! A real process with a pool that the application has built, told to stop many times.

use std::{process::ExitCode, time::Duration};

use mysql_async::prelude::Queryable as _;
use winddown_core::{BoxError, Lifecycle};
use winddown_mysql::{Config, Mysql, mysql_async};
use winddown_testkit::{
    Trial, child,
    scene::ENDLESS,
    soak::wrapped::{self, Runs, SESSIONS, told_to_stop},
};

use crate::{
    server,
    wrapped_pool::{WrappedPool, from_env},
};

const BUDGET: Duration = Duration::from_secs(3);

pub(crate) fn program() -> Option<ExitCode> {
    wrapped::program(works)
}

/// Ten idle sessions, none of which the guard has seen, or nine and one with a statement.
async fn works(runs: Runs) -> Result<(), BoxError> {
    let lifecycle = Lifecycle::detect()?;
    let (pool, opts) = from_env(Config::from_env()?);
    let db = lifecycle.guard_as("db", Mysql::wrap(pool.clone(), opts));
    let mut by_guard = match runs {
        Runs::Guard => Some(db.get().await?),
        Runs::Pool | Runs::Nothing => None,
    };
    if let Some(conn) = &mut by_guard {
        conn.query_drop("SELECT 1").await?;
    }
    // One that comes back is reset first: meanwhile another one would be opened.
    let mut conns = Vec::new();
    for _ in u64::from(by_guard.is_some())..SESSIONS {
        let mut conn = pool.get_conn().await?;
        conn.query_drop("SELECT 1").await?;
        conns.push(conn);
    }
    if runs == Runs::Pool {
        let mut conn = conns.pop().ok_or("there are some")?;
        tokio::spawn(async move { server::run(&mut conn, ENDLESS).await });
    }
    if let Some(mut conn) = by_guard {
        // It is stopped.
        tokio::spawn(async move { server::run(&mut conn, ENDLESS).await });
    }
    drop(conns);
    child::ready();
    Ok(child::until_stopped(&lifecycle).await?)
}

pub(crate) fn trial() -> Trial {
    wrapped::trial::<WrappedPool>(|harness| Box::pin(told_to_stop(harness, BUDGET)))
}
