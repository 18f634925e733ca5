//! The public API: one simulated environment, from start to the end of shutdown.

mod invocations;
mod snap_start;
pub(crate) mod web;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::SemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};
use uuid::Uuid;

use crate::adoption::Adoption;
use crate::api::{self, ApiState};
use crate::cgroup::Group;
use crate::config::Config;
use crate::environment::Environment;
use crate::error::{Error, ErrorKind};
use crate::mark::Mark;
use crate::record::{Invocation, InvocationError, OutputLine, Reason, Record, TimelineEntry};
use crate::state::{Init, SimState, World, millis};
use crate::tree::Family;

/// One simulated Lambda environment: a function, its extensions, and the APIs they talk to.
///
/// All methods take `&self`, so that a signal can be sent while an invocation runs
/// (`tokio::join!(sim.invoke(event), sim.shutdown(Reason::Spindown))`). Invocations are handed out one at a time, as on Lambda;
/// with [`Config::managed_instances`], as many at once as that says.
///
/// # Drop
///
/// Dropping it kills the process groups of the function and the external extensions at once (SIGKILL) and closes the APIs.
/// It does not send SIGTERM and does not wait: for that, call [`shutdown`](Self::shutdown). On Linux that
/// includes processes that have left their group (`setsid`), lost their parent or cleared their environment variables.
#[derive(Debug)]
pub struct Sim {
    environment: Arc<Environment>,
    server: JoinHandle<()>,
}

impl Sim {
    /// Starts an environment and waits until init is over: [`launch`](Self::launch), then [`ready`](Self::ready).
    ///
    /// # Errors
    ///
    /// Those of the two. Nothing is left running then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills what was started.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let sim = Self::launch(config).await?;
        sim.ready().await?;
        Ok(sim)
    }

    /// Starts an environment and does not wait for init: for what happens meanwhile, such as a signal during a slow init.
    ///
    /// External extensions are started first; the function follows when all of them have registered, as on Lambda.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Start`] when a program cannot be started. Without external extensions that includes the function; with
    /// them, [`ready`](Self::ready) says so. [`ErrorKind::Unsupported`] beside another environment of this process, if one of the
    /// two has [`Config::adopt_orphans`], and where [`Config::memory_mb`] cannot be enforced.
    pub async fn launch(config: Config) -> Result<Self, Error> {
        config.check()?;
        let adoption = Adoption::begin(config.adopts_orphans)?;
        let cannot_listen = |cause| {
            Error::new(ErrorKind::Start, "cannot listen on 127.0.0.1: check that loopback is up").with_source(cause)
        };
        // loopback only, and a port that nobody else uses
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;

        let launched = Instant::now();
        let endpoint = if config.is_web() { Some(web::endpoint().map_err(cannot_listen)?) } else { None };
        let group = config.memory_limit().map(Group::new).transpose()?.map(Arc::new);
        let world = World::new(launched, &config);
        let shared = Arc::new(ApiState { world, config });
        let server = tokio::spawn(api::serve(listener, Arc::clone(&shared)));
        let family = Family { api: address, mark: Mark::new(), adoption };
        let environment = Arc::new(Environment::new(shared, family, group, endpoint, launched));
        // from here on, an early return drops `sim`, which kills what was started
        let sim = Self { environment: Arc::clone(&environment), server };

        sim.world().update(|state| state.note("start"));
        environment.reap_from_now_on()?;
        environment.start_all()?;
        Ok(sim)
    }

    /// Waits until init is over: the function and every registered extension have asked for their next event.
    ///
    /// Returns at once when it is over already. A failed init is shut down before this returns, as Lambda does it (SIGTERM
    /// only with an extension registered), and [`Error::record`] tells how that went.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InitExit`], [`ErrorKind::InitError`], [`ErrorKind::InitTimeout`], [`ErrorKind::Start`] as they say;
    /// [`ErrorKind::Ended`] when shutdown began before init was over.
    ///
    /// # Cancel safety
    ///
    /// Can be called again.
    pub async fn ready(&self) -> Result<(), Error> {
        if self.world().read(|state| state.reset) {
            // the next invocation starts it again
            return Ok(());
        }
        let limit = self.config().init_limit();
        let Err((kind, message)) = self.init(self.environment.launched + limit, limit).await else { return Ok(()) };
        if kind == ErrorKind::Ended {
            return Err(ended());
        }
        self.world().update(|state| state.note("init failed"));
        self.environment.reset(Reason::Failure);
        let record = self.ended_record().await;
        if self.world().read(|state| state.reset) { Ok(()) } else { Err(Error::new(kind, message).with_record(record)) }
    }

    /// Waits until init is over, or says how it failed.
    async fn init(&self, deadline: Instant, limit: Duration) -> Result<(), (ErrorKind, String)> {
        let done = |state: &SimState| if state.init_done { Some(Init::Done) } else { state.init() };
        Err(match timeout_at(deadline.into(), self.world().wait(done)).await {
            Ok(Init::Done) => {
                self.world().update(|state| {
                    if !std::mem::replace(&mut state.init_done, true) {
                        state.note("init done");
                        state.tell_init_report();
                    }
                });
                return Ok(());
            }
            Ok(Init::Ending) => (ErrorKind::Ended, ended().to_string()),
            Ok(Init::NotStarted(message)) => (ErrorKind::Start, message),
            Ok(Init::Exited { who, exit }) => {
                let how = if exit.starts_with("signal") { exit } else { format!("exit code {exit}") };
                (ErrorKind::InitExit, format!("{who} ended during init ({how}): its output says why"))
            }
            Ok(Init::Failed { who, error }) => {
                (ErrorKind::InitError, format!("{who} reported an init error, {error}: fix that and run again"))
            }
            Err(_elapsed) => {
                let missing = self.world().read(SimState::init_waits_for);
                let message = format!(
                    "init was not over after {limit:?}: waited for {missing}; make it do so, or allow more with init_timeout (--init-timeout)"
                );
                (ErrorKind::InitTimeout, message)
            }
        })
    }

    /// Starts a reset environment again, or returns the invocation that failed with it.
    async fn init_again(&self, deadline: Instant) -> Result<Option<Invocation>, Error> {
        self.ended_record().await;
        let begun = Instant::now();
        if !self.environment.start_again()? {
            return Err(ended());
        }
        let Err((kind, message)) = self.init(deadline, self.config().timeout).await else { return Ok(None) };
        let reported = |state: &SimState| state.runtime.init_error.as_ref().map(|error| error.error_type.clone());
        let (error_type, reason) = match kind {
            ErrorKind::Ended => return Err(ended()),
            ErrorKind::InitTimeout => (TIMED_OUT.to_owned(), Reason::Timeout),
            ErrorKind::InitError => {
                let error_type = self.world().read(reported).unwrap_or_else(|| EXTENSION_INIT.to_owned());
                (error_type, Reason::Failure)
            }
            _ => (RUNTIME_EXIT.to_owned(), Reason::Failure),
        };
        let failed = Invocation {
            request_id: Uuid::new_v4().to_string(),
            ok: false,
            ms: millis(begun.elapsed()),
            first_byte_ms: None,
            payload: Value::Null,
            error: Some(InvocationError { error_type, message }),
        };
        self.world().update(|state| {
            state.note("init failed");
            state.invocations.push(failed.clone());
        });
        self.environment.reset(reason);
        Ok(Some(failed))
    }

    /// The record of this life, when it is over.
    async fn ended_record(&self) -> Record {
        self.world().wait(|state| state.record.clone()).await
    }

    /// Freezes the environment between invocations: SIGSTOP to every process, so that no timer fires and no socket is
    /// read until [`thaw`](Self::thaw), the next invocation or shutdown.
    ///
    /// Waits until the last invocation is over, as Lambda does, at most for the function's timeout.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Ended`] when the environment has ended or is ending; init errors when init was not over yet;
    /// [`ErrorKind::Unsupported`] with [`Config::managed_instances`] and [`Config::web_function`], which are not known to be frozen.
    pub async fn freeze(&self) -> Result<(), Error> {
        if self.config().is_managed() {
            let message = "Managed Instances are never frozen: use Config without managed_instances to see a freeze";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if self.config().is_web() {
            let message = "a Web Function is never frozen: use Config without web_function to see a freeze";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.ready().await?;
        let _turn = self.turn().await;
        self.settle().await;
        if self.environment.freeze("freeze") { Ok(()) } else { Err(ended()) }
    }

    /// Thaws a frozen environment (SIGCONT). Does nothing if it is not frozen.
    pub fn thaw(&self) {
        self.environment.thaw();
    }

    /// Shuts the environment down and returns the record of its life.
    ///
    /// In this order: thaw; SIGTERM to the function's group if an extension is registered, or if it is a Web Function; SIGKILL when the budget is over, or
    /// at once without extensions; then the SHUTDOWN event to external extensions that asked for it, SIGKILL to the others;
    /// SIGKILL to what is left 2,000 ms after the beginning; and SIGKILL to what has left the groups, such as daemons.
    ///
    /// Can be called while an invocation runs: it goes on until the function ends. When shutdown has already begun, by
    /// another call, a timeout or a crash, this waits for it, and the record has *its* reason.
    ///
    /// # Cancel safety
    ///
    /// Shutdown goes on in the background, and can be waited for with another call.
    pub async fn shutdown(&self, reason: Reason) -> Record {
        self.world().update(|state| state.reset = false);
        self.environment.begin_shutdown(reason);
        self.ended_record().await
    }

    /// Kills everything at once (SIGKILL). [`shutdown`](Self::shutdown) still returns the record.
    pub fn kill(&self) {
        self.environment.kill();
    }

    /// Whether the environment has ended or is ending: by [`shutdown`](Self::shutdown), a timeout or a crash. Then only
    /// `shutdown` is of use, and [`invoke`](Self::invoke) after a reset with [`Config::reinit`].
    pub fn has_ended(&self) -> bool {
        self.world().read(SimState::has_ended)
    }

    /// What happened until now.
    pub fn timeline(&self) -> Vec<TimelineEntry> {
        self.world().read(|state| state.timeline.clone())
    }

    /// What the processes have printed until now, if output is captured.
    pub fn output(&self) -> Vec<OutputLine> {
        self.world().read(|state| state.output.clone())
    }

    /// Waits for a captured line that is `wanted`, and returns the first; lines printed before the call count.
    ///
    /// `wanted` must not call this simulator: it runs while what has happened is locked, and could wait for ever.
    ///
    /// `None` when nothing more will come: every process has closed its output, or output is not captured.
    pub async fn wait_for_line(&self, wanted: impl Fn(&OutputLine) -> bool + Send + Sync) -> Option<OutputLine> {
        let mut seen = 0;
        let look = |state: &SimState| {
            let found = state.output[seen..].iter().find(|line| wanted(line)).cloned();
            seen = state.output.len();
            // all of them closed; with external extensions, the function's is opened later
            let ended = state.open_pipes == 0 && (state.init_done || state.has_ended());
            (found.is_some() || ended).then_some(found)
        };
        self.world().wait(look).await
    }

    /// Where the APIs listen: the function's `AWS_LAMBDA_RUNTIME_API`.
    pub fn api_address(&self) -> SocketAddr {
        self.environment.address
    }

    /// The process id of the function, which is also the id of its process group. `None` before it is started.
    pub fn function_pid(&self) -> Option<u32> {
        self.environment.function_pid()
    }

    /// The right to invoke, and to freeze.
    async fn turn(&self) -> SemaphorePermit<'_> {
        self.environment.turns.acquire().await.expect("never closed")
    }

    /// Waits until nothing is in progress that an earlier, dropped call has left.
    async fn settle(&self) {
        let over = |state: &SimState| (state.is_settled() || state.has_ended()).then_some(());
        let limit: Duration = self.config().timeout;
        if timeout(limit, self.world().wait(over)).await.is_err() {
            self.environment.reset(Reason::Timeout);
        }
    }

    fn world(&self) -> &World {
        &self.environment.shared.world
    }

    fn config(&self) -> &Config {
        &self.environment.shared.config
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.environment.kill();
        self.world().update(|state| state.telemetry.end());
        self.server.abort();
    }
}

/// Why no answer will come, in the words of Lambda.
fn lost(state: &SimState) -> Option<(&'static str, String)> {
    if let Some(exit) = &state.runtime.exit {
        let error_type = if state.runtime.out_of_memory { OUT_OF_MEMORY } else { RUNTIME_EXIT };
        return Some((error_type, format!("Runtime exited with {}", exit.describe())));
    }
    // during shutdown, extensions are meant to exit
    let (name, exit) = state.exited_external().filter(|_| state.ending.is_none())?;
    let how = format!("extension {name} exited with {}", exit.describe());
    Some(match state.exit_error(name) {
        Some(error) => (EXTENSION_EXIT, format!("{how} after it had reported {error}")),
        None => (EXTENSION_CRASH, how),
    })
}

fn ended() -> Error {
    Error::new(ErrorKind::Ended, "the environment has ended: see its record, and start another one")
}

const TIMED_OUT: &str = "Sandbox.Timedout";
const OUT_OF_MEMORY: &str = "Runtime.OutOfMemory";
const RUNTIME_EXIT: &str = "Runtime.ExitError";
const EXTENSION_CRASH: &str = "Extension.Crash";
const EXTENSION_INIT: &str = "Extension.InitError";
const EXTENSION_EXIT: &str = "Extension.ExitError";
