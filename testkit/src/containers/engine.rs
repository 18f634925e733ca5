//! The engine, and a runtime of our own for everything that is said to it.

use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use testcontainers::{bollard::Docker, core::client::docker_client_instance};
use tokio::runtime::{Builder, Runtime};
use winddown_reaper::{OWNER_LABEL, RUN_LABEL, Reaper, this_process, this_run};

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

/// A client of the engine. Only inside [`run`].
pub(super) async fn connect() -> Result<Docker> {
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
