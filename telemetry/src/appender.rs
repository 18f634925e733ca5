//! The non-blocking writer of `tracing-appender`.

use std::{
    fmt,
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use winddown_core::{BoxError, Capabilities, Error, ErrorKind, Resource, adapter::Drain};

use crate::aside::{Aside, watched};

/// What [`tracing_appender::non_blocking()`] does, with a resource in place of the guard that has to be kept: lines are
/// written on a thread of their own, and when everything else has been drained that thread writes the rest.
///
/// ```
/// use std::io::Write;
///
/// use winddown_core::Lifecycle;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), winddown_core::Error> {
/// let lifecycle = Lifecycle::builder().signals(false).build()?; // `Lifecycle::detect()` in a real program
/// let (mut writer, appender) = winddown_telemetry::non_blocking(std::io::stdout());
/// let _log = lifecycle.guard(appender);
/// // `tracing_subscriber::fmt().with_writer(writer).init()` in a real program
/// # writer.write_all(b"a line\n").unwrap();
///
/// let report = lifecycle.drain().await;
/// assert!(report.is_clean(), "{report}");
/// # Ok(())
/// # }
/// ```
pub fn non_blocking<W: Write + Send + 'static>(writer: W) -> (NonBlocking, Appender) {
    non_blocking_with(NonBlockingBuilder::default(), writer)
}

/// The same with settings: how many lines are buffered, and whether lines or time are lost where that is not enough.
pub fn non_blocking_with<W: Write + Send + 'static>(builder: NonBlockingBuilder, writer: W) -> (NonBlocking, Appender) {
    let (sender, written) = watch::channel(Written::default());
    let (lines, guard) = builder.finish(Watched { writer, end: End(sender) });
    let watch = Watch { lines: lines.clone(), marks: AtomicU64::new(0), written };
    (lines, Appender::new(guard, Some(watch)))
}

/// A non-blocking writer that writes its rest when everything else has been drained, so that what is logged meanwhile is
/// written too.
///
/// Made by [`non_blocking`], or [around](Self::wrap) a guard that the application has.
/// [`Lifecycle::guard`](winddown_core::Lifecycle::guard) takes it in; there is nothing to check out of that guard.
///
/// Dropping a [`WorkerGuard`] waits for the writer, for 1.1 s at most, which is longer than all of Lambda's budget and
/// shorter than many others, and does not say whether everything was written. This waits until the writer's thread has
/// ended, for as long as the drain has time; then it is left, and the report calls it hung. So it does where the buffer
/// has no room for 100 ms: then the thread cannot be told to end. Lines that could not be written make it failed, with
/// their number; lines that were dropped since the buffer was full are noted.
///
/// Lines that are logged after that, by what is left of the application, are lost.
///
/// [`Lifecycle::flush`](winddown_core::Lifecycle::flush) waits until the lines that are buffered have been written.
pub struct Appender {
    /// Taken by the drain.
    guard: Mutex<Option<WorkerGuard>>,
    watch: Option<Watch>,
    aside: Aside,
}

/// How the writer's thread is watched.
struct Watch {
    lines: NonBlocking,
    /// How many marks there were.
    marks: AtomicU64,
    /// Closed without `over` where the thread has panicked.
    written: watch::Receiver<Written>,
}

/// What the writer's thread has done.
#[derive(Debug, Clone, Default)]
struct Written {
    /// Everything before this mark.
    mark: u64,
    /// Lines that it could not write.
    failed: u64,
    /// Why, the last time that it could not write or flush.
    error: Option<Arc<io::Error>>,
    /// Everything, and it has ended.
    over: bool,
}

impl Appender {
    /// A writer that the application has built: [`tracing_appender::non_blocking()`] returns its guard.
    ///
    /// Whether everything was written cannot be seen then: the report says so, and calls it failed where the guard gave
    /// up after its 1 s. [`Lifecycle::flush`](winddown_core::Lifecycle::flush) does nothing.
    pub fn wrap(guard: WorkerGuard) -> Self {
        Self::new(guard, None)
    }

    fn new(guard: WorkerGuard, watch: Option<Watch>) -> Self {
        Self { guard: Mutex::new(Some(guard)), watch, aside: Aside::default() }
    }
}

/// How long a guard waits for the writer's thread when it is dropped; 100 ms more where the buffer is full.
const GUARD_PATIENCE: Duration = Duration::from_secs(1);

/// The guard's own end, for a thread of its own.
fn end(guard: WorkerGuard) -> Result<(), Error> {
    let began = Instant::now();
    drop(guard);
    if began.elapsed() < GUARD_PATIENCE {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Timeout, "its guard has waited for 1 s and given up: lines may be missing"))
}

impl Watch {
    /// Ready when everything before this mark is written, or the thread has ended.
    async fn reached(&self, mark: u64) -> Result<Written, Error> {
        let mut written = self.written.clone();
        let reached = written.wait_for(|written| written.over || written.mark >= mark).await;
        match reached {
            Ok(written) => Ok(written.clone()),
            Err(_) => Err(Error::new(ErrorKind::Panicked, "its writer panicked: lines are missing")),
        }
    }

    async fn over(&self, drain: &Drain) -> Result<(), Error> {
        let Written { failed, error, .. } = self.reached(u64::MAX).await?;
        let dropped = self.lines.error_counter().dropped_lines();
        if dropped > 0 {
            let full = format!("lines that were dropped, since the buffer was full: {dropped}");
            drain.note(&Error::new(ErrorKind::Full, full));
        }
        error.map_or(Ok(()), |error| Err(not_written(failed, error)))
    }

    /// A mark goes the way of the lines. It is lost where the buffer is full and may lose lines; then nobody can say when
    /// those before it are written, and this waits on.
    async fn flush(&self, aside: &Aside) -> Result<(), Error> {
        let before = self.written.borrow().clone();
        if before.over {
            return Ok(());
        }
        // A higher mark comes after the lines of whoever drew a lower one, so it may stand for both.
        let mark = self.marks.fetch_add(1, Ordering::SeqCst) + 1;
        let mut lines = self.lines.clone();
        // Aside: a buffer that loses no lines makes who writes wait.
        aside.run(move || lines.write_all(&marked(mark)).map_err(|error| not_written(0, error))).await?;
        let after = self.reached(mark).await?;
        let is_known = |error| before.error.as_ref().is_some_and(|known| Arc::ptr_eq(known, error));
        match after.error {
            Some(error) if !is_known(&error) => Err(not_written(after.failed - before.failed, error)),
            _ => Ok(()),
        }
    }
}

fn not_written(lines: u64, error: impl Into<BoxError>) -> Error {
    let what = match lines {
        0 => "its writer could not be flushed".into(),
        lines => format!("lines that could not be written: {lines}"),
    };
    Error::new(ErrorKind::Write, what).with_source(error)
}

impl Resource for Appender {
    type Pool = ();

    fn name(&self) -> &str {
        "log"
    }

    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }

    /// It writes from the moment it is built.
    fn opened(&self) -> Option<()> {
        Some(())
    }

    async fn goodbye(&self, (): &(), drain: &Drain) -> Result<(), Error> {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(guard) = guard else { return Ok(()) };
        let ended = self.aside.run(move || end(guard));
        let rest = async {
            match &self.watch {
                None => ended.await,
                // The guard only has to tell the thread. Where it has given up, the thread still writes.
                Some(watch) => tokio::join!(ended, watch.over(drain)).1,
            }
        };
        watched(drain, "its writer does not end", rest).await
    }

    async fn flush(&self, (): &()) -> Result<(), Error> {
        match &self.watch {
            None => Ok(()),
            Some(watch) => watch.flush(&self.aside).await,
        }
    }

    fn capabilities(&self) -> Capabilities {
        if self.watch.is_some() { Capabilities::NO_SESSIONS } else { Capabilities::NO_SESSIONS.without_confirmed_end() }
    }

    fn drains_last(&self) -> bool {
        true
    }
}

impl fmt::Debug for Appender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appender").field("watched", &self.watch.is_some()).finish_non_exhaustive()
    }
}

/// No line of a log begins so.
const MARK: &[u8] = b"\0winddown mark\0";

fn marked(mark: u64) -> Vec<u8> {
    [MARK, &mark.to_be_bytes()].concat()
}

fn mark_of(line: &[u8]) -> Option<u64> {
    line.strip_prefix(MARK)?.try_into().ok().map(u64::from_be_bytes)
}

/// The application's writer, on the thread of `tracing-appender`, which passes over errors.
struct Watched<W> {
    writer: W,
    /// After the writer: what that writes when it is dropped is written too.
    end: End,
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    /// One call is one line.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        if let Some(mark) = mark_of(line) {
            let flushed = self.flush();
            self.end.0.send_modify(|written| written.mark = written.mark.max(mark));
            return flushed;
        }
        let result = self.writer.write_all(line);
        self.end.keep(result, 1)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.writer.flush();
        self.end.keep(result, 0)
    }
}

/// Says that the thread has ended.
struct End(watch::Sender<Written>);

impl End {
    /// Keeps the error: the thread has no use for it but to go on.
    fn keep(&self, result: io::Result<()>, lines: u64) -> io::Result<()> {
        result.map_err(|error| {
            let kind = error.kind();
            self.0.send_modify(|written| {
                written.failed += lines;
                written.error = Some(Arc::new(error));
            });
            kind.into()
        })
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.0.send_modify(|written| written.over = true);
        }
    }
}
