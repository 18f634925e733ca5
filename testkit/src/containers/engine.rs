//! The engine, and a runtime of our own for everything that is said to it.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use testcontainers::{bollard::Docker, core::client::docker_client_instance};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};
use winddown_reaper::{OWNER_LABEL, RUN_LABEL, Reaper, this_process, this_run};

/// What the engine may take for one thing that it is to do, on a machine that is busy building: it hangs otherwise.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether it has hung.
static HANGS: AtomicBool = AtomicBool::new(false);

/// Does work on a runtime that belongs to no test.
///
/// Tests stop their clock, starve their runtime and end it, while connections to the engine are shared between them.
/// What was begun is also finished when the test does not wait for it any more.
pub(super) async fn run<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    runtime()?.spawn(work).await.context("what was said to the container engine was not finished")?
}

/// As [`run`], for destructors: nobody waits.
pub(super) fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = runtime() {
        runtime.spawn(work);
    }
}

/// Has the engine do something, in time.
///
/// One that hangs does so for all that come later, and still answers questions: after the first time nothing is waited
/// for any more, or a run of some hundred tests would take hours to say so.
pub(super) async fn act<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    check()?;
    timeout(LIMIT, work).await.unwrap_or_else(|_| {
        HANGS.store(true, Ordering::SeqCst);
        Err(anyhow!("the container engine hangs: it was to {what}, and was not done after {LIMIT:?}; restart it"))
    })
}

/// An error if it is known to hang.
pub(super) fn check() -> Result<()> {
    if HANGS.load(Ordering::SeqCst) {
        bail!("the container engine hangs, as an earlier test has seen: restart it");
    }
    Ok(())
}

/// A client of the engine. Only inside [`run`].
pub(super) async fn connect() -> Result<Docker> {
    check()?;
    reap()?;
    let docker = docker_client_instance().await?;
    docker.ping().await.context("the container engine does not answer: run `cargo xtask images`, which starts it")?;
    Ok(docker)
}

/// The labels of everything that is started here.
pub(super) fn labels() -> [(String, String); 2] {
    [(RUN_LABEL.to_owned(), this_run()), (OWNER_LABEL.to_owned(), this_process())]
}

fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let start = || {
        // not of the kind with one thread: testcontainers removes a container while blocking its thread
        let builder = &mut Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("containers").enable_all().build().map_err(|error| error.to_string())
    };
    RUNTIME.get_or_init(start).as_ref().map_err(|error| anyhow!("no runtime for the container engine: {error}"))
}

/// Sees to it that nothing outlives this process, from before the first thing is started.
fn reap() -> Result<()> {
    static REAPER: OnceLock<Result<Reaper, String>> = OnceLock::new();
    let start = || Reaper::start(OWNER_LABEL, &this_process()).map_err(|error| error.to_string());
    REAPER.get_or_init(start).as_ref().map_err(|error| anyhow!("nobody could remove the containers: {error}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_hangs_is_waited_for_once() {
        let began = tokio::time::Instant::now();
        assert_eq!(act("do it", async { Ok(7) }).await.unwrap(), 7);
        let error = act::<()>("make a network", pending()).await.unwrap_err().to_string();
        assert!(error.contains("hangs") && error.contains("make a network") && error.contains("restart"), "{error}");
        assert_eq!(began.elapsed(), LIMIT);
        assert!(act("do it", async { Ok(7) }).await.is_err());
        assert!(run(connect()).await.is_err());
        assert_eq!(began.elapsed(), LIMIT);
    }
}
