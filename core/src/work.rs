//! What is drained but has no adapter: tracked work, and hooks.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    Capabilities, Error, Resource, ResourceId, ShutdownGuard,
    drain::Drain,
    error::BoxError,
    node::{Order, Settings, Slot},
};

/// The name that tracked work has in reports.
const TRACKED_WORK: &str = "tracked work";

/// All the work that [`Lifecycle::track`](crate::Lifecycle::track) counts: its checkouts are the pieces of work.
#[derive(Debug)]
pub(crate) struct TrackedWork;

impl TrackedWork {
    /// The work that one life tracks.
    pub(crate) fn slot(settings: Settings) -> Slot<Self> {
        Slot::in_order(Self, TRACKED_WORK.to_owned(), Order::First, settings)
    }
}

impl Resource for TrackedWork {
    type Pool = ();

    fn name(&self) -> &str {
        TRACKED_WORK
    }

    fn opened(&self) -> Option<()> {
        Some(())
    }

    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
        // Core itself waits until all of it is back.
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NO_SESSIONS
    }

    fn reserve(&self, (): &()) -> Duration {
        Duration::ZERO
    }
}

type Running = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

enum Run {
    Once(Mutex<Option<Box<dyn FnOnce() -> Running + Send>>>),
    OnEveryDrain(Box<dyn Fn() -> Running + Send + Sync>),
}

/// Cleanup that has no adapter: an async closure that runs once, when the lifecycle drains.
///
/// Runs beside the resources, unless it is told to run [`before`](Self::before) one of them or [`last`](Self::last).
/// Anything that returns `()` or a `Result` can be given to [`Lifecycle::on_drain`](crate::Lifecycle::on_drain)
/// directly; this type is for telling more.
///
/// ```
/// # use winddown_core::{Hook, Lifecycle, memory::Memory};
/// # async fn example(lifecycle: &Lifecycle) {
/// let db = lifecycle.guard(Memory::new("db"));
/// let last_words = { let db = db.clone(); async move || db.get().await.map(drop) };
/// lifecycle.on_drain("last words", Hook::new(last_words).before(&db));
/// # }
/// ```
pub struct Hook {
    run: Run,
    flush: Option<Box<dyn Fn() -> Running + Send + Sync>>,
    before: Vec<ResourceId>,
    last: bool,
}

impl Hook {
    /// A hook that runs this, once: in the drain of the life in which it is given to the lifecycle.
    pub fn new<F, Fut, T>(hook: F) -> Self
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
        T: HookResult,
    {
        let run = Box::new(move || Box::pin(async move { hook().await.into_result() }) as Running);
        Self::of(Run::Once(Mutex::new(Some(run))))
    }

    /// A hook that runs this in the drain of [each life](crate::Lifecycle::restart).
    pub fn on_every_drain<F, Fut, T>(hook: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = T> + Send + 'static,
        T: HookResult,
    {
        let run = Box::new(move || {
            let running = hook();
            Box::pin(async move { running.await.into_result() }) as Running
        });
        Self::of(Run::OnEveryDrain(run))
    }

    fn of(run: Run) -> Self {
        Self { run, flush: None, before: Vec::new(), last: false }
    }

    /// Flushes what the client behind this hook holds, as often as [`Lifecycle::flush`](crate::Lifecycle::flush) is called:
    /// at the end of each invocation of a Lambda function, before it is frozen. For error trackers and exporters that have
    /// no adapter; without it what they hold waits for the drain, or is lost with an environment that ends without SIGTERM.
    ///
    /// It is for sending what there is, and must leave the client usable. It is not called once the hook itself has run, and
    /// a drain does not call it: the hook does what has to be done then.
    ///
    /// Runs on the application's runtime and must not block it: `tokio::task::spawn_blocking` is for clients whose flush
    /// does.
    ///
    /// ```
    /// # use winddown_core::{Hook, Lifecycle};
    /// # #[derive(Clone)] struct Tracker;
    /// # impl Tracker { async fn flush(&self) {} async fn close(&self) {} }
    /// # fn example(lifecycle: &Lifecycle, tracker: Tracker) {
    /// let flushed = tracker.clone();
    /// let hook = Hook::new(async move || tracker.close().await).flush(move || {
    ///     let tracker = flushed.clone();
    ///     async move { tracker.flush().await }
    /// });
    /// lifecycle.on_drain("error tracker", hook.last());
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// Has to be cancel safe: it is dropped where the one who flushes has no more time.
    #[must_use]
    pub fn flush<F, Fut, T>(mut self, flush: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = T> + Send + 'static,
        T: HookResult,
    {
        self.flush = Some(Box::new(move || {
            let flushing = flush();
            Box::pin(async move { flushing.await.into_result() })
        }));
        self
    }

    /// Whether it can still be asked for what it does.
    fn has_run(&self) -> bool {
        match &self.run {
            Run::Once(run) => run.lock().unwrap_or_else(PoisonError::into_inner).is_none(),
            Run::OnEveryDrain(_) => false,
        }
    }

    /// Runs before this resource is drained, so that it can still use it. Takes back [`last`](Self::last).
    #[must_use]
    pub fn before<R: Resource>(mut self, guard: &ShutdownGuard<R>) -> Self {
        self.before.push(guard.id());
        self.last = false;
        self
    }

    /// Runs after everything else, in time that is kept for it: for telemetry. Takes back [`before`](Self::before).
    #[must_use]
    pub fn last(mut self) -> Self {
        self.before.clear();
        self.last = true;
        self
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook")
            .field("flush", &self.flush.is_some())
            .field("before", &self.before)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl<F, Fut, T> From<F> for Hook
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = T> + Send + 'static,
    T: HookResult,
{
    fn from(hook: F) -> Self {
        Self::new(hook)
    }
}

/// What a hook may return: `()`, or a `Result` whose error is shown in the report.
pub trait HookResult {
    /// The same as a result.
    fn into_result(self) -> Result<(), BoxError>;
}

impl HookResult for () {
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl<E: Into<BoxError>> HookResult for Result<(), E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

impl Resource for Hook {
    type Pool = ();

    fn name(&self) -> &str {
        "hook"
    }

    fn opened(&self) -> Option<()> {
        Some(())
    }

    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
        let running = match &self.run {
            Run::Once(run) => match run.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(run) => run(),
                None => return Ok(()),
            },
            Run::OnEveryDrain(run) => run(),
        };
        running.await.map_err(|error| Error::new(crate::ErrorKind::Work, "the hook failed").with_source(error))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NO_SESSIONS
    }

    async fn flush(&self, (): &()) -> Result<(), Error> {
        let Some(flush) = self.flush.as_ref().filter(|_| !self.has_run()) else { return Ok(()) };
        let failed = |error| Error::new(crate::ErrorKind::Work, "the flush of the hook failed").with_source(error);
        flush().await.map_err(failed)
    }

    fn depends_on(&self) -> Vec<ResourceId> {
        self.before.clone()
    }

    fn drains_last(&self) -> bool {
        self.last
    }

    fn is_restartable(&self) -> bool {
        matches!(self.run, Run::OnEveryDrain(_))
    }
}
