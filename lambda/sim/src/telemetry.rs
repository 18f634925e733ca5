//! Telemetry for extensions: what is told, and how it is delivered.
//!
//! Events and their names: AWS, "Lambda Telemetry API event schema reference". Delivery: "Lambda Telemetry API", buffering.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::api::ApiState;

/// What an extension can subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Category {
    Platform,
    Function,
    Extension,
}

impl Category {
    /// The type of the category's log lines.
    pub(crate) fn event_type(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Function => "function",
            Self::Extension => "extension",
        }
    }
}

/// What has been told, and to whom.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    subscribers: Vec<Subscriber>,
    /// Told during init, for those who subscribe later in it.
    backlog: Vec<(Category, String)>,
    closed: bool,
}

#[derive(Debug)]
struct Subscriber {
    extension: String,
    types: Vec<Category>,
    queue: mpsc::UnboundedSender<Message>,
}

#[derive(Debug)]
pub(crate) enum Message {
    Event(String),
    /// Answered when everything before it is delivered, or given up.
    Flush(oneshot::Sender<()>),
}

/// Where an extension is told, on this machine, and when a batch is sent.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) max_items: u64,
    pub(crate) max_bytes: u64,
    pub(crate) timeout: Duration,
}

impl Telemetry {
    /// Tells an event to everyone who has subscribed to its category.
    pub(crate) fn tell(&mut self, category: Category, event_type: &str, record: Value) {
        if self.closed && self.subscribers.is_empty() {
            return;
        }
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let event = json!({"time": time, "type": event_type, "record": record}).to_string();
        for subscriber in self.subscribers.iter().filter(|it| it.types.contains(&category)) {
            // one whose task has ended has been unsubscribed
            let _ = subscriber.queue.send(Message::Event(event.clone()));
        }
        if !self.closed && self.backlog.len() < BACKLOG {
            self.backlog.push((category, event));
        }
    }

    /// Adds a subscriber, or replaces the one there is of this extension. Returns what it will be told.
    pub(crate) fn subscribe(&mut self, extension: &str, types: &[Category]) -> mpsc::UnboundedReceiver<Message> {
        let (queue, messages) = mpsc::unbounded_channel();
        let known = self.subscribers.iter().position(|it| it.extension == extension);
        if let Some(known) = known {
            self.subscribers.swap_remove(known);
        } else {
            for (_, event) in self.backlog.iter().filter(|(category, _)| types.contains(category)) {
                let _ = queue.send(Message::Event(event.clone()));
            }
        }
        self.subscribers.push(Subscriber { extension: extension.to_owned(), types: types.to_vec(), queue });
        self.tell(
            Category::Platform,
            "platform.telemetrySubscription",
            json!({"name": extension, "state": "Subscribed", "types": types}),
        );
        messages
    }

    /// Init is over: nobody can subscribe any more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.backlog = Vec::new();
    }

    /// Ends every delivery. What is not delivered yet is not.
    pub(crate) fn end(&mut self) {
        self.subscribers.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.subscribers.is_empty()
    }

    /// Asks every subscriber's delivery to tell when it has caught up.
    pub(crate) fn flush(&self) -> Vec<oneshot::Receiver<()>> {
        let ask = |it: &Subscriber| {
            let (done, caught_up) = oneshot::channel();
            it.queue.send(Message::Flush(done)).ok().map(|()| caught_up)
        };
        self.subscribers.iter().filter_map(ask).collect()
    }
}

/// Delivers what one subscriber is told to its listener on this machine, until it is unsubscribed.
pub(crate) async fn deliver(shared: Arc<ApiState>, mut messages: mpsc::UnboundedReceiver<Message>, listener: Listener) {
    let mut batch = Batch::default();
    loop {
        let next = match batch.due {
            Some(due) => timeout_at(due, messages.recv()).await,
            None => Ok(messages.recv().await),
        };
        let caught_up = match next {
            Ok(None) => return,
            Ok(Some(Message::Event(event))) => {
                batch.add(event, listener.timeout);
                if (batch.events.len() as u64) < listener.max_items && (batch.bytes as u64) < listener.max_bytes {
                    continue;
                }
                None
            }
            Ok(Some(Message::Flush(done))) => Some(done),
            Err(_due) => None,
        };
        // a frozen listener hears nothing; at the thaw it is sent what has come together
        shared.world.wait(|state| (!state.frozen || state.killed).then_some(())).await;
        if !batch.events.is_empty() {
            let body = format!("[{}]", batch.events.join(","));
            let lost = if timeout(DELIVERY, post(&listener, body)).await.is_ok_and(|sent| sent.is_ok()) {
                None
            } else {
                Some((batch.events.len(), batch.bytes))
            };
            batch = Batch::default();
            batch.lost = lost;
        }
        if let Some(caught_up) = caught_up {
            let _ = caught_up.send(());
        }
    }
}

/// Events that are sent together.
#[derive(Default)]
struct Batch {
    events: Vec<String>,
    bytes: usize,
    due: Option<Instant>,
    /// How many events and bytes the batch before could not deliver, to be told with the next event.
    lost: Option<(usize, usize)>,
}

impl Batch {
    fn add(&mut self, event: String, wait: Duration) {
        self.due.get_or_insert_with(|| Instant::now() + wait);
        if let Some((records, bytes)) = self.lost.take() {
            let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
            let record =
                json!({"reason": "the listener did not take them", "droppedRecords": records, "droppedBytes": bytes});
            self.push(json!({"time": time, "type": "platform.logsDropped", "record": record}).to_string());
        }
        self.push(event);
    }

    fn push(&mut self, event: String) {
        self.bytes += event.len();
        self.events.push(event);
    }
}

async fn post(listener: &Listener, body: String) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let port = listener.port;
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post(&listener.path)
        .header(header::HOST, format!("sandbox.localdomain:{port}"))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .body(Body::from(Bytes::from(body)))?;
    // both in this task: nothing is left behind when it is given up
    let (response, _) = tokio::join!(sender.send_request(request), connection);
    let status = response?.status();
    if status.is_success() { Ok(()) } else { Err(format!("status {status}").into()) }
}

/// More than any extension leaves unsaid until it subscribes.
const BACKLOG: usize = 10_000;
/// How long a listener may take for one batch. The docs name none; longer would hold up what follows.
const DELIVERY: Duration = Duration::from_secs(2);
