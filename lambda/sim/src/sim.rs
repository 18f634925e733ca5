//! The public API: one simulated environment, from start to the end of shutdown.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{SemaphorePermit, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};
use uuid::Uuid;

use crate::adoption::Adoption;
use crate::api::{self, ApiState};
use crate::config::{Config, FUNCTION_VERSION, MEMORY_MB, Mode};
use crate::environment::{Environment, epoch_ms};
use crate::error::{Error, ErrorKind};
use crate::mark::Mark;
use crate::record::{
    EventType, INVOKE, Invocation, InvocationError, OutputLine, RESPONSE, Reason, Record, TimelineEntry,
};
use crate::state::{Answer, Init, Job, Restore, SimState, World, millis};
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
    /// two has [`Config::adopt_orphans`].
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
        let world = World::new(launched, config.mode.initialization_type());
        let shared = Arc::new(ApiState { world, config });
        let server = tokio::spawn(api::serve(listener, Arc::clone(&shared)));
        let family = Family { api: address, mark: Mark::new(), adoption };
        let environment = Arc::new(Environment::new(shared, family, launched));
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

    /// Invokes the function with a JSON event, and returns when the invocation is over: the function has answered, and it
    /// and every extension that gets INVOKE have asked for their next event.
    ///
    /// A frozen environment is thawed first, and a snapshot restored. With [`Config::managed_instances`], several calls run at
    /// once; those above the limit wait their turn. An invocation that fails is not an `Err`: see [`Invocation::ok`]. After a timeout
    /// or a crash the environment is shut down in the background, as Lambda does it; [`shutdown`](Self::shutdown) waits
    /// for that and returns its record. With [`Config::reinit`], the next invocation starts the function again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Ended`] when the environment has ended or is ending; init errors when init was not over yet;
    /// [`ErrorKind::Restore`] when the snapshot could not be restored; [`ErrorKind::TooLarge`] for an event above 6 MiB.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not take the event back: the function still works on it, and the next call waits for that. The
    /// dropped invocation is missing from the record.
    pub async fn invoke(&self, event: Value) -> Result<Invocation, Error> {
        self.invoke_raw(event.to_string()).await
    }

    /// Like [`invoke`](Self::invoke), with any bytes as the event. Whether they are JSON is not checked.
    ///
    /// # Errors
    ///
    /// Those of [`invoke`](Self::invoke).
    pub async fn invoke_raw(&self, event: impl Into<Vec<u8>> + Send) -> Result<Invocation, Error> {
        let event = Bytes::from(event.into());
        if event.len() > MAX_EVENT {
            let message = format!(
                "413: an event of {} bytes, Lambda takes {MAX_EVENT}: send where the data is, instead",
                event.len()
            );
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        self.ready().await?;
        let _turn = self.turn().await;
        let limit = self.config().timeout;
        if self.config().reinit && self.world().read(SimState::has_ended_by_itself) {
            // between invocations: nobody has noticed yet
            self.environment.reset(Reason::Failure);
        }
        // init that is done again is part of the invocation
        let again = self.world().read(|state| state.reset).then(|| Instant::now() + limit);
        if let Some(deadline) = again
            && let Some(failed) = self.init_again(deadline).await?
        {
            return Ok(failed);
        }
        self.restore_in_turn().await?;
        if !self.config().is_managed() {
            self.settle().await;
            self.environment.thaw();
        }

        let begun = Instant::now();
        let deadline = again.unwrap_or(begun + limit);
        let (number, request_id, answered) = self.hand_over(event, deadline)?;
        let answer = self.answer(&request_id, answered, deadline).await;
        let error_type = answer.error.as_ref().map(|error| error.error_type.as_str());
        let event = format!("{RESPONSE}{number} {}", error_type.unwrap_or("ok"));
        let bytes = answer.bytes;
        let invocation = Invocation {
            request_id,
            ok: answer.error.is_none(),
            ms: millis(answer.at.saturating_duration_since(begun)),
            first_byte_ms: answer.first_byte.map(|at| millis(at.saturating_duration_since(begun))),
            payload: answer.payload,
            error: answer.error,
        };
        self.world().update(|state| {
            state.note(event);
            state.invocations.push(invocation.clone());
            if !self.config().is_managed() {
                state.tell("platform.runtimeDone", runtime_done(&invocation, bytes));
            }
        });
        self.finish(deadline).await;
        self.world().update(|state| {
            let init_ms = state.init_ms.take();
            state.tell("platform.report", report(&invocation, begun.elapsed(), init_ms));
        });
        Ok(invocation)
    }

    /// Freezes the environment between invocations: SIGSTOP to every process, so that no timer fires and no socket is
    /// read until [`thaw`](Self::thaw), the next invocation or shutdown.
    ///
    /// Waits until the last invocation is over, as Lambda does, at most for the function's timeout.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Ended`] when the environment has ended or is ending; init errors when init was not over yet;
    /// [`ErrorKind::Unsupported`] with [`Config::managed_instances`], which Lambda does not freeze.
    pub async fn freeze(&self) -> Result<(), Error> {
        if self.config().is_managed() {
            let message = "Managed Instances are never frozen: use Config without managed_instances to see a freeze";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.ready().await?;
        let _turn = self.turn().await;
        self.settle().await;
        if self.environment.freeze("freeze") { Ok(()) } else { Err(ended()) }
    }

    /// Takes the snapshot of a function with [`Config::snap_start`]: waits until its init is over and stops every process, until
    /// [`restore`](Self::restore), the first invocation or shutdown.
    ///
    /// On Lambda one snapshot is restored many times. A process cannot be copied here: to see a second restoration from the
    /// same state, start another environment and take that to its snapshot.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] without [`Config::snap_start`], and after a restoration; [`ErrorKind::Ended`] when the environment has
    /// ended or is ending; init errors.
    pub async fn snapshot(&self) -> Result<(), Error> {
        self.snap_start_only()?;
        self.ready().await?;
        let _turn = self.turn().await;
        if self.world().read(|state| state.restored) {
            let message = "the snapshot has been restored already: start another environment for another snapshot";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if self.environment.freeze("snapshot") { Ok(()) } else { Err(ended()) }
    }

    /// Restores the snapshot of a function with [`Config::snap_start`]: lets its processes go on, answers its
    /// `GET /runtime/restore/next`, and waits until it asks for its first event.
    ///
    /// It has 10 s for that, as on Lambda. A function that never asks `restore/next` has nothing to do. When it fails, the
    /// environment is shut down before this returns, and [`Error::record`] tells how that went. Once restored, this does nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Restore`] when the function reports an error, exits, or takes too long; [`ErrorKind::Unsupported`] without
    /// [`Config::snap_start`]; [`ErrorKind::Ended`] when the environment has ended or is ending; init errors.
    ///
    /// # Cancel safety
    ///
    /// Can be called again; the function's 10 s begin anew.
    pub async fn restore(&self) -> Result<(), Error> {
        self.snap_start_only()?;
        self.ready().await?;
        let _turn = self.turn().await;
        self.restore_in_turn().await
    }

    /// Thaws a frozen environment (SIGCONT). Does nothing if it is not frozen.
    pub fn thaw(&self) {
        self.environment.thaw();
    }

    /// Shuts the environment down and returns the record of its life.
    ///
    /// In this order: thaw; SIGTERM to the function's group if an extension is registered; SIGKILL when the budget is over, or
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

    fn snap_start_only(&self) -> Result<(), Error> {
        if self.config().mode == Mode::SnapStart {
            return Ok(());
        }
        let message = "there is no snapshot: set Config::snap_start for a function that has one";
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    async fn restore_in_turn(&self) -> Result<(), Error> {
        if self.config().mode != Mode::SnapStart || self.world().read(|state| state.restored) {
            return Ok(());
        }
        self.environment.thaw();
        let begun = Instant::now();
        self.world().update(|state| {
            if state.runtime.restore == Restore::Waiting {
                state.runtime.restore = Restore::Told;
                state.note("restore");
            }
            let config = self.config();
            let record = json!({"functionName": config.function_name, "functionVersion": FUNCTION_VERSION});
            state.tell("platform.restoreStart", record);
        });
        let look = |state: &SimState| match &state.runtime.restore {
            Restore::Failed(error) => Some(Err(format!("{}: {}", error.error_type, error.message))),
            _ if state.ending.is_some() || state.killed => Some(Err(ended().to_string())),
            _ => match &state.runtime.exit {
                Some(exit) => Some(Err(format!("Runtime.ExitError: it exited with {}", exit.describe()))),
                None => state.runtime.polled.then_some(Ok(())),
            },
        };
        let end = timeout(RESTORE_LIMIT, self.world().wait(look)).await;
        let message = match end {
            Ok(Ok(())) => {
                self.world().update(|state| {
                    state.restored = true;
                    state.note("restored");
                    state.tell("platform.restoreRuntimeDone", json!({"status": "success"}));
                    let metrics = json!({"durationMs": millis(begun.elapsed())});
                    state.tell("platform.restoreReport", json!({"status": "success", "metrics": metrics}));
                });
                return Ok(());
            }
            Ok(Err(_)) if self.world().read(|state| state.ending.is_some() || state.killed) => return Err(ended()),
            Ok(Err(message)) => message,
            Err(_elapsed) => {
                format!("Runtime.RestoreHookUserTimeout: it did not ask for an event within {RESTORE_LIMIT:?}")
            }
        };
        self.world().update(|state| state.note("restore failed"));
        let record = self.shutdown(Reason::Failure).await;
        let message = format!("the function could not be restored, {message}: look at what it does after restore/next");
        Err(Error::new(ErrorKind::Restore, message).with_record(record))
    }

    /// The right to invoke, and to freeze.
    async fn turn(&self) -> SemaphorePermit<'_> {
        self.environment.turns.acquire().await.expect("never closed")
    }

    /// Queues the event for the function and the extensions.
    fn hand_over(&self, payload: Bytes, deadline: Instant) -> Result<(u64, String, oneshot::Receiver<Answer>), Error> {
        let request_id = Uuid::new_v4().to_string();
        let job = Job {
            request_id: request_id.clone(),
            payload,
            deadline_ms: epoch_ms(deadline),
            arn: self.config().arn(),
            trace_id: trace_id(),
        };
        let (answer, answered) = oneshot::channel();
        self.world().update(|state| {
            if state.has_ended() {
                return Err(ended());
            }
            state.invocations_begun += 1;
            let number = state.invocations_begun;
            state.note(format!("{INVOKE}{number} {request_id}"));
            let tracing = json!({"type": "X-Amzn-Trace-Id", "value": job.trace_id});
            let record = json!({"requestId": request_id, "version": FUNCTION_VERSION, "tracing": tracing});
            state.tell("platform.start", record);
            for extension in state.extensions.iter_mut().filter(|it| it.events.contains(&EventType::Invoke)) {
                extension.ready = false;
                extension.queue.push_back(api::invoke_event(&job));
            }
            state.runtime.ready = false;
            state.runtime.in_flight.insert(request_id.clone(), answer);
            state.runtime.queue.push_back(job);
            Ok((number, request_id, answered))
        })
    }

    /// Waits for the answer, or makes one of what came instead.
    async fn answer(&self, request_id: &str, mut answered: oneshot::Receiver<Answer>, deadline: Instant) -> Answer {
        let (error_type, message) = tokio::select! {
            // an answer that is there counts, even if the process has ended since
            biased;
            Ok(answer) = &mut answered => return answer,
            lost = self.world().wait(lost) => lost,
            () = tokio::time::sleep_until(deadline.into()) => {
                let limit = self.config().timeout.as_secs_f64();
                (TIMED_OUT, format!("Task timed out after {limit:.2} seconds"))
            }
        };
        if let Ok(answer) = answered.try_recv() {
            return answer;
        }
        match error_type {
            // the code goes on running, and so does the environment
            TIMED_OUT if self.config().is_managed() => self.world().update(|state| {
                state.runtime.in_flight.remove(request_id);
                state.runtime.queue.retain(|job| job.request_id != request_id);
                state.runtime.timed_out.insert(request_id.to_owned());
            }),
            TIMED_OUT => self.environment.reset(Reason::Timeout),
            _ => self.environment.reset(Reason::Failure),
        }
        let error = InvocationError {
            error_type: error_type.to_owned(),
            message: format!("RequestId: {request_id} Error: {message}"),
        };
        Answer::failed(error)
    }

    /// Waits until an answered invocation is over. What keeps it from that ends the environment.
    async fn finish(&self, deadline: Instant) {
        if self.config().is_managed() {
            // no extension takes part in an invocation, and nothing is frozen after it
            if self.world().read(SimState::has_ended) {
                self.environment.reset(Reason::Failure);
            }
            return;
        }
        let over = |state: &SimState| (state.is_settled() || state.has_ended()).then_some(());
        let in_time = timeout_at(deadline.into(), self.world().wait(over)).await.is_ok();
        if !in_time {
            self.environment.reset(Reason::Timeout);
        } else if self.world().read(SimState::has_ended) {
            self.environment.reset(Reason::Failure);
        }
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
        return Some((RUNTIME_EXIT, format!("Runtime exited with {}", exit.describe())));
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

/// The words of telemetry for how an invocation ended.
fn status(invocation: &Invocation) -> &'static str {
    match invocation.error.as_ref().map(|error| error.error_type.as_str()) {
        None => "success",
        Some(TIMED_OUT) => "timeout",
        Some(RUNTIME_EXIT | EXTENSION_EXIT | EXTENSION_CRASH) => "failure",
        Some(_) => "error",
    }
}

fn runtime_done(invocation: &Invocation, bytes: usize) -> Value {
    let mut record = json!({
        "requestId": invocation.request_id,
        "status": status(invocation),
        "metrics": {"durationMs": invocation.ms, "producedBytes": bytes},
    });
    if let Some(error) = &invocation.error {
        record["errorType"] = error.error_type.as_str().into();
    }
    record
}

fn report(invocation: &Invocation, took: Duration, init_ms: Option<f64>) -> Value {
    let mut record = json!({
        "requestId": invocation.request_id,
        "status": status(invocation),
        "metrics": {
            "durationMs": millis(took),
            "billedDurationMs": millis(took).ceil() as u64,
            "memorySizeMB": MEMORY_MB,
            "maxMemoryUsedMB": MEMORY_MB,
        },
    });
    if let Some(init_ms) = init_ms {
        record["metrics"]["initDurationMs"] = init_ms.into();
    }
    if let Some(error) = &invocation.error {
        record["errorType"] = error.error_type.as_str().into();
    }
    record
}

/// In the form of an X-Ray trace header, unsampled.
fn trace_id() -> String {
    let id = Uuid::new_v4().simple().to_string();
    let parent = Uuid::new_v4().simple().to_string();
    format!("Root=1-{}-{};Parent={};Sampled=0", &id[..8], &id[8..], &parent[..16])
}

const TIMED_OUT: &str = "Sandbox.Timedout";
const RUNTIME_EXIT: &str = "Runtime.ExitError";
const EXTENSION_CRASH: &str = "Extension.Crash";
const EXTENSION_INIT: &str = "Extension.InitError";
const EXTENSION_EXIT: &str = "Extension.ExitError";
/// AWS: "Lambda quotas", invocation payload, with the slack of AWS's own emulator (`interop.MaxPayloadSize`).
const MAX_EVENT: usize = 6 * 1024 * 1024 + 100;
/// AWS: "Runtime hooks for Lambda SnapStart", after restore.
const RESTORE_LIMIT: Duration = Duration::from_secs(10);
