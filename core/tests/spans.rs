//! Each resource's drain is a span: what is said in it is inside, and its end says what the report says. The subscriber is the
//! process's own, since a drain has threads of its own.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::Barrier;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
};
use winddown_core::{
    Capabilities, Error, ErrorKind, Lifecycle, Outcome, Records, Resource, Retry,
    adapter::{Accounting, Drain, End, Ends, Ledger, News, Source},
};

type Fields = BTreeMap<&'static str, String>;

/// What was said, with the resource of each span around it; and the spans that have ended.
#[derive(Debug, Default)]
struct Seen {
    events: Vec<(String, Vec<String>)>,
    ended: Vec<Fields>,
}

fn seen() -> MutexGuard<'static, Seen> {
    static SEEN: Mutex<Seen> = Mutex::new(Seen { events: Vec::new(), ended: Vec::new() });
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The resources of the drains in which this was said, once for each time.
fn said_in(message: &str) -> Vec<Vec<String>> {
    seen().events.iter().filter(|(said, _)| said == message).map(|(_, resources)| resources.clone()).collect()
}

/// The one span of this resource that has ended.
fn ended(resource: &str) -> Fields {
    let seen = seen();
    let mut spans = seen.ended.iter().filter(|fields| fields["resource"] == resource);
    let span = spans.next().unwrap_or_else(|| panic!("no span of {resource} has ended: {seen:?}")).clone();
    assert_eq!(spans.next(), None, "one drain is one span");
    span
}

struct Fill<'a>(&'a mut Fields);

impl Visit for Fill<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

struct Watch;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Watch {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut Fill(&mut fields));
        context.span(id).unwrap().extensions_mut().insert(fields);
    }
    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let mut extensions = span.extensions_mut();
        values.record(&mut Fill(extensions.get_mut::<Fields>().unwrap()));
    }
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Fill(&mut fields));
        let drains = context.event_scope(event).into_iter().flatten().filter(|span| span.name() == "drain");
        let resources = drains.map(|span| span.extensions().get::<Fields>().unwrap()["resource"].clone()).collect();
        seen().events.push((fields.remove("message").unwrap_or_default(), resources));
    }
    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        if span.name() == "drain" {
            seen().ended.push(span.extensions().get::<Fields>().unwrap().clone());
        }
    }
}

fn lifecycle() -> Lifecycle {
    static SET: OnceLock<()> = OnceLock::new();
    SET.get_or_init(|| {
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Watch)).unwrap();
    });
    Lifecycle::builder().signals(false).budget(Duration::from_secs(60)).retry(Retry::never()).build().unwrap()
}

/// Says what it does in each part of its goodbye.
struct Tells {
    name: &'static str,
    /// Where it waits for the others in the middle of its goodbye.
    together: Arc<Barrier>,
    fails: bool,
    ledger: Option<Arc<Ledger>>,
}

impl Tells {
    fn new(name: &'static str) -> Self {
        Self { name, together: Arc::new(Barrier::new(1)), fails: false, ledger: None }
    }
}

impl Resource for Tells {
    type Pool = ();

    fn name(&self) -> &str {
        self.name
    }
    async fn init(&self) -> Result<(), Error> {
        tracing::info!("{} is opened", self.name);
        Ok(())
    }
    async fn goodbye(&self, (): &(), drain: &Drain) -> Result<(), Error> {
        tracing::info!("{} says goodbye", self.name);
        self.together.wait().await;
        tracing::info!("{} goes on", self.name);
        let sessions = Sessions { name: self.name, left: Arc::new(Mutex::new(vec![(), ()])), ended: Arc::default() };
        drain.sessions(&sessions).await?;
        if self.fails { Err(Error::new(ErrorKind::Work, "no more paper")) } else { Ok(()) }
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }
    fn ledger(&self) -> Option<Arc<dyn Accounting>> {
        self.ledger.clone().map(|ledger| ledger as _)
    }
}

/// Sessions that are closed in tasks of their own, each of which says so.
struct Sessions {
    name: &'static str,
    left: Arc<Mutex<Vec<()>>>,
    ended: Arc<(Mutex<Ends>, tokio::sync::Notify)>,
}

impl Source for Sessions {
    type Session = ();

    fn news(&self, _: &Drain) -> News<()> {
        let returned = std::mem::take(&mut *self.left.lock().unwrap());
        let ends = std::mem::take(&mut *self.ended.0.lock().unwrap());
        // They are told of when both have ended.
        let open = 2 - ends.closed;
        News { returned, open, ends }
    }
    async fn changed(&self) {
        self.ended.1.notified().await;
    }
    fn close(&self, (): ()) -> impl Future<Output = ()> + Send + 'static {
        let (name, ended) = (self.name, Arc::clone(&self.ended));
        async move {
            tokio::task::yield_now().await;
            tracing::info!("a session of {name} ends");
            let mut ends = ended.0.lock().unwrap();
            ends.record(End::Closed);
            if ends.closed == 2 {
                ended.1.notify_one();
            }
        }
    }
}

#[tokio::test]
async fn what_is_said_in_a_goodbye_is_inside_of_the_span_of_its_resource() {
    let lifecycle = lifecycle();
    let _one = lifecycle.guard(Tells::new("one"));
    lifecycle.init().await.unwrap();
    let report = lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(said_in("one is opened"), [Vec::<String>::new()], "nothing drains");
    assert_eq!(said_in("one says goodbye"), [["one"]]);
    assert_eq!(said_in("one goes on"), [["one"]]);
    assert_eq!(said_in("a session of one ends"), [["one"], ["one"]], "also in the tasks of its goodbye");
}

#[tokio::test]
async fn two_resources_that_drain_at_the_same_time_have_one_span_each() {
    let lifecycle = lifecycle();
    let together = Arc::new(Barrier::new(2));
    let tells = |name| Tells { together: Arc::clone(&together), ..Tells::new(name) };
    let _both = (lifecycle.guard(tells("left")), lifecycle.guard(tells("right")));
    lifecycle.init().await.unwrap();
    let report = lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    for name in ["left", "right"] {
        assert_eq!(said_in(&format!("{name} goes on")), [[name]], "the other one is in the middle of its own");
        assert_eq!(said_in(&format!("a session of {name} ends")), [[name], [name]]);
        assert_eq!(ended(name)["outcome"], "drained");
    }
}

#[tokio::test]
async fn s6_a_span_ends_with_what_the_row_of_the_report_says() {
    let lifecycle = lifecycle();
    let ledger = Arc::new(Ledger::default());
    assert!(ledger.accepted(5) && ledger.writing(3));
    ledger.written(3);
    ledger.lost(2);
    let counts = lifecycle.guard(Tells { fails: true, ledger: Some(ledger), ..Tells::new("counts") });
    let _unused = lifecycle.guard(Tells::new("unused"));
    counts.pool().await.unwrap();
    let report = lifecycle.drain().await;
    let row = report.resource("counts").unwrap();
    assert_eq!((row.outcome, row.sessions.closed), (Outcome::Failed, 2), "{report}");
    let Records { accepted, written, lost, .. } = row.records.unwrap();
    assert_eq!((accepted, written, lost), (5, 3, 2));
    let span = ended("counts");
    let number = |field: &str| span[field].parse::<u64>().unwrap();
    assert_eq!(span["outcome"], "failed");
    assert_eq!((number("closed"), number("unconfirmed"), number("cut"), number("left_out")), (2, 0, 0, 0));
    assert_eq!((number("accepted"), number("written"), number("lost"), number("pending")), (5, 3, 2, 0));
    assert!(span["took_ms"].parse::<f64>().unwrap() <= 60_000.0, "{span:?}");
    let unused = ended("unused");
    assert_eq!(unused["outcome"], "not initialised");
    assert!(!unused.contains_key("accepted"), "it has no records: {unused:?}");
}
