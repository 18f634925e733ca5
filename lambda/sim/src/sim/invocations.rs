//! One invocation, from its event to its record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout_at;
use uuid::Uuid;

use super::{EXTENSION_CRASH, EXTENSION_EXIT, OUT_OF_MEMORY, RUNTIME_EXIT, Sim, TIMED_OUT, ended, lost};
use crate::api;
use crate::config::FUNCTION_VERSION;
use crate::environment::epoch_ms;
use crate::error::{Error, ErrorKind};
use crate::record::{EventType, INVOKE, Invocation, InvocationError, Part, RESPONSE, Reason};
use crate::state::{Answer, Job, Listener, SimState, Waiting, millis};

/// AWS: "Lambda quotas", invocation payload, with the slack of AWS's own emulator (`interop.MaxPayloadSize`).
const MAX_EVENT: usize = 6 * 1024 * 1024 + 100;

impl Sim {
    /// Invokes the function with a JSON event, and returns when the invocation is over: the function has answered, and it
    /// and every extension that gets INVOKE have asked for their next event.
    ///
    /// A frozen environment is thawed first, and a snapshot restored. With [`Config::managed_instances`](crate::Config::managed_instances), several calls run at
    /// once; those above the limit wait their turn. An invocation that fails is not an `Err`: see [`Invocation::ok`]. After a timeout
    /// or a crash the environment is shut down in the background, as Lambda does it; [`shutdown`](Self::shutdown) waits
    /// for that and returns its record. With [`Config::reinit`](crate::Config::reinit), the next invocation starts the function again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Ended`] when the environment has ended or is ending; init errors when init was not over yet;
    /// [`ErrorKind::Restore`] when the snapshot could not be restored; [`ErrorKind::TooLarge`] for an event above 6 MiB;
    /// [`ErrorKind::Unsupported`] for a Web Function, which has [requests](Self::request).
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
        self.invoke_for(Bytes::from(event.into()), None).await
    }

    /// Like [`invoke_raw`](Self::invoke_raw), and calls `on_part` with what the function answers as it comes: a streamed response in
    /// many pieces, any other in one, and each byte as the function has sent it.
    ///
    /// `on_part` must neither block nor call this simulator. What it was given counts only if the invocation turns out to be
    /// [`ok`](Invocation::ok).
    ///
    /// # Errors
    ///
    /// Those of [`invoke`](Self::invoke).
    pub async fn invoke_streamed(
        &self,
        event: impl Into<Vec<u8>> + Send,
        on_part: impl Fn(Part<'_>) + Send + Sync + 'static,
    ) -> Result<Invocation, Error> {
        self.invoke_for(Bytes::from(event.into()), Some(Listener(Arc::new(on_part)))).await
    }

    async fn invoke_for(&self, event: Bytes, listener: Option<Listener>) -> Result<Invocation, Error> {
        if event.len() > MAX_EVENT {
            let message = format!(
                "413: an event of {} bytes, Lambda takes {MAX_EVENT}: send where the data is, instead",
                event.len()
            );
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        if self.config().is_web() {
            let message = "a Web Function has no events: send it requests, with Sim::request (--request)";
            return Err(Error::new(ErrorKind::Unsupported, message));
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
        let (number, request_id, answered) = self.hand_over(event, deadline, listener)?;
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
        let size = self.config().memory_size();
        let used =
            self.environment.group.as_ref().and_then(|group| group.most_used_mb()).unwrap_or_else(|| size.into());
        let memory = Memory { size, used };
        self.world().update(|state| {
            let init_ms = state.init_ms.take();
            state.tell("platform.report", report(&invocation, begun.elapsed(), init_ms, memory));
        });
        Ok(invocation)
    }

    /// Queues the event for the function and the extensions.
    pub(super) fn hand_over(
        &self,
        payload: Bytes,
        deadline: Instant,
        listener: Option<Listener>,
    ) -> Result<(u64, String, oneshot::Receiver<Answer>), Error> {
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
            state.runtime.in_flight.insert(request_id.clone(), Waiting { answer, listener });
            state.runtime.queue.push_back(job);
            Ok((number, request_id, answered))
        })
    }

    /// Waits for the answer, or makes one of what came instead.
    pub(super) async fn answer(
        &self,
        request_id: &str,
        mut answered: oneshot::Receiver<Answer>,
        deadline: Instant,
    ) -> Answer {
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
        // nobody listens any more; whether an answer that comes all the same is accepted is another matter
        self.world().update(|state| {
            state.runtime.in_flight.get_mut(request_id).map(|waiting| waiting.listener.take());
        });
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
    pub(super) async fn finish(&self, deadline: Instant) {
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
}

/// The words of telemetry for how an invocation ended.
fn status(invocation: &Invocation) -> &'static str {
    match invocation.error.as_ref().map(|error| error.error_type.as_str()) {
        None => "success",
        Some(TIMED_OUT) => "timeout",
        Some(OUT_OF_MEMORY | RUNTIME_EXIT | EXTENSION_EXIT | EXTENSION_CRASH) => "failure",
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

/// In MB: what the function has, and what it has used at most. Where that is not measured, all of it.
struct Memory {
    size: u32,
    used: u64,
}

fn report(invocation: &Invocation, took: Duration, init_ms: Option<f64>, memory: Memory) -> Value {
    let mut record = json!({
        "requestId": invocation.request_id,
        "status": status(invocation),
        "metrics": {
            "durationMs": millis(took),
            "billedDurationMs": millis(took).ceil() as u64,
            "memorySizeMB": memory.size,
            "maxMemoryUsedMB": memory.used,
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
