//! A checkout that is out for longer than it should is warned of: once, at its moment, with its line. On tokio's paused clock.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{advance, sleep};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
};
use winddown_core::{Lifecycle, ShutdownGuard, memory::Memory};

const LIMIT: Duration = Duration::from_secs(5);
const MS: Duration = Duration::from_millis(1);

/// The warnings of this thread, as text.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn watch() -> (Self, DefaultGuard) {
        let warnings = Self::default();
        let watched = tracing::subscriber::set_default(tracing_subscriber::registry().with(warnings.clone()));
        (warnings, watched)
    }

    /// Those that came since this was last asked.
    async fn take(&self) -> Vec<String> {
        // Whatever the clock woke runs first.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() != Level::WARN {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0 += &format!("{field}={value:?} ");
    }
}

fn db(limit: Option<Duration>) -> (Lifecycle, ShutdownGuard<Memory>) {
    let mut builder = Lifecycle::builder().signals(false).budget(Duration::from_secs(60));
    if let Some(limit) = limit {
        builder = builder.warn_after(limit);
    }
    let lifecycle = builder.build().unwrap();
    let db = lifecycle.guard(Memory::new("orders").size(2));
    (lifecycle, db)
}

#[tokio::test(start_paused = true)]
async fn a_checkout_is_warned_of_when_it_has_been_out_for_the_limit_and_not_before() {
    let (warnings, _watched) = Warnings::watch();
    let (_lifecycle, db) = db(Some(LIMIT));
    let _out = db.get().await.unwrap();
    advance(LIMIT - MS).await;
    assert_eq!(warnings.take().await, [""; 0], "1 ms before");
    advance(2 * MS).await;
    assert_eq!(warnings.take().await.len(), 1, "1 ms after");
}

#[tokio::test(start_paused = true)]
async fn a_warning_names_the_resource_and_the_line_of_the_checkout() {
    let (warnings, _watched) = Warnings::watch();
    let (_lifecycle, db) = db(Some(LIMIT));
    let one = db.get();
    let line = line!() - 1;
    let _one = one.await.unwrap();
    sleep(LIMIT - MS).await;
    let _another_line = db.get().await.unwrap();
    sleep(2 * MS).await;
    let said = warnings.take().await;
    let [warning] = &said[..] else { panic!("{said:?}") };
    let site = format!("{}:{line}:", file!());
    assert!(warning.contains("orders") && warning.contains(&site) && warning.contains("5s"), "{warning}: {site}");
}

#[tokio::test(start_paused = true)]
async fn each_checkout_is_warned_of_once() {
    let (warnings, _watched) = Warnings::watch();
    let (_lifecycle, db) = db(Some(LIMIT));
    let (one, _two) = (db.get().await.unwrap(), db.get().await.unwrap());
    sleep(100 * LIMIT).await;
    assert_eq!(warnings.take().await.len(), 2, "one for each of them");
    drop(one);
    let _three = db.get().await.unwrap();
    sleep(100 * LIMIT).await;
    assert_eq!(warnings.take().await.len(), 1, "one more for the next");
}

#[tokio::test(start_paused = true)]
async fn c2_what_comes_back_in_time_is_not_warned_of_and_leaves_no_timer() {
    let (warnings, _watched) = Warnings::watch();
    let (lifecycle, db) = db(Some(LIMIT));
    for _ in 0..10 {
        let out = db.get().await.unwrap();
        sleep(LIMIT - MS).await;
        drop(out);
    }
    assert_eq!(warnings.take().await, [""; 0]);
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks, 0, "whoever would have warned has gone");
    // One who waits for a checkout has none.
    let (_one, _two) = (db.get().await.unwrap(), db.get().await.unwrap());
    let waits = tokio::spawn({
        let db = db.clone();
        async move { db.get().await.map(drop) }
    });
    sleep(2 * LIMIT).await;
    assert_eq!(warnings.take().await.len(), 2);
    waits.abort();
    let _work = lifecycle.track().unwrap();
    sleep(2 * LIMIT).await;
    assert_eq!(warnings.take().await, [""; 0], "nor is tracked work a checkout");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_warned_of_by_default() {
    let (warnings, _watched) = Warnings::watch();
    let (_lifecycle, db) = db(None);
    let _out = db.get().await.unwrap();
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
    sleep(Duration::from_secs(86_400)).await;
    assert_eq!(warnings.take().await, [""; 0]);
}
