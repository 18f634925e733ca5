//! Everything the API handlers, the processes and the public API know in common, and a way to wait for it to change.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::config::{Config, FUNCTION_VERSION};
use crate::process::Exit;
use crate::record::{
    EventType, ExtensionKind, Invocation, InvocationError, OutputLine, Part, Reason, Record, Reset, TimelineEntry,
};
use crate::telemetry::{Category, Telemetry};

/// The shared [`SimState`]. Every change wakes every waiter, who look again; no lock is held while waiting.
#[derive(Debug)]
pub(crate) struct World {
    state: watch::Sender<SimState>,
}

impl World {
    pub(crate) fn new(started: Instant, config: &Config) -> Self {
        Self { state: watch::Sender::new(SimState::new(started, config)) }
    }

    /// Looks at the state.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&SimState) -> T) -> T {
        look(&self.state.borrow())
    }

    /// Changes the state. Can be called from any thread.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut SimState) -> T) -> T {
        let mut result = None;
        self.state.send_modify(|state| result = Some(change(state)));
        result.expect("send_modify calls its closure")
    }

    /// Waits until `look` finds what it is looking for. Cancel safe.
    pub(crate) async fn wait<T>(&self, mut look: impl FnMut(&SimState) -> Option<T>) -> T {
        let mut changes = self.state.subscribe();
        loop {
            let found = look(&changes.borrow_and_update());
            match found {
                Some(found) => return found,
                None => changes.changed().await.expect("the sender is self"),
            }
        }
    }

    /// Waits until `take` takes something out of the state. Cancel safe: what is taken is returned at once.
    pub(crate) async fn take<T>(&self, mut take: impl FnMut(&mut SimState) -> Option<T>) -> T {
        let mut changes = self.state.subscribe();
        loop {
            let mut taken = None;
            changes.mark_unchanged();
            self.state.send_if_modified(|state| {
                taken = take(state);
                taken.is_some()
            });
            match taken {
                Some(taken) => return taken,
                None => changes.changed().await.expect("the sender is self"),
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct SimState {
    started: Instant,
    pub(crate) runtime: Runtime,
    pub(crate) extensions: Vec<Extension>,
    pub(crate) externals: Vec<External>,
    /// Why the function could not be started, where that happens after `launch` has returned.
    pub(crate) start_error: Option<String>,
    pub(crate) init_done: bool,
    pub(crate) frozen: bool,
    /// Set when shutdown begins: nothing is started or handed out any more.
    pub(crate) ending: Option<Reason>,
    /// That was a reset, and nobody has asked for the end of the environment.
    pub(crate) reset: bool,
    /// Which life of the environment this is.
    pub(crate) life: u64,
    /// How the earlier ones ended.
    pub(crate) resets: Vec<Reset>,
    /// Set when everything was killed by hand: the same, without a shutdown.
    pub(crate) killed: bool,
    /// The snapshot has been restored, as far as the environment is concerned.
    pub(crate) restored: bool,
    /// Captured pipes that are still open.
    pub(crate) open_pipes: usize,
    /// Those of them that are the function's.
    pub(crate) function_pipes: usize,
    pub(crate) telemetry: Telemetry,
    /// How long init took, until the first report of an invocation has told it.
    pub(crate) init_ms: Option<f64>,
    /// How Lambda calls the way this environment begins.
    initialization_type: &'static str,
    /// How large the function's memory is.
    memory_mb: u32,
    pub(crate) invocations_begun: u64,
    pub(crate) invocations: Vec<Invocation>,
    pub(crate) timeline: Vec<TimelineEntry>,
    pub(crate) output: Vec<OutputLine>,
    /// How many processes were killed that had left the groups.
    pub(crate) strays: usize,
    /// Set when shutdown is over.
    pub(crate) record: Option<Record>,
}

/// The function, as seen through the Runtime API.
#[derive(Debug, Default)]
pub(crate) struct Runtime {
    /// It has asked for its first event: registration is closed.
    pub(crate) polled: bool,
    /// It is waiting for an event.
    pub(crate) ready: bool,
    /// How many of its requests for an event are waiting.
    pub(crate) polls: usize,
    pub(crate) restore: Restore,
    pub(crate) queue: VecDeque<Job>,
    /// Who waits for the answer, by request id.
    pub(crate) in_flight: HashMap<String, Waiting>,
    /// Answered, and the next event not asked for yet: a second answer is a different mistake from an unknown id.
    pub(crate) answered: HashSet<String>,
    /// Failed by the timeout, where the environment lives on: so is a late answer.
    pub(crate) timed_out: HashSet<String>,
    pub(crate) init_error: Option<InvocationError>,
    pub(crate) exit: Option<Exit>,
    /// It was killed because it needed more memory than it has.
    pub(crate) out_of_memory: bool,
    /// Where a Web Function has to listen.
    pub(crate) endpoint: Option<SocketAddr>,
    /// It listens there.
    pub(crate) listens: bool,
    /// How many requests it has not answered yet.
    pub(crate) requests: usize,
}

impl Runtime {
    /// It has come to the end of its init: registration is closed.
    pub(crate) fn is_initialised(&self) -> bool {
        match self.endpoint {
            Some(_) => self.listens,
            None => self.polled || self.restore != Restore::NotAsked,
        }
    }
}

/// Where a function is between its snapshot and the end of its restoration.
#[derive(Debug, Default, PartialEq)]
pub(crate) enum Restore {
    /// It has not asked to be told. It may never do: then there is nothing to wait for.
    #[default]
    NotAsked,
    /// It waits to be restored.
    Waiting,
    /// It has been told, and has not asked for its first event yet.
    Told,
    Failed(InvocationError),
}

/// Who waits for an answer.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) answer: oneshot::Sender<Answer>,
    /// Who wants to have it as it comes.
    pub(crate) listener: Option<Listener>,
}

/// Is told each part of an answer.
#[derive(Clone)]
pub(crate) struct Listener(pub(crate) Arc<dyn Fn(Part<'_>) + Send + Sync>);

impl Listener {
    pub(crate) fn tell(&self, part: Part<'_>) {
        (self.0)(part);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// An event for the function.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request_id: String,
    pub(crate) payload: Bytes,
    pub(crate) deadline_ms: u64,
    pub(crate) arn: String,
    pub(crate) trace_id: String,
}

/// What the function answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) at: Instant,
    pub(crate) payload: Value,
    pub(crate) error: Option<InvocationError>,
    /// When a streamed answer began.
    pub(crate) first_byte: Option<Instant>,
    /// How long its body was.
    pub(crate) bytes: usize,
}

impl Answer {
    /// What the caller is told where the function did not answer.
    pub(crate) fn failed(error: InvocationError) -> Self {
        Self { at: Instant::now(), payload: Value::Null, error: Some(error), first_byte: None, bytes: 0 }
    }
}

#[derive(Debug)]
pub(crate) struct Extension {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) kind: ExtensionKind,
    pub(crate) events: Vec<EventType>,
    /// It has asked for its first event.
    pub(crate) polled: bool,
    /// It is waiting for an event.
    pub(crate) ready: bool,
    pub(crate) queue: VecDeque<Value>,
    pub(crate) delivered: u64,
    pub(crate) init_error: Option<String>,
    /// It has said that it is about to exit.
    pub(crate) exit_error: Option<String>,
}

/// The process of an external extension.
#[derive(Debug)]
pub(crate) struct External {
    pub(crate) name: String,
    pub(crate) exit: Option<Exit>,
}

/// How init ended.
#[derive(Debug, PartialEq)]
pub(crate) enum Init {
    Done,
    NotStarted(String),
    Exited { who: String, exit: String },
    Failed { who: String, error: String },
    Ending,
}

impl SimState {
    fn new(started: Instant, config: &Config) -> Self {
        Self {
            started,
            runtime: Runtime::default(),
            extensions: Vec::new(),
            externals: Vec::new(),
            start_error: None,
            init_done: false,
            frozen: false,
            ending: None,
            reset: false,
            life: 0,
            resets: Vec::new(),
            killed: false,
            restored: false,
            open_pipes: 0,
            function_pipes: 0,
            telemetry: Telemetry::default(),
            init_ms: None,
            initialization_type: config.mode.initialization_type(),
            memory_mb: config.memory_size(),
            invocations_begun: 0,
            invocations: Vec::new(),
            timeline: Vec::new(),
            output: Vec::new(),
            strays: 0,
            record: None,
        }
    }

    /// Begins another life. What has happened until now stays.
    pub(crate) fn begin_again(&mut self) {
        if let Some(Record { function, shutdown, .. }) = self.record.take() {
            self.resets.push(Reset { function, shutdown });
        }
        self.runtime = Runtime::default();
        self.extensions.clear();
        self.externals.clear();
        self.telemetry = Telemetry::default();
        (self.start_error, self.init_ms, self.ending) = (None, None, None);
        (self.init_done, self.restored, self.reset) = (false, false, false);
        self.strays = 0;
        self.life += 1;
        self.note("start again");
    }

    /// Adds to the timeline.
    pub(crate) fn note(&mut self, event: impl Into<String>) {
        let entry = TimelineEntry { at_ms: self.now_ms(), event: event.into() };
        self.timeline.push(entry);
    }

    /// Tells a platform event to the extensions that have subscribed to telemetry.
    pub(crate) fn tell(&mut self, event_type: &str, record: Value) {
        self.telemetry.tell(Category::Platform, event_type, record);
    }

    pub(crate) fn tell_init_start(&mut self, function_name: &str) {
        let record = json!({
            "initializationType": self.initialization_type,
            "phase": "init",
            "functionName": function_name,
            "functionVersion": FUNCTION_VERSION,
            "instanceId": Uuid::new_v4().to_string(),
            "instanceMaxMemory": u64::from(self.memory_mb) * 1024 * 1024,
        });
        self.tell("platform.initStart", record);
    }

    pub(crate) fn tell_init_runtime_done(&mut self, error_type: Option<&str>) {
        let mut record = json!({
            "initializationType": self.initialization_type,
            "phase": "init",
            "status": if error_type.is_some() { "error" } else { "success" },
        });
        if let Some(error_type) = error_type {
            record["errorType"] = error_type.into();
        }
        self.tell("platform.initRuntimeDone", record);
    }

    /// Init is over: the last events of it, and no new subscriptions.
    pub(crate) fn tell_init_report(&mut self) {
        let ready: Vec<_> =
            self.extensions.iter().map(|it| json!({"name": it.name, "state": "Ready", "events": it.events})).collect();
        for record in ready {
            self.tell("platform.extension", record);
        }
        let record = json!({
            "initializationType": self.initialization_type,
            "phase": "init",
            "status": "success",
            "metrics": {"durationMs": self.now_ms()},
        });
        self.init_ms = Some(self.now_ms());
        self.tell("platform.initReport", record);
        self.telemetry.close();
    }

    pub(crate) fn now_ms(&self) -> f64 {
        millis(self.started.elapsed())
    }

    /// How init ended, or `None` while it goes on.
    pub(crate) fn init(&self) -> Option<Init> {
        if let Some(error) = &self.start_error {
            return Some(Init::NotStarted(error.clone()));
        }
        if let Some(error) = &self.runtime.init_error {
            let error = format!("{}: {}", error.error_type, error.message);
            return Some(Init::Failed { who: "the function".to_owned(), error });
        }
        if let Some((name, error)) = self.extensions.iter().find_map(|it| Some((&it.name, it.init_error.as_ref()?))) {
            return Some(Init::Failed { who: format!("extension {name}"), error: error.clone() });
        }
        // an exit during shutdown is not why init failed
        if self.ending.is_some() || self.killed {
            return Some(Init::Ending);
        }
        if let Some(exit) = &self.runtime.exit {
            return Some(Init::Exited { who: "the function".to_owned(), exit: exit.describe() });
        }
        if let Some((name, exit)) = self.exited_external() {
            return Some(Init::Exited { who: format!("external extension {name}"), exit: exit.describe() });
        }
        let done =
            self.externals_registered() && self.runtime.is_initialised() && self.extensions.iter().all(|it| it.polled);
        done.then_some(Init::Done)
    }

    /// Who init is still waiting for, and what they have to do.
    pub(crate) fn init_waits_for(&self) -> String {
        let mut missing: Vec<String> = self
            .externals
            .iter()
            .filter(|it| !self.is_registered(&it.name))
            .map(|it| format!("external extension {} to register under its file name", it.name))
            .collect();
        if missing.is_empty() && !self.runtime.is_initialised() {
            missing.push(match self.runtime.endpoint {
                Some(endpoint) => format!("the function to listen on {endpoint}, its AWS_LAMBDA_HTTP_ENDPOINT"),
                None => "the function to GET /2018-06-01/runtime/invocation/next".to_owned(),
            });
        }
        let silent = self.extensions.iter().filter(|it| !it.polled);
        missing.extend(silent.map(|it| format!("extension {} to GET /2020-01-01/extension/event/next", it.name)));
        missing.join(", and for ")
    }

    pub(crate) fn externals_registered(&self) -> bool {
        self.externals.iter().all(|it| self.is_registered(&it.name))
    }

    pub(crate) fn exited_external(&self) -> Option<(&str, &Exit)> {
        self.externals.iter().find_map(|it| Some((it.name.as_str(), it.exit.as_ref()?)))
    }

    /// What the extension has said of its exit.
    pub(crate) fn exit_error(&self, name: &str) -> Option<&str> {
        self.extensions.iter().find(|it| it.name == name)?.exit_error.as_deref()
    }

    /// The last invocation is over: the function and every extension that gets INVOKE have asked for their next event
    /// (AWS: "Lambda execution environment lifecycle", invoke phase).
    pub(crate) fn is_settled(&self) -> bool {
        (self.runtime.ready || self.runtime.restore == Restore::Waiting)
            && self.extensions.iter().filter(|it| it.events.contains(&EventType::Invoke)).all(|it| it.ready)
    }

    /// Nothing will be answered or settled any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ending.is_some() || self.killed || self.runtime.exit.is_some() || self.exited_external().is_some()
    }

    /// A process has exited, and nothing has been done about it.
    pub(crate) fn has_ended_by_itself(&self) -> bool {
        self.has_ended() && self.ending.is_none() && !self.killed
    }

    fn is_registered(&self, name: &str) -> bool {
        self.extensions.iter().any(|it| it.kind == ExtensionKind::External && it.name == name)
    }
}

/// Milliseconds to the microsecond: more digits are noise.
pub(crate) fn millis(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
